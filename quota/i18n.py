"""What the service says, in the languages of its users: English in the code, Korean from gettext catalogues.

`quota/texts/<language>/LC_MESSAGES` has one catalogue per kind of text, read once when it is first needed:
`titles` (by problem code), `details` and `sentences` (by the English template with its named fields; the latter are
about jobs, see `quota.wording`) and `fields` (by the type of a validation error).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from babel.messages.pofile import read_po

_QUALITY = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")
_RANGES_READ = 50
"""Of a longer Accept-Language only this many ranges count."""


class Language(StrEnum):
    """A language of the service's texts."""

    ENGLISH = "en"
    KOREAN = "ko"


DOMAINS = ("titles", "details", "fields", "sentences")


def choose(accept_language: str) -> Language:
    """The language that an Accept-Language header prefers; English if it is empty or names neither."""
    best: dict[Language, tuple[float, int]] = {}
    anything: tuple[float, int] | None = None
    for place, (name, quality) in enumerate(_ranges(accept_language)):
        if name == "*":
            anything = anything or (quality, -place)
        for language in Language:
            if name.partition("-")[0] == language.value:
                best[language] = max(best.get(language, (quality, -place)), (quality, -place))
    if anything is not None:
        for language in Language:
            best.setdefault(language, anything)
    wanted = [(*rank, language) for language, rank in best.items() if rank[0] > 0]
    if not wanted:
        return Language.ENGLISH
    first = max((quality, place) for quality, place, _ in wanted)
    # both behind one `*`: English, as without a header
    return min(language for quality, place, language in wanted if (quality, place) == first)


def _ranges(accept_language: str) -> Iterator[tuple[str, float]]:
    for part in accept_language.split(",")[:_RANGES_READ]:
        name, _, parameter = part.strip().partition(";")
        key, _, value = parameter.strip().partition("=")
        if not parameter:
            yield name.strip().lower(), 1.0
        elif key.strip().lower() == "q" and _QUALITY.fullmatch(value.strip()):
            yield name.strip().lower(), float(value)


def text(language: Language, domain: str, key: str) -> str | None:
    """What a catalogue has for a key; None if it has nothing, and for English, which stands in the code."""
    return None if language is Language.ENGLISH else catalogue(language, domain).get(key)


@cache
def catalogue(language: Language, domain: str) -> Mapping[str, str]:
    """One catalogue, without its header and without what is not translated yet."""
    path = files("quota").joinpath("texts", language.value, "LC_MESSAGES", f"{domain}.po")
    with path.open("rb") as stored:
        messages = read_po(stored, locale=language.value, abort_invalid=True)
    return MappingProxyType(
        {str(message.id): str(message.string) for message in messages if message.id and message.string}
    )
