"""Jobs that accept several GPU classes: the first that fits and that they can pay, at that class's cost."""

from dataclasses import replace

from scheduler.core.cycle import decide
from scheduler.core.model import Attempt, Change, Job, JobState, Plan, PodPlacement, WaitReason
from scheduler.core.policy import Policy, Preemption
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    GPU_HOUR,
    HOUR_MS,
    NOW_MS,
    a_class,
    a_grant,
    a_job,
    a_node,
    a_stopping_attempt,
    a_world,
    an_account,
    plan_of,
    started,
)

CHOICES = ("a100", "mig")


def a_choosy_job(id: str = "j1", gpus: int = 8, pods: int = 1, **fields: object) -> Job:
    return a_job(id, gpus=gpus, pods=pods, fallbacks=CHOICES, **fields)  # type: ignore[arg-type]


def fleet(h100: int = 8, a100: int = 8, mig: int = 8) -> list[Change]:
    """A node of each class with so many free of 8, and the rates."""
    free = {"h100": h100, "a100": a100, "mig": mig}
    nodes = [a_node(f"n-{name}", used=8 - count, gpu_class=name) for name, count in free.items()]
    return [*nodes, a_class("a100", 500), a_class("mig", 125)]


def running(id: str, node: str, gpus: int, hours: float, gpu_class: str = "h100") -> list[Change]:
    """A restartable job of another organization that ran for two hours and ends in so many."""
    started_ms, ends_ms = NOW_MS - 2 * HOUR_MS, NOW_MS + int(hours * HOUR_MS)
    job = Job(
        id, "o2", None, gpu_class, gpus, 1, ends_ms - started_ms, 0, JobState.RUNNING, 1, restartable=True
    )
    pods = (PodPlacement(node, gpu_class, gpus),)
    attempt = Attempt(
        id, 1, "g-o2", JobState.RUNNING, "c1", pods, 1, 0, started_at_ms=started_ms, ends_at_ms=ends_ms
    )
    return [job, attempt]


def on(plan: Plan) -> list[tuple[str, str, int]]:
    """(job, class, cost in GPU hours) of each start."""
    return [(s.job_id, s.pods[0].gpu_class, s.cost_gpu_us // GPU_HOUR) for s in plan.starts]


def test_the_preferred_class_is_taken_while_it_has_room() -> None:
    assert on(plan_of(*fleet(), a_choosy_job())) == [("j1", "h100", 8)]


def test_the_next_one_is_taken_at_its_own_cost() -> None:
    assert on(plan_of(*fleet(h100=7), a_choosy_job())) == [("j1", "a100", 4)]
    assert on(plan_of(*fleet(h100=7, a100=7), a_choosy_job())) == [("j1", "mig", 1)]


def test_a_pick_of_the_same_cycle_sends_the_next_job_to_its_fallback() -> None:
    jobs = [a_choosy_job("j1", submitted=0), a_choosy_job("j2", submitted=1), a_choosy_job("j3", submitted=2)]
    assert on(plan_of(*fleet(), *jobs)) == [("j1", "h100", 8), ("j2", "a100", 4), ("j3", "mig", 1)]


def test_all_pods_of_a_gang_get_one_class() -> None:
    plan = plan_of(*fleet(h100=4, a100=4), a_choosy_job(gpus=2, pods=4))
    assert {pod.gpu_class for start in plan.starts for pod in start.pods} == {"mig"}
    assert plan_of(*fleet(h100=4, a100=4, mig=4), a_choosy_job(gpus=2, pods=4)).starts == ()


def test_a_class_that_costs_too_much_is_passed_over() -> None:
    poor = a_grant(hours=5)
    assert on(plan_of(*fleet(), a_choosy_job(), poor)) == [("j1", "a100", 4)]


def test_each_class_draws_on_the_grant_that_suffices_for_it() -> None:
    """The small grant ends first and would pay for an A100; the H100, which goes before, is paid by the large one."""
    small, large = a_grant(id="small", hours=5, ends=NOW_MS + DAY_MS), a_grant(program="p2")
    plan = plan_of(*fleet(), a_choosy_job(), small, large)
    assert [(start.grant_id, *each[1:]) for start, each in zip(plan.starts, on(plan), strict=True)] == [
        ("g-o1", "h100", 8)
    ]
    plan = plan_of(*fleet(h100=0), a_choosy_job(), small, large)
    assert [start.grant_id for start in plan.starts] == ["small"]
    plan = plan_of(*fleet(0, 0, 0), a_choosy_job(), small, large)
    assert plan.order == ("j1",)


def test_a_cap_counts_gpus_whatever_their_class() -> None:
    assert on(plan_of(*fleet(h100=0), a_choosy_job(), a_grant(max_gpus=8))) == [("j1", "a100", 4)]
    reason = plan_of(*fleet(h100=0), a_choosy_job(), a_grant(max_gpus=7)).reasons["j1"]
    assert (reason.code, reason.numbers["other_classes"]) == (WaitReason.GRANT_CAP, 2)


def test_the_reason_is_that_of_the_first_class_that_it_could_pay() -> None:
    full = fleet(h100=3, a100=2, mig=1)
    reason = plan_of(*full, a_choosy_job()).reasons["j1"]
    assert reason.code is WaitReason.NO_FREE_GPU
    assert reason.numbers == {"gpu_class": "h100", "needed": 8, "free": 3, "other_classes": 2}
    reason = plan_of(*full, a_choosy_job(), a_grant(hours=5)).reasons["j1"]
    assert reason.numbers == {"gpu_class": "a100", "needed": 8, "free": 2, "other_classes": 2}
    reason = plan_of(*full, a_choosy_job(), a_grant(paths=((an_account(hours=0),),))).reasons["j1"]
    assert (reason.code, reason.numbers["needed_gpu_us"]) == (WaitReason.GRANT_EXHAUSTED, 8 * GPU_HOUR)


def test_a_paused_preferred_class_does_not_keep_it_from_the_next() -> None:
    assert on(plan_of(*fleet(), a_choosy_job(), a_class(paused=True))) == [("j1", "a100", 4)]


def test_a_class_that_the_hub_does_not_know_does_not_keep_it_from_the_next() -> None:
    assert on(plan_of(*fleet(), replace(a_choosy_job(), gpu_class="b200"))) == [("j1", "a100", 4)]


# --- reservations, kept room, preemption ----------------------------------------------------------


def test_room_is_reserved_where_it_comes_first() -> None:
    full = [
        *fleet(0, 0, 0),
        *running("r1", "n-h100", 8, hours=6),
        *running("r2", "n-a100", 8, hours=3, gpu_class="a100"),
        *running("r3", "n-mig", 8, hours=3, gpu_class="mig"),
    ]
    small = a_job("small", gpus=1, hours=1, gpu_class="mig")
    world = a_world(
        *full, a_choosy_job(), small, a_node("n2", gpus=1, gpu_class="mig"), Policy(reservations=1)
    )
    plan, state = decide(State(), world, NOW_MS)
    assert started(plan) == ["small"]
    (kept,) = plan.reservations
    assert (kept.gpu_class, kept.starts_at_ms) == ("a100", NOW_MS + 3 * HOUR_MS)
    assert plan.reasons["j1"].numbers["gpu_class"] == "a100"
    # somebody on the class that it prefers ends early: it starts there, and the promise is void
    ended = [a_node("n-h100", gpus=8), replace(running("r1", "n-h100", 8, 6)[1], capacity_held=False)]
    plan, _ = decide(state, ended, NOW_MS)
    assert on(plan)[0] == ("j1", "h100", 8)


def test_a_promise_on_a_class_that_it_cannot_pay_any_more_is_given_up_for_another() -> None:
    full = [
        *fleet(0, 0, 0),
        a_node("other", gpus=1, gpu_class="mig"),
        *running("r1", "n-h100", 8, hours=2),
        *running("r2", "n-a100", 8, hours=3, gpu_class="a100"),
    ]
    world = a_world(*full, a_choosy_job(), a_job("one", gpu_class="mig", gpus=1), Policy(reservations=1))
    plan, state = decide(State(), world, NOW_MS)
    assert [each.gpu_class for each in plan.reservations] == ["h100"]
    poorer = a_grant(hours=5)
    plan, _ = decide(state, [poorer], NOW_MS)
    assert [each.gpu_class for each in plan.reservations] == ["a100"]


def test_a_gang_takes_its_fallback_before_anybody_is_stopped_for_it() -> None:
    rule = Policy(preemption=Preemption(gang_gpus=8, lead_ms=1, protected_ms=0))
    behind, ahead = a_grant(lag_ms=5 * DAY_MS), a_grant("o2", lag_ms=-5 * DAY_MS)
    victims = running("r1", "n-h100", 8, hours=6)
    plan = plan_of(*fleet(0, 8, 0), *victims, behind, ahead, rule, a_choosy_job(), organizations=("o1", "o2"))
    assert (on(plan), plan.stops) == ([("j1", "a100", 4)], ())
    plan = plan_of(*fleet(0, 7, 0), *victims, behind, ahead, rule, a_choosy_job(), organizations=("o1", "o2"))
    assert [(stop.job_id, stop.for_job) for stop in plan.stops] == [("r1", "j1")]


def test_others_are_stopped_on_a_fallback_where_the_preferred_class_has_nobody_to_stop() -> None:
    rule = Policy(preemption=Preemption(gang_gpus=8, lead_ms=1, protected_ms=0))
    behind, ahead = a_grant(lag_ms=5 * DAY_MS), a_grant("o2", lag_ms=-5 * DAY_MS)
    victims = running("r1", "n-a100", 8, hours=6, gpu_class="a100")
    plan = plan_of(*fleet(0, 0, 0), *victims, behind, ahead, rule, a_choosy_job(), organizations=("o1", "o2"))
    assert [(stop.job_id, stop.for_job) for stop in plan.stops] == [("r1", "j1")]


def test_room_that_is_freed_for_it_is_kept_on_the_class_of_who_stops() -> None:
    stopped = a_stopping_attempt(for_job="j1", on={"n-a100": 8}, held=False, gpu_class="a100")
    other = a_job("other", gpus=8, gpu_class="a100", submitted=0)
    plan = plan_of(*fleet(0, 8, 0), stopped, a_choosy_job(), other)
    assert on(plan) == [("j1", "a100", 4)]
    assert plan.reasons["other"].code in (WaitReason.ROOM_RESERVED, WaitReason.NO_FREE_GPU)


def test_the_order_has_a_job_of_two_grants_once() -> None:
    small, large = a_grant(id="small", hours=5, ends=NOW_MS + DAY_MS), a_grant(program="p2")
    jobs = [a_choosy_job("j1"), a_job("j2", gpus=8), a_job("j3", gpus=8, gpu_class="mig")]
    plan = plan_of(*fleet(0, 0, 0), *jobs, small, large)
    assert sorted(plan.order) == ["j1", "j2", "j3"] == sorted(plan.reasons)
