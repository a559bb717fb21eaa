"""What a clock that is set does to evidence: it loses at most the time that was lived twice, and doubles none.

- Set forward: the distance is longer than two sample periods, so it is unobserved; what follows is counted where the
  clock says.
- Set back: everything is measured again from the clock's new now on, but time that was counted already is not counted
  once more: each GPU remembers the stretches that were. Where they cannot all be kept, holes between the oldest are
  taken for counted.
- Rows that were delivered are kept by the slowest time that the clock and the process's own monotonic time allow, so
  that a clock set forward for a minute deletes none that would be made anew, from zero, when it is set back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from agents.model import GpuState

Run = tuple[int, int]
"""A stretch of counted time: from, until (ms)."""

MOST_RUNS = 16
"""So many stretches are remembered of each GPU."""

SET_BACK_MS = 5_000
"""A clock that is this far behind what was already measured has been set back, and was not only drifting."""


def set_back(state: GpuState, now_ms: int) -> GpuState:
    """The state to go on from at `now_ms`: another one only if the clock was set back."""
    if state.last_seen_ms <= now_ms + SET_BACK_MS:
        return state
    return replace(state, last_seen_ms=now_ms)


def counted(runs: tuple[Run, ...], from_ms: int, until_ms: int) -> bool:
    """Whether any of the time from `from_ms` to `until_ms` was counted before."""
    return any(since_ms < until_ms and from_ms < end_ms for since_ms, end_ms in runs)


def with_run(runs: tuple[Run, ...], from_ms: int, until_ms: int) -> tuple[Run, ...]:
    """The stretches with one more, oldest first, those that touch joined, at most MOST_RUNS."""
    joined: list[Run] = []
    for since_ms, end_ms in sorted((*runs, (from_ms, until_ms))):
        if joined and since_ms <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_ms))
        else:
            joined.append((since_ms, end_ms))
    while len(joined) > MOST_RUNS:
        joined[:2] = [(joined[0][0], joined[1][1])]
    return tuple(joined)


class SlowTime:
    """Never ahead of the clock, and never further on than the process's monotonic time allows."""

    def __init__(
        self, newest_ms: int | None, speed: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`newest_ms` is the newest time that an earlier process knew, `speed` the clock's."""
        self._monotonic, self._speed = monotonic, speed
        self._ahead_ms = None if newest_ms is None else newest_ms - self._elapsed_ms()

    def at(self, now_ms: int) -> int:
        """The slow time at the clock's `now_ms`."""
        elapsed_ms = self._elapsed_ms()
        ahead_ms = now_ms - elapsed_ms
        self._ahead_ms = ahead_ms if self._ahead_ms is None else min(self._ahead_ms, ahead_ms)
        return elapsed_ms + self._ahead_ms

    def _elapsed_ms(self) -> int:
        return int(1000 * self._speed * self._monotonic())
