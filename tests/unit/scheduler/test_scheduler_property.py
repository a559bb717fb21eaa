"""Whatever dies, is lost, doubled or late: every attempt is resolved once, and nothing starts twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quota.client import ServiceProblem
from quota.schemas.scheduling import LeaseRequest, StopReason
from scheduler.clusters.port import PodPhase
from scheduler.crash import POINTS
from tests.unit.scheduler.quota_model import QuotaModel
from tests.unit.scheduler.scheduler_world import World

EXAMPLES = int(os.environ.get("GPUHUB_EXAMPLES", "80"))
"""More of them search deeper: `GPUHUB_EXAMPLES=5000 pytest tests/unit/scheduler`."""

Move = Callable[[World], None]

ASKED = [StopReason.REQUEUED, StopReason.GRANT_ENDED, StopReason.IDLE_RECLAIMED, StopReason.GPU_FAILED]
QUOTA_FAULTS = st.sampled_from(["drop", "forget", "late", "double"])
CLUSTER_FAULTS = st.sampled_from(["refuse", "drop", "forget", "late"])


def _submit(pods: int) -> Move:
    def move(world: World) -> None:
        world.quota.submit(f"job-{len(world.quota.abandonments)}-{world.quota.head}", pods=pods)

    return move


def _cancel(position: int) -> Move:
    return _of_a_job(position, lambda quota, job_id: quota.cancel(job_id))


def _ask_stop(position: int, reason: StopReason) -> Move:
    return _of_a_job(position, lambda quota, job_id: quota.ask_stop(job_id, reason))


def _extend(position: int, by_ms: int) -> Move:
    return _of_a_job(position, lambda quota, job_id: quota.extend(job_id, by_ms))


def _of_a_job(position: int, ask: Callable[[QuotaModel, str], object]) -> Move:
    """Ask something of one of the jobs that have not ended."""

    def move(world: World) -> None:
        jobs = [item.id for item in world.quota.objects.values() if item.job is not None]
        if jobs:
            ask(world.quota, jobs[position % len(jobs)])

    return move


def _pause(what: str, paused: bool) -> Move:
    return lambda world: world.quota.pause(what, paused)


def _round(pass_ms: int) -> Move:
    return lambda world: world.round(pass_ms)


def _kill_at(point: str, count: int) -> Move:
    return lambda world: world.crash.arm(point, count)


def _boot(world: World) -> None:
    world.boot()


def _usurp(world: World) -> None:
    with suppress(ServiceProblem):  # it is held
        world.quota.take_lease(LeaseRequest(holder="other", instance=f"other-{world.quota.head:04d}"))


def _late(world: World) -> None:
    world.quota.deliver_late()
    world.cluster.deliver_late()


def _expire(world: World) -> None:
    world.quota.expire_cursors()


MOVES: st.SearchStrategy[Move] = st.one_of(
    st.sampled_from([250, 2_000, 20_000, 90_000, 700_000]).map(_round),
    st.sampled_from([1, 2]).map(_submit),
    st.sampled_from([1, 2]).map(_submit),
    st.integers(0, 3).map(_cancel),
    st.integers(0, 3).map(_cancel),
    st.builds(_ask_stop, st.integers(0, 3), st.sampled_from(ASKED)),
    st.builds(_extend, st.integers(0, 3), st.sampled_from([1, 60_000])),
    st.builds(_pause, st.sampled_from(["hub", "gpu_class", "cluster"]), st.booleans()),
    st.builds(_kill_at, st.sampled_from(POINTS), st.integers(1, 3)),
    st.just(_boot),
    st.just(_usurp),
    st.just(_late),
    st.just(_expire),
    QUOTA_FAULTS.map(lambda fault: lambda world: world.quota.faults.append(fault)),
    CLUSTER_FAULTS.map(lambda fault: lambda world: world.cluster.faults.append(fault)),
    st.just(lambda world: world.quota.refuse_starts.append("capacity_taken")),
    st.sampled_from(["n0", "n1"]).map(lambda node: lambda world: world.cluster.lose(node)),
    st.sampled_from(["n0", "n1"]).map(lambda node: lambda world: world.cluster.find(node)),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MOVES, min_size=12, max_size=40), st.integers(0, 1))
def test_every_attempt_is_resolved_once_and_nothing_starts_twice(moves: list[Move], exit_code: int) -> None:
    world = World()
    world.cluster.exit_code = exit_code
    world.boot()
    world.quota.submit("job-first")
    for move in moves:
        move(world)
        if world.process is None:
            world.boot()
        world.round()
    settle(world)
    assert set(world.quota.starts) == set(world.quota.ends)
    assert all(times == 1 for times in world.quota.starts.values())
    assert all(len(reasons) == 1 for reasons in world.quota.ends.values())
    assert all(times == 1 for times in world.cluster.runs.values())
    assert world.quota.used() == 0
    assert world.quota.breaches == []
    assert not any(
        pod.phase is PodPhase.RUNNING for seen in world.cluster.objects.values() for pod in seen.pods
    )
    assert [finding.code for finding in world.quota.findings] == []


def settle(world: World) -> None:
    """No more trouble: everything that waits may end."""
    _late(world)
    world.quota.faults.clear()
    world.cluster.faults.clear()
    world.quota.refuse_starts.clear()
    for what in ("hub", "gpu_class", "cluster"):
        world.quota.pause(what, False)
    for node in world.cluster.nodes:
        world.cluster.find(node)
    world.boot()
    for _ in range(600):
        world.round(pass_ms=2_000)
        open_things = {item.kind for item in world.quota.objects.values()} & {"job", "attempt"}
        if not open_things:
            world.rounds(3)
            return
    raise AssertionError(f"still open: {world.quota.objects}")
