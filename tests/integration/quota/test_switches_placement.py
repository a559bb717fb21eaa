"""Pausing placement and cordoning nodes: shown first, then done; nothing starts after a pause was answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quota.audit.tables import audit
from quota.dispatch import decisions
from quota.errors import NotFound, PreconditionFailed
from quota.fleet import service as fleet
from quota.fleet import switches as placement
from quota.jobs import switches
from quota.jobs.tables import attempts
from quota.schemas.fleet import NewCluster, NodeChange
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.scheduling import DecisionBatch
from quota.schemas.switches import FreezeChange, NodeReply, PlacementChange, PlacementKind, PlacementReply
from tests.builders import GPU_HOUR_US, HOUR_MS, OPERATOR, Hub, a_hub, node_reports
from tests.property.ledger.ledger_checks import violations

SWITCHES: list[tuple[PlacementKind, str]] = [("hub", "hub"), ("cluster", "sim"), ("gpu_class", "h100")]


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def _pause(
    hub: Hub, kind: PlacementKind, key: str, *, paused: bool = True, dry: bool = False
) -> PlacementReply:
    body = PlacementChange(paused=paused, reason="cooling trouble")
    do = hub.database.preview if dry else hub.database.write
    return do(lambda tx: switches.pause(tx, OPERATOR, kind, key, body))


def _cordon(
    hub: Hub, node: str = "n0", *, cordoned: bool = True, dry: bool = False, if_match: str | None = None
) -> NodeReply:
    body = NodeChange(cordoned=cordoned, reason="fan")
    do = hub.database.preview if dry else hub.database.write
    return do(lambda tx: switches.cordon(tx, OPERATOR, "sim", node, body, if_match))


def _switches(hub: Hub) -> dict[tuple[str, str], Any]:
    with hub.database.read() as connection:
        return {(item.kind, item.id): item for item in placement.list_switches(connection).items}


def _second_cluster(hub: Hub, nodes: dict[str, dict[str, int]]) -> None:
    body = NewCluster(id="two", kind="simulated")
    hub.database.write(lambda tx: fleet.create_cluster(tx, OPERATOR, body))
    hub.report(cluster="two", nodes=node_reports(nodes))


# --- pause ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "key"), SWITCHES)
def test_a_dry_pause_tells_what_the_pause_then_does_and_leaves_no_trace(
    hub: Hub, kind: PlacementKind, key: str
) -> None:
    grant = hub.award()
    running, waiting = hub.submit(gpus_per_pod=4), hub.submit()
    hub.run(running, grant)
    before = hub.contents()
    told = _pause(hub, kind, key, dry=True)
    assert hub.contents() == before
    assert told == _pause(hub, kind, key)
    assert told.changed
    assert told.reach.waiting.ids == (waiting.id,)
    assert told.reach.running.ids == (f"{running.id}-1",)
    assert told.reach.held_gpu_us == 4 * GPU_HOUR_US
    assert _switches(hub)[kind, key] == told.placement


@pytest.mark.parametrize(("kind", "key"), SWITCHES)
def test_while_paused_a_start_is_refused_by_name_and_after_it_is_accepted(
    hub: Hub, kind: PlacementKind, key: str
) -> None:
    grant = hub.award()
    job = hub.submit()
    _pause(hub, kind, key)
    refused = hub.try_start(job, grant)
    assert (refused.outcome, refused.code) == ("refused", "not_schedulable")
    assert f"{kind} {key}" in refused.detail
    assert hub.grant(grant.id).held_gpu_us == 0
    assert _pause(hub, kind, key, paused=False).changed
    assert hub.try_start(job, grant).outcome == "accepted"


def test_a_paused_class_lets_the_others_start(hub: Hub) -> None:
    grant = hub.award()
    _pause(hub, "gpu_class", "a100")
    assert hub.try_start(hub.submit(), grant).outcome == "accepted"
    assert hub.try_start(hub.submit(gpu_class="a100"), grant, "a0").code == "not_schedulable"


def test_of_one_batch_only_what_is_paused_is_refused(hub: Hub) -> None:
    grant = hub.award()
    first, second, third = hub.submit(), hub.submit(gpu_class="a100"), hub.submit()
    _pause(hub, "gpu_class", "a100")
    items = [hub.start_item(first, grant), hub.start_item(second, grant, "a0"), hub.start_item(third, grant)]
    outcomes = [result.outcome for result in hub.decide(*items).results]
    assert outcomes == ["accepted", "refused", "accepted"]


@pytest.mark.parametrize(("kind", "key"), SWITCHES)
def test_the_same_state_again_writes_nothing(hub: Hub, kind: PlacementKind, key: str) -> None:
    assert not _pause(hub, kind, key, paused=False).changed
    assert _pause(hub, kind, key).changed
    before = hub.contents()
    again = _pause(hub, kind, key)
    assert not again.changed
    assert (again.placement.by, again.placement.reason) == ("operator", "cooling trouble")
    assert hub.contents() == before


def test_every_switch_is_audited_with_both_states_and_shown_in_the_feed(hub: Hub) -> None:
    for kind, key in SWITCHES:
        _pause(hub, kind, key)
        [row] = hub.rows(audit, action=f"{kind}.pause")
        assert (row.actor, row.subject, row.reason) == ("operator", key, "cooling trouble")
        assert (json.loads(row.before), json.loads(row.after)) == ({"paused": False}, {"paused": True})
    _, items = hub.snapshot()
    assert items["policy", "default"].policy.placement_paused is True  # type: ignore[union-attr]
    assert items["cluster", "sim"].cluster.paused is True  # type: ignore[union-attr]
    assert items["gpu_class", "h100"].gpu_class.paused is True  # type: ignore[union-attr]
    assert items["gpu_class", "a100"].gpu_class.paused is False  # type: ignore[union-attr]
    for kind, key in SWITCHES:
        _pause(hub, kind, key, paused=False)
        assert _switches(hub)[kind, key].since is None
    _, items = hub.snapshot()
    assert items["policy", "default"].policy.placement_paused is False  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "key"), [("hub", "other"), ("cluster", "none"), ("gpu_class", "none")])
def test_pausing_what_is_not_there_is_refused_and_changes_nothing(
    hub: Hub, kind: PlacementKind, key: str
) -> None:
    before = hub.contents()
    for dry in (True, False):
        with pytest.raises(NotFound):
            _pause(hub, kind, key, dry=dry)
    assert hub.contents() == before


def test_a_paused_cluster_keeps_only_jobs_that_fit_on_no_other(hub: Hub) -> None:
    hub.award(hours="1000")
    _second_cluster(hub, {"m0": {"h100": 4}})
    small, wide = hub.submit(gpus_per_pod=4), hub.submit(gpus_per_pod=8)
    gang, old = hub.submit(gpus_per_pod=4, pods=2), hub.submit(gpu_class="a100")
    waiting = _pause(hub, "cluster", "sim", dry=True).reach.waiting
    assert set(waiting.ids) == {wide.id, gang.id, old.id}
    assert small.id not in waiting.ids
    _pause(hub, "cluster", "two")
    assert _pause(hub, "cluster", "sim", dry=True).reach.waiting.count == 4


# --- cordon ---------------------------------------------------------------------------------------------


def test_a_dry_cordon_tells_what_the_cordon_then_does_and_leaves_no_trace(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    here, there = hub.submit(gpus_per_pod=2), hub.submit()
    hub.run(here, grant, "n0")
    hub.run(there, grant, "n1")
    gang, small = hub.submit(gpus_per_pod=8, pods=2), hub.submit()
    before = hub.contents()
    told = _cordon(hub, dry=True)
    assert hub.contents() == before
    assert told == _cordon(hub)
    assert told.cordoned
    assert told.reach.running.ids == (f"{here.id}-1",)
    assert told.reach.waiting.ids == (gang.id,)
    assert hub.try_start(small, grant, "n0").code == "not_schedulable"


def test_cordoning_twice_writes_nothing_and_the_audit_has_both_states(hub: Hub) -> None:
    assert _cordon(hub).changed
    before = hub.contents()
    assert not _cordon(hub).changed
    assert hub.contents() == before
    [row] = hub.rows(audit, action="node.cordon")
    assert (json.loads(row.before), json.loads(row.after)) == ({"cordoned": False}, {"cordoned": True})


def test_a_cordon_of_another_version_is_refused_dry_or_not(hub: Hub) -> None:
    tag = _cordon(hub, dry=True, cordoned=False).etag
    _cordon(hub)
    before = hub.contents()
    for dry in (True, False):
        with pytest.raises(PreconditionFailed):
            _cordon(hub, cordoned=False, dry=dry, if_match=tag)
    assert hub.contents() == before


# --- races ----------------------------------------------------------------------------------------------

THREADS = 8
Throw = Callable[[Hub], object]


def _throw_pause(kind: PlacementKind, key: str) -> Throw:
    return lambda hub: _pause(hub, kind, key)


def _throw_freeze(hub: Hub) -> object:
    body = FreezeChange(frozen=True, reason="unpaid bill", stop_running=True)
    return hub.database.write(lambda tx: switches.freeze(tx, OPERATOR, "alpha", body))


THROWS: dict[str, Throw] = {
    "hub": _throw_pause("hub", "hub"),
    "cluster": _throw_pause("cluster", "sim"),
    "gpu_class": _throw_pause("gpu_class", "h100"),
    "node": _cordon,
    "organization": _throw_freeze,
}


@pytest.mark.parametrize("what", sorted(THROWS))
def test_no_start_is_accepted_after_the_switch_was_answered(hub: Hub, what: str) -> None:
    """Eight threads start jobs while a switch is thrown; what was accepted had begun to commit before its answer."""
    grant = hub.award(hours="10000")
    hub.report(nodes=node_reports({"n0": {"h100": 500}, "n1": {"h100": 8}, "a0": {"a100": 8}}))
    jobs = [[hub.submit() for _ in range(12)] for _ in range(THREADS)]
    answered = threading.Event()
    late: list[str] = []
    accepted: list[str] = []
    ready = threading.Barrier(THREADS + 1)

    def start(lane: int) -> None:
        ready.wait()
        for number, job in enumerate(jobs[lane], 1):
            after_answer = answered.is_set()
            if _start(hub, job, grant, f"lane-{lane}", number):
                accepted.append(job.id)
                if after_answer:
                    late.append(job.id)

    threads = [threading.Thread(target=start, args=(lane,)) for lane in range(THREADS)]
    for thread in threads:
        thread.start()
    ready.wait()
    while not accepted:  # some pass before it, so that both sides are seen
        threading.Event().wait(0.001)
    THROWS[what](hub)
    placed = {row.job_id for row in hub.rows(attempts)}
    answered.set()
    for thread in threads:
        thread.join()
    assert late == []
    assert {row.job_id for row in hub.rows(attempts)} == placed, "a start was committed after the answer"
    assert set(accepted) == placed
    if what == "organization":
        assert all(hub.job(job_id).cancel_requested_at is not None for job_id in placed)


def _start(hub: Hub, job: Job, grant: Grant, stream: str, seq: int) -> bool:
    item = hub.start_item(job, grant, attempt=1)
    batch = DecisionBatch(epoch=hub.epoch, stream=stream, seq=seq, items=(item,))
    body = batch.model_dump_json().encode()
    reply = hub.database.write(lambda tx: decisions.decide(tx, batch, body)).reply
    return reply.results[0].outcome == "accepted"


def test_a_report_that_counts_usage_does_not_wait_for_a_start_of_the_same_organization(
    postgres_url: str,
) -> None:
    """A start relies on the organization's row without keeping settlement from it."""
    hub = a_hub(postgres_url)
    grant = hub.award()
    first, second = hub.submit(walltime_s=7200), hub.submit()
    hub.run(first, grant)
    inside, done = threading.Event(), threading.Event()

    def slow_start() -> None:
        item = hub.start_item(second, grant)
        batch = DecisionBatch(epoch=hub.epoch, stream="slow", seq=1, items=(item,))

        def work(tx: Any) -> None:
            placement.check_open(tx, "sim", ["h100"])
            decisions.check_not_frozen(tx, "alpha")
            inside.set()
            assert done.wait(30)
            assert decisions.decide(tx, batch, b"{}").reply.results[0].outcome == "accepted"

        hub.database.write(work)

    thread = threading.Thread(target=slow_start)
    thread.start()
    assert inside.wait(30)
    hub.clock.advance(HOUR_MS)
    hub.finish(first)  # settles and counts usage while the other transaction relies on the same rows
    done.set()
    thread.join()
    assert hub.grant(grant.id).used_gpu_us == GPU_HOUR_US
    hub.close()
