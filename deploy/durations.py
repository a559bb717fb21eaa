"""Durations as people type and read them: `1h30m`, `90m`, `5400`."""

from __future__ import annotations

import re

_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PART = re.compile(r"(\d{1,9})([dhms])")


def duration_s(text: str) -> int:
    """Seconds of `1h30m`, `2d`, `90m`, `45s` or plain seconds. Raises ValueError."""
    given = text.strip().lower()
    if given.isdecimal() and given.isascii():
        total = int(given)
    else:
        parts = _PART.findall(given)
        units = [unit for _, unit in parts]
        if not parts or "".join(number + unit for number, unit in parts) != given:
            raise ValueError(f"{text!r} is not a duration such as 1h30m, 90m, 2d or 5400 (seconds)")
        if units != sorted(set(units), key="dhms".index):
            raise ValueError(f"{text!r} must name each unit once, the greater first, as in 1h30m")
        total = sum(int(number) * _UNITS_S[unit] for number, unit in parts)
    if total < 1:
        raise ValueError(f"{text!r} must be at least one second")
    return total


def duration_text(seconds: float) -> str:
    """`1h 30m`, `12m 5s`, `3.2s`: the two greatest units."""
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f}s"
    rest = round(seconds)
    parts = []
    for unit, size in _UNITS_S.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
