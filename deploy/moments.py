"""Moments as people type them: RFC 3339, or the time in Seoul that every table shows."""

from __future__ import annotations

from datetime import datetime

from deploy.session import UsageTrouble
from quota.clock import instant_ms

MOMENT_HELP = "a time in Seoul such as '2026-11-22 18:00', or RFC 3339 with a zone"


def moment_ms(option: str, text: str) -> int:
    """Business milliseconds of a moment as typed; without a zone it is Seoul's. Raises UsageTrouble."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return instant_ms(text.strip() if moment.tzinfo else f"{moment.isoformat()}+09:00")
    except ValueError as error:
        raise UsageTrouble(f"{option} {text!r} is not {MOMENT_HELP}") from error


def maybe_moment_ms(option: str, text: str | None) -> int | None:
    """`moment_ms`, or None for an option that was left out."""
    return None if text is None else moment_ms(option, text)
