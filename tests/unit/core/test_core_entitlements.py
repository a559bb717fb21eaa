"""What programmes and organizations are entitled to beside their grants: weights, and reserved parts of the pool."""

from dataclasses import replace
from itertools import count

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import Change, Grant, Node, Pace, Plan
from scheduler.core.policy import PRESETS, Entitlement, Lane, Policy, Ranking
from scheduler.core.ranks import weighed
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    GPU_HOUR,
    HOUR_MS,
    NOW_MS,
    a_class,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    an_account,
    an_attempt,
    an_organization,
    plan_of,
    started,
)

BOTH = ("o1", "o2")


def order_of(*changes: Change) -> tuple[str, ...]:
    """The order when there is no room at all."""
    return plan_of(*changes, organizations=BOTH).order


# --- weights -----------------------------------------------------------------------------------------


def test_weight_counts_a_lag_as_more_and_a_lead_as_less() -> None:
    assert [weighed(lag, 2000) for lag in (6, 0, -6)] == [12, 0, -3]
    assert [weighed(lag, 500) for lag in (6, 0, -6)] == [3, 0, -12]
    assert [weighed(lag, 1000) for lag in (7, -7)] == [7, -7]
    for lag in range(-20, 20):
        assert weighed(lag, 1300) <= weighed(lag + 1, 1300)
        assert weighed(lag, 1300) <= weighed(lag, 1700)


@pytest.mark.parametrize(("weight", "first"), [(1900, "j1"), (2100, "j2")])
def test_organization_that_weighs_twice_ranks_as_twice_as_far_behind(weight: int, first: str) -> None:
    grants = [a_grant("o1", lag_ms=4 * HOUR_MS), a_grant("o2", lag_ms=2 * HOUR_MS)]
    policy = Policy(organization_weights=(("o2", weight),))
    assert order_of(policy, *grants, a_job("j1", "o1"), a_job("j2", "o2"))[0] == first


@pytest.mark.parametrize(("weight", "first"), [(1900, "j1"), (2100, "j2")])
def test_programme_that_weighs_twice_ranks_as_half_as_far_ahead(weight: int, first: str) -> None:
    grants = [
        a_grant("o1", program="p1", lag_ms=-2 * HOUR_MS),
        a_grant("o2", program="p2", lag_ms=-4 * HOUR_MS),
    ]
    policy = Policy(entitlements=(Entitlement("p2", weight),))
    assert order_of(policy, *grants, a_job("j1", "o1"), a_job("j2", "o2"))[0] == first


@pytest.mark.parametrize("ranking", [Ranking.GRANT, Ranking.DECAY])
def test_usage_counts_less_for_who_weighs_more(ranking: Ranking) -> None:
    used = [an_organization("o1", usage=100.0), an_organization("o2", usage=150.0)]
    jobs = [a_job("j1", "o1"), a_job("j2", "o2")]
    assert order_of(Policy(ranking=ranking), *used, *jobs) == ("j1", "j2")
    heavy = Policy(ranking=ranking, organization_weights=(("o2", 1600),))
    assert order_of(heavy, *used, *jobs) == ("j2", "j1")


def test_first_come_first_served_knows_no_weights() -> None:
    policy = Policy(ranking=Ranking.FIFO, organization_weights=(("o2", 90_000),))
    assert order_of(policy, a_job("j1", "o1", submitted=0), a_job("j2", "o2", submitted=1)) == ("j1", "j2")


def test_changed_weight_counts_in_the_next_cycle() -> None:
    grants = [a_grant("o1", lag_ms=4 * HOUR_MS), a_grant("o2", lag_ms=3 * HOUR_MS)]
    world = [a_class(), a_cluster(), *map(an_organization, BOTH), *grants]
    plan, state = decide(State(), [*world, a_job("j1", "o1"), a_job("j2", "o2")], NOW_MS)
    assert plan.order == ("j1", "j2")
    plan, state = decide(state, [Policy(organization_weights=(("o2", 2000),))], NOW_MS)
    assert plan.order == ("j2", "j1")
    plan, _ = decide(state, [Policy()], NOW_MS)
    assert plan.order == ("j1", "j2")


def test_of_what_cannot_be_delivered_who_weighs_twice_misses_half_as_much() -> None:
    """Two grants that need eight GPUs each share a pool of eight for two thirds of their terms."""
    hours, granted = 300, 300 * 8
    policy = Policy(lag_bound_share=1.0, idle_lag_share=1.0, organization_weights=(("o1", 2000),))
    used = {"o1": 0, "o2": 0}
    paces: dict[str, Pace | None] = dict.fromkeys(BOTH)
    world: list[Change] = [policy, a_class(), *map(an_organization, BOTH)]
    number = count()
    for hour in range(200):
        now_ms = hour * HOUR_MS
        grants = [
            Grant(
                f"g-{id}", "p1", id, 0, hours * HOUR_MS,
                a_grant(id, paths=((replace(an_account(f"a-{id}", granted), used_gpu_us=used[id] * GPU_HOUR),),)).paths,
                paces[id],
            )
            for id in BOTH
        ]  # fmt: skip
        jobs = [a_job(f"j{next(number):05}", id, submitted=now_ms) for id in BOTH for _ in range(8)]
        nodes: list[Node] = [a_node()]
        plan, _ = decide(State(), [*world, a_cluster(seen_ms=now_ms), *nodes, *grants, *jobs], now_ms)
        assert len(plan.starts) == 8
        for start in plan.starts:
            used[start.grant_id.removeprefix("g-")] += 1
        paces = {id: plan.paces[f"g-{id}"] for id in BOTH}
    missed = {id: 200 * 8 - used[id] for id in BOTH}
    assert missed["o1"] + missed["o2"] == 200 * 8
    assert missed["o2"] / missed["o1"] == pytest.approx(2, rel=0.05)


# --- a reserved part of the pool ---------------------------------------------------------------------

TENTH = Entitlement("poc", reserved_thousandths=100)
POOL_OF_40 = [a_node(f"n{i}", used=8) for i in range(5)]


def reserving(*changes: Change, policy: Policy | None = None) -> Plan:
    """`poc`, of "o2", is far ahead of its pace, "o1" in `p1` far behind; a tenth of forty GPUs are `poc`'s."""
    grants = [
        a_grant("o1", program="p1", lag_ms=20 * DAY_MS),
        a_grant("o2", program="poc", lag_ms=-20 * DAY_MS),
    ]
    policy = replace(policy or Policy(lag_bound_share=1.0), entitlements=(TENTH,))
    return plan_of(policy, *grants, *POOL_OF_40, *changes, organizations=BOTH)


def kept(gpus: int, organization: str = "o2") -> Change:
    return an_attempt(f"runs-{organization}", f"g-{organization}", gpus=gpus, organization=organization)


def test_programme_below_its_part_goes_first_until_it_has_it() -> None:
    room = a_node("free", gpus=6)
    jobs = [a_job(f"{o}-{i}", o, submitted=i) for o in BOTH for i in range(6)]
    # a tenth of 46 are five
    assert started(reserving(room, *jobs)) == [*(f"o2-{i}" for i in range(5)), "o1-0"]
    assert started(reserving(room, *jobs, kept(4))) == ["o2-0", *(f"o1-{i}" for i in range(5))]
    assert started(reserving(room, *jobs, kept(5))) == [f"o1-{i}" for i in range(6)]


def test_part_that_nobody_of_the_programme_asks_for_is_everybodys() -> None:
    room, others = a_node("free", gpus=6), [a_job(f"o1-{i}", "o1", submitted=i) for i in range(6)]
    dear = a_job("dear", "o2", hours=1e6)
    assert len(started(reserving(room, *others, dear))) == 6
    too_wide = a_job("wide", "o2", gpus=8, pods=2)
    assert len(started(reserving(room, *others, too_wide))) == 6


def test_short_jobs_of_others_and_reservations_do_not_pass_it() -> None:
    policy = replace(PRESETS["gpuhub"], floor_share=0.0)
    quick = [a_job(f"o1-{i}", "o1", hours=0.1, submitted=i) for i in range(4)]
    long = a_job("poc", "o2", gpus=4, hours=100)
    assert policy.lane == Lane()
    assert started(reserving(a_node("free", gpus=4), *quick, long, policy=policy)) == ["poc"]
    assert "poc" not in started(reserving(a_node("free", gpus=4), *quick, long, kept(5), policy=policy))


def test_part_is_of_the_nodes_that_take_jobs_now() -> None:
    room = a_node("free", gpus=2)
    jobs = [a_job("mine", "o1"), a_job("poc", "o2")]
    assert started(reserving(room, *jobs, kept(4)))[0] == "poc"  # five of 42
    shut = [replace(node, schedulable=False) for node in POOL_OF_40]
    assert started(reserving(room, *jobs, kept(4), *shut))[0] == "mine"


def test_jobs_stand_in_the_order_of_their_programmes_parts() -> None:
    jobs = [a_job("mine", "o1"), a_job("poc", "o2")]
    assert reserving(*jobs).order == ("poc", "mine")
    assert reserving(*jobs, kept(4)).order == ("mine", "poc")
