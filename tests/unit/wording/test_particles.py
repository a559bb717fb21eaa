"""The particle that follows a word is the one that a Korean reader would say."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.wording.particles import with_particle

PAIRS = ("은/는", "이/가", "을/를", "과/와", "으로/로", "이라/라")
SYLLABLES = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)


def _jongseong(syllable: str) -> str:
    """The final consonant, as Unicode takes a syllable apart: the third of its letters, if there is one."""
    letters = unicodedata.normalize("NFD", syllable)
    return letters[2] if len(letters) == 3 else ""


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("알파 연구실", "알파 연구실을"),
        ("베타 회사", "베타 회사를"),
        ("H100", "H100을"),  # 백
        ("A100 40GB", "A100 40GB를"),
        ("B200", "B200을"),
        ("L40S", "L40S를"),  # 에스
        ("GPU", "GPU를"),
        ("ETRI", "ETRI를"),
        ("ARM", "ARM을"),  # 엠
        ("HTML", "HTML을"),  # 엘
        ("R", "R을"),
        ("Alpha Lab", "Alpha Lab을"),
        ("Beta Systems", "Beta Systems를"),
        ("Seoul", "Seoul을"),
        ("Google", "Google을"),
        ("team", "team을"),
        ("engine", "engine을"),
        ("acme", "acme를"),
        ("cluster", "cluster를"),
        ("robot", "robot을"),
        ("chart", "chart를"),
        ("desk", "desk를"),
        ("week", "week를"),
        ("h100-1g.10gb", "h100-1g.10gb를"),
        ("job-0n", "job-0n을"),
        ("0", "0을"),
        ("1", "1을"),
        ("2", "2를"),
        ("3", "3을"),
        ("4", "4를"),
        ("5", "5를"),
        ("6", "6을"),
        ("7", "7을"),
        ("8", "8을"),
        ("9", "9를"),
        ("10", "10을"),
        ("1,000", "1,000을"),
        ("10000", "10000을"),
        ("100,000,000", "100,000,000을"),
        ("1,000,000,000,000", "1,000,000,000,000를"),  # 조
        ("12,000,000", "12,000,000을"),
        ("1.20", "1.20을"),
        ("2.5", "2.5를"),
        ("3.1%", "3.1%를"),
        ("「알파」", "「알파」를"),
        ("\u2018알파\u2019", "\u2018알파\u2019를"),
        ("알파(beta)", "알파(beta)를"),
        ("(알림)", "(알림)을"),
        ("東京", "東京을(를)"),
        ("🙂", "🙂을(를)"),
        ("", "을(를)"),
        ("...", "...을(를)"),
    ],
)
def test_the_object_particle_follows_how_a_word_is_spoken(word: str, said: str) -> None:
    assert with_particle(word, "을/를") == said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("서울", "서울로"),
        ("부산", "부산으로"),
        ("대구", "대구로"),
        ("1", "1로"),
        ("7", "7로"),
        ("8", "8로"),
        ("6", "6으로"),
        ("Google", "Google로"),
        ("Lab", "Lab으로"),
        ("L", "L로"),
        ("東京", "東京(으)로"),
    ],
)
def test_the_direction_particle_is_short_after_a_vowel_and_after_rieul(word: str, said: str) -> None:
    assert with_particle(word, "으로/로") == said


@given(st.text(), SYLLABLES, st.sampled_from(PAIRS))
def test_hangul_takes_the_form_of_its_final_consonant(before: str, last: str, pair: str) -> None:
    final = _jongseong(last)
    short = not final or (pair == "으로/로" and final == "\u11af")
    after_consonant, after_vowel = pair.split("/")
    word = before + last
    assert with_particle(word, pair) == word + (after_vowel if short else after_consonant)


@given(st.text(), st.sampled_from(PAIRS))
def test_every_word_keeps_itself_and_takes_one_form_or_both(word: str, pair: str) -> None:
    told = with_particle(word, pair)
    assert told.startswith(word)
    after_consonant, after_vowel = pair.split("/")
    both = {
        f"{after_consonant}({after_vowel})",
        f"({after_consonant.removesuffix(after_vowel)}){after_vowel}",
    }
    assert told[len(word) :] in {after_consonant, after_vowel} | both


@given(st.integers(0, 10**16 - 1))
def test_a_number_is_the_same_with_and_without_commas(number: int) -> None:
    plain, grouped = with_particle(str(number), "은/는"), with_particle(f"{number:,}", "은/는")
    assert plain.removeprefix(str(number)) == grouped.removeprefix(f"{number:,}")


@given(st.integers(1, 9), st.integers(1, 10**6))
def test_a_number_sounds_at_its_end_as_its_last_digit_alone(last: int, before: int) -> None:
    assert with_particle(f"{before}{last}", "이/가")[-1] == with_particle(str(last), "이/가")[-1]


def test_a_pair_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'를/을' is no pair of particles; there are"):
        with_particle("a", "를/을")
