"""False stops and missed idle jobs on labelled synthetic profiles."""

from __future__ import annotations

import pytest

from tests.unit.quota.idle.playing import Event, judged, play
from tests.unit.quota.idle.profiles import MAKERS, WORKING, Profile, profile

FALSE_STOPS, MISSED = 0.01, 0.05


def _wrong(name: str, seeds: range) -> dict[int, list[str]]:
    found = {}
    for seed in seeds:
        made = profile(name, seed)
        wrong = list(judged(made, play(made)))
        if wrong:
            found[seed] = wrong
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_few_profiles_are_judged_wrongly(name: str) -> None:
    _check(name, range(30))


@pytest.mark.long
@pytest.mark.parametrize("name", MAKERS)
def test_few_of_many_profiles_are_judged_wrongly(name: str) -> None:
    _check(name, range(1000, 1300))


def _check(name: str, seeds: range) -> None:
    wrong = _wrong(name, seeds)
    share = FALSE_STOPS if name in WORKING else MISSED
    assert len(wrong) <= int(share * len(seeds)), wrong
    assert not any("unwarned" in text for texts in wrong.values() for text in texts), wrong


# --- the checker itself: it finds what is planted -------------------------------------------------------


def _played(name: str = "active once, idle after", seed: int = 3) -> tuple[Profile, list[Event]]:
    made = profile(name, seed)
    events = play(made)
    assert [event.what for event in events] == ["warn 1", "warn 2", "stop"]
    assert list(judged(made, events)) == []
    return made, events


def test_an_early_stop_is_found() -> None:
    made, events = _played()
    early = [*events[:2], Event(events[2].minute - 15, "stop")]
    assert "false" in next(judged(made, early))


def test_a_stop_of_a_job_that_works_is_found() -> None:
    made = profile("training steady", 1)
    events = [Event(20, "warn 1"), Event(40, "warn 2"), Event(60, "stop")]
    assert "false" in next(judged(made, events))


@pytest.mark.parametrize("left", [[1, 2], [0, 2], [2]])
def test_a_missing_warning_is_found(left: list[int]) -> None:
    made, events = _played()
    assert list(judged(made, [events[at] for at in left])) != []


def test_a_withdrawn_warning_is_no_warning() -> None:
    made, (first, second, stop) = _played()
    withdrawn = Event(second.minute + 5, "withdraw")
    assert "unwarned" in next(judged(made, [first, second, withdrawn, stop]))


def test_a_warning_right_before_the_stop_is_found() -> None:
    made, (first, _, stop) = _played()
    assert "too soon" in next(judged(made, [first, Event(stop.minute - 5, "warn 2"), stop]))


def test_a_missed_job_is_found() -> None:
    made, events = _played("never active", 5)
    assert "missed" in next(judged(made, events[:2]))
