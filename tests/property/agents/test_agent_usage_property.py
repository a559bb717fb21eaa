"""Whatever way a stream of samples is cut, restarted and replayed, the evidence is the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.attribution import FOREVER_MS, spans_by_gpu
from agents.model import NS_PER_MS, GpuReading, Measured, NodeReading, PastWorkload, RowKey, Span, Workload
from agents.outbox import Outbox, open_outbox
from agents.usage import first_state, integrate
from tests.unit.agents.agent_world import (
    HOUR_MS,
    PERIOD_MS,
    START_MS,
    Gpu,
    Gpus,
    Hold,
    Service,
    an_agent,
    out_of_service,
)

exact = settings(deadline=None)
"""No claim about how fast a busy machine is."""

ratios = st.floats(min_value=-0.5, max_value=1.5, allow_nan=False)
gaps_ms = st.one_of(st.just(PERIOD_MS), st.integers(min_value=1, max_value=25_000), st.just(1_200_000))


@st.composite
def streams(draw: st.DrawFn, longest: int = 60) -> list[tuple[int, float]]:
    """Samples from shortly before an hour mark on, with irregular distances and holes."""
    at_ms = START_MS - draw(st.integers(min_value=0, max_value=200_000))
    samples = []
    for gap_ms, ratio in draw(st.lists(st.tuples(gaps_ms, ratios), max_size=longest)):
        at_ms += gap_ms
        samples.append((at_ms, ratio))
    return samples


@st.composite
def holders(draw: st.DrawFn, most: int = 5) -> list[Hold]:
    """Attempts one after the other on one GPU, some back to back; the last may not end."""
    at_ms = START_MS - 300_000
    holds = []
    for number in range(draw(st.integers(min_value=0, max_value=most))):
        at_ms += draw(st.integers(min_value=0, max_value=400_000))
        length_ms = draw(st.integers(min_value=1, max_value=900_000))
        holds.append(Hold(f"job-{number}", at_ms, at_ms + length_ms))
        at_ms += length_ms
    if holds and draw(st.booleans()):
        holds[-1] = Hold(holds[-1].job_id, holds[-1].since_ms)
    return holds


def spans_of(holds: list[Hold]) -> tuple[Span, ...]:
    return tuple(Span(h.since_ms, h.until_ms or FOREVER_MS, h.job_id, h.attempt) for h in holds)


@exact
@given(streams(), holders())
def test_busy_is_at_most_observed_is_at_most_wall(
    samples: list[tuple[int, float]], holds: list[Hold]
) -> None:
    begun = first_state("GPU-1", "h100", "sim-0", START_MS - 200_000, PERIOD_MS)
    state, rows = integrate(begun, samples, spans_of(holds), None)
    for key, (busy_ns, observed_ms) in rows.items():
        assert 0 <= busy_ns <= observed_ms * NS_PER_MS
        assert key.hour_ms % HOUR_MS == 0
        hold = next(hold for hold in holds if hold.job_id == key.job_id)
        held_ms = min(hold.until_ms or FOREVER_MS, key.hour_ms + HOUR_MS) - max(hold.since_ms, key.hour_ms)
        assert 0 < observed_ms <= held_ms
    assert 0 <= state.device.busy_ns <= state.device.observed_ms * NS_PER_MS
    assert state.device.observed_ms <= state.last_seen_ms - begun.last_seen_ms


@exact
@given(streams(), holders())
def test_workloads_together_are_never_more_than_the_device(
    samples: list[tuple[int, float]], holds: list[Hold]
) -> None:
    begun = first_state("GPU-1", "h100", "sim-0", START_MS - 200_000, PERIOD_MS)
    state, rows = integrate(begun, samples, spans_of(holds), None)
    assert sum(row.busy_ns for row in rows.values()) <= state.device.busy_ns
    assert sum(row.observed_ms for row in rows.values()) <= state.device.observed_ms


@exact
@given(streams())
def test_hours_add_up_to_the_device_when_one_job_holds_it_all_the_time(
    samples: list[tuple[int, float]],
) -> None:
    begun = first_state("GPU-1", "h100", "sim-0", START_MS - 200_000, PERIOD_MS)
    holder = Span(0, FOREVER_MS, "job-1", 1)
    state, rows = integrate(begun, samples, (holder,), ("job-1", 1))
    total = Measured()
    for row in rows.values():
        total = total.plus(row)
    assert total == state.device == state.workload


@exact
@given(
    st.integers(min_value=1_000, max_value=2 * PERIOD_MS),
    st.floats(min_value=0, max_value=1, exclude_max=True),
    st.lists(ratios, min_size=1, max_size=5),
)
def test_a_full_hour_of_samples_is_a_full_hour(period_ms: int, phase: float, pattern: list[float]) -> None:
    begin_ms = START_MS - int(phase * period_ms)
    ends_ms = range(begin_ms + period_ms, START_MS + HOUR_MS + period_ms + 1, period_ms)
    samples = [(at_ms, pattern[number % len(pattern)]) for number, at_ms in enumerate(ends_ms)]
    begun = first_state("GPU-1", "h100", "sim-0", begin_ms, PERIOD_MS)
    _, rows = integrate(begun, samples, (Span(0, FOREVER_MS, "job-1", 1),), ("job-1", 1))
    assert rows[RowKey("job-1", 1, "GPU-1", START_MS)].observed_ms == HOUR_MS


@exact
@given(st.integers(min_value=0, max_value=1_000_000), st.lists(st.integers(1, 9_999), max_size=20))
def test_a_jobs_busy_time_is_exact_when_it_alone_uses_the_gpu(ppm: int, cuts: list[int]) -> None:
    """The driver's mean over an interval in which a job starts contains idle time that is not the job's."""
    since_ms = START_MS + sum(cuts)
    ratio = Fraction(ppm, 1_000_000)
    until_ms = START_MS + 20 * PERIOD_MS
    samples = []
    for at_ms in range(START_MS + PERIOD_MS, until_ms + 1, PERIOD_MS):
        held_ms = min(PERIOD_MS, max(0, at_ms - since_ms))
        samples.append((at_ms, float(ratio * held_ms / PERIOD_MS)))
    begun = first_state("GPU-1", "h100", "sim-0", START_MS, PERIOD_MS)
    _, rows = integrate(begun, samples, (Span(since_ms, FOREVER_MS, "job-1", 1),), ("job-1", 1))
    truth_ns = ratio * max(0, until_ms - since_ms) * NS_PER_MS
    # A ratio is taken to a millionth: each of 20 intervals is wrong by at most half a millionth of itself.
    assert abs(sum(row.busy_ns for row in rows.values()) - truth_ns) <= 20 * PERIOD_MS / 2


@exact
@given(streams(), holders(), st.lists(st.integers(min_value=0, max_value=2_500_000), max_size=12))
def test_any_cut_into_reads_gives_the_same_totals(
    samples: list[tuple[int, float]], holds: list[Hold], reads: list[int]
) -> None:
    begin_ms = START_MS - 200_000
    begun = first_state("GPU-1", "h100", "sim-0", begin_ms, PERIOD_MS)
    whole_state, whole = integrate(begun, samples, spans_of(holds), None)
    state, rows = begun, dict[RowKey, Measured]()
    last_ms = samples[-1][0] if samples else begin_ms
    for now_ms in sorted({begin_ms + read_ms for read_ms in reads} | {last_ms}):
        world = Gpus({"GPU-1": Gpu([s for s in samples if s[0] <= last_ms], holds)}, now_ms)
        reading = world.read("sim-0", state.last_seen_ms)
        spans = spans_by_gpu(reading).get("GPU-1", ())
        state, gains = integrate(state, reading.gpus[0].samples, spans, None)
        for key, gain in gains.items():
            rows[key] = rows.get(key, Measured()).plus(gain)
    assert rows == whole
    assert (state.device, state.last_seen_ms, state.gaps_ms) == (
        whole_state.device,
        whole_state.last_seen_ms,
        whole_state.gaps_ms,
    )


spans = st.tuples(st.integers(0, 50), st.integers(0, 50))


@exact
@given(st.lists(spans, max_size=6), st.none() | st.integers(0, 50))
def test_spans_never_overlap_and_stay_inside_what_was_claimed(
    claims: list[tuple[int, int]], present_since_ms: int | None
) -> None:
    past = tuple(
        PastWorkload("GPU-1", f"job-{n}", 1, 0, since_ms, until_ms)
        for n, (since_ms, until_ms) in enumerate(claims)
    )
    present = None if present_since_ms is None else Workload("job-now", 1, 0, present_since_ms)
    reading = NodeReading(60, "sim-0", "b", (GpuReading("GPU-1", "h100", "m", workload=present),), past)
    found = spans_by_gpu(reading).get("GPU-1", ())
    for earlier, later in pairwise(found):
        assert earlier.until_ms <= later.since_ms
    for span in found:
        assert span.since_ms < span.until_ms
        bounds = next(((p.since_ms, p.until_ms) for p in past if p.job_id == span.job_id), None)
        bounds = bounds or (present_since_ms, FOREVER_MS)
        assert bounds[0] is not None
        assert bounds[0] <= span.since_ms
        assert span.until_ms <= bounds[1]


@contextmanager
def outboxes() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "outbox.sqlite3"


steps = st.lists(
    st.sampled_from(["read", "read", "read", "deliver", "lose_reply", "refuse", "restart", "replay"]),
    min_size=1,
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(streams(longest=40), holders(), steps, st.randoms(use_true_random=False))
def test_reads_restarts_lost_replies_and_replays_change_nothing(
    samples: list[tuple[int, float]], holds: list[Hold], script: list[str], rng: Random
) -> None:
    begin_ms = START_MS - 200_000
    last_ms = samples[-1][0] if samples else begin_ms
    world, service = Gpus({"GPU-1": Gpu(samples, holds)}, begin_ms), Service()
    begun = first_state("GPU-1", "h100", "sim-0", begin_ms, PERIOD_MS)
    _, whole = integrate(begun, samples, spans_of(holds), None)
    with outboxes() as path:
        outbox = open_outbox(path)
        agent = an_agent(outbox, world, service)
        agent.sampler.sample_once()
        for step in [*script, "end"]:
            service.before = out_of_service if step == "refuse" else lambda batch: None
            service.after = out_of_service if step == "lose_reply" else lambda batch: None
            match step:
                case "read":
                    world.now_ms += rng.choice([1, 3_000, 50_000, 400_000])
                    agent.sampler.sample_once()
                case "restart":
                    outbox.close()
                    outbox = open_outbox(path)
                    agent = an_agent(outbox, world, service)
                case "replay":
                    for batch in list(service.deliveries[: rng.randint(0, len(service.deliveries))]):
                        service.deliver_evidence(batch)
                case "end":
                    world.now_ms = max(world.now_ms, last_ms)
                    agent.sampler.sample_once()
                    agent.deliverer.deliver_once()
                case _:
                    agent.deliverer.deliver_once()
        assert outbox.spool().records == 0
        outbox.close()
    assert {(k.job_id, k.hour_ms): (m.busy_ns // NS_PER_MS, m.observed_ms) for k, m in whole.items()} == (
        service.totals()
    )


@settings(max_examples=40, deadline=None)
@given(streams(longest=30), st.integers(min_value=0, max_value=2_000_000))
def test_a_lost_outbox_adds_a_new_epoch_and_never_counts_twice(
    samples: list[tuple[int, float]], lost_after_ms: int
) -> None:
    begin_ms = START_MS - 200_000
    world = Gpus({"GPU-1": Gpu(samples, [Hold("job-1", begin_ms)])}, begin_ms)
    service = Service()
    with outboxes() as path:
        for now_ms in (begin_ms + lost_after_ms, begin_ms + 5_000_000):
            outbox: Outbox = open_outbox(path)
            agent = an_agent(outbox, world, service)
            agent.sampler.sample_once()
            world.now_ms = now_ms
            agent.sampler.sample_once()
            agent.deliverer.deliver_once()
            outbox.close()
            path.unlink()
    _, whole = integrate(
        first_state("GPU-1", "h100", "sim-0", begin_ms, PERIOD_MS),
        samples,
        (Span(begin_ms, FOREVER_MS, "job-1", 1),),
        None,
    )
    allowed = {key.hour_ms: gain.observed_ms for key, gain in whole.items()}
    last_ms = samples[-1][0] if samples else begin_ms
    without_holes = all(
        later_ms - earlier_ms <= PERIOD_MS
        for (earlier_ms, _), (later_ms, _) in pairwise([(begin_ms, 0.0), *samples])
    )
    for (_, hour_ms), (busy_ms, observed_ms) in service.totals().items():
        wall_ms = min(last_ms, hour_ms + HOUR_MS) - max(begin_ms, hour_ms)
        assert 0 <= busy_ms <= observed_ms <= wall_ms
        # A hole for one epoch may be short enough for the next, which began in it; so only without holes:
        if without_holes:
            assert observed_ms <= allowed[hour_ms]
