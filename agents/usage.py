"""Integration of utilization samples into busy and observed time. Pure: no clock, no file, no network.

Rules, each with its test:
- A sample says how busy the GPU was since the sample before it, so it speaks for that whole interval.
- A distance of more than two median periods is not observed; it is never counted as idle. Nor is time that was counted
  before a clock was set back into it.
- A GPU never seen before starts at the reading's own now: what came before may have been counted already
  by an agent epoch that was lost, and epochs are added up.
- A GPU does no work without a workload, so the busy time of an interval belongs to the workloads in it, in
  proportion to their part of it and never more than their part. What remains is the device's alone.
- Of a GPU that several share, an attempt gets its processes' part of the busy time. What no process of an attempt
  accounts for is the device's alone.
- Time is cut at hour marks and at the workloads' bounds. Ratios are taken to a millionth, so that busy time
  is whole nanoseconds and sums are exact whatever way the stream was cut into reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from agents.jumps import counted, with_run
from agents.model import NOTHING, NS_PER_MS, GpuState, Measured, RowKey, Sample, Shares, Span
from quota.clock import HOUR_MS

Piece = tuple[Span, int, int, int]
"""A held part of an interval: its holder, its hour's start, its own start, its length in ms."""

GAPS_KEPT = 9
"""So many latest distances make the median; five odd ones are needed to move it."""

BIGGEST_GAP_PERIODS = 2
"""A distance longer than this many periods means that samples were lost."""


def first_state(gpu_uuid: str, gpu_class: str, node: str, now_ms: int, period_ms: int) -> GpuState:
    """The state of a GPU that was never seen before: it is measured from `now_ms` on."""
    return GpuState(gpu_uuid, gpu_class, node, now_ms, (period_ms,) * GAPS_KEPT)


def integrate(
    state: GpuState,
    samples: Iterable[Sample],
    spans: Sequence[Span],
    holder: tuple[str, int] | None,
    sharers: Sequence[tuple[str, int]] = (),
    shares: Sequence[Shares] = (),
) -> tuple[GpuState, dict[RowKey, Measured]]:
    """Count the samples newer than the state.

    `spans` are the GPU's holders in order of time, `holder` is (job, attempt) of the present one, or `sharers` are
    those of several; `shares` is how a shared GPU's busy time is divided. Returns the new state and what each row
    gained.
    """
    assert holder is None or not sharers, "a GPU is held alone or shared"
    holders = tuple(sharers) if holder is None else (holder,)
    counting = _Counting(state.gpu_uuid, spans, shares)
    last_ms, gaps_ms, runs = state.last_seen_ms, state.gaps_ms, state.runs
    run_ms = None
    newest_ms = runs[-1][1] if runs else 0
    period_ms = _median(gaps_ms)
    steady = len(set(gaps_ms)) == 1
    for at_ms, ratio in samples:
        gap_ms = at_ms - last_ms
        if gap_ms <= 0:
            continue
        again = last_ms < newest_ms and counted(runs, last_ms, at_ms)
        if gap_ms <= BIGGEST_GAP_PERIODS * period_ms and not again:
            counting.add(last_ms, at_ms, ratio)
            run_ms = last_ms if run_ms is None else run_ms
        elif run_ms is not None:
            runs, run_ms = with_run(runs, run_ms, last_ms), None
        if gap_ms != period_ms or not steady:
            gaps_ms = (*gaps_ms[1:], gap_ms)
            period_ms, steady = _median(gaps_ms), len(set(gaps_ms)) == 1
        last_ms = at_ms
    if run_ms is not None:
        runs = with_run(runs, run_ms, last_ms)
    gains = {key: Measured(busy_ns, observed_ms) for key, (busy_ns, observed_ms) in counting.rows.items()}
    seen = replace(state, last_seen_ms=last_ms, gaps_ms=gaps_ms, runs=runs)
    return _advanced(state, seen, counting, gains, holders, alone=holder is not None), gains


def _advanced(
    state: GpuState,
    seen: GpuState,
    counting: _Counting,
    gains: dict[RowKey, Measured],
    holders: Sequence[tuple[str, int]],
    alone: bool,
) -> GpuState:
    known = {(job_id, attempt): measured for job_id, attempt, measured in state.sharers}
    if state.job_id:
        known[state.job_id, state.attempt] = state.workload
    if seen == state and known.keys() == set(holders) and alone == bool(state.job_id):
        return state
    under = {holder: known.get(holder, NOTHING) for holder in holders}
    for key, gain in gains.items():
        holder = (key.job_id, key.attempt)
        if holder in under:
            under[holder] = under[holder].plus(gain)
    job_id, attempt = holders[0] if alone else ("", 0)
    return replace(
        seen,
        device=state.device.plus(Measured(counting.busy_ns, counting.observed_ms)),
        job_id=job_id,
        attempt=attempt,
        workload=under[holders[0]] if alone else NOTHING,
        sharers=() if alone else tuple((*holder, measured) for holder, measured in sorted(under.items())),
        attributed_ns=state.attributed_ns + sum(gain.busy_ns for gain in gains.values()),
    )


class _Counting:
    """Adds up intervals of one GPU: the device's totals and each row's [busy_ns, observed_ms]."""

    def __init__(self, gpu_uuid: str, spans: Sequence[Span], shares: Sequence[Shares]) -> None:
        self.busy_ns = 0
        self.observed_ms = 0
        self.rows: dict[RowKey, list[int]] = {}
        self._gpu_uuid = gpu_uuid
        self._spans, self._shares = spans, shares
        self._shared = any(span.shared for span in spans)
        self._first_share = 0
        # Where the last interval went, and until when the next ones go there too: time only goes forward.
        self._row = [0, 0]
        self._until_ms = 0

    def add(self, from_ms: int, until_ms: int, ratio: float) -> None:
        """Count the interval up to `until_ms`, in which the GPU was busy for `ratio` of the time."""
        length_ms = until_ms - from_ms
        ratio = 0.0 if ratio < 0.0 else min(ratio, 1.0)
        busy_ns = length_ms * round(ratio * NS_PER_MS)
        self.busy_ns += busy_ns
        self.observed_ms += length_ms
        if until_ms <= self._until_ms:
            self._row[0] += busy_ns
            self._row[1] += length_ms
            return
        pieces = _pieces(from_ms, until_ms, self._spans)
        if self._shared and any(span.shared for span, _, _, _ in pieces):
            self._share(pieces, self._shares_within(from_ms, until_ms), round(ratio * NS_PER_MS))
            return
        held_ms = sum(piece_ms for _, _, _, piece_ms in pieces)
        held_busy_ns = min(busy_ns, held_ms * NS_PER_MS)
        counted_ms = counted_ns = 0
        for piece in pieces:
            # Shares are differences of a running total, so that they add up to the nanosecond.
            counted_ms += piece[3]
            share_ns = held_busy_ns * counted_ms // held_ms - counted_ns
            counted_ns += share_ns
            self._gain(piece, share_ns)

    def _shares_within(self, from_ms: int, until_ms: int) -> list[Shares]:
        while self._first_share < len(self._shares) and self._shares[self._first_share].until_ms <= from_ms:
            self._first_share += 1
        return list(takewhile(lambda shares: shares.since_ms < until_ms, self._shares[self._first_share :]))

    def _share(self, pieces: Sequence[Piece], shares: Sequence[Shares], busy_ppm: int) -> None:
        """Nobody can say who was busy at the beginning of an interval and who at its end, so all of it is alike."""
        for piece in pieces:
            span, _, from_ms, piece_ms = piece
            if span.shared:
                self._gain(piece, _shared_ns(span, shares, from_ms, from_ms + piece_ms, busy_ppm))
            else:
                self._gain(piece, piece_ms * busy_ppm)
        self._until_ms = 0

    def _gain(self, piece: Piece, busy_ns: int) -> None:
        span, hour_ms, _, piece_ms = piece
        assert busy_ns <= piece_ms * NS_PER_MS, "nobody is busier than the time he had"
        key = RowKey(span.job_id, span.attempt, self._gpu_uuid, hour_ms)
        self._row = self.rows.setdefault(key, [0, 0])
        self._row[0] += busy_ns
        self._row[1] += piece_ms
        self._until_ms = min(span.until_ms, hour_ms + HOUR_MS)


def _shared_ns(span: Span, shares: Sequence[Shares], from_ms: int, until_ms: int, busy_ppm: int) -> int:
    busy_ns = 0
    for part in shares:
        both_ms = min(until_ms, part.until_ms) - max(from_ms, part.since_ms)
        if both_ms > 0:
            busy_ns += both_ms * busy_ppm * part.ppm.get((span.job_id, span.attempt), 0) // NS_PER_MS
    return busy_ns


def _pieces(from_ms: int, until_ms: int, spans: Sequence[Span]) -> list[Piece]:
    """The held parts of an interval, cut at hour marks."""
    pieces = []
    for span in spans:
        cut_ms, end_ms = max(from_ms, span.since_ms), min(until_ms, span.until_ms)
        while cut_ms < end_ms:
            hour_ms = cut_ms - cut_ms % HOUR_MS
            next_ms = min(end_ms, hour_ms + HOUR_MS)
            pieces.append((span, hour_ms, cut_ms, next_ms - cut_ms))
            cut_ms = next_ms
    return pieces


def _median(gaps_ms: tuple[int, ...]) -> int:
    return sorted(gaps_ms)[len(gaps_ms) // 2]
