"""Whose turn it is: lag, then usage, then patience, each pick counting before the next."""

from dataclasses import replace

from scheduler.core.cycle import decide
from scheduler.core.model import Grant, Pace, Plan
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    TERM_MS,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    a_world,
    an_account,
    an_organization,
    plan_of,
    started,
)


def order_of(*changes: object, organizations: tuple[str, ...] = ("o1", "o2")) -> tuple[str, ...]:
    """The order when there is no room at all."""
    return plan_of(*changes, organizations=organizations).order  # type: ignore[arg-type]


def test_grant_furthest_behind_its_pace_comes_first() -> None:
    grants = [a_grant("o1", used=100, lag_ms=HOUR_MS), a_grant("o2", used=100, lag_ms=2 * HOUR_MS)]
    assert order_of(*grants, a_job("j1", "o1"), a_job("j2", "o2")) == ("j2", "j1")


def test_among_equal_lags_no_history_ranks_first() -> None:
    used = an_organization("o1", usage=1.0)
    assert order_of(used, a_job("j1", "o1", submitted=0), a_job("j2", "o2")) == ("j2", "j1")


def test_usage_is_brought_to_the_same_moment_before_it_is_compared() -> None:
    old = an_organization("o1", usage=100.0, as_of=NOW_MS - 14 * DAY_MS)
    new = an_organization("o2", usage=30.0)
    assert order_of(old, new, a_job("j1", "o1"), a_job("j2", "o2")) == ("j1", "j2")


def test_full_ties_fall_to_the_longest_waiting_job_then_to_its_id() -> None:
    same = order_of(a_job("b", "o1"), a_job("a", "o2"))
    older = order_of(a_job("b", "o1", submitted=1), a_job("a", "o2", submitted=2))
    assert (same, older) == (("a", "b"), ("b", "a"))


def test_inside_a_grant_jobs_go_in_order_of_submission() -> None:
    jobs = [a_job("a", submitted=3), a_job("b", submitted=1), a_job("c", submitted=1, gpus=8)]
    assert order_of(*jobs) == ("b", "c", "a")


def test_programme_goes_before_organization() -> None:
    grants = [
        a_grant("o1", program="behind", lag_ms=5 * HOUR_MS),
        a_grant("o2", program="ahead", lag_ms=9 * HOUR_MS),
        a_grant("o3", program="ahead", lag_ms=-30 * HOUR_MS),
    ]
    jobs = [a_job(f"j-{o}", o) for o in ("o1", "o2", "o3")]
    order = order_of(*grants, *jobs, organizations=("o1", "o2", "o3"))
    assert order == ("j-o1", "j-o2", "j-o3")


def test_jobs_that_could_not_start_anyway_stand_last() -> None:
    jobs = [
        a_job("cool", submitted=0, not_before=NOW_MS + 1),
        a_job("dear", submitted=1, hours=1e6),
        a_job("j"),
    ]
    assert order_of(*jobs) == ("j", "cool", "dear")


def test_refused_job_does_not_block_smaller_ones_behind_it() -> None:
    plan = plan_of(a_node(gpus=8, used=4), a_job("big", gpus=8, submitted=0), a_job("small", gpus=4))
    assert started(plan) == ["small"]


def test_burst_within_a_cycle_gains_nothing() -> None:
    burst = [a_job(f"b{i}", "o1", gpus=2, submitted=i) for i in range(8)]
    single = [a_job("s", "o2", gpus=2)]
    plan = plan_of(a_node(gpus=4), *burst, *single, organizations=("o1", "o2"))
    assert started(plan) == ["b0", "s"]


def test_cutting_work_into_small_jobs_takes_turns_like_large_ones() -> None:
    small = [a_job(f"a{i}", "o1", gpus=1, submitted=i) for i in range(16)]
    large = [a_job(f"b{i}", "o2", gpus=4, submitted=i) for i in range(4)]
    plan = plan_of(a_node(gpus=8), a_node("n2", gpus=8), *small, *large, organizations=("o1", "o2"))
    assert sum(1 for id in started(plan) if id.startswith("a")) == 8
    assert sum(4 for id in started(plan) if id.startswith("b")) == 8


def test_pick_of_one_programme_counts_as_usage_in_the_other() -> None:
    pace = Pace(-20 * DAY_MS, NOW_MS)
    grants = [
        a_grant("o1", program="p1", hours=100, used=70, pace=pace),
        a_grant("o1", id="g2", program="p2", hours=100, used=70, pace=pace),
        a_grant("o2", program="p3", hours=100, used=70, pace=pace),
    ]
    jobs = [
        a_job("a", "o1", grant="g-o1", submitted=0),
        a_job("b", "o1", grant="g2", submitted=1),
        a_job("c", "o2", submitted=2),
    ]
    plan = plan_of(*grants, a_node(gpus=2), *jobs, organizations=("o1", "o2"))
    assert started(plan) == ["a", "c"]


def test_equals_far_ahead_take_turns_by_what_they_hold_though_no_lag_tells_them_apart() -> None:
    """At the lower bound a pick does not move the lag any more; usage must, on every level of the tree."""
    pace = Pace(-20 * DAY_MS, NOW_MS)
    jobs = [a_job("a1", "o1", submitted=0), a_job("a2", "o1", submitted=1), a_job("b", "o2", submitted=2)]
    for program in ("p1", "p2"):
        grants = [
            a_grant("o1", hours=100, used=70, pace=pace),
            a_grant("o2", program=program, hours=100, used=70, pace=pace),
        ]
        plan = plan_of(*grants, a_node(gpus=2), *jobs, organizations=("o1", "o2"))
        assert started(plan) == ["a1", "b"]


# --- lag -----------------------------------------------------------------------------------------


def lag_after(grant: Grant, *jobs: object, now_ms: int = NOW_MS) -> Pace:
    plan = plan_of(grant, a_cluster(seen_ms=now_ms), *jobs, now_ms=now_ms)  # type: ignore[arg-type]
    return plan.paces[grant.id]


def test_lag_grows_by_the_time_a_job_waited() -> None:
    grant = a_grant(pace=Pace(0, NOW_MS - HOUR_MS, 0))
    assert lag_after(grant, a_job(submitted=0)).lag_ms == HOUR_MS
    assert lag_after(grant, a_job(submitted=NOW_MS - 60_000)).lag_ms == 60_000


def test_lag_stands_still_while_nothing_may_start_from_the_grant() -> None:
    grant = a_grant(pace=Pace(5, NOW_MS - HOUR_MS, 0))
    assert lag_after(grant).lag_ms == 5
    assert lag_after(grant, a_job(submitted=0, not_before=NOW_MS + 1)).lag_ms == 5
    assert lag_after(grant, a_job(submitted=0, hours=1e6)).lag_ms == 5
    assert lag_after(grant, an_organization(frozen=True), a_job(submitted=0)).lag_ms == 5


def test_lag_falls_at_once_by_what_was_spent_and_rises_by_what_was_released() -> None:
    hours = 10_000
    tenth = TERM_MS // 10
    spent = a_grant(hours=hours, held=hours // 100, pace=Pace(0, NOW_MS, 0))
    assert lag_after(spent).lag_ms == -tenth // 10
    released = a_grant(hours=hours, pace=Pace(-tenth // 10, NOW_MS, hours // 100 * HOUR_MS * 1000))
    assert lag_after(released).lag_ms == 0


def test_lag_never_passes_what_the_grant_is_really_behind() -> None:
    used = a_grant(hours=100, used=51, pace=Pace(3 * DAY_MS, NOW_MS))
    assert lag_after(used, a_job(submitted=0)).lag_ms == -DAY_MS


def test_lag_is_bounded_by_a_share_of_the_term() -> None:
    assert lag_after(a_grant(pace=Pace(0, 0, 0)), a_job(submitted=0)).lag_ms == TERM_MS // 10


def test_grant_far_ahead_ranks_like_one_at_the_bound_but_is_not_forgiven() -> None:
    far, farther = a_grant("o1", hours=100, used=70), a_grant("o2", hours=100, used=90)
    far = replace(far, pace=Pace(-20 * DAY_MS, NOW_MS))
    farther = replace(farther, pace=Pace(-40 * DAY_MS, NOW_MS))
    plan = plan_of(far, farther, a_job("a", "o2", submitted=1), a_job("b", "o1"), organizations=("o1", "o2"))
    assert plan.order == ("a", "b")
    assert plan.paces["g-o2"].lag_ms == -40 * DAY_MS


def test_hoarder_that_wakes_late_gets_no_absolute_priority() -> None:
    """A grant dormant until 90 % of its term against one used on pace; room for half of what both ask for."""
    now = 90 * DAY_MS
    hoarder = a_grant("o1", hours=10_000, pace=Pace(0, now - 1000, 0))
    steady = a_grant("o2", hours=10_000, used=9000, pace=Pace(0, now - 1000))
    jobs = [a_job(f"{o}-{i}", o, gpus=1, submitted=now) for i in range(8) for o in ("o1", "o2")]
    plan = plan_of(
        hoarder, steady, a_cluster(seen_ms=now), a_node(), *jobs, organizations=("o1", "o2"), now_ms=now
    )
    assert sorted(id[:2] for id in started(plan)) == ["o1"] * 4 + ["o2"] * 4


def test_hoarder_does_not_gain_by_holding_much_and_releasing_it() -> None:
    now = 90 * DAY_MS
    held = a_grant(hours=10_000, held=9000, pace=Pace(0, now - 1000, 0))
    after_hold = lag_after(held, now_ms=now)
    released = a_grant(hours=10_000, pace=after_hold)
    # the second for which it held counts as used, and no more
    assert lag_after(released, now_ms=now + 1).lag_ms == 1000


def test_lag_between_cycles_does_not_depend_on_how_many_there_were() -> None:
    grant = a_grant(pace=Pace(0, NOW_MS, 0))
    plan, state = decide(State(), a_world(grant, a_job(submitted=NOW_MS)), NOW_MS)
    for step in range(1, 61):
        plan, state = decide(state, [], NOW_MS + step * 1000)
    assert (
        plan.paces["g-o1"].lag_ms == lag_after(grant, a_job(submitted=NOW_MS), now_ms=NOW_MS + 60_000).lag_ms
    )


def test_stale_pace_from_the_feed_does_not_turn_the_lag_back() -> None:
    grant = a_grant(pace=Pace(0, NOW_MS, 0))
    _, state = decide(State(), a_world(grant, a_job(submitted=0)), NOW_MS)
    _, state = decide(state, [], NOW_MS + HOUR_MS)
    plan, _ = decide(state, [replace(grant, paths=grant.paths)], NOW_MS + HOUR_MS)
    assert plan.paces["g-o1"].lag_ms == HOUR_MS


def test_refused_start_costs_no_lag() -> None:
    plan, state = decide(State(), a_world(a_node(), a_job()), NOW_MS)
    assert started(plan) == ["j1"]
    again, _ = decide(state, [], NOW_MS)
    assert again.paces == plan.paces
    assert started(again) == ["j1"]


def test_sums_over_several_own_accounts_count_each_once() -> None:
    tranche = an_account("t", hours=100, used=50)
    other = an_account("u", hours=100)
    grant = a_grant(
        paths=((tranche,), (other,), (an_account("share", hours=10), other)), pace=Pace(9 * DAY_MS, NOW_MS)
    )
    assert lag_after(grant).spent_gpu_us == 50 * HOUR_MS * 1000


def test_plan_names_the_pace_of_running_grants_only() -> None:
    plan: Plan = plan_of(
        a_grant(), a_grant(id="later", starts=NOW_MS + 1, ends=NOW_MS + 2), a_grant(id="over", ends=NOW_MS)
    )
    assert set(plan.paces) == {"g-o1"}
