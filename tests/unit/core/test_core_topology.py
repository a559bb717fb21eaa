"""Gangs on one node, in one rack, or spread: what is required decides whether they fit, the rest where."""

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Change,
    Job,
    JobState,
    Node,
    Plan,
    PodPlacement,
    Reason,
    Topology,
    WaitReason,
)
from scheduler.core.policy import Policy, Preemption
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    a_grant,
    a_job,
    a_node,
    a_stopping_attempt,
    a_world,
    nodes_of,
    plan_of,
)


def a_gang(topology: Topology, gpus: int = 1, pods: int = 4, id: str = "j1", hours: float = 1) -> Job:
    return a_job(id, gpus=gpus, pods=pods, hours=hours, topology=topology)


def racked(rack: str, name: str, free: int = 8, cluster: str = "c1", schedulable: bool = True) -> Node:
    return a_node(name, used=8 - free, cluster=cluster, schedulable=schedulable, rack=rack)


def placed(plan: Plan) -> list[str]:
    return sorted(nodes_of(plan, "j1"))


def reason(plan: Plan) -> Reason:
    return plan.reasons["j1"]


# --- required -------------------------------------------------------------------------------------


def test_a_gang_that_has_to_be_on_one_node_takes_the_fullest_that_holds_it() -> None:
    nodes = [a_node("n1", used=5), a_node("n2", used=3), a_node("n3")]
    plan = plan_of(*nodes, a_gang(Topology.SAME_NODE))
    assert placed(plan) == ["n2"] * 4
    assert [pod.count for pod in plan.starts[0].pods] == [1, 1, 1, 1]


def test_scattered_room_is_none_for_it_and_the_reason_says_so() -> None:
    nodes = [a_node("n1", used=5), a_node("n2", used=5)]
    assert placed(plan_of(*nodes, a_gang(Topology.ANY))) == ["n1", "n1", "n1", "n2"]
    told = reason(plan_of(*nodes, a_gang(Topology.SAME_NODE)))
    assert told.code is WaitReason.NO_NODE_FITS
    assert told.numbers == {
        "gpu_class": "h100", "gpus_per_pod": 4, "pods": 1, "pods_fit": 0, "within": "node"
    }  # fmt: skip


def test_a_gang_that_has_to_be_in_one_rack_waits_while_no_rack_holds_it() -> None:
    nodes = [racked("r1", "n1"), racked("r2", "n2"), racked("", "n3"), racked("", "n4")]
    assert len(placed(plan_of(*nodes, a_gang(Topology.ANY, gpus=8, pods=2)))) == 2
    told = reason(plan_of(*nodes, a_gang(Topology.SAME_RACK, gpus=8, pods=2)))
    assert told.code is WaitReason.NO_NODE_FITS
    assert told.numbers == {
        "gpu_class": "h100", "gpus_per_pod": 8, "pods": 2, "pods_fit": 1, "within": "rack"
    }  # fmt: skip
    plan = plan_of(*nodes, racked("r2", "n5"), a_gang(Topology.SAME_RACK, gpus=8, pods=2))
    assert placed(plan) == ["n2", "n5"]


def test_racks_of_one_name_in_two_clusters_are_two() -> None:
    nodes = [racked("r1", "n1"), racked("r1", "n2", cluster="c2")]
    assert plan_of(*nodes, a_gang(Topology.SAME_RACK, gpus=8, pods=2)).starts == ()


def test_a_single_pod_lies_anywhere() -> None:
    for topology in Topology:
        assert placed(plan_of(racked("", "n1"), a_gang(topology, gpus=8, pods=1))) == ["n1"]


def test_a_cordoned_node_is_what_a_rack_lacks() -> None:
    nodes = [racked("r1", "n1"), racked("r1", "n2", schedulable=False), racked("r2", "n3")]
    assert (
        reason(plan_of(*nodes, a_gang(Topology.SAME_RACK, gpus=8, pods=2))).code
        is WaitReason.NODES_UNAVAILABLE
    )


def test_a_node_that_moves_to_another_rack_counts_there() -> None:
    gang = a_gang(Topology.SAME_RACK, gpus=8, pods=2)
    plan, state = decide(State(), a_world(racked("r1", "n1"), racked("r2", "n2"), gang), NOW_MS)
    assert plan.starts == ()
    plan, _ = decide(state, [racked("r1", "n2")], NOW_MS)
    assert placed(plan) == ["n1", "n2"]


# --- preferred ------------------------------------------------------------------------------------


def test_who_prefers_one_node_takes_it_else_one_rack_else_anything() -> None:
    # packing alone would fill n1 and n2 first
    scattered = [racked("r1", "n1", free=2), racked("r2", "n2", free=2)]
    near = [racked("r3", "n3", free=3), racked("r3", "n4", free=3)]
    whole = racked("r4", "n5", free=8)
    gang = a_gang(Topology.PREFER_SAME_NODE)
    assert placed(plan_of(*scattered, *near, whole, gang)) == ["n5"] * 4
    assert placed(plan_of(*scattered, *near, gang)) == ["n3", "n3", "n3", "n4"]
    assert placed(plan_of(*scattered, gang)) == ["n1", "n1", "n2", "n2"]


def test_who_prefers_one_rack_takes_it_else_anything() -> None:
    scattered = [racked("r1", "n1", free=2), racked("r2", "n2", free=2)]
    near = [racked("r3", "n3", free=3), racked("r3", "n4", free=3)]
    gang = a_gang(Topology.PREFER_SAME_RACK)
    assert placed(plan_of(*scattered, *near, gang)) == ["n3", "n3", "n3", "n4"]
    assert placed(plan_of(*scattered, gang)) == ["n1", "n1", "n2", "n2"]


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        (3, ["n1", "n2", "n3"]),
        (4, ["n1", "n1", "n2", "n3"]),
        (7, ["n1", "n1", "n2", "n2", "n3", "n3", "n3"]),
    ],
)
def test_a_spread_gang_lies_as_evenly_as_there_is_room(pods: int, expected: list[str]) -> None:
    nodes = [a_node("n1", used=6), a_node("n2", used=4), a_node("n3")]
    if pods == 7:
        nodes[1] = a_node("n2", used=6)
    assert placed(plan_of(*nodes, a_gang(Topology.SPREAD, pods=pods))) == expected


def test_a_spread_gang_goes_where_its_fullest_node_has_the_fewest() -> None:
    nodes = [a_node("n1", used=4), *(a_node(f"m{i}", cluster="c2", used=7) for i in range(4))]
    world = a_world(*nodes, a_gang(Topology.SPREAD))
    cluster = a_world()[1]
    plan, _ = decide(State(), [*world, type(cluster)("c2", NOW_MS)], NOW_MS)  # type: ignore[call-arg]
    assert placed(plan) == ["m0", "m1", "m2", "m3"]


# --- reservations, kept room, preemption ----------------------------------------------------------


def running(id: str, node: str, gpus: int, hours: float) -> list[Change]:
    """A restartable job of another organization that ran for two hours and ends in so many."""
    started_ms, ends_ms = NOW_MS - 2 * HOUR_MS, NOW_MS + int(hours * HOUR_MS)
    job = Job(id, "o2", None, "h100", gpus, 1, ends_ms - started_ms, 0, JobState.RUNNING, 1, restartable=True)
    pods = (PodPlacement(node, "h100", gpus),)
    attempt = Attempt(
        id, 1, "g-o2", JobState.RUNNING, "c1", pods, 1, 0, started_at_ms=started_ms, ends_at_ms=ends_ms
    )
    return [job, attempt]


@pytest.mark.parametrize(
    ("topology", "starts_in_h", "nodes"),
    [
        (Topology.ANY, 2, {"n1": 8, "n2": 8}),
        (Topology.SAME_RACK, 3, {"n1": 8, "n3": 8}),
    ],
)
def test_room_is_reserved_in_one_rack(topology: Topology, starts_in_h: int, nodes: dict[str, int]) -> None:
    busy = [racked("r1", "n1", free=0), racked("r2", "n2", free=0), racked("r1", "n3", free=0)]
    ends = [*running("a", "n1", 8, 1), *running("b", "n2", 8, 2), *running("c", "n3", 8, 3)]
    small = [a_node("n9", gpus=1, rack="r9"), a_job("small")]
    plan = plan_of(
        *busy,
        *ends,
        *small,
        a_gang(topology, gpus=8, pods=2),
        Policy(reservations=1),
        organizations=("o1", "o2"),
    )
    (kept,) = plan.reservations
    assert (kept.starts_at_ms, dict(kept.gpus_by_node)) == (NOW_MS + starts_in_h * HOUR_MS, nodes)


def test_what_is_reserved_in_its_rack_is_no_room_for_a_long_gang() -> None:
    """Two free nodes share a rack, but one of them is promised in two hours."""
    nodes = [racked("r1", "n1"), racked("r1", "n2"), racked("r2", "n3"), racked("r2", "n4", free=0)]
    ends = running("a", "n4", 8, 2)
    big = a_job("big", gpus=8, pods=4, hours=1, submitted=0)
    policy = Policy(reservations=1)
    short = a_gang(Topology.SAME_RACK, gpus=8, pods=2, hours=2)
    plan = plan_of(*nodes, *ends, big, short, policy, organizations=("o1", "o2"))
    assert placed(plan) == ["n1", "n2"]
    long = a_gang(Topology.SAME_RACK, gpus=8, pods=2, hours=3)
    plan = plan_of(*nodes, *ends, big, long, policy, organizations=("o1", "o2"))
    assert reason(plan) == Reason(WaitReason.ROOM_RESERVED, {"job": "big"})


@pytest.mark.parametrize(
    ("topology", "stopped"), [(Topology.SAME_NODE, ["c"]), (Topology.SAME_RACK, ["a", "b"])]
)
def test_others_are_stopped_where_the_gang_then_lies_as_it_has_to(
    topology: Topology, stopped: list[str]
) -> None:
    """On one node the larger job has to go, though the two smaller ones in a rack lose less."""
    nodes = [racked("r1", "n1", free=0), racked("r1", "n2", free=0), racked("r2", "n3", free=0)]
    jobs = [*running("a", "n1", 2, 9), *running("b", "n2", 2, 9), *running("c", "n3", 8, 9)]
    rule = Policy(preemption=Preemption(gang_gpus=4, lead_ms=1, protected_ms=0))
    lags = [a_grant(lag_ms=5 * DAY_MS), a_grant("o2", lag_ms=-5 * DAY_MS)]
    plan = plan_of(*nodes, *jobs, *lags, rule, a_gang(topology, gpus=2, pods=2), organizations=("o1", "o2"))
    assert sorted(stop.job_id for stop in plan.stops) == stopped


def test_room_is_kept_on_one_node_for_a_gang_that_has_to_be_on_one() -> None:
    """Two GPUs are free on each of two nodes; only where the victim stops can all four come together."""
    nodes = [a_node("n1", used=6), a_node("n2", used=6)]
    stopping = a_stopping_attempt(for_job="j1", on={"n2": 2})
    others = [a_job("x", gpus=2), a_job("y", gpus=2)]
    plan = plan_of(*nodes, stopping, a_gang(Topology.SAME_NODE), *others)
    assert [(start.job_id, start.pods[0].node) for start in plan.starts] == [("x", "n1")]
    assert sorted(plan.reasons) == ["j1", "y"]
