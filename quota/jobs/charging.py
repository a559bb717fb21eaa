"""Who pays for which part of an attempt's time: pure.

Occupied = from the first container's start to the last pod's end. Charged to the grant = from the last
container's start (if all started) to the earliest of last pod's end, stop + grace, start + held time. The
rest is the platform's. Slices are cut at hour marks and at these bounds, and close only up to the
cluster's watermark.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from quota.ledger.rules import Slice, hour_marks


@dataclass(frozen=True, slots=True)
class Times:
    """What is known of an attempt's times, in business milliseconds; None = not yet, or never."""

    first_started_ms: int | None
    last_started_ms: int | None
    ended_ms: int | None
    stop_at_ms: int | None
    stop_grace_ms: int
    walltime_ms: int
    settled_through_ms: int | None

    @property
    def charged_until_ms(self) -> int | None:
        """No charge to the grant from here on; None while nothing bounds it."""
        bounds = [
            bound for bound in (self.ended_ms, self._stopped_ms, self._walltime_end_ms) if bound is not None
        ]
        return min(bounds, default=None)

    @property
    def _stopped_ms(self) -> int | None:
        return None if self.stop_at_ms is None else self.stop_at_ms + self.stop_grace_ms

    @property
    def _walltime_end_ms(self) -> int | None:
        return None if self.last_started_ms is None else self.last_started_ms + self.walltime_ms


def close_slices(times: Times, observed_through_ms: int) -> tuple[list[Slice], bool]:
    """The slices that can close now, and whether the attempt is settled to its end.

    An open stretch closes at hour marks and bounds only; its last piece closes when the end is known and the
    watermark has passed it.
    """
    if times.ended_ms is not None and times.first_started_ms is None:
        return [], True
    if times.first_started_ms is None:
        return [], False
    begin = max(times.first_started_ms, times.settled_through_ms or 0)
    final = times.ended_ms is not None and times.ended_ms <= observed_through_ms
    end = times.ended_ms if final and times.ended_ms is not None else observed_through_ms
    closed = [part for part in _parts(times, begin, end) if part is not None]
    if not final:
        closed = [part for part in closed if _is_cut(times, part.ends_at_ms)]
    return closed, final


def _parts(times: Times, begin: int, end: int) -> list[Slice]:
    if end <= begin:
        return []
    charged_from, charged_until = times.last_started_ms, times.charged_until_ms
    cuts = {begin, end, *hour_marks(begin, end)}
    cuts |= {bound for bound in (charged_from, charged_until) if bound is not None and begin < bound < end}
    marks = sorted(cuts)
    return [
        Slice(left, right, _payer(left, charged_from, charged_until))
        for left, right in itertools.pairwise(marks)
    ]


def _payer(starts_at_ms: int, charged_from: int | None, charged_until: int | None) -> str:
    if charged_from is None or starts_at_ms < charged_from:
        return "platform"
    if charged_until is not None and starts_at_ms >= charged_until:
        return "platform"
    return "grant"


def _is_cut(times: Times, moment_ms: int) -> bool:
    return moment_ms % 3_600_000 == 0 or moment_ms in (times.last_started_ms, times.charged_until_ms)
