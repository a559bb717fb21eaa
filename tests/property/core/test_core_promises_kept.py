"""What the whole policy promises - reservations, lane, preemption, floor - holds cycle after cycle."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.cycle import decide
from scheduler.core.model import Grant, Job, Kind, Plan
from scheduler.core.policy import DAY_MS, HOUR_MS, PRESETS, Policy, Preemption, Ranking
from scheduler.core.state import State
from tests.property.core.core_promise_faults import all_faults, is_excused, may_pass
from tests.property.core.core_promises import (
    Hub,
    a_random_hub,
    a_random_policy,
    shuffled,
    with_accounts,
)

SEEDS = st.integers(0, 2**48)


def live(hub: Hub, cycles: int, policies: bool = False) -> Iterator[tuple[Plan, Plan]]:
    """Cycle after cycle the plan, and the plan of a state that begins anew, before they are carried out."""
    rng, state, news = hub.rng, State(), shuffled(hub.rng, hub.snapshot())
    hub.news()
    for _ in range(cycles):
        plan, state = decide(state, news, hub.now_ms)
        yield plan, decide(State(), shuffled(rng, hub.snapshot()), hub.now_ms)[0]
        hub.carry_out(plan, refuse=0.1 if rng.random() < 0.1 else 0.0)
        on_time = rng.random() < 0.7
        hub.advance(hub.next_ms() if on_time else hub.now_ms + rng.choice((0, 1, 1000, HOUR_MS, 7 * HOUR_MS)))
        if rng.random() < 0.6:
            hub.disturb()
        if policies and rng.random() < 0.3:
            hub.policy = a_random_policy(rng)
            hub.put(hub.policy)
        news = hub.news()


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_every_promise_is_kept(seed: int) -> None:
    hub = a_random_hub(Random(seed))
    for plan, _ in live(hub, cycles=15):
        assert all_faults(hub, plan) == []


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_every_promise_is_kept_by_the_hubs_own_policy(seed: int) -> None:
    hub = a_random_hub(Random(seed), PRESETS["gpuhub"])
    for plan, _ in live(hub, cycles=15):
        assert all_faults(hub, plan) == []


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.booleans())
def test_going_on_equals_beginning_anew_in_any_order(seed: int, policies: bool) -> None:
    hub = a_random_hub(Random(seed))
    for plan, anew in live(hub, cycles=15, policies=policies):
        assert plan == anew


def test_there_was_something_to_promise() -> None:
    """The worlds above are not empty: this much happens in a few of them."""
    seen: Counter[str] = Counter()
    for seed in range(160):
        hub = a_random_hub(Random(seed))
        for plan, _ in live(hub, cycles=15):
            seen["reserved"] += len(plan.reservations)
            seen["judged"] += len(hub.reservations) if not is_excused(hub, plan) else 0
            seen["stops"] += len(plan.stops)
            seen["lane"] += started_in_lane(hub, plan)
            for job, start in ((hub.world[Kind.JOB, start.job_id], start) for start in plan.starts):
                assert isinstance(job, Job)
                seen["fallback"] += start.pods[0].gpu_class != job.gpu_class
                seen["bound"] += job.unit[2] != ""
    assert seen["reserved"] > 300
    assert seen["judged"] > 100
    assert seen["stops"] > 10
    assert seen["lane"] > 10
    assert seen["fallback"] > 30
    assert seen["bound"] > 10


def started_in_lane(hub: Hub, plan: Plan) -> int:
    """How many jobs started that reservations did not bind."""
    lane, count = hub.policy.lane, 0
    if lane and plan.reservations:
        for number, start in enumerate(plan.starts):
            job = hub.world[Kind.JOB, start.job_id]
            assert isinstance(job, Job)
            before = plan.starts[:number]
            count += may_pass(hub, plan, job, start.grant_id, before, lane, generous=False)
    return count


# --- preemption -------------------------------------------------------------------------------------

PITILESS = Preemption(
    gang_gpus=4, gangs=4, lead_ms=1, protected_ms=0, cooldown_ms=0, times_per_day=3, notice_ms=0
)
"""Everybody may be stopped at once, as often as the policy ever allows."""


@settings(max_examples=60, deadline=None)
@given(
    SEEDS,
    st.sampled_from((PITILESS, replace(PITILESS, times_per_day=1), replace(PITILESS, notice_ms=600_000))),
)
def test_preemption_comes_to_rest(seed: int, rule: Preemption) -> None:
    hub = a_random_hub(Random(seed), Policy(lag_bound_share=1.0, hold_share=0.3, preemption=rule))
    jobs, stops = len(hub.of(Job)), 0
    state, news = State(), hub.snapshot()
    hub.news()
    for _ in range(2 + jobs * (1 + rule.times_per_day)):
        plan, state = decide(state, news, hub.now_ms)
        stops += len(plan.stops)
        assert stops <= jobs * rule.times_per_day
        hub.carry_out(plan)
        hub.advance(hub.now_ms)
        news = hub.news()
        if not plan.stops and not plan.starts:
            return
    raise AssertionError("it went round in circles")


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 3))
def test_nobody_is_stopped_more_often_in_a_day_than_the_policy_says(seed: int, times: int) -> None:
    rule = replace(PITILESS, times_per_day=times)
    hub = a_random_hub(Random(seed), replace(a_random_policy(Random(seed)), preemption=rule))
    already = {job_id: len(times) for job_id, times in hub.preempted.items()}
    for plan, _ in live(hub, cycles=25):
        assert all_faults(hub, plan) == []
    for job_id, moments in hub.preempted.items():
        new = moments[already.get(job_id, 0) :]
        assert all(sum(at - DAY_MS < other <= at for other in moments) <= times for at in new)


# --- budget -----------------------------------------------------------------------------------------


def with_budget(seed: int, policy: Policy, tenths: int) -> Hub:
    """The same hub, but for what "o1" was granted. Attempts end when they should, and money refuses nothing:
    with more of it an older job could start to wait for room, and keep it from a younger one."""
    hub = a_random_hub(Random(seed), policy, plain=True)
    grant = hub.world[Kind.GRANT, "g-o1-0"]
    assert isinstance(grant, Grant)
    hub.put(with_accounts(grant, lambda a: replace(a, granted_gpu_us=a.granted_gpu_us * tenths // 10)))
    for each in hub.of(Grant):
        hub.put(with_accounts(each, lambda a: replace(a, overdraft_gpu_us=1 << 60)))
    return hub


def rank(hub: Hub) -> int:
    """The place of the first job of "o1" in the order, while nothing may start."""
    hub.put(replace(hub.policy, placement_paused=True))
    plan, _ = decide(State(), hub.snapshot(), hub.now_ms)
    waiting = [hub.world[Kind.JOB, id] for id in plan.order]
    mine = [
        place for place, job in enumerate(waiting) if isinstance(job, Job) and job.organization_id == "o1"
    ]
    return mine[0] if mine else 0


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from((11, 15, 40)), st.sampled_from(Ranking))
def test_more_budget_never_puts_a_firm_further_back(seed: int, tenths: int, ranking: Ranking) -> None:
    """Without the floor: among those whom it protects, who kept his pace best goes first. And of the order only:
    who gets more is no victim any more, so that a gang that waits for others may leave room to a third.
    """
    policy = replace(a_random_policy(Random(seed)), ranking=ranking, floor_share=0.0)
    assert rank(with_budget(seed, policy, tenths)) <= rank(with_budget(seed, policy, 10))


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from((1001, 1500, 20_000)), st.sampled_from(Ranking))
def test_more_weight_never_puts_a_firm_further_back(seed: int, weight: int, ranking: Ranking) -> None:
    policy = replace(a_random_policy(Random(seed)), ranking=ranking, floor_share=0.0, organization_weights=())
    heavy = replace(policy, organization_weights=(("o1", weight),))
    assert rank(with_budget(seed, heavy, 10)) <= rank(with_budget(seed, policy, 10))


def test_weight_puts_some_firms_further_in_front() -> None:
    """The worlds above are not empty."""
    gained = 0
    for seed in range(60):
        policy = Policy(lag_bound_share=1.0, hold_share=0.3)
        heavy = replace(policy, organization_weights=(("o1", 20_000),))
        gained += rank(with_budget(seed, heavy, 10)) < rank(with_budget(seed, policy, 10))
    assert gained > 5


def first_start_ms(hub: Hub) -> int | None:
    """When the first of the jobs of "o1" that wait now starts; None if never."""
    mine = {job.id for job in hub.of(Job) if job.waits and job.organization_id == "o1"}
    state, news = State(), hub.snapshot()
    hub.news()
    for _ in range(200):
        plan, state = decide(state, news, hub.now_ms)
        if any(start.job_id in mine for start in plan.starts):
            return hub.now_ms
        hub.carry_out(plan)
        hub.advance(hub.next_ms())
        news = hub.news()
    return None


@pytest.mark.parametrize("name", ["grant-skip", "grant-easy", "gpuhub"])
def test_more_budget_never_lets_a_firm_wait_longer_for_its_first_start(name: str) -> None:
    """In these scenarios: nothing proves it of all, since a start for one moves the room for others."""
    sooner = 0
    for seed in range(60):
        with_less, with_more = (
            first_start_ms(with_budget(seed, PRESETS[name], tenths)) for tenths in (10, 40)
        )
        if with_less is not None:
            assert with_more is not None
            assert with_more <= with_less, f"seed {seed}"
            sooner += with_more < with_less
        sooner += with_less is None and with_more is not None
    assert sooner
