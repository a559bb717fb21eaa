"""The checkers of the promises find what is planted."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Change,
    Job,
    JobState,
    Kind,
    Plan,
    PodPlacement,
    Reason,
    Reservation,
    WaitReason,
)
from scheduler.core.policy import Lane, Policy, Preemption
from scheduler.core.state import State
from tests.property.core.core_promise_faults import all_faults, is_excused
from tests.property.core.core_promises import Hub
from tests.unit.core.core_world import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    a_class,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    an_organization,
)


def running(job: str, node: str, gpus: int, ends_ms: int, organization: str = "o2") -> tuple[Job, Attempt]:
    """A restartable job that began two hours ago."""
    its_job = replace(a_job(job, organization, gpus, hours=24, state=JobState.RUNNING), restartable=True)
    pods = (PodPlacement(node, "h100", gpus),)
    attempt = Attempt(
        job, 1, f"g-{organization}", JobState.RUNNING, "c1", pods, 0, NOW_MS - 2 * HOUR_MS,
        started_at_ms=NOW_MS - 2 * HOUR_MS, ends_at_ms=ends_ms,
    )  # fmt: skip
    return its_job, attempt


def a_hub(policy: Policy, *changes: Change) -> Hub:
    hub = Hub(Random(0), policy, now_ms=NOW_MS)
    for each in (policy, a_class(), a_cluster(), *changes):
        hub.put(each)
    for id, lag_ms in (("o1", 3 * DAY_MS), ("o2", 0)):
        hub.put(an_organization(id))
        hub.put(a_grant(id, lag_ms=lag_ms))
    return hub


def reserving() -> tuple[Hub, Plan]:
    """`big` gets both nodes in four hours; until then `short` may run, `long` may not."""
    hub = a_hub(
        Policy(lag_bound_share=1.0, reservations=2),
        a_node("n1", used=2), *running("r1", "n1", 2, NOW_MS + 2 * HOUR_MS),
        a_node("n2", used=8), *running("r2", "n2", 8, NOW_MS + 4 * HOUR_MS),
        a_job("big", gpus=8, pods=2, hours=8), a_job("short", "o2", gpus=2, hours=2),
        a_job("long", "o2", gpus=4, hours=8),
    )  # fmt: skip
    return hub, decide(State(), hub.snapshot(), NOW_MS)[0]


def stopping() -> tuple[Hub, Plan]:
    """`gang` stops both jobs on n1 and one of those on n2."""
    hub = a_hub(
        Policy(lag_bound_share=1.0, preemption=Preemption(gang_gpus=12)),
        a_node("n1", used=8), *running("v1", "n1", 4, NOW_MS + 22 * HOUR_MS),
        *running("v2", "n1", 4, NOW_MS + 22 * HOUR_MS),
        a_node("n2", used=4), *running("v3", "n2", 4, NOW_MS + 22 * HOUR_MS),
        a_job("gang", gpus=8, pods=2, hours=8),
    )  # fmt: skip
    return hub, decide(State(), hub.snapshot(), NOW_MS)[0]


def test_the_good_plans_are_good() -> None:
    hub, plan = reserving()
    assert [start.job_id for start in plan.starts] == ["short"]
    assert [(each.job_id, each.starts_at_ms) for each in plan.reservations] == [("big", NOW_MS + 4 * HOUR_MS)]
    assert dict(plan.reasons["long"].numbers) == {"job": "big"}
    assert all_faults(hub, plan) == []
    hub, plan = stopping()
    assert sorted(stop.job_id for stop in plan.stops) == ["v1", "v2", "v3"]
    assert all_faults(hub, plan) == []


def told(plan: Plan, waits: str, code: WaitReason, **numbers: int | str) -> Plan:
    return replace(plan, reasons={**plan.reasons, waits: Reason(code, numbers)})


def kept(plan: Plan, **changed: object) -> Plan:
    return replace(plan, reservations=(replace(plan.reservations[0], **changed),))  # type: ignore[arg-type]


WRONG_PLANS: dict[str, Callable[[Plan], Plan]] = {
    "long waits beside room": lambda p: told(p, "long", WaitReason.NO_FREE_GPU),
    "long waits for short, to whom nothing is promised": lambda p: told(
        p, "long", WaitReason.ROOM_RESERVED, job="short"
    ),
    "big has no reservation": lambda p: replace(p, reservations=()),
    "not the size of big": lambda p: kept(p, gpus_by_node={"n1": 8}),
    "big could start at": lambda p: kept(p, starts_at_ms=NOW_MS + 5 * HOUR_MS),
    "for nobody who waits": lambda p: kept(p, job_id="r1"),
}


@pytest.mark.parametrize("fault", WRONG_PLANS)
def test_fault_in_a_plan_is_found(fault: str) -> None:
    hub, plan = reserving()
    assert any(found.startswith(fault) for found in all_faults(hub, WRONG_PLANS[fault](plan)))


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("1 reservations", {"reservations": 0}),
        ("too many of one organization", {"reservations_per_organization": 0}),
        ("too small for a reservation: big", {"reservation_gpus": 17}),
        ("long is kept out of the lane", {"lane": Lane()}),
    ],
)
def test_plan_against_the_policy_is_found(fault: str, changed: dict[str, object]) -> None:
    hub, plan = reserving()
    hub.policy = replace(hub.policy, **changed)  # type: ignore[arg-type]
    assert any(found.startswith(fault) for found in all_faults(hub, plan))


def test_job_that_would_be_in_nobodys_way_is_found() -> None:
    hub, plan = reserving()
    hub.put(a_job("long", "o2", gpus=4, hours=4))
    assert all_faults(hub, plan)[0].startswith("long would be in nobody's way")


def promised() -> tuple[Hub, Plan, Reservation]:
    hub, plan = reserving()
    hub.reservations = plan.reservations
    return hub, plan, plan.reservations[0]


def test_broken_promise_is_found() -> None:
    hub, plan, reservation = promised()
    assert all_faults(hub, plan) == []
    later = kept(plan, starts_at_ms=reservation.starts_at_ms + 1)
    assert f"delayed by 1 ms: {reservation}" in all_faults(hub, later)
    away = told(replace(plan, reservations=()), "big", WaitReason.NO_FREE_GPU)
    assert f"taken away: {reservation}" in all_faults(hub, away)


@pytest.mark.parametrize(
    "happened",
    [
        lambda hub: setattr(hub, "disturbed", True),
        lambda hub: hub.put(running("r1", "n1", 2, NOW_MS)[1]),
        lambda hub: hub.put(a_node("n2", used=8, schedulable=False)),
        lambda hub: setattr(hub, "policy", replace(hub.policy, lane=Lane())),
        lambda hub: setattr(hub, "policy", replace(hub.policy, preemption=Preemption(gang_gpus=2))),
        lambda hub: setattr(hub, "reservations", (replace(hub.reservations[0], starts_at_ms=NOW_MS - 1),)),
    ],
    ids=["disturbed", "overran", "node lost", "lane", "gang", "late"],
)
def test_only_what_happened_excuses_a_delay(happened: Callable[[Hub], None]) -> None:
    hub, plan, _ = promised()
    assert not is_excused(hub, plan)
    happened(hub)
    assert is_excused(hub, plan)


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("too large", {"victim_gpus": 3}),
        ("protected", {"protected_ms": 3 * HOUR_MS}),
        ("for no gang", {"gang_gpus": 17}),
        ("not far enough behind", {"lead_ms": 4 * DAY_MS}),
        ("not after the notice", {"notice_ms": 1}),
        ("too often", {"times_per_day": 0}),
        ("too many gangs at once", {"gangs_at_once": 0}),
    ],
)
def test_stop_against_the_rule_is_found(fault: str, changed: dict[str, int]) -> None:
    hub, plan = stopping()
    assert hub.policy.preemption
    hub.policy = replace(hub.policy, preemption=replace(hub.policy.preemption, **changed))
    assert any(found.startswith(fault) for found in all_faults(hub, plan))


@pytest.mark.parametrize(
    ("fault", "job", "attempt"),
    [
        ("not restartable", {"restartable": False}, {}),
        ("its own", {"organization_id": "o1"}, {}),
        ("cooldown", {"preempted_at_ms": (NOW_MS - HOUR_MS,)}, {}),
        ("not running", {}, {"state": JobState.STOPPING}),
        ("ends anyway", {}, {"ends_at_ms": NOW_MS + 600_000}),
    ],
)
def test_stop_of_one_who_is_safe_is_found(
    fault: str, job: dict[str, object], attempt: dict[str, object]
) -> None:
    hub, plan = stopping()
    its_job, its_attempt = hub.world[Kind.JOB, "v1"], hub.world[Kind.ATTEMPT, "v1-1"]
    assert isinstance(its_job, Job)
    assert isinstance(its_attempt, Attempt)
    hub.put(replace(its_job, **job))  # type: ignore[arg-type]
    hub.put(replace(its_attempt, **attempt))  # type: ignore[arg-type]
    assert any(found.startswith(fault) for found in all_faults(hub, plan))


def test_stops_that_do_not_help_are_found() -> None:
    hub, plan = stopping()
    assert "gang does not fit once they are gone" in all_faults(hub, replace(plan, stops=plan.stops[:2]))
    assert "stopped twice" in all_faults(hub, replace(plan, stops=(*plan.stops, plan.stops[0])))
    hub.put(a_node("n3"))
    hub.put(a_node("n4"))
    assert "gang had room" in all_faults(hub, plan)
    hub.policy = replace(hub.policy, preemption=None)
    assert any(found.startswith("nobody may be stopped") for found in all_faults(hub, plan))
