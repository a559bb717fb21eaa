"""Slices: they partition the occupied time, and closing them bit by bit is closing them once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from quota.clock import HOUR_MS
from quota.jobs.charging import Times, close_slices
from quota.ledger.rules import Slice, amount_gpu_us, hour_marks, won

MIDNIGHT_IN_SEOUL_MS = 1_795_273_200_000
"""2026-11-21T15:00:00Z."""

durations = st.integers(0, 5 * HOUR_MS)


@st.composite
def lives(draw: st.DrawFn) -> Times:
    """A finished attempt: some never fully started, some stopped, some past their walltime."""
    first = MIDNIGHT_IN_SEOUL_MS + draw(st.integers(-2 * HOUR_MS, 2 * HOUR_MS))
    last = draw(st.none() | st.integers(0, HOUR_MS).map(lambda gap: first + gap))
    end = (first if last is None else last) + draw(durations)
    stop = draw(st.none() | st.integers(0, 6 * HOUR_MS).map(lambda after: first + after))
    return Times(
        first_started_ms=first,
        last_started_ms=last,
        ended_ms=end,
        stop_at_ms=stop,
        stop_grace_ms=draw(st.integers(0, 3_600_000)),
        walltime_ms=draw(st.integers(1, 6 * HOUR_MS)),
        settled_through_ms=None,
    )


def charged_span(times: Times) -> tuple[int, int]:
    """The grant's part by the rule's own words: an oracle without bounds objects."""
    if times.last_started_ms is None or times.ended_ms is None:
        return 0, 0
    until = [times.ended_ms, times.last_started_ms + times.walltime_ms]
    if times.stop_at_ms is not None:
        until.append(times.stop_at_ms + times.stop_grace_ms)
    return times.last_started_ms, max(times.last_started_ms, min(until))


@given(lives())
def test_slices_partition_the_occupied_time(times: Times) -> None:
    assert times.first_started_ms is not None
    assert times.ended_ms is not None
    parts, final = close_slices(times, times.ended_ms)
    assert final
    assert (
        sum(part.ends_at_ms - part.starts_at_ms for part in parts) == times.ended_ms - times.first_started_ms
    )
    if parts:
        assert (parts[0].starts_at_ms, parts[-1].ends_at_ms) == (times.first_started_ms, times.ended_ms)
    assert all(left.ends_at_ms == right.starts_at_ms for left, right in pairwise(parts))
    assert all(part.starts_at_ms < part.ends_at_ms for part in parts)


@given(lives())
def test_no_slice_crosses_an_hour_mark_or_a_bound(times: Times) -> None:
    assert times.ended_ms is not None
    parts, _ = close_slices(times, times.ended_ms)
    for part in parts:
        assert part.starts_at_ms // HOUR_MS == (part.ends_at_ms - 1) // HOUR_MS
        for bound in charged_span(times):
            assert not part.starts_at_ms < bound < part.ends_at_ms


@given(lives())
def test_the_grant_pays_exactly_its_bounds(times: Times) -> None:
    assert times.ended_ms is not None
    parts, _ = close_slices(times, times.ended_ms)
    begin, end = charged_span(times)
    paid = [part for part in parts if part.payer == "grant"]
    assert sum(part.ends_at_ms - part.starts_at_ms for part in paid) == end - begin
    assert all(begin <= part.starts_at_ms and part.ends_at_ms <= end for part in paid)
    assert {part.payer for part in parts} <= {"grant", "platform"}


@given(lives(), st.lists(st.integers(-HOUR_MS, 12 * HOUR_MS), max_size=8))
@example(Times(0, 0, 2 * HOUR_MS, None, 0, HOUR_MS, None), [HOUR_MS, HOUR_MS + 1])
def test_closing_along_any_watermarks_is_closing_once(times: Times, offsets: list[int]) -> None:
    """The end is known from the start here, or only with the last watermark: both come to the same."""
    assert times.first_started_ms is not None
    assert times.ended_ms is not None
    once, _ = close_slices(times, times.ended_ms)
    marks = sorted(times.first_started_ms + offset for offset in offsets)
    for known_end in (times.ended_ms, None):
        closed: list[Slice] = []
        through, final = None, False
        for mark in marks:
            if known_end is None and mark > times.ended_ms:
                break  # the end would have been reported before this watermark
            parts, final = close_slices(replace(times, ended_ms=known_end, settled_through_ms=through), mark)
            assert all(part.ends_at_ms <= mark for part in parts), "nothing closes beyond the watermark"
            assert final == (known_end is not None and known_end <= mark)
            closed += parts
            through = closed[-1].ends_at_ms if closed else through
            if final:
                break
        if not final:
            parts, final = close_slices(replace(times, settled_through_ms=through), 1 << 50)
            assert final
            closed += parts
        assert closed == once


@given(lives(), st.integers(0, 1 << 45))
def test_a_settled_attempt_has_nothing_left_to_close(times: Times, observed: int) -> None:
    assert times.ended_ms is not None
    parts, _ = close_slices(replace(times, settled_through_ms=times.ended_ms), times.ended_ms + observed)
    assert parts == []


def test_the_partition_check_sees_a_planted_gap() -> None:
    parts, _ = close_slices(Times(0, 0, 3 * HOUR_MS, None, 0, 4 * HOUR_MS, None), 3 * HOUR_MS)
    del parts[1]
    assert not all(left.ends_at_ms == right.starts_at_ms for left, right in pairwise(parts))


def test_what_never_started_has_no_slices() -> None:
    assert close_slices(Times(None, None, 5, None, 0, 1000, None), 0) == ([], True)
    assert close_slices(Times(None, None, None, None, 0, 1000, None), 10**13) == ([], False)


def test_an_open_stretch_closes_at_hour_marks_only() -> None:
    times = Times(10, 10, None, None, 0, 10 * HOUR_MS, None)
    assert close_slices(times, HOUR_MS - 1) == ([], False)
    assert close_slices(times, 2 * HOUR_MS + 5) == (
        [Slice(10, HOUR_MS, "grant"), Slice(HOUR_MS, 2 * HOUR_MS, "grant")],
        False,
    )


def test_after_the_held_time_the_platform_pays() -> None:
    times = Times(0, 0, 2000, None, 0, 500, None)
    assert close_slices(times, 2000)[0] == [Slice(0, 500, "grant"), Slice(500, 2000, "platform")]


def test_a_stop_before_the_last_start_leaves_all_to_the_platform() -> None:
    times = Times(0, 900, 1000, 100, 50, 10_000, None)
    assert {part.payer for part in close_slices(times, 1000)[0]} == {"platform"}


def test_one_hour_on_one_reference_gpu_is_exactly_3_600_000_000() -> None:
    assert amount_gpu_us(HOUR_MS, 1, 1000) == 3_600_000_000


def test_a_thousand_gpus_for_a_year_fit_a_database_column() -> None:
    assert amount_gpu_us(366 * 24 * HOUR_MS, 1000, 1000) < 2**63


@given(st.lists(st.integers(1, HOUR_MS), min_size=1, max_size=20), st.integers(1, 64), st.integers(1, 10**6))
def test_amounts_of_parts_add_up_to_the_whole(parts: list[int], gpus: int, rate: int) -> None:
    """Amounts are never divided, so nothing is lost between slices (Slurm's 4.5 -> 4)."""
    assert sum(amount_gpu_us(part, gpus, rate) for part in parts) == amount_gpu_us(sum(parts), gpus, rate)


def test_won_is_rounded_half_up() -> None:
    assert won(HOUR_MS, 1, 4000) == 4000
    assert won(1800, 1, 1000) == 1, "0.5"
    assert won(1799, 1, 1000) == 0
    assert won(5400, 1, 1000) == 2, "1.5"
    assert won(9000, 1, 1000) == 3, "2.5"
    assert won(HOUR_MS, 8, 0) == 0


@given(st.integers(0, 10**13), st.integers(1, 4096), st.integers(0, 10**7))
def test_won_is_the_nearest_integer(milliseconds: int, gpus: int, price: int) -> None:
    exact_twice = 2 * milliseconds * gpus * price
    error = exact_twice - 2 * HOUR_MS * won(milliseconds, gpus, price)
    assert -HOUR_MS <= error < HOUR_MS, "half a won more is the next one"


@given(st.integers(0, 1 << 45), st.integers(0, 50 * HOUR_MS))
def test_hour_marks_lie_strictly_inside(begin: int, length: int) -> None:
    marks = hour_marks(begin, begin + length)
    assert all(begin < mark < begin + length and mark % HOUR_MS == 0 for mark in marks)
    assert len(marks) == max(0, -(-(begin + length) // HOUR_MS) - begin // HOUR_MS - 1)


def test_a_run_over_midnight_in_seoul_is_cut_at_1500_utc() -> None:
    begin, end = MIDNIGHT_IN_SEOUL_MS - 1, MIDNIGHT_IN_SEOUL_MS + 1
    parts, _ = close_slices(Times(begin, begin, end, None, 0, HOUR_MS, None), end)
    assert [part.ends_at_ms for part in parts] == [MIDNIGHT_IN_SEOUL_MS, end]
