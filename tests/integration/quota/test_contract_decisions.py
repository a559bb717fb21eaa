"""Starts and stops: one savepoint each, all or nothing, refused with the numbers behind it; both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from quota.audit.tables import audit
from quota.db import feed_rows
from quota.dispatch.tables import streams
from quota.fleet import service as fleet
from quota.fleet.tables import clusters, node_capacity
from quota.identity.tables import organizations
from quota.jobs.tables import attempts, placements
from quota.ledger.tables import holds, transfers
from quota.schemas.fleet import NodeChange
from quota.schemas.scheduling import JobState, StartItem, StopItem, StopReason
from tests.builders import (
    DAY_MS,
    GPU_HOUR_US,
    HOUR_MS,
    MINUTE_MS,
    OPERATOR,
    START_MS,
    Hub,
    a_hub,
    ended,
    node_reports,
    started,
)
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def test_a_start_holds_the_whole_cost_and_takes_the_nodes(hub: Hub) -> None:
    grant = hub.award(hours="100")
    job = hub.submit(gpus_per_pod=4, pods=3, walltime_s=7200)
    assert hub.start(job, grant, "n0", "n1") == 1
    assert hub.grant(grant.id).held_gpu_us == 12 * 2 * GPU_HOUR_US
    used = {row.node: row.used for row in hub.rows(node_capacity)}
    assert used == {"n0": 8, "n1": 4, "a0": 0}
    detail = hub.job(job.id)
    assert (detail.state, detail.attempt) == (JobState.STARTING, 1)
    assert [(pod.index, pod.node, pod.count) for pod in detail.attempts[0].pods] == [
        (0, "n0", 4),
        (1, "n1", 4),
        (2, "n0", 4),
    ]
    assert detail.attempts[0].hold_id == f"{job.id}:1:hold"


def test_a_hold_is_taken_at_the_rate_of_the_class(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpu_class="a100", gpus_per_pod=3, walltime_s=1)
    hub.start(job, grant, "a0")
    assert hub.grant(grant.id).held_gpu_us == 3 * 1000 * 550


def test_a_refused_item_leaves_no_trace_among_good_ones(hub: Hub) -> None:
    """The second item fails after its hold was placed: only the good ones stay."""
    grant = hub.award()
    good, bad, other = hub.submit(gpus_per_pod=6), hub.submit(gpus_per_pod=4), hub.submit(gpus_per_pod=8)
    seq = hub.snapshot()[0]
    reply = hub.decide(
        hub.start_item(good, grant), hub.start_item(bad, grant), hub.start_item(other, grant, "n1")
    )
    assert [result.outcome for result in reply.results] == ["accepted", "refused", "accepted"]
    assert reply.results[1].numbers == {"node": "n0", "gpu_class": "h100", "needed": 4, "free": 2}
    assert {row.job_id for row in hub.rows(transfers, type="hold")} == {good.id, other.id}
    assert {row.job_id for row in hub.rows(holds)} == {good.id, other.id}
    assert {row.subject for row in hub.rows(audit, action="attempt.start")} == {good.id, other.id}
    fresh = [row for row in hub.rows(feed_rows) if row.seq > seq]
    assert not [row for row in fresh if bad.id in row.id]
    assert {row.id for row in fresh if row.kind == "job"} == {good.id, other.id}
    assert bad.id not in {item.id for item in reply.objects}
    assert hub.job(bad.id).state is JobState.QUEUED
    assert hub.grant(grant.id).held_gpu_us == 14 * GPU_HOUR_US


def test_a_batch_in_which_all_is_refused_leaves_only_its_reply(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpus_per_pod=8)
    hub.start(job, grant)
    second = hub.submit(gpus_per_pod=8)
    before = hub.contents(streams)
    assert hub.try_start(second, grant).outcome == "refused"
    assert hub.contents(streams) == before


def test_the_reply_carries_the_changed_objects_of_one_moment(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpus_per_pod=2)
    reply = hub.decide(hub.start_item(job, grant))
    shown = {(item.kind, item.id): item for item in reply.objects}
    assert set(shown) == {
        ("job", job.id),
        ("attempt", f"{job.id}-1"),
        ("grant", grant.id),
        ("node", "sim/n0"),
    }
    assert {item.seq for item in reply.objects} == {reply.seq}
    fresh = hub.snapshot()[1]
    assert all(fresh[key] == item for key, item in shown.items())


# --- refusals --------------------------------------------------------------------------------------


def test_a_start_is_refused_without_balance_with_numbers(hub: Hub) -> None:
    grant = hub.award(hours="3")
    job = hub.submit(gpus_per_pod=2)
    other = hub.submit(gpus_per_pod=2)
    hub.start(other, grant)
    result = hub.try_start(job, grant)
    assert result.code == "insufficient_balance"
    assert result.numbers == {
        "account": grant.account_id,
        "needed_gpu_us": 2 * GPU_HOUR_US,
        "left_gpu_us": GPU_HOUR_US,
    }


def test_a_start_is_refused_when_the_grant_ends_first_naming_what_fits(hub: Hub) -> None:
    grant = hub.award(ends_at=START_MS + HOUR_MS)
    job = hub.submit(walltime_s=3600)
    hub.clock.advance(1)
    result = hub.try_start(job, grant)
    assert result.code == "grant_not_active"
    assert result.numbers == {"fitting_walltime_ms": HOUR_MS - 1, "starts_in_ms": 0}


def test_a_start_to_the_grants_last_millisecond_is_taken(hub: Hub) -> None:
    grant = hub.award(ends_at=START_MS + HOUR_MS)
    hub.start(hub.submit(walltime_s=3600), grant)


def test_a_start_is_refused_before_the_grant_begins(hub: Hub) -> None:
    grant = hub.award(starts_at=START_MS + DAY_MS)
    job = hub.submit()
    result = hub.try_start(job, grant)
    assert (result.code, result.numbers["starts_in_ms"]) == ("grant_not_active", DAY_MS)


def test_a_start_is_refused_on_another_firms_grant(hub: Hub) -> None:
    hub.award("alpha")
    job = hub.submit("alpha")
    result = hub.try_start(job, hub.award("beta"))
    assert (result.outcome, result.code) == ("refused", "not_found")


def test_a_start_is_refused_on_another_grant_than_the_job_names(hub: Hub) -> None:
    named, other = hub.award(), hub.award()
    job = hub.submit(grant_id=named.id)
    assert hub.try_start(job, other).code == "not_found"
    hub.start(job, named)


@pytest.mark.parametrize("path", [("platform",), ("treasury",), ("program:ax",), ("nowhere",)])
def test_a_start_is_refused_on_accounts_that_are_no_path_of_the_grant(
    hub: Hub, path: tuple[str, ...]
) -> None:
    grant = hub.award()
    job = hub.submit()
    assert hub.try_start(job, grant, path=path).code == "not_found"
    assert hub.try_start(job, grant, path=(grant.account_id, *path)).code == "not_found"
    assert hub.try_start(job, grant, path=(grant.account_id, grant.account_id)).code == "not_found"


def test_a_start_is_refused_on_a_closed_node(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    body = NodeChange(cordoned=True, reason="fan")
    hub.database.write(lambda tx: fleet.change_node(tx, OPERATOR, "sim", "n0", body))
    result = hub.try_start(job, grant)
    assert (result.code, result.numbers) == ("not_schedulable", {"node": "n0", "cluster": "sim"})
    assert hub.try_start(job, grant, "n7").code == "not_schedulable"
    hub.start(job, grant, "n1")


def test_a_start_is_refused_on_a_node_that_its_cluster_left_out(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.report(nodes=node_reports({"n1": {"h100": 8}}))
    assert hub.try_start(job, grant).code == "not_schedulable"


def test_a_start_is_refused_on_a_paused_or_unknown_cluster(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.cluster = "moon"
    assert hub.try_start(job, grant).code == "not_schedulable"
    hub.cluster = "sim"
    _set(hub, clusters, paused=True)
    assert hub.try_start(job, grant).code == "not_schedulable"


def test_a_start_is_refused_for_a_frozen_organization(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    _set(hub, organizations, frozen=True)
    assert hub.try_start(job, grant).code == "not_schedulable"


def test_a_start_leaves_room_for_what_others_use(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpus_per_pod=6)
    hub.report(nodes=node_reports({"n0": {"h100": 8}}, foreign=3))
    result = hub.try_start(job, grant)
    assert (result.code, result.numbers) == (
        "capacity_taken",
        {"node": "n0", "gpu_class": "h100", "needed": 6, "free": 5},
    )


def test_a_start_is_refused_on_a_node_without_the_class(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    result = hub.try_start(job, grant, "a0")
    assert (result.code, result.numbers) == (
        "capacity_taken",
        {"node": "a0", "gpu_class": "h100", "needed": 1, "free": 0},
    )


def test_a_gang_that_fits_on_no_node_alone_is_refused_whole(hub: Hub) -> None:
    grant = hub.award()
    gang = hub.submit(gpus_per_pod=5, pods=2)
    before = hub.contents(streams)
    assert hub.try_start(gang, grant, "n0").code == "capacity_taken"
    assert hub.contents(streams) == before
    hub.start(gang, grant, "n0", "n1")


def test_a_placement_must_be_the_jobs_shape(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpus_per_pod=2, pods=2)
    item = hub.start_item(job, grant)
    first, second = item.pods
    for pods in (
        (first,),
        (second, first),
        (first, first),
        (first, second.model_copy(update={"count": 1})),
        (first, second.model_copy(update={"gpu_class": "a100"})),
        (first, second, second.model_copy(update={"index": 2})),
    ):
        result = hub.decide(item.model_copy(update={"pods": pods})).results[0]
        assert (result.outcome, result.code) == ("refused", "invalid_request")


def test_an_attempt_starts_once_and_in_order(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    assert hub.try_start(job, grant, attempt=2).code == "wrong_state"
    hub.start(job, grant)
    assert hub.try_start(job, grant, attempt=1).code == "wrong_state"
    assert hub.try_start(job, grant, attempt=2).code == "wrong_state"
    assert len(hub.rows(attempts)) == 1


def test_the_same_start_twice_in_one_batch_is_done_once(hub: Hub) -> None:
    grant = hub.award()
    item = hub.start_item(hub.submit(), grant)
    assert [result.outcome for result in hub.decide(item, item).results] == ["accepted", "refused"]
    assert hub.grant(grant.id).held_gpu_us == GPU_HOUR_US


def test_an_ended_or_unknown_job_does_not_start(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.cancel(job.id)
    assert hub.try_start(job, grant).code == "wrong_state"
    item = hub.start_item(job, grant).model_copy(update={"job_id": "job-nobody"})
    assert hub.decide(item).results[0].code == "not_found"


# --- stops -----------------------------------------------------------------------------------------


def test_a_stop_is_recorded_and_irrevocable(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(grace_s=20, restartable=True)
    hub.run(job, grant)
    hub.clock.advance(MINUTE_MS)
    assert hub.stop(job, StopReason.PREEMPTED, grace_ms=20_000).outcome == "accepted"
    row = hub.attempt(job.id)
    assert (row.state, row.stop_reason, row.stop_at_ms, row.stop_grace_ms) == (
        "stopping",
        "preempted",
        hub.now,
        20_000,
    )
    hub.clock.advance(MINUTE_MS)
    again = hub.stop(job, StopReason.CANCELLED, grace_ms=1)
    assert (again.outcome, again.code) == ("unchanged", "stopping")
    assert hub.attempt(job.id) == row
    assert hub.job(job.id).state is JobState.STOPPING


def test_a_stop_of_an_ended_or_unknown_attempt_changes_nothing(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    hub.finish(job)
    result = hub.stop(job)
    assert (result.outcome, result.code) == ("unchanged", "ended")
    assert hub.stop(job, attempt=2).code == "not_found"
    assert hub.stop(job.model_copy(update={"id": "job-nobody"})).code == "not_found"


def test_a_stopping_job_does_not_start_again(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.start(job, grant)
    hub.stop(job)
    assert hub.try_start(job, grant, attempt=2).code == "wrong_state"
    hub.report(started(job, hub.now, hub.now))
    assert hub.job(job.id).state is JobState.STOPPING


def test_a_stop_never_takes_back_what_is_settled(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(walltime_s=3 * 3600)
    hub.run(job, grant)
    hub.clock.advance(2 * HOUR_MS + MINUTE_MS)
    hub.report()
    hub.stop(job, stop_at=START_MS + HOUR_MS)
    assert hub.attempt(job.id).stop_at_ms == START_MS + 2 * HOUR_MS


def test_a_stop_has_at_most_the_jobs_grace(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(grace_s=5)
    hub.run(job, grant)
    hub.stop(job, grace_ms=60_000)
    assert hub.attempt(job.id).stop_grace_ms == 5000


def test_starts_and_stops_share_a_batch(hub: Hub) -> None:
    grant = hub.award()
    first, second = hub.submit(gpus_per_pod=8, restartable=True), hub.submit(gpus_per_pod=8)
    hub.run(first, grant)
    stop = StopItem(
        job_id=first.id,
        attempt=1,
        reason=StopReason.PREEMPTED,
        stop_at=hub.now,
        grace_ms=0,
        for_job=second.id,
    )
    reply = hub.decide(stop, hub.start_item(second, grant), hub.start_item(second, grant, "n1"))
    assert [result.outcome for result in reply.results] == ["accepted", "refused", "accepted"]
    assert hub.attempt(first.id).stop_for_job is None, (
        "what it was stopped for runs: no room is kept any more"
    )


def test_a_preempted_attempt_names_whom_it_made_room_for_until_that_one_starts(hub: Hub) -> None:
    grant = hub.award()
    victim, gang = hub.submit(gpus_per_pod=8, restartable=True), hub.submit(gpus_per_pod=8)
    hub.run(victim, grant)
    stop = StopItem(
        job_id=victim.id,
        attempt=1,
        reason=StopReason.PREEMPTED,
        stop_at=hub.now,
        grace_ms=0,
        for_job=gang.id,
    )
    hub.decide(stop)
    hub.report(ended(victim, hub.now, reason="stopped", exit_code=143))
    shown = hub.snapshot()[1][("attempt", f"{victim.id}-1")].attempt
    assert (shown.capacity_held, shown.stop.for_job) == (False, gang.id)
    hub.start(gang, grant)
    assert ("attempt", f"{victim.id}-1") not in hub.snapshot()[1]


# --- cancel ----------------------------------------------------------------------------------------


def test_a_waiting_job_is_cancelled_at_once(hub: Hub) -> None:
    hub.award()
    job = hub.submit()
    assert hub.cancel(job.id).state is JobState.ENDED
    before = hub.contents()
    assert hub.cancel(job.id).end_reason == "cancelled"
    assert hub.contents() == before


@pytest.mark.parametrize("running", [False, True])
def test_a_placed_job_is_cancelled_when_its_pods_are_gone(hub: Hub, running: bool) -> None:
    grant = hub.award()
    job = hub.submit(restartable=True)
    hub.start(job, grant)
    if running:
        hub.report(started(job, hub.now, hub.now))
    before = hub.job(job.id).state
    assert hub.cancel(job.id).state is before, "the scheduler stops it"
    assert hub.cancel(job.id).cancel_requested_at == START_MS
    hub.stop(job, StopReason.CANCELLED)
    hub.clock.advance(10_000)
    hub.report(ended(job, hub.now, reason="stopped" if running else "never_started", exit_code=None))
    detail = hub.job(job.id)
    assert (detail.state, detail.end_reason) == (JobState.ENDED, "cancelled")
    assert detail.charged_gpu_us == (10_000_000 if running else 0)
    assert hub.grant(grant.id).held_gpu_us == 0


def test_a_job_that_succeeds_while_it_is_cancelled_has_succeeded(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    hub.cancel(job.id)
    hub.stop(job)
    hub.finish(job)
    assert hub.job(job.id).end_reason == "succeeded"


# --- concurrent starts -----------------------------------------------------------------------------


@pytest.mark.postgres
def test_concurrent_starts_never_overfill_a_node_or_a_grant(postgres_url: str) -> None:
    """Four streams ask for 12 x 2 GPUs of one node with 8, paid from a grant for 10."""
    hub = a_hub(postgres_url)
    grant = hub.award(hours="10")
    waiting = [hub.submit(gpus_per_pod=2) for _ in range(12)]
    items = [hub.start_item(job, grant) for job in waiting]
    barrier = threading.Barrier(4)
    accepted: list[str] = []
    failures: list[BaseException] = []

    def scheduler(number: int) -> None:
        mine = Hub(hub.database, hub.clock, epoch=hub.epoch)
        barrier.wait()
        try:
            for item in _turned(items, 3 * number):
                result = mine.decide(item, stream=f"stream-{number}").results[0]
                if result.outcome == "accepted":
                    accepted.append(result.job_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=scheduler, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(accepted) == len(set(accepted)) == 4
    assert hub.row(node_capacity, node="n0").used == 8
    assert hub.grant(grant.id).held_gpu_us == 8 * GPU_HOUR_US
    assert len(hub.rows(placements)) == len(hub.rows(holds)) == 4
    with hub.database.read() as connection:
        assert violations(connection) == []
    hub.close()


@pytest.mark.postgres
def test_a_cancel_beside_a_start_leaves_one_of_the_two(postgres_url: str) -> None:
    hub = a_hub(postgres_url)
    grant = hub.award()
    for _ in range(10):
        job = hub.submit()
        item = hub.start_item(job, grant)
        barrier = threading.Barrier(2)

        def cancel(job_id: str = job.id, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            hub.cancel(job_id)

        thread = threading.Thread(target=cancel)
        thread.start()
        barrier.wait()
        result = hub.decide(item).results[0]
        thread.join()
        detail = hub.job(job.id)
        if result.outcome == "accepted":
            assert detail.state is JobState.STARTING
            assert detail.cancel_requested_at is not None
            hub.report(ended(job, hub.now, reason="never_started", exit_code=None))
        assert hub.job(job.id).end_reason == "cancelled"
    assert hub.grant(grant.id).held_gpu_us == 0
    hub.close()


def _turned(items: list[StartItem], by: int) -> list[StartItem]:
    return items[by:] + items[:by]


def _set(hub: Hub, table: Any, **values: Any) -> None:
    hub.database.write(lambda tx: tx.connection.execute(update(table).values(**values)).rowcount)
