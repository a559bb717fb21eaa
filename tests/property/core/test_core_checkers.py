"""The property tests' own checkers find what is planted."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Change,
    Grant,
    Job,
    JobState,
    Kind,
    Node,
    Plan,
    PodPlacement,
    Preempt,
    Reason,
    WaitReason,
)
from scheduler.core.policy import Entitlement, Policy
from scheduler.core.state import State
from tests.property.core.core_chaos import World, put
from tests.property.core.test_core_property import (
    check_against_reference,
    faults,
    overlooked,
    with_room_left,
)
from tests.unit.core.core_world import (
    HOUR_MS,
    NOW_MS,
    a_class,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    an_attempt,
    an_organization,
)


def a_good_plan() -> tuple[World, Plan]:
    """Two starts, a gang on two nodes among them, and two jobs that wait."""
    world: World = {}
    jobs = [
        a_job("gang", gpus=8, pods=2, submitted=0),
        a_job("one", gpus=2),
        a_job("big", gpus=8, submitted=2),
    ]
    cordoned = a_node("n4", schedulable=False)
    nodes = [a_node("n1"), a_node("n2"), a_node("n3", used=4), cordoned, a_node("m1", cluster="c2")]
    for each in [
        Policy(), a_class(), a_cluster(), a_cluster("c2", paused=True), an_organization(),
        a_grant(hours=40, max_gpus=20), *nodes, *jobs, a_job("later", not_before=NOW_MS + 1),
    ]:  # fmt: skip
        put(world, each)
    return world, decide(State(), world.values(), NOW_MS)[0]


def test_the_good_plan_is_good() -> None:
    world, plan = a_good_plan()
    assert [start.job_id for start in plan.starts] == ["gang", "one"]
    assert faults(world, plan, NOW_MS) == []
    assert with_room_left(world, plan, NOW_MS) == []
    check_against_reference(world, plan, NOW_MS)


def gang(plan: Plan, **changed: object) -> Plan:
    return replace(plan, starts=(replace(plan.starts[0], **changed), *plan.starts[1:]))  # type: ignore[arg-type]


def on(*nodes: str) -> tuple[PodPlacement, ...]:
    return tuple(PodPlacement(node, "h100", 8) for node in nodes)


WRONG: dict[str, Callable[[Plan], Plan]] = {
    "over-placed": lambda p: gang(p, pods=on("n1", "n3")),
    "gang not whole": lambda p: gang(p, pods=on("n1")),
    "node out of reach": lambda p: gang(p, pods=on("n1", "n4")),
    "cluster out of reach": lambda p: gang(p, cluster="c2", pods=on("m1")),
    "no such path": lambda p: gang(p, account_path=("elsewhere",)),
    "overdrawn": lambda p: gang(p, cost_gpu_us=10**12),
    "over the cap": lambda p: replace(p, starts=(*p.starts, replace(p.starts[0], pods=on("n1") * 9))),
    "not exactly a start or a position": lambda p: replace(p, order=p.order[1:]),
    "not exactly one reason": lambda p: replace(p, reasons={}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_fault_in_a_plan_is_found(fault: str) -> None:
    world, plan = a_good_plan()
    assert any(found.startswith(fault) for found in faults(world, WRONG[fault](plan), NOW_MS))


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("does not wait", {"not_before_ms": NOW_MS + 1}),
        ("does not wait", {"state": JobState.RUNNING}),
        ("does not wait", {"cancel_requested": True}),
        ("another's grant", {"organization_id": "o9"}),
        ("not the grant asked for", {"grant_id": "g9"}),
        ("not within the term", {"walltime_ms": 10**12}),
    ],
)
def test_start_that_was_not_due_is_found(fault: str, changed: dict[str, object]) -> None:
    world, plan = a_good_plan()
    job = world[Kind.JOB, "gang"]
    assert isinstance(job, Job)
    put(world, replace(job, **changed))  # type: ignore[arg-type]
    assert any(found.startswith(fault) for found in faults(world, plan, NOW_MS))


@pytest.mark.parametrize("paused", [Policy(placement_paused=True), a_class(paused=True)])
def test_start_during_a_pause_is_found(paused: Change) -> None:
    world, plan = a_good_plan()
    put(world, paused)
    assert any(found.startswith("cluster out of reach") for found in faults(world, plan, NOW_MS))


def test_start_over_the_cap_that_running_attempts_leave_is_found() -> None:
    world, plan = a_good_plan()
    put(world, an_attempt(gpus=3))
    assert faults(world, plan, NOW_MS) == ["over the cap of g-o1: 21"]


def test_start_on_anothers_share_is_found() -> None:
    world, plan = a_good_plan()
    grant = world[Kind.GRANT, "g-o1"]
    assert isinstance(grant, Grant)
    put(world, replace(grant, paths=tuple(replace(path, organization_id="o2") for path in grant.paths)))
    assert any(found.startswith("no such path") for found in faults(world, plan, NOW_MS))


def test_reference_tells_wrong_numbers_of_money() -> None:
    world, _ = a_good_plan()
    put(world, a_grant(hours=40, max_gpus=19))
    capped = decide(State(), world.values(), NOW_MS)[0]
    assert capped.reasons["big"].code is WaitReason.GRANT_CAP
    check_against_reference(world, capped, NOW_MS)
    wrong = {**capped.reasons["big"].numbers, "in_use": 17}
    reasons = {**capped.reasons, "big": Reason(WaitReason.GRANT_CAP, wrong)}
    with pytest.raises(AssertionError):
        check_against_reference(world, replace(capped, reasons=reasons), NOW_MS)


def test_job_beside_room_is_found() -> None:
    world, plan = a_good_plan()
    idle = replace(
        plan,
        starts=plan.starts[:1],
        order=("one", *plan.order),
        reasons={**plan.reasons, "one": Reason(WaitReason.NO_FREE_GPU, {})},
    )
    assert with_room_left(world, idle, NOW_MS) == ["one"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda plan: replace(plan, order=plan.order[::-1]),
        lambda plan: replace(plan, starts=plan.starts[::-1]),
        lambda plan: replace(plan, paces={}),
        lambda plan: gang(plan, pods=on("n1", "n1")),
        lambda plan: replace(plan, reasons=dict.fromkeys(plan.reasons, Reason(WaitReason.NO_GRANT, {}))),
    ],
)
def test_reference_tells_a_wrong_plan(wrong: Callable[[Plan], Plan]) -> None:
    world, plan = a_good_plan()
    with pytest.raises(AssertionError):
        check_against_reference(world, wrong(plan), NOW_MS)


def test_reference_sees_a_changed_hub() -> None:
    world, plan = a_good_plan()
    node = world[Kind.NODE, "c1/n2"]
    assert isinstance(node, Node)
    put(world, replace(node, schedulable=False))
    with pytest.raises(AssertionError):
        check_against_reference(world, plan, NOW_MS)


def with_a_cap(max_gpus: int | None = None, pool: int | None = None) -> World:
    world, _ = a_good_plan()
    put(world, an_organization(max_gpus=max_gpus, pool=pool))
    put(world, a_grant(hours=40))
    return world


@pytest.mark.parametrize(("max_gpus", "pool"), [(18, None), (None, 500), (18, 1000), (30, 500)])
def test_organization_kept_below_its_cap_is_good(max_gpus: int | None, pool: int | None) -> None:
    """Half of a pool of 36 are 18: schedulable nodes alone count, also those of a paused cluster, 8 + 8 + 8 + 8."""
    world = with_a_cap(max_gpus, pool)
    plan = decide(State(), world.values(), NOW_MS)[0]
    assert faults(world, plan, NOW_MS) == []
    check_against_reference(world, plan, NOW_MS)


@pytest.mark.parametrize(("max_gpus", "pool"), [(17, None), (None, 500)])
def test_start_over_an_organizations_cap_is_found(max_gpus: int | None, pool: int | None) -> None:
    _, plan = a_good_plan()
    assert faults(with_a_cap(max_gpus, pool), plan, NOW_MS) == ["over the cap of o1: 18"]


def test_attempts_of_the_organization_count_for_the_checker() -> None:
    _, plan = a_good_plan()
    world = with_a_cap(20)
    assert faults(world, plan, NOW_MS) == []
    put(world, an_attempt(grant="elsewhere", gpus=3))
    assert faults(world, plan, NOW_MS) == ["over the cap of o1: 21"]


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("another's cap", {"organization": "o2"}),
        ("not its cap", {"cap": 19}),
        ("not what it needs", {"needed": 9}),
        ("not what is in use", {"in_use": 17}),
    ],
)
def test_wrong_number_beside_an_organizations_cap_is_found(fault: str, wrong: dict[str, int | str]) -> None:
    world = with_a_cap(20)
    plan = decide(State(), world.values(), NOW_MS)[0]
    assert plan.reasons["big"].code is WaitReason.ORGANIZATION_CAP
    numbers = {**plan.reasons["big"].numbers, **wrong}
    reasons = {**plan.reasons, "big": Reason(WaitReason.ORGANIZATION_CAP, numbers)}
    wrong_plan = replace(plan, reasons=reasons)
    assert any(found.startswith(fault) for found in faults(world, wrong_plan, NOW_MS))
    with pytest.raises(AssertionError):
        check_against_reference(world, wrong_plan, NOW_MS)


def test_job_that_no_cap_holds_is_found() -> None:
    world = with_a_cap(20)
    plan = decide(State(), world.values(), NOW_MS)[0]
    put(world, an_organization(max_gpus=26))
    assert any(found.startswith("below the cap: big") for found in faults(world, plan, NOW_MS))


def test_others_stopped_for_a_gang_past_its_cap_is_found() -> None:
    world = with_a_cap(18)
    plan = decide(State(), world.values(), NOW_MS)[0]
    good = replace(plan, stops=(Preempt("victim", 1, "big", NOW_MS),))
    assert "stops others for o1 past its cap" in faults(world, good, NOW_MS)


def with_a_reserved_part() -> World:
    """Two of eight GPUs are reserved for `poc`, which is far ahead of its pace; four are free."""
    world: World = {}
    grants = [a_grant("o1", lag_ms=10 * HOUR_MS), a_grant("o2", program="poc", lag_ms=-10 * HOUR_MS)]
    jobs = [
        a_job("mine", "o1", gpus=2),
        a_job("others", "o1", gpus=2, submitted=NOW_MS),
        a_job("poc", "o2", gpus=2),
    ]
    for each in [
        Policy(entitlements=(Entitlement("poc", 1000, 250),)), a_class(), a_cluster(), a_node(used=4),
        an_organization("o1"), an_organization("o2"), *grants, *jobs,
    ]:  # fmt: skip
        put(world, each)
    return world


def test_programme_that_gets_its_part_first_is_good() -> None:
    world = with_a_reserved_part()
    plan = decide(State(), world.values(), NOW_MS)[0]
    assert [start.job_id for start in plan.starts] == ["poc", "mine"]
    assert (faults(world, plan, NOW_MS), overlooked(world, plan, NOW_MS)) == ([], [])
    check_against_reference(world, plan, NOW_MS)


def test_start_before_one_that_is_owed_its_room_is_found() -> None:
    world = with_a_reserved_part()
    plan = decide(State(), world.values(), NOW_MS)[0]
    turned = replace(plan, starts=plan.starts[::-1])
    assert faults(world, turned, NOW_MS) == ["poc was owed its room before mine"]
    with pytest.raises(AssertionError):
        check_against_reference(world, turned, NOW_MS)


def test_room_that_others_took_though_it_was_owed_is_found() -> None:
    world = with_a_reserved_part()
    without = decide(State(), [*world.values(), Policy()], NOW_MS)[0]
    assert [start.job_id for start in without.starts] == ["mine", "others"]
    assert overlooked(world, without, NOW_MS) == ["poc"]
    kept = an_attempt(grant="g-o2", gpus=2, organization="o2")
    put(world, kept)
    assert overlooked(world, without, NOW_MS) == [], "it has its part"


@pytest.mark.parametrize(
    "policy",
    [
        Policy(entitlements=(Entitlement("poc", 3000),)),
        Policy(organization_weights=(("o2", 3000),)),
    ],
)
def test_reference_tells_a_plan_that_forgot_a_weight(policy: Policy) -> None:
    world = with_a_reserved_part()
    put(world, a_grant("o2", program="poc", lag_ms=4 * HOUR_MS))
    put(world, a_grant("o1", program="poc", lag_ms=10 * HOUR_MS))
    if policy.entitlements:
        put(world, a_grant("o1", program="p1", lag_ms=10 * HOUR_MS))
    put(world, policy)
    plan = decide(State(), world.values(), NOW_MS)[0]
    assert plan.starts[0].job_id == "poc"
    check_against_reference(world, plan, NOW_MS)
    forgot = decide(State(), [*world.values(), Policy()], NOW_MS)[0]
    with pytest.raises(AssertionError):
        check_against_reference(world, forgot, NOW_MS)
