"""GPUs that several pods hold: spans, parts of the busy time, and what is left over."""

from __future__ import annotations

from agents.attribution import FOREVER_MS, present_of, spans_of
from agents.model import NS_PER_MS, GpuState, Holding, Measured, RowKey, Shares, Span
from agents.usage import first_state, integrate
from tests.unit.agents.agent_world import HOUR_MS, START_MS, steady

A, B = ("job-a", 1), ("job-b", 1)


def a_hold(
    job_id: str = "job-a",
    since_ms: int = 0,
    until_ms: int | None = None,
    replica: bool = True,
    attempt: int = 1,
) -> Holding:
    return Holding("GPU-1", job_id, attempt, 0, since_ms, until_ms, replica, "hub-x", f"{job_id}-{attempt}")


def a_state() -> GpuState:
    return first_state("GPU-1", "h100", "n", START_MS, 10_000)


def minutes(rows: dict[RowKey, Measured]) -> dict[tuple[str, int], tuple[float, float]]:
    """(busy, observed) seconds by job and hour since the start."""
    return {
        (key.job_id, (key.hour_ms - START_MS) // HOUR_MS): (row.busy_ns / 1e9, row.observed_ms / 1e3)
        for key, row in rows.items()
    }


class TestSpans:
    def test_a_replica_held_alone_is_a_gpu_held_alone(self) -> None:
        assert spans_of([a_hold(since_ms=5)]) == (Span(5, FOREVER_MS, *A),)

    def test_time_together_is_shared_and_the_rest_is_not(self) -> None:
        spans = spans_of([a_hold(since_ms=0, until_ms=30), a_hold("job-b", 10, 20)])
        assert spans == (
            Span(0, 10, *A),
            Span(10, 20, *A, shared=True),
            Span(10, 20, *B, shared=True),
            Span(20, 30, *A),
        )

    def test_a_stranger_makes_it_shared_and_has_no_span(self) -> None:
        assert spans_of([a_hold(), a_hold("", 10, 20)]) == (
            Span(0, 10, *A),
            Span(10, 20, *A, shared=True),
            Span(20, FOREVER_MS, *A),
        )

    def test_two_pods_of_one_attempt_are_one_holder(self) -> None:
        assert spans_of([a_hold(since_ms=0, until_ms=30), a_hold(since_ms=10, until_ms=40)]) == (
            Span(0, 40, *A),
        )

    def test_others_coming_and_going_do_not_cut_a_shared_span(self) -> None:
        spans = spans_of([a_hold(), a_hold("job-b"), a_hold("job-c", 10, 20, attempt=2)])
        assert spans == (
            Span(0, FOREVER_MS, *A, shared=True),
            Span(0, FOREVER_MS, *B, shared=True),
            Span(10, 20, "job-c", 2, shared=True),
        )

    def test_a_whole_gpu_is_one_holders_at_a_time_and_a_strangers_time_is_nobodys(self) -> None:
        holds = [a_hold(since_ms=0, replica=False), a_hold("", 10, 20, replica=False)]
        assert spans_of([*holds, a_hold("job-b", 20, replica=False)]) == (
            Span(0, 10, *A),
            Span(20, FOREVER_MS, *B),
        )
        assert present_of(holds) == ()


class TestParts:
    spans = (Span(0, FOREVER_MS, *A, shared=True), Span(0, FOREVER_MS, *B, shared=True))

    def integrated(
        self, ratio: float, shares: list[Shares], spans: tuple[Span, ...] = spans
    ) -> tuple[GpuState, dict[tuple[str, int], tuple[float, float]]]:
        samples = steady(ratio, START_MS, START_MS + 60_000)
        state, rows = integrate(a_state(), samples, spans, None, (A, B), shares)
        return state, minutes(rows)

    def test_busy_time_goes_by_the_parts_and_the_rest_is_nobodys(self) -> None:
        shares = [Shares(START_MS, START_MS + 60_000, {A: 500_000, B: 250_000})]
        state, rows = self.integrated(0.8, shares)
        assert rows == {("job-a", 0): (24.0, 60.0), ("job-b", 0): (12.0, 60.0)}
        assert state.device == Measured(48_000 * NS_PER_MS, 60_000)
        assert state.attributed_ns == 36_000 * NS_PER_MS
        assert state.sharers == (
            (*A, Measured(24_000 * NS_PER_MS, 60_000)),
            (*B, Measured(12_000 * NS_PER_MS, 60_000)),
        )
        assert state.job_id == ""

    def test_time_that_no_process_accounts_for_is_nobodys(self) -> None:
        state, rows = self.integrated(1.0, [Shares(START_MS + 20_000, START_MS + 25_000, {A: 1_000_000})])
        assert rows == {("job-a", 0): (5.0, 60.0), ("job-b", 0): (0.0, 60.0)}
        assert state.device.busy_ns - state.attributed_ns == 55_000 * NS_PER_MS

    def test_time_alone_is_all_ones_own(self) -> None:
        at_ms = START_MS + 25_000
        spans = (
            Span(0, at_ms, *A),
            Span(at_ms, FOREVER_MS, *A, shared=True),
            self.spans[1]._replace(since_ms=at_ms),
        )
        _, rows = self.integrated(0.5, [Shares(at_ms, START_MS + 60_000, {A: 200_000, B: 800_000})], spans)
        assert rows == {("job-a", 0): (12.5 + 3.5, 60.0), ("job-b", 0): (14.0, 35.0)}

    def test_hours_are_cut(self) -> None:
        end_ms = START_MS + HOUR_MS
        begun = first_state("GPU-1", "h100", "n", end_ms - 5_000, 10_000)
        shares = [Shares(end_ms - 5_000, end_ms + 5_000, {A: 1_000_000})]
        _, rows = integrate(begun, [(end_ms + 5_000, 1.0)], self.spans, None, (A, B), shares)
        assert minutes(rows) == {
            ("job-a", 0): (5.0, 5.0),
            ("job-a", 1): (5.0, 5.0),
            ("job-b", 0): (0.0, 5.0),
            ("job-b", 1): (0.0, 5.0),
        }

    def test_counters_go_on_from_alone_to_shared_and_back(self) -> None:
        alone = (Span(0, FOREVER_MS, *A),)
        whole = [Shares(0, FOREVER_MS, {A: 500_000, B: 500_000})]
        state, _ = integrate(a_state(), steady(1.0, START_MS, START_MS + 20_000), alone, A)
        state, _ = integrate(
            state, steady(1.0, START_MS + 20_000, START_MS + 40_000), self.spans, None, (A, B), whole
        )
        assert {sharer[:2]: sharer[2].busy_ns // NS_PER_MS for sharer in state.sharers} == {
            A: 30_000,
            B: 10_000,
        }
        state, _ = integrate(state, steady(1.0, START_MS + 40_000, START_MS + 60_000), alone, A)
        assert (state.job_id, state.workload.busy_ns // NS_PER_MS, state.sharers) == ("job-a", 50_000, ())
