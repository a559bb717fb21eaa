"""Korean particles (조사) after any word: which of two forms follows depends on how the word's end is spoken.

After a consonant at the end (받침) stand 은, 이, 을, 과, 으로, after a vowel 는, 가, 를, 와, 로; 로 also after ㄹ.
Hangul says it by itself. Digits are read as numbers (10 십, 1,000 천), capitals and words without a vowel letter by
letter (GPU 지피유), other Latin words as loanwords usually are (lab 랩, server 서버). A word whose end is not known
takes both forms: 은(는).
"""

from __future__ import annotations

import re

_PAIRS = {"은/는", "이/가", "을/를", "과/와", "으로/로", "이라/라"}
_NO_SOUND = " \t'\")]}>\u2019\u201d\u300d\u300f"
"""Closing quotes and brackets, Korean ones too."""
_HANGUL_FIRST, _HANGUL_LAST, _FINALS, _RIEUL = 0xAC00, 0xD7A3, 28, 8
_VOWEL = re.compile(r"[aeiouy]")
_WORD = re.compile(r"[A-Za-z]+$")
_NUMBER = re.compile(r"[0-9][0-9,]*(\.[0-9]+)?$")
_IN_BRACKETS = re.compile(r"\s*\([^()]*\)$")

_SPOKEN_DIGITS = "영일이삼사오육칠팔구"
_SPOKEN_ZEROS = "영십백천만만만만억억억억조조조조경"
"""By how many zeros a number ends in: 10, 100, 1,000, 10,000, …"""
_SPOKEN_SIGNS = {"%": "퍼센트", "℃": "도", "₩": "원", "+": "플러스"}
_SPOKEN_LETTERS = dict(
    zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "이비시디이프지치이이이엘엠엔오피큐알스티유이유스이트", strict=True)
)
"""The last syllable of each letter's name: 에이, 비, 시, 디, 이, 에프, …"""
_LOANWORD_ENDS = (
    (re.compile(r"(ng|m|n|[aeiou][mn]e)$"), "ㅁ"),
    (re.compile(r"(l|le)$"), "ㄹ"),
    (re.compile(r"((?<![aeiou])[aeiou](b|c|ck|k|p|t)|ook|oup)$"), "ㅂ"),
)
"""How an English word's end usually sounds in Korean: ㅁ, ㄹ and ㅂ stand for a nasal, an l and a stop."""


def with_particle(word: str, pair: str) -> str:
    """`word` with the form of a pair such as `을/를` that follows it. Raises ValueError for a pair that is none."""
    if pair not in _PAIRS:
        raise ValueError(f"{pair!r} is no pair of particles; there are {', '.join(sorted(_PAIRS))}")
    after_consonant, after_vowel = pair.split("/")
    final = _final(word)
    if final is None:
        return word + _both(after_consonant, after_vowel)
    if pair == "으로/로":
        return word + (after_vowel if final in ("", "ㄹ") else after_consonant)
    return word + (after_consonant if final else after_vowel)


def _both(after_consonant: str, after_vowel: str) -> str:
    if after_consonant.endswith(after_vowel):  # (으)로, (이)라
        return f"({after_consonant.removesuffix(after_vowel)}){after_vowel}"
    return f"{after_consonant}({after_vowel})"


def _final(word: str) -> str | None:
    """How a word ends when spoken: "" with a vowel, "ㄹ" with that, else any other consonant; None: not known."""
    heard = _IN_BRACKETS.sub("", word) or word
    heard = heard.rstrip(_NO_SOUND)
    if not heard:
        return None
    last = heard[-1]
    if "가" <= last <= "힣":
        return _final_of_syllable(last)
    if last in _SPOKEN_SIGNS:
        return _final_of_syllable(_SPOKEN_SIGNS[last][-1])
    if number := _NUMBER.search(heard):
        return _final_of_syllable(_spoken_end(number))
    if latin := _WORD.search(heard):
        return _final_of_latin(latin[0])
    return None


def _final_of_syllable(syllable: str) -> str:
    final = (ord(syllable) - _HANGUL_FIRST) % _FINALS
    return "" if final == 0 else "ㄹ" if final == _RIEUL else "ㅂ"


def _spoken_end(number: re.Match[str]) -> str:
    """The last syllable of a number; behind a decimal point the digits are read one by one."""
    digits = number[0].replace(",", "")
    rest = digits.rstrip("0")
    if number[1] or not rest:
        return _SPOKEN_DIGITS[int(digits[-1])]
    zeros = len(digits) - len(rest)
    return _SPOKEN_ZEROS[min(zeros, 16)] if zeros else _SPOKEN_DIGITS[int(digits[-1])]


def _final_of_latin(word: str) -> str:
    if word.isupper() or not _VOWEL.search(word.lower()):
        return _final_of_syllable(_SPOKEN_LETTERS[word[-1].upper()])
    lower = word.lower()
    return next((final for end, final in _LOANWORD_ENDS if end.search(lower)), "")
