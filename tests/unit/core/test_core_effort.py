"""A cycle finds nothing twice that nothing has changed: counted in verdicts and rankings, whatever the machine."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scheduler.core.cycle import decide
from scheduler.core.groups import Group
from scheduler.core.judging import Judge
from scheduler.core.model import Change, Kind, Tombstone
from scheduler.core.order import Tree
from scheduler.core.state import State
from tests.unit.core.core_world import (
    HOUR_MS,
    NOW_MS,
    a_grant,
    a_job,
    a_node,
    a_world,
    an_attempt,
    an_organization,
)

KINDS = range(1, 41)
"""Walltimes in hours of jobs of one GPU: a group each."""

Cycle = Callable[..., list[int]]


@pytest.fixture
def judged_in(monkeypatch: pytest.MonkeyPatch) -> Cycle:
    """Cycle after cycle of one state: with these changes, judged are groups of so many hours.

    Each is compared with what a state that begins anew decides, which is not counted.
    """
    judged: list[int] = []
    world: dict[tuple[type, str], Change] = {}
    states = [State()]
    decide_group = Judge.decide

    def counted(self: Judge, group: Group) -> None:
        judged.append(group.walltime_ms // HOUR_MS)
        decide_group(self, group)

    def cycle(*changes: Change, now_ms: int = NOW_MS) -> list[int]:
        for change in changes:
            if isinstance(change, Tombstone):
                world.pop(next(key for key in world if key[1] == change.id))
            else:
                world[type(change), getattr(change, "id", "")] = change
        judged.clear()
        plan, state = decide(states.pop(), changes, now_ms)
        states.append(state)
        found = sorted(judged)
        anew, _ = decide(State(), world.values(), now_ms)
        assert (
            replace(anew, paces=plan.paces) == plan
        )  # paces go on from what was told, which nobody stores here
        return found

    monkeypatch.setattr(Judge, "decide", counted)
    return cycle


def a_full_hub(*changes: Change) -> list[Change]:
    """One organization with a job of each kind, and no GPU free."""
    jobs = (a_job(f"j{hours:02}", hours=hours) for hours in KINDS)
    return a_world(a_node(used=8), *jobs, *changes)


def test_only_a_job_of_a_new_kind_is_judged(judged_in: Cycle) -> None:
    assert judged_in(*a_full_hub()) == [*KINDS]
    assert judged_in() == []
    assert judged_in(a_job("more", hours=7)) == []
    assert judged_in(a_job("other", hours=7.5)) == [7]
    assert judged_in(Tombstone(Kind.JOB, "j07")) == []
    assert judged_in(Tombstone(Kind.JOB, "j08"), a_job("more", hours=41)) == [41]


def test_when_money_moves_only_those_are_judged_whom_it_concerns(judged_in: Cycle) -> None:
    judged_in(*a_full_hub(a_grant(hours=100)))
    assert judged_in(a_grant(hours=100, used=55)) == []
    assert judged_in(a_grant(hours=100, used=62)) == [39, 40]
    # the reason of those that are still too dear names what is left
    assert judged_in(a_grant(hours=100, used=61)) == [39, 40]
    assert judged_in(a_grant(hours=100, held=50)) == [40]
    assert judged_in(a_grant(hours=100, held=50)) == []


def test_below_a_cap_only_those_are_judged_whom_it_concerns(judged_in: Cycle) -> None:
    jobs = [a_job(f"w{gpus}", gpus=gpus, hours=100 + gpus) for gpus in range(1, 9)]
    judged_in(*a_full_hub(an_organization(max_gpus=20), *jobs))
    assert judged_in(an_attempt(gpus=12)) == []
    assert judged_in(an_attempt(gpus=14)) == [107, 108]
    # the reason of those that are still too wide names what is in use
    assert judged_in(an_attempt(gpus=13)) == [107, 108]
    assert judged_in(an_attempt(gpus=12)) == [108]
    assert judged_in(an_attempt(gpus=11)) == []


def test_at_the_moment_at_which_a_verdict_may_differ_all_are_judged(judged_in: Cycle) -> None:
    ends = NOW_MS + 50 * HOUR_MS
    judged_in(*a_full_hub(a_grant(ends=ends)))
    assert judged_in(now_ms=NOW_MS + 10 * HOUR_MS) == []
    assert judged_in(now_ms=NOW_MS + 10 * HOUR_MS + 1) == [*KINDS]


def test_a_pick_concerns_those_alone_for_whom_it_leaves_too_little(judged_in: Cycle) -> None:
    judged_in(*a_full_hub(a_grant(hours=40), a_node(used=7)))
    # the start was not carried out: 40 hours are there again, are gone with the same pick, and the job is told so
    assert judged_in() == [40, 40, 40]


@pytest.mark.parametrize(("used", "rankings"), [(8, 0), (7, 1)])
def test_a_cycle_that_tells_nobody_and_in_which_nothing_fits_ranks_nobody(
    monkeypatch: pytest.MonkeyPatch, used: int, rankings: int
) -> None:
    ranked = []
    begin = Tree.begin

    def counted(self: Tree, *arguments: Any) -> None:
        ranked.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(Tree, "begin", counted)
    decide(State(), a_full_hub(a_node(used=used)), NOW_MS, brief=True)
    assert len(ranked) == rankings
