"""Opportunistic jobs are in nobody's way, cycle after cycle."""

from collections import Counter
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.core.policy import PRESETS
from tests.property.core.core_promise_faults import all_faults
from tests.property.core.core_spare import a_spare_hub, bare, events, plan_of, spare_faults
from tests.property.core.test_core_promises_kept import live

SEEDS = st.integers(0, 2**48)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_opportunistic_jobs_change_nothing_for_the_others_but_the_wait_for_their_leaving(seed: int) -> None:
    hub = a_spare_hub(Random(seed))
    for plan, _ in live(hub, cycles=8):
        assert spare_faults(hub, plan) == []


@settings(max_examples=12, deadline=None)
@example(806_250)  # a pick takes the money for the class that a job prefers: it is told of the next one
@given(SEEDS)
def test_the_hubs_own_policy_lets_them_be_in_nobodys_way(seed: int) -> None:
    hub = a_spare_hub(Random(seed), PRESETS["gpuhub"])
    for plan, _ in live(hub, cycles=8):
        assert spare_faults(hub, plan) == []


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_every_promise_is_kept_beside_opportunistic_jobs(seed: int) -> None:
    hub = a_spare_hub(Random(seed), bookings=False)
    for _ in live(hub, cycles=8):
        others = bare(hub)
        assert all_faults(others, plan_of(others)) == []


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_going_on_with_opportunistic_jobs_equals_beginning_anew_in_any_order(
    seed: int, policies: bool
) -> None:
    hub = a_spare_hub(Random(seed))
    told: dict[str, object] = {}
    for plan, anew in live(hub, cycles=10, policies=policies):
        assert plan == anew
        changed = {id: reason for id, reason in plan.reasons.items() if told.get(id) != reason}
        assert dict(plan.changed_reasons) == changed
        told = dict(plan.reasons)


def test_there_was_something_opportunistic() -> None:
    """The worlds above are not empty: this much happens in a few of them."""
    seen: Counter[str] = Counter()
    for seed in range(40):
        hub = a_spare_hub(Random(seed))
        for plan, _ in live(hub, cycles=8):
            seen += events(hub, plan)
    assert seen["spare start"] > 40, seen
    assert seen["held"] > 8, seen
    assert seen["told"] > 12, seen
    assert seen["moved"] > 4, seen
    assert seen["beside a promise"] > 6, seen
    assert seen["lost"] > 6, seen
