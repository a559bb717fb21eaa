"""What a forecast says of jobs that are not submitted yet: their waits in the futures, by likeness."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.ahead.forecast import Basis, Forecast, forecast
from scheduler.ahead.newcomers import ENOUGH_WAITS, SOON_MS, Alike
from scheduler.core.model import Organization, Topology
from tests.unit.ahead.test_ahead_forecast import EXACT, a_past, a_queue, a_shared_hub
from tests.unit.ahead.test_ahead_live import DAY_MS, HOUR_MS, NOW_MS, a_grant, a_hub, a_job, a_run


def came(in_ms: int, **more: object) -> object:
    """A job of yesterday that comes again at this time from now."""
    return a_past(1.0, submitted_at_ms=NOW_MS - DAY_MS + in_ms, **more)


def told(found: Forecast, any_length: bool = False) -> dict[Alike, tuple[float, int]]:
    """By likeness the median wait in hours and how many jobs that is known from."""
    return {
        alike: ((eta.median_ms - NOW_MS) / HOUR_MS, count)
        for alike, eta, count in found.newcomers
        if (alike.walltime_to_ms is None) == any_length
    }


def test_a_newcomer_waits_as_long_as_his_like_in_the_futures() -> None:
    """j000 starts in an hour and runs for two; who comes in half an hour then waits two and a half."""
    found = forecast(a_queue(1), NOW_MS, [came(HOUR_MS // 2)], replace(EXACT, futures=10))
    alike = Alike("o1", "", ("h100",), Topology.ANY, 1, 4, HOUR_MS, 4 * HOUR_MS)
    assert told(found) == {alike: (2.5, 10)}
    assert told(found, any_length=True) == {
        replace(alike, walltime_over_ms=0, walltime_to_ms=None): (2.5, 10)
    }


def test_few_like_ones_say_nothing() -> None:
    past = [came(HOUR_MS // 2)]
    assert ENOUGH_WAITS == 10
    assert forecast(a_queue(1), NOW_MS, past, replace(EXACT, futures=9)).newcomers == []
    assert len(forecast(a_queue(1), NOW_MS, past, replace(EXACT, futures=10)).newcomers) == 2


def test_who_comes_later_is_not_like_one_that_comes_now() -> None:
    method = replace(EXACT, futures=10)
    assert forecast(a_queue(1), NOW_MS, [came(SOON_MS + 1)], method).newcomers == []
    assert len(forecast(a_queue(1), NOW_MS, [came(SOON_MS)], method).newcomers) == 2


def test_futures_go_on_until_the_newcomers_have_started_too() -> None:
    """All that waits starts at once; six hours later somebody comes and finds the node taken for another 12 h."""
    long = a_job(hours=18)
    past = [came(SOON_MS, hours=20)]
    found = forecast(a_hub(long, grant=a_grant(hours=100_000)), NOW_MS, past, replace(EXACT, futures=10))
    assert [(eta.median_ms - NOW_MS) / HOUR_MS for _, eta, _ in found.newcomers] == [12, 12]


def test_who_has_not_started_when_the_futures_end_waits_on_behind_his_queue() -> None:
    """20 jobs of two hours fill 40 h: 12 start within the day, the other 8 in the next 16 h, then the newcomer."""
    method = replace(EXACT, futures=10)
    found = forecast(a_queue(20), NOW_MS, [came(HOUR_MS // 2)], method)
    for _, eta, _ in found.newcomers:
        assert eta.basis is Basis.RATE
        assert (eta.median_ms - NOW_MS) / HOUR_MS == pytest.approx(23.5 + 8 * 8 / 4, abs=0.01)


def test_where_some_wait_for_nothing_the_band_begins_now() -> None:
    """Of three that come one after the other the first finds the node free; `j1` never fits."""
    past = [came(HOUR_MS // 2, hours=1), *(came(HOUR_MS // 2 + i, hours=1) for i in (1, 2))]
    method = replace(EXACT, futures=10, width_exact=1.3)
    found = forecast(a_hub(a_job(hours=1, gpus=5), grant=a_grant(hours=100_000)), NOW_MS, past, method)
    (first, *_) = [eta for _, eta, _ in found.newcomers]
    assert first.low_ms == NOW_MS
    assert first.median_ms == pytest.approx(NOW_MS + HOUR_MS, abs=10)


def test_decisions_at_intervals_only_do_not_make_newcomers_wait() -> None:
    """The node is free when he comes; the futures see that four minutes later."""
    past = [came(HOUR_MS // 2 + 60_000, hours=1)]
    method = replace(EXACT, futures=10, every_ms=300_000)
    found = forecast(a_hub(a_job(hours=1, gpus=5), grant=a_grant(hours=100_000)), NOW_MS, past, method)
    assert {eta.median_ms - NOW_MS for _, eta, _ in found.newcomers} == {0}


@pytest.mark.parametrize(
    "shape",
    [
        {"fallbacks": ("a100",)},
        {"topology": Topology.SAME_NODE, "pods": 2, "gpus_per_pod": 2},
        {"gpus_per_pod": 1},
        {"organization_id": "o2"},
        {"hours": 1},
    ],
)
def test_jobs_of_another_shape_are_told_apart(shape: dict[str, object]) -> None:
    hub = [*a_queue(1), Organization("o2"), a_grant("g2", organization="o2")]
    past = [came(HOUR_MS // 2), came(HOUR_MS // 2 + 60_000, **shape)]
    found = forecast(hub, NOW_MS, past, replace(EXACT, futures=10))
    assert len(told(found)) == 2
    assert {count for _, count in told(found).values()} == {10}


def test_a_preference_is_no_requirement() -> None:
    shape = {"pods": 2, "gpus_per_pod": 2}
    past = [
        came(HOUR_MS // 2, topology=Topology.PREFER_SAME_NODE, **shape),
        came(HOUR_MS // 2 + 1, topology=Topology.SPREAD, **shape),
    ]
    found = forecast(a_queue(1), NOW_MS, past, replace(EXACT, futures=5))
    assert [alike.topology for alike in told(found)] == [Topology.ANY]


def test_opportunistic_newcomers_are_known_from_the_futures_of_their_like() -> None:
    waits = replace(a_job("s0", gpus=4), program_id="p")
    past = [came(HOUR_MS // 2, program_id="p")]
    found = forecast(a_shared_hub(waits), NOW_MS, past, replace(EXACT, futures=10))
    assert {alike.program_id for alike in told(found)} == {"p"}
    # 7 h until the others have run, two for s0, less the half hour
    assert [wait for wait, _ in told(found).values()] == [8.5]


def test_a_run_that_is_under_way_keeps_a_newcomer_waiting_too() -> None:
    job, attempt = a_run(hours=5, ran_hours=1)
    hub = a_hub(job, attempt, a_job(hours=1), used=4, grant=a_grant(held=20))
    (first, *_) = told(forecast(hub, NOW_MS, [came(0 + 1)], replace(EXACT, futures=10))).values()
    assert first[0] == pytest.approx(5, abs=0.01)
