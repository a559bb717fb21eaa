"""Bands of waiting jobs: what they rest on, what widens them, and who has none."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from scheduler.ahead.forecast import Basis, Forecast, Method, forecast
from scheduler.ahead.habits import ENOUGH_RUNS, Habits, Past
from scheduler.core.model import (
    Account,
    Capacity,
    Change,
    GpuClass,
    Job,
    Node,
    Organization,
    Pace,
    PodPlacement,
    Topology,
)
from tests.unit.ahead.test_ahead_live import DAY_MS, GPU_HOUR, HOUR_MS, NOW_MS, a_grant, a_hub, a_job, a_run
from tests.unit.ahead.test_ahead_opportunistic import FUND

EXACT = Method(width_exact=0.0, width_rate=0.0, every_ms=0)
"""Nothing widens the bands."""


def a_past(share: float = 0.5, hours: int = 2, **more: object) -> Past:
    fields: dict[str, object] = {
        "organization_id": "o1",
        "grant_id": None,
        "gpu_class": "h100",
        "gpus_per_pod": 4,
        "pods": 1,
        "walltime_ms": hours * HOUR_MS,
        "restartable": False,
        "submitted_at_ms": NOW_MS - 30 * DAY_MS,
        "ran_ms": int(share * hours * HOUR_MS),
    }
    return Past(**fields | more)  # type: ignore[arg-type]


def a_queue(count: int) -> list[Change]:
    """The node is taken for another hour at most, and so many jobs of two hours wait for all of it."""
    jobs = [a_job(f"j{i:03d}", submitted_at_ms=NOW_MS - 1000 + i) for i in range(count)]
    return a_hub(*a_run(), *jobs, used=4, grant=a_grant(hours=100_000, held=8))


def hours(found: Forecast, id: str) -> tuple[float, float, float]:
    eta = found.etas[id]
    return tuple((at - NOW_MS) / HOUR_MS for at in (eta.low_ms, eta.median_ms, eta.high_ms))  # type: ignore[return-value]


def test_without_a_past_everything_is_taken_to_run_to_its_walltime() -> None:
    found = forecast(a_queue(3), NOW_MS, (), EXACT)
    assert [hours(found, f"j00{i}") for i in range(3)] == [(1, 1, 1), (3, 3, 3), (5, 5, 5)]
    assert {eta.basis for eta in found.etas.values()} == {Basis.EXACT}


def test_runs_are_as_long_as_those_of_like_jobs_were() -> None:
    past = [a_past(0.75)] * ENOUGH_RUNS
    assert hours(forecast(a_queue(2), NOW_MS, past, EXACT), "j001") == (2, 2, 2)
    assert hours(forecast(a_queue(2), NOW_MS, past[1:], EXACT), "j001") == (3, 3, 3), "too few to say"


def test_what_runs_has_not_ended_yet() -> None:
    """It ran for an hour of two: of jobs that ran a quarter or three quarters it is one of the latter."""
    past = [a_past(0.25)] * 10 + [a_past(0.75)] * 10
    found = forecast(a_queue(1), NOW_MS, past, EXACT)
    assert hours(found, "j000") == (0.5, 0.5, 0.5)


def test_a_past_that_differs_makes_a_band() -> None:
    past = [a_past(0.55), a_past(0.95)] * 20
    low, median, high = hours(forecast(a_queue(4), NOW_MS, past, replace(EXACT, futures=20)), "j003")
    assert 1 < low < median < high < 7


def test_what_the_futures_do_not_know_widens_the_band() -> None:
    low, median, high = hours(forecast(a_queue(1), NOW_MS, (), replace(EXACT, width_exact=0.7)), "j000")
    assert (low, median, high) == (pytest.approx(0.4966, abs=1e-3), 1, pytest.approx(2.0138, abs=1e-3))


def test_beyond_the_futures_the_rate_goes_on() -> None:
    """Twelve start within a day; at that rate the next twelve take another day."""
    found = forecast(a_queue(30), NOW_MS, (), EXACT)
    bases = [found.etas[f"j{i:03d}"].basis for i in range(30)]
    assert bases == [Basis.EXACT] * 12 + [Basis.RATE] * 18
    medians = [hours(found, f"j{i:03d}")[1] for i in range(30)]
    assert medians == sorted(medians)
    assert medians[23] == pytest.approx(24 + 11 * 2, abs=2)


def test_who_gets_nothing_in_the_futures_is_taken_to_get_half_of_what_its_pace_needs() -> None:
    """r1 runs for another three days; the grant's pace needs all four GPUs, two of them are 8 GPU-hours in 4 h."""
    run = a_run(hours=80, ran_hours=1)
    jobs = [a_job(f"j{i}", submitted_at_ms=NOW_MS - 1000 + i) for i in range(3)]
    hub = a_hub(*run, *jobs, used=4, grant=a_grant(hours=8000, held=320))
    medians = [hours(forecast(hub, NOW_MS, (), EXACT), f"j{i}")[1] for i in range(3)]
    assert medians == [24, 28, 32]


def test_behind_the_first_jobs_the_basis_is_a_rate() -> None:
    found = forecast(a_queue(4), NOW_MS, (), replace(EXACT, exact_jobs=2, most_jobs=3))
    assert [found.etas[f"j00{i}"].basis for i in range(4)] == [Basis.EXACT] * 2 + [Basis.RATE] * 2


def test_those_whom_time_does_not_help_have_no_eta() -> None:
    broke = a_hub(a_job(), grant=a_grant(hours=1))
    assert forecast(broke, NOW_MS, (), EXACT).etas == {}


def test_who_waits_for_money_has_an_eta_once_it_comes_back_in_most_futures() -> None:
    """Eight of twelve GPU-hours are held by a run that will use less of them."""
    hub = a_hub(*a_run(), a_job(), used=4, gpus=8, grant=a_grant(hours=15, held=8))
    assert forecast(hub, NOW_MS, (), EXACT).etas == {}, "it uses all"
    past = [a_past(0.75)] * ENOUGH_RUNS
    assert hours(forecast(hub, NOW_MS, past, EXACT), "j1") == (0.5, 0.5, 0.5)


def test_a_job_too_large_for_everything_has_no_eta() -> None:
    found = forecast([*a_queue(2), a_job("big", gpus=8)], NOW_MS, (), EXACT)
    assert set(found.etas) == {"j000", "j001"}


@pytest.mark.parametrize("seed", range(20))
def test_a_band_is_always_in_order(seed: int) -> None:
    rng = Random(seed)
    past = [a_past(rng.random()) for _ in range(20)]
    method = replace(EXACT, seed=seed, width_exact=rng.choice((0.0, 0.3)), width_rate=rng.choice((0.0, 0.3)))
    for eta in forecast(a_queue(15), NOW_MS, past, method).etas.values():
        assert NOW_MS <= eta.low_ms <= eta.median_ms <= eta.high_ms


def test_the_same_question_has_the_same_answer_and_another_seed_may_have_another() -> None:
    past = [a_past(i / 40) for i in range(40)]
    first = forecast(a_queue(10), NOW_MS, past, EXACT)
    assert forecast(list(reversed(a_queue(10))), NOW_MS, past, EXACT) == first
    assert forecast(a_queue(10), NOW_MS, past, replace(EXACT, seed=1)) != first


def test_arrivals_are_a_past_day_again() -> None:
    submitted = [a_past(submitted_at_ms=NOW_MS - DAY_MS + i * HOUR_MS) for i in (1, 5)]
    jobs, runs_ms = Habits(submitted, NOW_MS).arrivals(Random(0), 2 * DAY_MS)
    assert [job.submitted_at_ms - NOW_MS for job in jobs] == [i * HOUR_MS for i in (1, 5, 25, 29)]
    assert set(runs_ms.values()) == {HOUR_MS}
    assert len({job.id for job in jobs}) == 4
    assert all(isinstance(job, Job) and job.waits for job in jobs)
    assert [job.submitted_at_ms for job in Habits(submitted, NOW_MS).arrivals(Random(0), 3 * HOUR_MS)[0]] == [
        NOW_MS + HOUR_MS
    ]


@pytest.mark.parametrize(
    "shape",
    [
        {"fallbacks": ("a100",)},
        {"topology": Topology.SAME_NODE, "pods": 2, "gpus_per_pod": 2},
        {"topology": Topology.PREFER_SAME_RACK, "pods": 4, "gpus_per_pod": 1},
        {"program_id": "p"},
    ],
)
def test_jobs_to_come_have_the_shape_of_those_they_are_drawn_from(shape: dict[str, object]) -> None:
    (job,), _ = Habits([a_past(submitted_at_ms=NOW_MS - HOUR_MS, **shape)], NOW_MS).arrivals(
        Random(0), DAY_MS
    )
    fields = ("fallbacks", "topology", "pods", "gpus_per_pod", "program_id")
    (plain,), _ = Habits([a_past(submitted_at_ms=NOW_MS - HOUR_MS)], NOW_MS).arrivals(Random(0), DAY_MS)
    expected = {name: getattr(plain, name) for name in fields} | shape
    assert {name: getattr(job, name) for name in fields} == expected


def who_comes_first(*more: Change, **shape: object) -> float:
    """The hours until `j1` starts, if an organization that is far behind its pace submits a job in a quarter of an
    hour, as it did yesterday. The only node of four GPUs is free in an hour."""
    behind = replace(a_grant("g2", organization="o2"), pace=Pace(500 * HOUR_MS, NOW_MS))
    hub = a_hub(*a_run(), a_job(), Organization("o2"), behind, *more, used=4, grant=a_grant(held=8))
    came_ms = NOW_MS - DAY_MS + HOUR_MS // 4
    past = a_past(1.0, organization_id="o2", submitted_at_ms=came_ms, **shape)
    return hours(forecast(hub, NOW_MS, [past], EXACT), "j1")[1]


def test_who_will_come_and_take_another_class_is_in_nobodys_way() -> None:
    other = (GpuClass("a100", 1000), Node("c1", "n2", True, {"a100": Capacity(4)}))
    assert who_comes_first(*other) == 3
    assert who_comes_first(*other, fallbacks=("a100",)) == 1


def test_a_gang_to_come_keeps_to_one_node_if_the_past_one_did() -> None:
    """Two nodes of four GPUs, and a gang of two pods of four: no node has room for both."""
    run, attempt = a_run("r2")
    second = Node("c1", "n2", True, {"h100": Capacity(4, 0, 4)})
    other = (run, replace(attempt, pods=(PodPlacement("n2", "h100", 4),)), second)
    assert who_comes_first(*other, pods=2) == 3
    assert who_comes_first(*other, pods=2, topology=Topology.SAME_NODE) == 1


def a_shared_hub(*spare: Change) -> list[Change]:
    """Two firms' jobs wait for a node that is taken for an hour; `spare` is there besides."""
    jobs = [a_job(f"j{i}", submitted_at_ms=NOW_MS - 1000 + i) for i in range(3)]
    return a_hub(*a_run(), *jobs, FUND, *spare, used=4, grant=a_grant(held=8))


def test_an_opportunistic_job_has_an_eta_after_everybody_else() -> None:
    waits = [replace(a_job(f"s{i}", gpus=4), program_id="p") for i in range(2)]
    found = forecast(a_shared_hub(*waits), NOW_MS, (), EXACT)
    assert [hours(found, id)[1] for id in ("j0", "j1", "j2", "s0", "s1")] == [1, 3, 5, 7, 9]
    assert {found.etas[id].basis for id in ("s0", "s1")} == {Basis.EXACT}


def test_what_is_opportunistic_changes_nobody_elses_eta() -> None:
    past = [a_past(i / 40) for i in range(40)]
    past += [a_past(1.0, submitted_at_ms=NOW_MS - DAY_MS + i * HOUR_MS) for i in range(9)]
    came = [
        a_past(0.1, submitted_at_ms=NOW_MS - DAY_MS + i * HOUR_MS, organization_id=owner, program_id="p")
        for i in range(9)
        for owner in ("o1", "o2")
    ]
    job, attempt = a_run("s0")
    runs = replace(job, program_id="p"), replace(attempt, grant_id="fund", opportunistic=True)
    on_n2 = replace(runs[1], pods=(PodPlacement("n2", "h100", 4),))
    waits = [replace(a_job(f"s{i}"), program_id="p") for i in range(1, 4)]
    second = Node("c1", "n2", True, {"h100": Capacity(4, 0, 4)})
    method = Method(futures=3)
    without = forecast(
        a_shared_hub(replace(second, capacities={"h100": Capacity(4)})), NOW_MS, past, method
    ).etas
    found = forecast(a_shared_hub(second, runs[0], on_n2, *waits), NOW_MS, [*past, *came], method).etas
    assert {id: eta for id, eta in found.items() if id.startswith("j")} == without
    assert {id for id in found if id.startswith("s")} == {"s1", "s2", "s3"}


def test_an_opportunistic_job_behind_the_futures_has_the_rate_at_which_such_are_served() -> None:
    waits = [replace(a_job(f"s{i:02d}", hours=12), program_id="p") for i in range(6)]
    rich = replace(FUND, account=Account("a-fund", 1000 * GPU_HOUR))
    found = forecast(a_hub(rich, *waits), NOW_MS, (), EXACT)
    starts = [hours(found, f"s{i:02d}")[1] for i in range(6)]
    assert starts[:2] == [0, 12]
    assert [found.etas[f"s{i:02d}"].basis for i in range(6)] == [Basis.EXACT] * 2 + [Basis.RATE] * 4
    # three in a day, the third as it ends; then 144 GPU-hours a day, 48 each
    assert starts[2:] == [24, 24, 32, 40]


def test_an_opportunistic_job_that_nobody_pays_for_has_no_eta() -> None:
    waits = replace(a_job("s0"), program_id="p")
    assert forecast(a_hub(replace(FUND, pays=False), waits), NOW_MS, (), EXACT).etas == {}


def test_who_comes_and_is_opportunistic_is_in_the_way_of_none_but_his_like() -> None:
    """Of two firms the one that used nothing goes first when its job has come."""
    used = Organization("o1", opportunistic_usage_gpu_us=1e15, opportunistic_as_of_ms=NOW_MS)
    hub = [each for each in a_shared_hub(replace(a_job("s0"), program_id="p")) if each != Organization("o1")]
    came_ms = NOW_MS - DAY_MS + HOUR_MS // 4
    past = a_past(1.0, organization_id="o2", submitted_at_ms=came_ms, program_id="p")
    found = forecast([*hub, used, Organization("o2")], NOW_MS, [past], EXACT)
    assert [hours(found, id)[1] for id in ("j2", "s0")] == [5, 9]
