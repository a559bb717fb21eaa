"""How fast one token may ask, and how many logs it may read at once.

A bucket of requests that refills, and seats that are given back. Per process, so N replicas let N times as much in.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from quota.errors import RateLimited, TooManyLogs
from quota.schemas.identity import Caller, Role
from quota.settings import Settings

BUCKETS_KEPT = 10_000
"""Beyond this many tokens the full buckets are dropped: a full one is what a new one is."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` requests at once, refilled at `per_s`."""

    per_s: float
    burst: int


class Throttle:
    """The buckets of one process."""

    def __init__(self, settings: Settings, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        member = Limit(settings.member_requests_per_s, settings.member_requests_burst)
        staff = Limit(settings.staff_requests_per_s, settings.staff_requests_burst)
        self._limits = {Role.MEMBER: member, Role.OPERATOR: staff, Role.AUDITOR: staff}
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float, Limit]] = {}
        """By token: what was in it, when that was, and its limit."""
        self._first: dict[str, str] = {}
        """By a token that took another over: the first of its chain, whose bucket all of them share."""

    def take(self, caller: Caller) -> None:
        """One request of this caller. Raises RateLimited with the seconds until the next one may come.

        A refused request takes nothing. Scheduler and agents are not limited, nor is anybody at 0 per second.
        """
        limit = self._limits.get(caller.role)
        if limit is None or not limit.per_s:
            return
        now_s = self._monotonic_s()
        with self._lock:
            key = self._first.get(caller.token_id, caller.token_id)
            level = self._level(key, limit, now_s)
            if level >= 1:
                self._buckets[key] = (level - 1, now_s, limit)
                self._drop_full(now_s)
                return
        raise RateLimited(
            "this token may send {per_s} requests a second and {burst} at once; try again in {retry_after_s} s",
            per_s=f"{limit.per_s:g}",
            burst=limit.burst,
            retry_after_s=math.ceil((1 - level) / limit.per_s),
        )

    def hand_on(self, token_id: str, successor: str) -> None:
        """A rotated token's successor shares its bucket: else who rotates often asks as fast as it likes."""
        with self._lock:
            self._first[successor] = self._first.get(token_id, token_id)

    def first_of(self, token_id: str) -> str:
        """The first token of a rotated token's chain, which shares its limits."""
        with self._lock:
            return self._first.get(token_id, token_id)

    def _level(self, token_id: str, limit: Limit, now_s: float) -> float:
        level, since_s, _ = self._buckets.get(token_id, (float(limit.burst), now_s, limit))
        return min(float(limit.burst), level + (now_s - since_s) * limit.per_s)

    def _drop_full(self, now_s: float) -> None:
        if len(self._buckets) <= BUCKETS_KEPT:
            return
        for token_id, (_, _, limit) in list(self._buckets.items()):
            if self._level(token_id, limit, now_s) >= limit.burst:
                del self._buckets[token_id]


SEAT_RETRY_S = 5
"""When somebody without a seat may try again."""


class Seats:
    """Who reads logs now in one process, so many at once per token and in all."""

    def __init__(self, settings: Settings) -> None:
        self._each, self._all = settings.logs_per_token, settings.logs_at_once
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, token_id: str) -> None:
        """One seat; give it back. Raises TooManyLogs."""
        with self._lock:
            if self._taken[token_id] < self._each and self._taken.total() < self._all:
                self._taken[token_id] += 1
                return
        raise TooManyLogs(
            "one token may read {each} logs at once, all together {all}; try again in {retry_after_s} s",
            each=self._each,
            all=self._all,
            retry_after_s=SEAT_RETRY_S,
        )

    def give_back(self, token_id: str) -> None:
        """Let somebody else have it."""
        with self._lock:
            self._taken[token_id] -= 1
            assert self._taken[token_id] >= 0, "a seat is given back once"
            if not self._taken[token_id]:
                del self._taken[token_id]

    def taken(self) -> int:
        """How many logs are being read."""
        with self._lock:
            return self._taken.total()
