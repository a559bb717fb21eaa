"""How a sentence is put together: clauses, each with variants from the most telling to the plainest.

English stands in the code and is the key of the Korean text in `quota/texts`. Of a clause the first variant is said
whose fields are all known; a clause of which none is, is left out. In Korean a field may name the particle that
follows it: `{gpu_class:이/가}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from string import Formatter

from quota.i18n import Language, text
from quota.wording.particles import with_particle

Fields = Mapping[str, "Word"]
DOMAIN = "sentences"
_BETWEEN = {Language.ENGLISH: "; ", Language.KOREAN: ". "}


class Word(str):
    """A value as it is said. As `{field:을/를}` its particle follows it."""

    __slots__ = ()

    def __format__(self, pair: str) -> str:
        return with_particle(self, pair) if pair else str(self)


@dataclass(frozen=True, slots=True)
class Say:
    """One way to say something, in English with named fields."""

    english: str
    only: Mapping[str, str] = field(default_factory=dict)
    """It is said only where these fields have these values."""

    @property
    def fields(self) -> frozenset[str]:
        """The fields that it names."""
        return fields_of(self.english)

    def fits(self, fields: Fields) -> bool:
        """Whether everything that it names is known."""
        return self.fields <= fields.keys() and all(
            fields.get(key) == value for key, value in self.only.items()
        )


Clause = tuple[Say, ...]


def said(language: Language, clauses: tuple[Clause, ...], fields: Fields) -> str:
    """The clauses as one text; "" if none can be said."""
    chosen = (next((say for say in clause if say.fits(fields)), None) for clause in clauses)
    parts = [_template(language, say.english).format_map(fields) for say in chosen if say is not None]
    return _BETWEEN[language].join(parts)


@cache
def fields_of(template: str) -> frozenset[str]:
    """The names of a template's fields."""
    return frozenset(name for _, name, _, _ in Formatter().parse(template) if name)


def _template(language: Language, english: str) -> str:
    return text(language, DOMAIN, english) or english
