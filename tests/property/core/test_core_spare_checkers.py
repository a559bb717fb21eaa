"""The checkers of opportunistic jobs find what is planted."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from scheduler.core.model import (
    Account,
    Attempt,
    Change,
    Fund,
    Job,
    JobState,
    Kind,
    Plan,
    PodPlacement,
    Preempt,
    Reason,
    WaitReason,
)
from scheduler.core.policy import Policy
from tests.property.core.core_spare import FUND, SpareHub, plan_of, spare_faults
from tests.unit.core.core_world import (
    DAY_MS,
    GPU_HOUR,
    HOUR_MS,
    NOW_MS,
    TERM_MS,
    a_class,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    an_organization,
)


def spare(job: str, node: str, gpus: int, age_ms: int = HOUR_MS) -> tuple[Job, Attempt]:
    its_job = replace(a_job(job, gpus=gpus, hours=24, state=JobState.RUNNING), program_id="p1")
    pods = (PodPlacement(node, "h100", gpus),)
    attempt = Attempt(
        job, 1, FUND, JobState.RUNNING, "c1", pods, 0, NOW_MS - age_ms, started_at_ms=NOW_MS - age_ms,
        ends_at_ms=NOW_MS + DAY_MS, organization_id="o1", opportunistic=True,
    )  # fmt: skip
    return its_job, attempt


def a_hub(*changes: Change) -> SpareHub:
    hub = SpareHub(Random(0), Policy(), now_ms=NOW_MS)
    fund = Fund(FUND, "p1", Account(FUND, 1000 * GPU_HOUR), 0, TERM_MS)
    for each in (hub.policy, a_class(), a_cluster(), an_organization(), a_grant(), fund, *changes):
        hub.put(each)
    return hub


def clearing() -> tuple[SpareHub, Plan]:
    """`mine` needs n1, of which two have four each; on n2 `small` starts, and `s` beside it."""
    hub = a_hub(
        a_node("n1", used=8), *spare("v1", "n1", 4), *spare("v2", "n1", 4), a_node("n2", used=4),
        a_job("mine", gpus=8), a_job("small", gpus=2), replace(a_job("s"), program_id="p1"),
        replace(a_job("s-large", gpus=8), program_id="p1"),
    )  # fmt: skip
    return hub, plan_of(hub)


def idling() -> tuple[SpareHub, Plan]:
    """Nobody waits but `s`."""
    hub = a_hub(a_node("n1"), replace(a_job("s"), program_id="p1"))
    return hub, plan_of(hub)


def test_the_good_plans_are_good() -> None:
    hub, plan = clearing()
    assert [start.job_id for start in plan.starts] == ["small", "s"]
    assert sorted(stop.job_id for stop in plan.stops) == ["v1", "v2"]
    assert plan.reasons["mine"].code is WaitReason.MAKING_ROOM
    assert spare_faults(hub, plan) == []
    hub, plan = idling()
    assert [start.job_id for start in plan.starts] == ["s"]
    assert spare_faults(hub, plan) == []


def starts(plan: Plan, job: str, **changed: object) -> Plan:
    return replace(
        plan,
        starts=tuple(
            replace(each, **changed) if each.job_id == job else each  # type: ignore[arg-type]
            for each in plan.starts
        ),
    )


def told(plan: Plan, job: str, code: WaitReason) -> Plan:
    return replace(plan, reasons={**plan.reasons, job: Reason(code, {})})


WRONG: dict[str, Callable[[Plan], Plan]] = {
    "starts [] and ['mine']": lambda p: replace(p, starts=p.starts[1:]),
    "small would be paid and laid out otherwise": lambda p: starts(p, "small", grant_id=FUND),
    "others are told otherwise": lambda p: replace(p, paces={}),
    "2 h100 started on": lambda p: starts(p, "small", pods=(PodPlacement("n1", "h100", 2),)),
    "mine still waits for room": lambda p: replace(p, stops=p.stops[:1]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_fault_in_a_plan_is_found(fault: str) -> None:
    hub, plan = clearing()
    assert any(found.startswith(fault) for found in spare_faults(hub, WRONG[fault](plan)))


def test_another_order_is_found() -> None:
    hub = a_hub(a_node("n1"), a_job("first"), a_job("second", submitted=NOW_MS))
    plan = plan_of(hub)
    assert spare_faults(hub, plan) == []
    backwards = replace(plan, starts=plan.starts[::-1])
    assert "others start in another order" in spare_faults(hub, backwards)


def test_a_stop_of_somebody_who_is_entitled_is_found() -> None:
    its_job, attempt = spare("v3", "n2", 4)
    its_job, attempt = replace(its_job, program_id=""), replace(attempt, opportunistic=False, grant_id="g-o1")
    hub, _ = clearing()
    hub.put(its_job)
    hub.put(attempt)
    plan = plan_of(hub)
    assert spare_faults(hub, plan) == []
    more = replace(plan, stops=(*plan.stops, Preempt("v3", 1, "mine", NOW_MS)))
    assert "others are stopped otherwise" in spare_faults(hub, more)


def test_a_stop_that_frees_nothing_that_is_needed_is_found() -> None:
    hub, _ = clearing()
    for each in (*spare("v3", "n2", 4), replace(a_job("mine", gpus=4))):
        hub.put(each)
    plan = plan_of(hub)
    assert spare_faults(hub, plan) == []
    more = replace(plan, stops=(*plan.stops, Preempt("v3", 1, "mine", NOW_MS)))
    assert "v3-1 leaves for nothing" in spare_faults(hub, more)


def test_one_who_leaves_for_nobody_or_is_told_twice_is_found() -> None:
    hub, plan = idling()
    for each in spare("v1", "n1", 1):
        hub.put(each)
    hub.put(a_node("n1", used=1))
    plan = replace(plan_of(hub), stops=(Preempt("v1", 1, "s", NOW_MS),))
    assert any("leave for nobody" in found for found in spare_faults(hub, plan))
    attempt = hub.world[Kind.ATTEMPT, "v1-1"]
    assert isinstance(attempt, Attempt)
    hub.put(replace(attempt, state=JobState.STOPPING))
    assert "somebody is told twice" in spare_faults(hub, plan)


def test_a_job_that_waits_beside_idle_gpus_is_found() -> None:
    hub, plan = idling()
    waits = told(replace(plan, starts=(), order=("s",)), "s", WaitReason.NO_IDLE_GPU)
    assert "s waits beside 8 idle h100" in spare_faults(hub, waits)


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("does not pay for", {"pays": False}),
        ("does not pay for", {"account": Account(FUND, GPU_HOUR - 1)}),
        ("1 GPUs in use of 0", {"max_gpus": 0}),
    ],
)
def test_a_fund_that_pays_more_than_it_may_is_found(fault: str, changed: dict[str, object]) -> None:
    hub, plan = idling()
    fund = hub.world[Kind.GRANT, FUND]
    assert isinstance(fund, Fund)
    hub.put(replace(fund, **changed))  # type: ignore[arg-type]
    assert any(fault in found for found in spare_faults(hub, plan))
