"""When something that failed may be tried again: later each time, never all at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


class Backoffs(Generic[KeyT]):
    """Exponential pauses with jitter, one per key. Times are seconds of a monotonic clock."""

    def __init__(
        self, rng: random.Random, monotonic_s: Callable[[], float], *, first_s: float, longest_s: float
    ) -> None:
        self._rng = rng
        self._monotonic_s = monotonic_s
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures: dict[KeyT, int] = {}
        self._until_s: dict[KeyT, float] = {}

    def failed(self, key: KeyT) -> float:
        """Count a failure; answers how many seconds the key now waits."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause_s = min(self._longest_s, self._first_s * 2.0 ** min(failures, 30))
        pause_s *= 0.5 + self._rng.random() / 2
        self._until_s[key] = self._monotonic_s() + pause_s
        return pause_s

    def succeeded(self, key: KeyT) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)
        self._until_s.pop(key, None)

    def retain(self, wanted: Callable[[KeyT], bool]) -> None:
        """Forget every key that is not wanted any more."""
        for key in [key for key in self._failures if not wanted(key)]:
            self.succeeded(key)

    def waits(self, key: KeyT) -> bool:
        """Whether it is too early to try this key again."""
        return self._monotonic_s() < self._until_s.get(key, float("-inf"))
