"""The corner cases of integration and attribution, one by one."""

from __future__ import annotations

from agents.attribution import FOREVER_MS, spans_by_gpu
from agents.model import GpuReading, GpuState, Measured, NodeReading, PastWorkload, RowKey, Span, Workload
from agents.usage import first_state, integrate
from tests.unit.agents.agent_world import HOUR_MS, PERIOD_MS, START_MS, steady

MINUTE_MS = 60_000


def a_state(last_seen_ms: int = START_MS, period_ms: int = PERIOD_MS) -> GpuState:
    return first_state("GPU-1", "h100", "sim-0", last_seen_ms, period_ms)


def held(job_id: str = "job-1", since_ms: int = 0, until_ms: int = FOREVER_MS) -> Span:
    return Span(since_ms, until_ms, job_id, 1)


def measured(rows: dict[RowKey, Measured]) -> dict[tuple[str, int], tuple[int, int]]:
    """(busy_ms, observed_ms) by job and hours since the start."""
    return {
        (key.job_id, (key.hour_ms - START_MS) // HOUR_MS): (row.busy_ns // 1_000_000, row.observed_ms)
        for key, row in rows.items()
    }


def test_each_sample_speaks_for_the_time_since_the_one_before() -> None:
    samples = [(START_MS + 10_000, 0.5), (START_MS + 20_000, 1.0)]
    _, rows = integrate(a_state(), samples, (held(),), None)
    assert measured(rows) == {("job-1", 0): (15_000, 20_000)}


def test_a_gap_of_more_than_two_periods_is_unobserved_and_not_idle() -> None:
    samples = [(START_MS + 10_000, 1.0), (START_MS + 30_001, 1.0), (START_MS + 40_001, 1.0)]
    state, rows = integrate(a_state(), samples, (held(),), None)
    assert measured(rows) == {("job-1", 0): (20_000, 20_000)}
    assert state.last_seen_ms == START_MS + 40_001


def test_a_gap_of_two_periods_is_still_observed() -> None:
    _, rows = integrate(a_state(), [(START_MS + 20_000, 1.0)], (held(),), None)
    assert measured(rows) == {("job-1", 0): (20_000, 20_000)}


def test_a_driver_that_samples_more_slowly_is_understood_after_a_few_samples() -> None:
    samples = steady(1.0, START_MS, START_MS + 20 * MINUTE_MS, period_ms=MINUTE_MS)
    _, rows = integrate(a_state(), samples, (held(),), None)
    assert measured(rows) == {("job-1", 0): (15 * MINUTE_MS, 15 * MINUTE_MS)}


def test_the_period_is_the_median_of_the_latest_nine_distances() -> None:
    state, _ = integrate(a_state(), [(START_MS + 15_000, 1.0)], (), None)
    assert state.gaps_ms == (*[PERIOD_MS] * 8, 15_000)
    state, _ = integrate(state, steady(1.0, START_MS + 15_000, START_MS + 105_000), (), None)
    assert state.gaps_ms == (PERIOD_MS,) * 9


def test_an_interval_over_an_hour_mark_is_cut_there() -> None:
    begun = a_state(START_MS + HOUR_MS - 4_000)
    _, rows = integrate(begun, [(START_MS + HOUR_MS + 6_000, 0.5)], (held(),), None)
    assert measured(rows) == {("job-1", 0): (2_000, 4_000), ("job-1", 1): (3_000, 6_000)}


def test_a_sample_exactly_at_the_hour_mark_belongs_to_the_hour_before() -> None:
    _, rows = integrate(a_state(), steady(1.0, START_MS, START_MS + HOUR_MS), (held(),), None)
    assert measured(rows) == {("job-1", 0): (HOUR_MS, HOUR_MS)}


def test_busy_time_of_an_interval_belongs_to_the_job_that_started_in_it() -> None:
    job = held(since_ms=START_MS + 6_000)
    _, rows = integrate(a_state(), [(START_MS + 10_000, 0.32)], (job,), None)
    assert measured(rows) == {("job-1", 0): (3_200, 4_000)}


def test_a_job_is_never_busier_than_its_time_and_the_rest_is_the_devices() -> None:
    job = held(since_ms=START_MS + 6_000)
    state, rows = integrate(a_state(), [(START_MS + 10_000, 0.9)], (job,), None)
    assert measured(rows) == {("job-1", 0): (4_000, 4_000)}
    assert state.device == Measured(9_000_000_000, 10_000)


def test_two_jobs_back_to_back_share_the_interval_by_their_time() -> None:
    spans = (held("job-a", 0, START_MS + 4_000), held("job-b", START_MS + 4_000))
    _, rows = integrate(a_state(), [(START_MS + 10_000, 0.5)], spans, ("job-b", 1))
    assert measured(rows) == {("job-a", 0): (2_000, 4_000), ("job-b", 0): (3_000, 6_000)}


def test_time_between_two_jobs_is_nobodys() -> None:
    spans = (held("job-a", 0, START_MS + 2_000), held("job-b", START_MS + 8_000))
    state, rows = integrate(a_state(), [(START_MS + 10_000, 0.1)], spans, ("job-b", 1))
    assert measured(rows) == {("job-a", 0): (500, 2_000), ("job-b", 0): (500, 2_000)}
    assert state.device == Measured(1_000_000_000, 10_000)


def test_an_idle_gpu_is_observed_and_gives_no_row() -> None:
    state, rows = integrate(a_state(), [(START_MS + 10_000, 0.0)], (), None)
    assert rows == {}
    assert state.device == Measured(0, 10_000)


def test_samples_seen_before_and_out_of_order_are_ignored() -> None:
    samples = [(START_MS - 1, 1.0), (START_MS, 1.0), (START_MS + 10_000, 1.0), (START_MS + 5_000, 1.0)]
    _, rows = integrate(a_state(), samples, (held(),), None)
    assert measured(rows) == {("job-1", 0): (10_000, 10_000)}


def test_ratios_outside_0_to_1_are_clamped() -> None:
    samples = [(START_MS + 10_000, 1.7), (START_MS + 20_000, -3.0)]
    _, rows = integrate(a_state(), samples, (held(),), None)
    assert measured(rows) == {("job-1", 0): (10_000, 20_000)}


def test_nothing_new_returns_the_very_same_state() -> None:
    begun = a_state()
    state, rows = integrate(begun, [(START_MS, 1.0)], (held(),), None)
    assert state is begun
    assert rows == {}


def test_the_workloads_own_total_starts_anew_with_the_next_attempt() -> None:
    first = (held("job-1"),)
    state, _ = integrate(a_state(), [(START_MS + 10_000, 1.0)], first, ("job-1", 1))
    state, _ = integrate(state, [(START_MS + 20_000, 1.0)], first, ("job-1", 1))
    assert state.workload == Measured(20_000_000_000, 20_000)
    second = (Span(0, START_MS + 20_000, "job-1", 1), Span(START_MS + 20_000, FOREVER_MS, "job-1", 2))
    state, _ = integrate(state, [(START_MS + 30_000, 0.5)], second, ("job-1", 2))
    assert state.workload == Measured(5_000_000_000, 10_000)
    state, _ = integrate(state, [], (), None)
    assert (state.job_id, state.workload) == ("", Measured())


def a_reading(present: Workload | None, *past: PastWorkload) -> NodeReading:
    return NodeReading(100, "sim-0", "b", (GpuReading("GPU-1", "h100", "m", workload=present),), past)


def test_a_holder_of_now_has_an_open_span() -> None:
    reading = a_reading(Workload("job-2", 3, 0, 50), PastWorkload("GPU-1", "job-1", 1, 0, 10, 50))
    assert spans_by_gpu(reading) == {"GPU-1": (Span(10, 50, "job-1", 1), Span(50, FOREVER_MS, "job-2", 3))}


def test_of_two_that_claim_one_moment_the_later_start_is_right() -> None:
    reading = a_reading(Workload("job-2", 1, 0, 50), PastWorkload("GPU-1", "job-1", 1, 0, 10, 60))
    assert spans_by_gpu(reading)["GPU-1"][0] == Span(10, 50, "job-1", 1)


def test_a_workload_of_no_length_held_nothing() -> None:
    assert spans_by_gpu(a_reading(None, PastWorkload("GPU-1", "job-1", 1, 0, 10, 10))) == {"GPU-1": ()}
