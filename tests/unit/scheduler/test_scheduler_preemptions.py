"""Preemptions and promised room, from the core's plan to quota and the cluster, across a scheduler's death."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quota.schemas.fair_share import FairShare, Preemption
from quota.schemas.scheduling import (
    AccountBalance,
    AccountPath,
    AttemptObject,
    EndReason,
    GrantObject,
    JobState,
    StopReason,
    WaitReason,
)
from tests.unit.scheduler.quota_objects import a_grant, a_path, a_policy, an_organization
from tests.unit.scheduler.scheduler_world import World

HOUR_MS = 3_600_000
NOTICE_MS = 10_000
SHARE = FairShare(
    promise_gpus=8,
    gang_first_gpus=16,
    reservation_gpus=16,
    preemption=Preemption(
        gang_gpus=16, victim_gpus=8, lead_ms=0, protected_ms=1000, notice_ms=NOTICE_MS, checkpoint_ms=1000
    ),
)
VICTIMS = ("small-0", "small-1")


def a_full_world(share: FairShare = SHARE, *, restartable: bool = True, gpus: int = 8) -> World:
    """Alpha's jobs have both nodes, or most of them; beta's grant pays for a gang that needs both."""
    world = World()
    world.cluster.run_ms = 10**12
    world.quota.put(("policy", "default", a_policy(fair_share=share)), ("grant", "g1", a_spent_grant(world)))
    world.boot()
    world.rounds(4)
    for job in VICTIMS:
        world.quota.submit(job, gpus_per_pod=gpus, restartable=restartable)
    world.rounds(10)
    now_ms = world.time.now_ms
    beta = a_grant(now_ms, id="g2", organization_id="beta", paths=(a_path("beta", "b1"),))
    world.quota.put(("organization", "beta", an_organization("beta", now_ms)), ("grant", "g2", beta))
    assert {attempt_of(world, job).state for job in VICTIMS} == {JobState.RUNNING}
    return world


def a_spent_grant(world: World) -> GrantObject:
    """Alpha used nine tenths of its grant in half of its term."""
    used = AccountBalance(id="a1", granted_gpu_us=10**17, held_gpu_us=0, used_gpu_us=9 * 10**16)
    path = AccountPath(accounts=(used,), organization_id="alpha")
    return a_grant(world.time.now_ms, paths=(path,))


def a_gang(world: World) -> None:
    """Beta waits for both nodes."""
    world.quota.submit("gang", organization_id="beta", gpus_per_pod=8, pods=2, walltime_ms=HOUR_MS)


def attempt_of(world: World, job_id: str) -> AttemptObject:
    """The first attempt."""
    attempt = world.quota.attempt(f"{job_id}-1")
    assert attempt is not None
    return attempt


def until(world: World, holds: Callable[[], object], what: str) -> None:
    """Rounds, until it is so."""
    for _ in range(100):
        world.rounds(1)
        if holds():
            return
    raise AssertionError(f"not in 100 rounds: {what}")


def until_stopping(world: World) -> None:
    """Rounds, until the victims' stops are recorded."""
    until(
        world,
        lambda: all(attempt_of(world, job).state is JobState.STOPPING for job in VICTIMS),
        "they are stopped for the gang",
    )


def decided(world: World) -> list[str]:
    """Every preemption that was sent."""
    return [body for sent in world.quota.bodies if '"preempted"' in (body := sent.decode())]


def test_victims_are_told_then_stopped_and_the_gang_takes_their_room() -> None:
    world = a_full_world()
    a_gang(world)
    until_stopping(world)
    for job in VICTIMS:
        stop = attempt_of(world, job).stop
        assert stop is not None
        assert (stop.reason, stop.for_job, stop.grace_ms) == (StopReason.PREEMPTED, "gang", 30_000)
        assert world.time.now_ms < stop.stop_at <= world.time.now_ms + NOTICE_MS
    world.rounds(4)
    assert sorted(name for verb, name in world.cluster.calls if verb == "notify") == [
        "small-0-1",
        "small-1-1",
    ]
    assert not any(verb == "stop" for verb, _ in world.cluster.calls), "their notice is not over"
    world.rounds(80)
    assert world.quota.ends["small-0-1"] == world.quota.ends["small-1-1"] == [EndReason.PREEMPTED]
    gang = world.quota.attempt("gang-1")
    assert gang is not None
    assert gang.state is JobState.RUNNING
    assert {pod.node for pod in gang.pods} == {"n0", "n1"}
    assert len(decided(world)) == 1, "one batch says it, once"
    for job in VICTIMS:
        waiting = world.quota.job(job)
        assert waiting is not None
        assert waiting.state is JobState.QUEUED


@pytest.mark.parametrize("fault", ["drop", "forget", "double", "late"])
def test_a_preemption_is_decided_once_whatever_becomes_of_its_message(fault: str) -> None:
    world = a_full_world()
    world.rounds(2)
    a_gang(world)

    def sent_with_a_fault() -> bool:
        world.quota.faults = [] if decided(world) else ["", fault]  # the report, then the decision
        return bool(decided(world))

    sent_with_a_fault()
    until(world, sent_with_a_fault, "a preemption was sent")
    world.quota.deliver_late()
    world.rounds(100)
    assert world.quota.ends["small-0-1"] == world.quota.ends["small-1-1"] == [EndReason.PREEMPTED]
    assert world.quota.starts["gang-1"] == 1
    assert len(set(decided(world))) == 1


@pytest.mark.parametrize(
    "point", ["after_decision_sent_before_reply", "between_stop_and_suspend", "after_suspend"]
)
def test_whoever_comes_next_carries_the_preemption_out(point: str) -> None:
    world = a_full_world()
    a_gang(world)
    world.crash.arm(point, 1)
    until(world, lambda: world.process is None, f"it dies at {point}")
    world.boot()
    world.rounds(100)
    assert world.quota.ends["small-0-1"] == world.quota.ends["small-1-1"] == [EndReason.PREEMPTED]
    assert world.quota.starts["gang-1"] == 1


def test_who_was_refused_is_spared_for_a_while() -> None:
    world = a_full_world()
    world.quota.refuse_stops = ["preempted_too_often"] * 2
    a_gang(world)
    until(world, lambda: not world.quota.refuse_stops, "both were refused")
    sent = len(decided(world))
    world.rounds(100)
    assert len(decided(world)) == sent, "it is not asked for at every tick"
    assert {attempt_of(world, job).state for job in VICTIMS} == {JobState.RUNNING}
    world.rounds(240)
    assert world.quota.starts["gang-1"] == 1, "later it is asked for again"


def test_nobody_is_stopped_who_would_not_come_again() -> None:
    world = a_full_world(restartable=False)
    a_gang(world)
    world.rounds(60)
    assert decided(world) == []


def test_the_policy_can_be_turned_off_while_the_scheduler_runs() -> None:
    world = a_full_world()
    off = SHARE.model_copy(update={"preemption": None})
    world.quota.put(("policy", "default", a_policy(fair_share=off)))
    world.rounds(2)
    a_gang(world)
    world.rounds(60)
    assert decided(world) == []


# --- promised room ----------------------------------------------------------------------------------


def a_promising_world() -> World:
    """One GPU is free, and is kept from a job that would be in the gang's way."""
    world = a_full_world(SHARE.model_copy(update={"preemption": None, "lane": None}), gpus=7)
    a_gang(world)
    world.quota.submit("late", organization_id="beta", walltime_ms=2 * HOUR_MS)
    world.rounds(20)
    return world


def a_promise(world: World) -> int:
    """When the gang may start at the latest, as quota keeps it."""
    (kept,) = world.quota.promised()
    assert (kept.job_id, kept.cluster, kept.gpu_class) == ("gang", "sim", "h100")
    assert kept.gpus_by_node == {"n0": 8, "n1": 8}
    return kept.starts_at


def test_promised_room_is_told_and_survives_the_scheduler() -> None:
    world = a_promising_world()
    starts_at = a_promise(world)
    ends = [attempt_of(world, job).last_started_at or 0 for job in VICTIMS]
    assert starts_at == max(ends) + HOUR_MS
    told = {job: why for document in world.quota.rankings for job, why in document.reasons.items()}
    assert told["gang"].code is WaitReason.RESERVED
    assert told["late"].code is WaitReason.ROOM_RESERVED
    assert told["gang"].numbers["starts_at_ms"] == starts_at
    made_at = world.quota.promised()[0].made_at
    world.time.now_ms += 60_000
    world.boot()
    world.rounds(20)
    assert a_promise(world) == starts_at
    assert world.quota.promised()[0].made_at == made_at, "the next scheduler keeps it, and makes no new one"


def test_a_new_snapshot_within_a_term_takes_no_promise_back() -> None:
    world = a_promising_world()
    starts_at, made_at = a_promise(world), world.quota.promised()[0].made_at
    world.quota.rankings[-1] = world.quota.rankings[-1].model_copy(update={"reservations": ()})
    world.quota.expire_cursors()
    world.quota.submit("later", organization_id="beta", walltime_ms=2 * HOUR_MS)
    world.rounds(20)
    assert (a_promise(world), world.quota.promised()[0].made_at) == (starts_at, made_at)
