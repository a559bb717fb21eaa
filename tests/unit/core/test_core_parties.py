"""A consortium's grant: each party on its own share, one pace and one term for all."""

from dataclasses import replace

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import Kind, Pace, Path, Tombstone, WaitReason
from scheduler.core.state import State
from tests.unit.core.core_world import (
    GPU_HOUR,
    HOUR_MS,
    NOW_MS,
    a_class,
    a_consortium,
    a_grant,
    a_job,
    a_node,
    a_world,
    an_account,
    an_organization,
    plan_of,
    started,
)

PARTIES = [an_organization(id) for id in ("a", "b")]


def test_job_takes_the_path_of_its_own_organization() -> None:
    jobs = [a_job("ja", "a"), a_job("jb", "b")]
    plan = plan_of(*PARTIES, a_consortium({"a": 10, "b": 10}), a_node(), *jobs)
    assert {s.job_id: s.account_path for s in plan.starts} == {"ja": ("s-a", "a-c"), "jb": ("s-b", "a-c")}


def test_share_that_is_spent_is_named_though_another_party_has_hours_left() -> None:
    plan = plan_of(*PARTIES, a_consortium({"a": 1, "b": 99}), a_node(), a_job("ja", "a", gpus=2, hours=1))
    reason = plan.reasons["ja"]
    assert reason.code is WaitReason.GRANT_EXHAUSTED
    assert reason.numbers == {
        "grant": "c",
        "account": "s-a",
        "needed_gpu_us": 2 * GPU_HOUR,
        "left_gpu_us": GPU_HOUR,
    }


def test_grant_that_is_spent_is_named_though_the_share_has_hours_left() -> None:
    grant = a_consortium({"a": 50, "b": 50}, hours=60, used=59)
    reason = plan_of(*PARTIES, grant, a_node(), a_job("ja", "a", gpus=2, hours=1)).reasons["ja"]
    assert (reason.numbers["account"], reason.numbers["left_gpu_us"]) == ("a-c", GPU_HOUR)


@pytest.mark.parametrize("grant", [None, "c"])
@pytest.mark.parametrize("organization", ["lead", "stranger"])
def test_who_has_no_share_has_no_grant(grant: str | None, organization: str) -> None:
    known = an_organization(organization)
    plan = plan_of(known, a_consortium({"a": 10}), a_node(), a_job(organization=organization, grant=grant))
    assert plan.reasons["j1"].code is WaitReason.NO_GRANT


def test_tranches_are_drawn_on_in_order_by_every_party() -> None:
    own = an_account("a-c", hours=100)
    first, second = an_account("t1", hours=1), an_account("t2", hours=10)
    paths = tuple(
        Path((an_account(f"s-{party}", hours=50), tranche, own), party)
        for party in ("a", "b")
        for tranche in (first, second)
    )
    jobs = [a_job("ja", "a", submitted=0), a_job("jb", "b", submitted=1)]
    plan = plan_of(*PARTIES, replace(a_consortium({}), paths=paths), a_node(), *jobs)
    assert [s.account_path for s in plan.starts] == [("s-a", "t1", "a-c"), ("s-b", "t2", "a-c")]


def test_starts_of_one_party_spend_what_the_other_could_have_had() -> None:
    grant = a_consortium({"a": 10, "b": 10}, hours=3)
    jobs = [a_job("ja", "a", gpus=2, submitted=0), a_job("jb", "b", gpus=2, submitted=1)]
    plan = plan_of(*PARTIES, grant, a_node(), *jobs)
    assert started(plan) == ["ja"]
    assert plan.reasons["jb"].numbers["account"] == "a-c"


def test_parties_take_turns_by_what_each_of_them_holds() -> None:
    grant = a_consortium({"a": 100, "b": 100}, held={"a": 5})
    jobs = [a_job(f"{party}{i}", party, submitted=i) for party in ("a", "b") for i in range(3)]
    plan = plan_of(*PARTIES, grant, a_node(gpus=4), *jobs)
    assert started(plan) == ["b0", "b1", "b2", "a0"]


def test_lag_grows_while_any_party_waits_and_is_one_for_all() -> None:
    grant = replace(a_consortium({"a": 100, "b": 100}), pace=Pace(0, NOW_MS - HOUR_MS, 0))
    for party in ("a", "b"):
        plan = plan_of(*PARTIES, grant, a_job(organization=party, submitted=0))
        assert plan.paces["c"].lag_ms == HOUR_MS
    assert plan_of(*PARTIES, grant).paces["c"].lag_ms == 0


def test_pick_of_one_party_moves_the_grant_back_for_the_others_too() -> None:
    """The consortium leads by less than one pick: after it, everybody else is before both parties."""
    grant = a_consortium({"a": 100, "b": 100}, hours=1000, lag_ms=HOUR_MS)
    other = a_grant("o1", hours=1000)
    jobs = [
        a_job("ja", "a", gpus=8, submitted=0),
        a_job("jb", "b", gpus=8, submitted=1),
        a_job("jo", submitted=2, gpus=8),
    ]
    plan = plan_of(*PARTIES, grant, other, a_node(), a_node("n2"), *jobs)
    assert started(plan) == ["ja", "jo"]


def test_consortium_counts_once_in_its_programmes_mean() -> None:
    """Counted per party, its lead of 9 h would make p1 the one further behind."""
    p1 = [
        a_consortium({"a": 100, "b": 100, "o1": 100}, hours=1000, lag_ms=9 * HOUR_MS),
        a_grant("o1", hours=1000, lag_ms=-HOUR_MS),
    ]
    p2 = a_grant("o2", program="p2", hours=1000, lag_ms=5 * HOUR_MS)
    jobs = [a_job("ja", "a", submitted=0), a_job("j2", "o2")]
    plan = plan_of(*PARTIES, *p1, an_organization("o2"), p2, *jobs)
    assert plan.order == ("j2", "ja")


def test_grant_that_opens_no_path_yet_is_noticed_when_it_arrives() -> None:
    plan, state = decide(State(), [an_organization("o1"), a_class(), a_job()], NOW_MS)
    assert plan.reasons["j1"].code is WaitReason.NO_GRANT
    plan, _ = decide(state, [a_grant(paths=())], NOW_MS)
    assert plan.reasons["j1"].code is WaitReason.GRANT_EXHAUSTED


def test_party_that_joins_or_leaves_is_judged_at_once() -> None:
    world = a_world(*PARTIES, a_consortium({"a": 10}), a_node(gpus=1), a_job("jb", "b"))
    plan, state = decide(State(), world, NOW_MS)
    assert plan.reasons["jb"].code is WaitReason.NO_GRANT
    plan, state = decide(state, [a_consortium({"a": 10, "b": 10})], NOW_MS)
    assert started(plan) == ["jb"]
    plan, state = decide(state, [a_consortium({"a": 10})], NOW_MS)
    assert plan.reasons["jb"].code is WaitReason.NO_GRANT
    plan, state = decide(state, [a_consortium({"b": 10})], NOW_MS)
    assert started(plan) == ["jb"]
    plan, _ = decide(state, [Tombstone(Kind.GRANT, "c")], NOW_MS)
    assert plan.reasons["jb"].code is WaitReason.NO_GRANT
