"""Booked room is there at its time, for those it is booked for, cycle after cycle."""

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.policy import PRESETS
from tests.property.core.core_bookings import a_booked_hub, booking_faults, events
from tests.property.core.core_promises import a_random_policy
from tests.property.core.test_core_promises_kept import live

SEEDS = st.integers(0, 2**48)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_booked_room_is_there_and_nobody_else_is_in_it(seed: int) -> None:
    hub = a_booked_hub(Random(seed))
    for plan, _ in live(hub, cycles=15):
        assert booking_faults(hub, plan, plain=False) == []


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_the_hubs_own_policy_keeps_bookings(seed: int) -> None:
    hub = a_booked_hub(Random(seed), PRESETS["gpuhub"])
    for plan, _ in live(hub, cycles=15):
        assert booking_faults(hub, plan, plain=False) == []


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_what_nothing_is_booked_for_is_used(seed: int) -> None:
    """Without reservations and preemption no job waits beside room but for a booking, and only for one in its way."""
    rng = Random(seed)
    hub = a_booked_hub(rng, replace(a_random_policy(rng), reservations=0, preemption=None))
    for plan, _ in live(hub, cycles=12):
        assert booking_faults(hub, plan, plain=True) == []


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_going_on_with_bookings_equals_beginning_anew_in_any_order(seed: int, policies: bool) -> None:
    hub = a_booked_hub(Random(seed))
    for plan, anew in live(hub, cycles=15, policies=policies):
        assert plan == anew


def test_there_was_something_booked() -> None:
    """The worlds above are not empty: this much happens in a few of them."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        hub = a_booked_hub(Random(seed))
        for plan, _ in live(hub, cycles=15):
            seen.update(events(plan, hub))
    assert seen["own start"] > 25, seen
    assert seen["kept out"] > 150, seen
    assert seen["used"] > 40, seen
    assert seen["released"] > 100, seen
    assert seen["short_gpus"] > 50, seen
