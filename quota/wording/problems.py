"""A problem's code as its title, for sentences about something that was refused."""

from __future__ import annotations

from functools import cache

from quota.errors import HubError
from quota.i18n import Language, text


def problem_text(language: Language, code: str) -> str:
    """The title of a problem without its full stop; a code that no error has is shown itself."""
    return (text(language, "titles", code) or _english().get(code, code)).removesuffix(".")


@cache
def _english() -> dict[str, str]:
    titles: dict[str, str] = {}
    pending: list[type[HubError]] = [HubError]
    for kind in pending:
        titles.setdefault(kind.code, kind.title())
        pending.extend(kind.__subclasses__())
    return titles
