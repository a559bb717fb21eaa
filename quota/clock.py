"""One time for all programs: the wall's, or a faster one with the same origin everywhere."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

SEOUL_MS = 9 * 3_600_000
"""Asia/Seoul is UTC+9 all year."""
HOUR_MS = 3_600_000

_INSTANT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,3}))?Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def wall_ms() -> int:
    """Milliseconds since 1970-01-01T00:00:00Z on the machine's own clock."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """Business time as a straight line over wall time.

    `business_at_ms` and `wall_at_ms` name one moment in both times; from there business time runs
    `speed` times as fast as the wall. Walltime, grants, slices and samples use `now_ms()`; leases,
    polls and backoffs use the wall or a monotonic clock.
    """

    business_at_ms: int = 0
    wall_at_ms: int = 0
    speed: int = 1

    def __post_init__(self) -> None:
        assert self.speed >= 1, "a clock never runs backwards or slower than the wall"

    def now_ms(self) -> int:
        """The present business time in milliseconds since 1970 (UTC)."""
        return self.at_wall(wall_ms())

    def at_wall(self, moment_wall_ms: int) -> int:
        """The business time in milliseconds at a wall time in milliseconds."""
        return self.business_at_ms + (moment_wall_ms - self.wall_at_ms) * self.speed

    def wall_of(self, moment_ms: int) -> int:
        """The wall time in milliseconds at a business time in milliseconds, rounded down."""
        return self.wall_at_ms + (moment_ms - self.business_at_ms) // self.speed

    def wall_s(self, business_ms: int) -> float:
        """How many wall seconds a business duration in milliseconds takes."""
        return business_ms / 1000 / self.speed

    def text(self) -> str:
        """`BUSINESS_MS,WALL_MS,SPEED`: how one program hands its clock to another it starts."""
        return f"{self.business_at_ms},{self.wall_at_ms},{self.speed}"

    @classmethod
    def from_text(cls, text: str) -> Clock:
        """Read `BUSINESS_MS,WALL_MS,SPEED`; an empty text is the wall itself. Raises ValueError."""
        if not text:
            return cls()
        parts = text.split(",")
        if len(parts) != 3:
            raise ValueError(f"clock {text!r} is not BUSINESS_MS,WALL_MS,SPEED")
        business, wall, speed = (int(part) for part in parts)
        if speed < 1:
            raise ValueError(f"clock speed {speed} is below 1")
        return cls(business, wall, speed)


def instant_text(moment_ms: int) -> str:
    """RFC 3339 in UTC with exactly three decimals: `2026-11-22T02:22:45.123Z`."""
    whole_s, rest_ms = divmod(moment_ms, 1000)
    return f"{datetime.fromtimestamp(whole_s, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ms:03d}Z"


def instant_ms(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time with `Z` or an offset. Raises ValueError.

    More than three decimals are refused rather than rounded.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f"time {text!r} has no zone; end it with Z or +09:00")
        if moment.microsecond % 1000:
            raise ValueError(f"time {text!r} is finer than a millisecond")
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    seconds = int(datetime.fromisoformat(match[1] + "+00:00").timestamp())
    return seconds * 1000 + int((match[2] or "").ljust(3, "0") or 0)


def day_start_ms(day: str) -> int:
    """When a day of Asia/Seoul (`2026-11-22`) begins; that zone has no daylight saving. Raises ValueError."""
    return instant_ms(f"{date.fromisoformat(day).isoformat()}T00:00:00+09:00")


def day_of(moment_ms: int) -> str:
    """The day of Asia/Seoul that a moment lies in."""
    return datetime.fromtimestamp((moment_ms + SEOUL_MS) // 1000, UTC).date().isoformat()
