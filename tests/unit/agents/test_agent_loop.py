"""Cycles without threads: reading, storing, delivering, and what happens when one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import loop as loop_module
from agents.loop import Loop
from agents.outbox import Outbox, open_outbox
from agents.outbox_file import OutboxBroken
from quota.schemas.usage import EvidenceBatch
from tests.unit.agents.agent_world import (
    HOUR_MS,
    START_MS,
    Gpu,
    Gpus,
    Hold,
    Service,
    a_problem,
    an_agent,
    out_of_service,
    steady,
)
from tests.unit.agents.logs import captured

MINUTE_MS = 60_000


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = open_outbox(tmp_path / "outbox.sqlite3")
    yield opened
    opened.close()


def a_busy_gpu(job_id: str = "job-1", ratio: float = 0.5, **others) -> Gpu:
    samples = steady(ratio, START_MS - HOUR_MS, START_MS + 3 * HOUR_MS)
    return Gpu(samples, [Hold(job_id, START_MS)], **others)


def test_a_never_seen_gpu_is_measured_from_now_on(outbox: Outbox) -> None:
    """What came before may have been counted by an epoch that was lost."""
    world, service = Gpus({"GPU-1": a_busy_gpu()}, START_MS + 30 * MINUTE_MS), Service()
    agent = an_agent(outbox, world, service)
    agent.sampler.sample_once()
    world.now_ms += 10 * MINUTE_MS
    agent.sampler.sample_once()
    agent.deliverer.deliver_once()
    assert service.totals() == {("job-1", START_MS): (5 * MINUTE_MS, 10 * MINUTE_MS)}


def test_hours_of_sampling_arrive_to_the_millisecond(outbox: Outbox) -> None:
    world, service = Gpus({"GPU-1": a_busy_gpu(ratio=0.25)}), Service()
    agent = an_agent(outbox, world, service)
    while world.now_ms <= START_MS + 2 * HOUR_MS + 8 * MINUTE_MS:
        agent.sampler.sample_once()
        agent.deliverer.deliver_once()
        world.now_ms += 7 * MINUTE_MS + 1_234
    full = (HOUR_MS // 4, HOUR_MS)
    assert [service.totals()["job-1", START_MS + hour * HOUR_MS] for hour in (0, 1)] == [full, full]


def test_a_lost_nodes_time_is_unobserved_and_it_is_asked_from_where_it_was_seen(outbox: Outbox) -> None:
    world = Gpus({"GPU-1": a_busy_gpu("job-1"), "GPU-2": a_busy_gpu("job-2", node="sim-1")})
    service = Service()
    agent = an_agent(outbox, world, service)
    agent.sampler.sample_once()
    world.lost = {"sim-1"}
    gone = range(START_MS, START_MS + 20 * MINUTE_MS)
    world.gpus["GPU-2"].samples = [s for s in world.gpus["GPU-2"].samples if s[0] not in gone]
    for _ in range(20):
        world.now_ms += MINUTE_MS
        agent.sampler.sample_once()
        assert [reading.node for reading in agent.counts.view.readings] == ["sim-0"]
    world.lost = set()
    world.now_ms += 10 * MINUTE_MS
    agent.sampler.sample_once()
    assert ("sim-1", START_MS) in world.asked
    agent.deliverer.deliver_once()
    assert service.totals()["job-1", START_MS] == (15 * MINUTE_MS, 30 * MINUTE_MS)
    # The distance over the hole is unobserved, the ten minutes after it are not.
    assert service.totals()["job-2", START_MS] == (5 * MINUTE_MS, 10 * MINUTE_MS)


def test_an_agent_that_was_cut_off_from_a_node_catches_up_on_what_the_node_remembers(outbox: Outbox) -> None:
    world = Gpus({"GPU-1": a_busy_gpu("job-1"), "GPU-2": a_busy_gpu("job-2", node="sim-1")})
    world.gpus["GPU-2"].holds = [Hold("job-2", START_MS, START_MS + 10 * MINUTE_MS)]
    service = Service()
    agent = an_agent(outbox, world, service)
    agent.sampler.sample_once()
    world.lost = {"sim-1"}
    for _ in range(20):
        world.now_ms += MINUTE_MS
        agent.sampler.sample_once()
    world.lost = set()
    agent.sampler.sample_once()
    agent.deliverer.deliver_once()
    assert service.totals()["job-2", START_MS] == (5 * MINUTE_MS, 10 * MINUTE_MS)


def test_nodes_given_by_name_are_read_one_by_one_and_one_failure_spares_the_others(outbox: Outbox) -> None:
    world = Gpus({f"GPU-{n}": a_busy_gpu(f"job-{n}", node=f"sim-{n}") for n in range(3)})
    world.lost = {"sim-0"}
    agent = an_agent(outbox, world, Service(), nodes=("sim-0", "sim-1"))
    with captured() as logs:
        agent.sampler.sample_once()
        agent.sampler.sample_once()
    assert [reading.node for reading in agent.counts.view.readings] == ["sim-1"]
    assert agent.counts.collect_failures == 2
    assert [line["node"] for line in logs] == ["sim-0"]


def test_no_cluster_at_all_is_noted_once_and_loses_nothing(outbox: Outbox) -> None:
    world, service = Gpus({"GPU-1": a_busy_gpu()}), Service()
    agent = an_agent(outbox, world, service)
    agent.sampler.sample_once()
    world.lost = {"*"}
    world.now_ms += 5 * MINUTE_MS
    with captured() as logs:
        agent.sampler.sample_once()
        agent.sampler.sample_once()
    assert [line["event"] for line in logs] == ["reading_failed"]
    assert not agent.counts.collect_success
    world.lost = set()
    agent.sampler.sample_once()
    agent.deliverer.deliver_once()
    assert service.totals()["job-1", START_MS] == (150_000, 5 * MINUTE_MS)


def test_a_job_that_ended_behind_the_newest_sample_keeps_its_last_seconds(outbox: Outbox) -> None:
    """The next reading must still tell of it: its end lies in an interval that was not sampled yet."""
    gpu = a_busy_gpu(ratio=1.0)
    gpu.holds = [Hold("job-1", START_MS, START_MS + 65_000)]
    world, service = Gpus({"GPU-1": gpu}), Service()
    agent = an_agent(outbox, world, service)
    for seconds in (0, 67, 13):
        world.now_ms += seconds * 1_000
        agent.sampler.sample_once()
    agent.deliverer.deliver_once()
    assert service.totals() == {("job-1", START_MS): (65_000, 65_000)}


def test_a_silent_gpu_does_not_hold_the_others_back(outbox: Outbox) -> None:
    world = Gpus({"GPU-1": a_busy_gpu(), "GPU-2": Gpu()})
    agent = an_agent(outbox, world, Service())
    for _ in range(5):
        agent.sampler.sample_once()
        world.now_ms += MINUTE_MS
    assert world.asked[-1] == ("sim-0", START_MS + 3 * MINUTE_MS)


def test_a_full_disk_keeps_gains_in_memory_until_it_takes_them(outbox: Outbox) -> None:
    world, service = Gpus({"GPU-1": a_busy_gpu()}), Service()
    agent = an_agent(outbox, world, service)
    agent.sampler.sample_once()
    outbox._connection.execute("PRAGMA query_only = ON")
    for _ in range(3):
        world.now_ms += MINUTE_MS
        agent.sampler.sample_once()
    agent.deliverer.deliver_once()
    assert (service.totals(), agent.counts.store_failures, agent.counts.stored) == ({}, 3, False)
    outbox._connection.execute("PRAGMA query_only = OFF")
    world.now_ms += MINUTE_MS
    agent.sampler.sample_once()
    agent.deliverer.deliver_once()
    assert service.totals() == {("job-1", START_MS): (2 * MINUTE_MS, 4 * MINUTE_MS)}
    assert agent.counts.stored


def test_death_with_a_full_disk_reads_the_same_samples_again(outbox: Outbox) -> None:
    world, service = Gpus({"GPU-1": a_busy_gpu()}), Service()
    agent = an_agent(outbox, world, service)
    agent.sampler.sample_once()
    outbox._connection.execute("PRAGMA query_only = ON")
    world.now_ms += MINUTE_MS
    agent.sampler.sample_once()
    outbox._connection.execute("PRAGMA query_only = OFF")
    restarted = an_agent(outbox, world, service)
    world.now_ms += MINUTE_MS
    restarted.sampler.sample_once()
    restarted.deliverer.deliver_once()
    assert service.totals() == {("job-1", START_MS): (MINUTE_MS, 2 * MINUTE_MS)}


def some_evidence(outbox: Outbox, service: Service, gpus: int = 1):
    world = Gpus({f"GPU-{n}": a_busy_gpu(f"job-{n}") for n in range(gpus)})
    agent = an_agent(outbox, world, service)
    agent.sampler.sample_once()
    world.now_ms += MINUTE_MS
    agent.sampler.sample_once()
    return agent


def test_a_lost_reply_is_sent_again_and_changes_nothing(outbox: Outbox) -> None:
    service = Service()
    agent = some_evidence(outbox, service)
    service.after = out_of_service
    agent.deliverer.deliver_once()
    once = service.totals()
    service.after = lambda batch: None
    agent.deliverer.deliver_once()
    assert service.totals() == once
    assert [batch.rows for batch in service.deliveries] == [service.deliveries[0].rows] * 2
    assert (agent.counts.reports_failed, agent.counts.reports_sent) == (1, 1)
    assert outbox.spool().records == 0


def test_an_old_delivery_arriving_late_is_ignored(outbox: Outbox) -> None:
    service = Service()
    agent = some_evidence(outbox, service)
    agent.deliverer.deliver_once()
    agent.sampler._reader.now_ms += MINUTE_MS
    agent.sampler.sample_once()
    agent.deliverer.deliver_once()
    newest = service.totals()
    service.deliver_evidence(service.deliveries[0])
    assert service.totals() == newest


def test_a_service_out_of_reach_costs_one_request_a_pass(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "BATCH_ROWS", 3)
    service, asked = Service(), []

    def away(batch: EvidenceBatch) -> None:
        asked.append(batch)
        out_of_service(batch)

    service.before = away
    agent = some_evidence(outbox, service, gpus=10)
    agent.deliverer.deliver_once()
    assert len(asked) == 1
    service.before = lambda batch: None
    agent.deliverer.deliver_once()
    assert [len(batch.rows) for batch in service.deliveries] == [3, 3, 3, 1]
    assert outbox.spool().records == 0


def test_a_row_that_grows_during_the_pass_is_sent_once_in_it(outbox: Outbox) -> None:
    service = Service()
    agent = some_evidence(outbox, service)

    def grow(batch: EvidenceBatch) -> None:
        agent.sampler._reader.now_ms += MINUTE_MS
        agent.sampler.sample_once()

    service.after = grow
    agent.deliverer.deliver_once()
    assert len(service.deliveries) == 1
    assert outbox.spool().records == 1


def test_a_refused_row_lets_the_others_through_and_stays(outbox: Outbox) -> None:
    service = Service()
    agent = some_evidence(outbox, service, gpus=20)

    def refuse(batch: EvidenceBatch) -> None:
        if any(row.job_id == "job-13" for row in batch.rows):
            raise a_problem(422, "invalid")

    service.before = refuse
    agent.deliverer.deliver_once()
    assert {job_id for job_id, _ in service.totals()} == {f"job-{n}" for n in range(20) if n != 13}
    assert (outbox.spool().records, agent.counts.records_refused) == (1, 1)


def test_a_service_that_refuses_everything_is_not_asked_without_end(outbox: Outbox) -> None:
    service, asked = Service(), []

    def refuse(batch: EvidenceBatch) -> None:
        asked.append(batch)
        raise a_problem(422, "invalid")

    service.before = refuse
    agent = some_evidence(outbox, service, gpus=100)
    agent.deliverer.deliver_once()
    assert len(asked) == 2 * loop_module.MOST_HALVINGS + 1
    assert outbox.spool().records == 100


def test_a_refused_token_is_one_line_and_evidence_stays(outbox: Outbox) -> None:
    service = Service()
    agent = some_evidence(outbox, service)

    def refuse(batch: EvidenceBatch) -> None:
        raise a_problem(401, "token_unknown")

    service.before = refuse
    with captured() as logs:
        agent.deliverer.deliver_once()
    assert [(line["event"], line["code"]) for line in logs] == [("delivery_refused", "token_unknown")]
    assert outbox.spool().records == 1


def test_unknown_attempts_are_only_counted(outbox: Outbox) -> None:
    service = Service()
    service.known_jobs = {"job-0"}
    agent = some_evidence(outbox, service, gpus=3)
    agent.deliverer.deliver_once()
    assert (agent.counts.records_unknown, outbox.spool().records) == (2, 0)


def test_the_end_samples_once_more_and_then_delivers() -> None:
    turns: list[str] = []
    begun = threading.Event()

    def sample() -> None:
        turns.append("sample")
        begun.set()

    loop = Loop(sample, lambda: turns.append("deliver"), 1_000, 1_000, 1_000)
    loop.start()
    assert begun.wait(10)
    assert loop.stop(patience_s=10)
    assert turns == ["sample", "sample", "deliver"]


def test_an_error_at_the_edge_is_logged_and_the_next_turn_comes() -> None:
    again = threading.Event()
    failures = [ValueError("once")]

    def sample() -> None:
        if failures:
            raise failures.pop()
        again.set()

    loop = Loop(sample, lambda: None, 0, 1_000, 1_000)
    with captured() as logs:
        loop.start()
        assert again.wait(10)
        assert loop.stop(patience_s=10)
    assert [line["event"] for line in logs] == ["turn_failed"]


def test_a_broken_outbox_ends_the_loop() -> None:
    def sample() -> None:
        raise OutboxBroken("malformed")

    loop = Loop(sample, lambda: None, 1_000, 1_000, 1_000)
    with captured() as logs:
        loop.start()
        for thread in loop._threads:
            thread.join(10)
    assert loop.broken
    assert [line["event"] for line in logs] == ["outbox_broken"]


def test_a_hanging_service_does_not_hold_the_end() -> None:
    hanging, sampled = threading.Event(), threading.Event()
    loop = Loop(sampled.set, lambda: hanging.wait(60) and None, 1_000, 1_000, 0)
    loop.start()
    assert sampled.wait(10)
    assert not loop.stop(patience_s=0.0)
    hanging.set()
    assert loop.stop(patience_s=10)
