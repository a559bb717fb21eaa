"""A day without the service, a full disk, clocks that are set: the evidence is whole and nothing is in it twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.jumps import MOST_RUNS, SlowTime, counted, with_run
from agents.outbox import Outbox, open_outbox
from tests.unit.agents.agent_world import HOUR_MS, Service, out_of_service
from tests.unit.agents.logs import captured
from tests.unit.agents.nvml_life import BEGIN_MS, RATIOS, Life, a_day, truth

DAY_MIN = 24 * 60


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = open_outbox(tmp_path / "outbox.sqlite3")
    opened._connection.execute("PRAGMA synchronous = OFF")  # these tests kill nothing
    yield opened
    opened.close()


def a_life(outbox: Outbox, service: Service) -> Life:
    return Life(outbox, service, a_day(), RATIOS)


def checked(service: Service) -> dict[tuple[str, int], tuple[int, int]]:
    """What the service has; no hour longer than an hour, nobody busier than observed."""
    for row in service.rows.values():
        assert 0 <= row.busy_ms <= row.observed_ms <= HOUR_MS
    return service.totals()


def test_a_day_without_the_service_loses_nothing(outbox: Outbox) -> None:
    service = Service()
    service.before = out_of_service
    life = a_life(outbox, service)
    life.cycle_ms = 300_000
    with captured():
        life.go_on(DAY_MIN)
    assert checked(service) == {}
    whole = truth(a_day(), RATIOS, life.true_ms)
    assert outbox.spool().records == len(whole)
    service.before = lambda batch: None
    life.deliverer.deliver_once()
    assert checked(service) == whole
    assert service.totals()["job-long", BEGIN_MS + 5 * HOUR_MS] == (HOUR_MS // 2, HOUR_MS)
    life.go_on(60)
    life.deliverer.deliver_once()
    assert checked(service) == truth(a_day(), RATIOS, life.true_ms)


def test_a_day_with_a_full_disk_loses_nothing(outbox: Outbox) -> None:
    service = Service()
    life = a_life(outbox, service)
    life.cycle_ms = 300_000
    life.go_on(90)
    outbox._connection.execute("PRAGMA query_only = ON")
    life.go_on(DAY_MIN - 180, deliver=False)
    assert not life.counts.stored
    outbox._connection.execute("PRAGMA query_only = OFF")
    life.go_on(90)
    life.deliverer.deliver_once()
    assert checked(service) == truth(a_day(), RATIOS, life.true_ms)


def test_a_disk_that_is_full_for_minutes_while_the_agent_dies_loses_what_the_driver_forgot(
    outbox: Outbox,
) -> None:
    service = Service()
    life = a_life(outbox, service)
    life.go_on(30)
    outbox._connection.execute("PRAGMA query_only = ON")
    life.go_on(5)
    outbox._connection.execute("PRAGMA query_only = OFF")
    # the driver remembers ten minutes: a restart within them reads everything again
    life = Life(outbox, service, a_day(), RATIOS, life.true_ms)
    life.go_on(30)
    life.deliverer.deliver_once()
    assert checked(service) == truth(a_day(), RATIOS, life.true_ms)


@pytest.mark.parametrize("by_min", [3, 90, 400 * 24 * 60])
def test_a_clock_set_forward_leaves_a_hole_and_one_set_back_again_leaves_no_other(
    outbox: Outbox, by_min: int
) -> None:
    service = Service()
    life = a_life(outbox, service)
    life.go_on(50)
    life.offset_ms = by_min * 60_000
    life.go_on(20)
    life.offset_ms = 0
    life.go_on(70 + by_min % 1_000)
    life.deliverer.deliver_once()
    found = checked(service)
    lived_ms = life.true_ms
    observed_ms = sum(ms for (job, _), (_, ms) in found.items() if job == "job-long")
    # The twenty minutes stand where the clock said. All others are where they belong, but for those that the clock
    # tells a second time, and one sample at each seam.
    again_ms = 20 * 60_000 if by_min < 90 + 70 else 0
    assert lived_ms - again_ms - 3 * 61_000 <= observed_ms <= lived_ms


def test_a_clock_set_back_an_hour_counts_no_minute_twice(outbox: Outbox) -> None:
    service = Service()
    life = a_life(outbox, service)
    life.go_on(3 * 60)
    life.offset_ms = -HOUR_MS
    life.go_on(60)
    life.deliverer.deliver_once()
    # the hour is lived for the second time, so nothing is counted
    assert checked(service)["job-long", BEGIN_MS + 2 * HOUR_MS] == (HOUR_MS // 2, HOUR_MS)
    life.go_on(60)
    life.deliverer.deliver_once()
    assert checked(service)["job-long", BEGIN_MS + 3 * HOUR_MS][1] == pytest.approx(HOUR_MS, abs=2_000)


def test_a_restart_after_a_clock_was_set_back_knows_what_was_counted(outbox: Outbox) -> None:
    service = Service()
    life = a_life(outbox, service)
    life.go_on(2 * 60)
    life = Life(outbox, service, a_day(), RATIOS, life.true_ms, -HOUR_MS)
    life.go_on(2 * 60)
    life.deliverer.deliver_once()
    found = checked(service)
    assert found["job-long", BEGIN_MS + HOUR_MS] == (HOUR_MS // 2, HOUR_MS)
    assert found["job-long", BEGIN_MS + 2 * HOUR_MS][1] == pytest.approx(HOUR_MS, abs=2_000)


def test_rows_delivered_before_a_clock_was_wrong_for_a_moment_keep_what_they_had(outbox: Outbox) -> None:
    """A year ahead, delivered rows look old: made anew from zero they would take the place of what was delivered."""
    service = Service()
    life = a_life(outbox, service)
    life.go_on(30)
    life.offset_ms = 365 * 24 * HOUR_MS
    life.go_on(5)
    life.offset_ms = 0
    life.go_on(24)
    life.deliverer.deliver_once()
    assert checked(service)["job-long", BEGIN_MS][1] >= (30 + 24 - 2) * 60_000


def test_slow_time_is_the_clocks_when_nobody_sets_it_and_lags_behind_one_that_is_ahead() -> None:
    at_s = [100.0]
    slow = SlowTime(None, 1, lambda: at_s[0])
    assert slow.at(5_000_000) == 5_000_000
    at_s[0] += 10
    assert slow.at(5_010_000) == 5_010_000
    assert slow.at(900_000_000) == 5_010_000
    assert slow.at(5_000_000) == 5_000_000
    at_s[0] += 10
    assert slow.at(5_020_000) == 5_010_000
    # a start with a clock that is far ahead of what the last process knew
    assert SlowTime(5_000_000, 1, lambda: at_s[0]).at(900_000_000) == 5_000_000


def test_stretches_are_joined_and_holes_between_the_oldest_are_given_up() -> None:
    runs = with_run(with_run((), 10, 20), 30, 40)
    assert runs == ((10, 20), (30, 40))
    assert with_run(runs, 20, 30) == ((10, 40),)
    assert not counted(runs, 20, 30)
    assert counted(runs, 19, 21)
    many = runs
    for number in range(MOST_RUNS):
        many = with_run(many, 100 * (number + 1), 100 * (number + 1) + 1)
    assert len(many) == MOST_RUNS
    assert many[0] == (10, 101)
