"""Forecasts beside the loop: what is asked, published, refused, given up, and what a leader knows at that moment."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from quota.client import ServiceUnavailable
from quota.clock import Clock
from quota.schemas.forecasts import ForecastDocument, ForecastReply, RecentJob, RecentJobs
from quota.schemas.scheduling import Topology
from scheduler.forecasting import Forecaster, Standpoint
from scheduler.metrics import Metrics
from tests.unit.scheduler.quota_book import problem
from tests.unit.scheduler.scheduler_world import World

SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")
FAILS = (sys.executable, "-c", "raise SystemExit('no memory left')")


class Desk:
    """Keeps what is published; `trouble` is raised instead."""

    def __init__(self) -> None:
        self.documents: list[ForecastDocument] = []
        self.trouble: Exception | None = None
        self.past: tuple[RecentJob, ...] = ()
        self.opportunistic: tuple[RecentJob, ...] = ()

    def read_recent_jobs(self, limit: int = 20_000) -> RecentJobs:
        return RecentJobs(items=self.past, opportunistic=self.opportunistic)

    def put_forecast(self, body: ForecastDocument) -> ForecastReply:
        if self.trouble is not None:
            raise self.trouble
        self.documents.append(body)
        return ForecastReply(as_of=body.as_of)


class Watch:
    """A clock for pauses that only a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_full_world() -> World:
    """Sixteen jobs of a minute run, four wait."""
    world = World()
    world.boot()
    world.rounds(4)
    for number in range(20):
        world.quota.submit(f"job-{number:02d}")
    world.rounds(8)
    return world


def a_standpoint(world: World) -> Standpoint:
    assert world.process is not None
    assert world.process.term is not None
    found = world.process.term.standpoint()
    assert found is not None
    return found


def a_forecaster(
    desk: Desk,
    metrics: Metrics,
    watch: Watch,
    command: Sequence[str] | None = None,
    limit_s: float = 60.0,
    holds: bool = True,
) -> Forecaster:
    more = {} if command is None else {"command": command}
    return Forecaster(desk, Clock(), metrics, lambda epoch: holds, 60.0, limit_s, monotonic_s=watch, **more)


def value(metrics: Metrics, name: str) -> float:
    """Of the one series of this name."""
    samples = [each for family in metrics.collect() for each in family.samples if each.name == name]
    assert len(samples) == 1, name
    return float(samples[0].value)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_every_job_that_waits_for_room_gets_a_band_from_a_process_of_its_own(desk: Desk) -> None:
    world, metrics = a_full_world(), Metrics()
    standpoint = a_standpoint(world)
    a_forecaster(desk, metrics, Watch()).once(standpoint)
    (document,) = desk.documents
    assert document.epoch == standpoint.epoch
    assert document.as_of == standpoint.now_ms
    assert set(document.etas) == set(world.quota.rankings[-1].order)
    assert len(document.etas) == 4
    ends_ms = [attempt.walltime_ms for attempt in world.process.term._cache.attempts()]  # type: ignore[union-attr]
    for eta in document.etas.values():
        assert standpoint.now_ms < eta.median <= standpoint.now_ms + max(ends_ms)
    assert value(metrics, "hub_sched_forecast_timestamp_seconds") == standpoint.now_ms / 1000
    assert value(metrics, "hub_sched_forecast_duration_seconds_count") == 1
    assert value(metrics, "hub_sched_forecast_failures_total") == 0


def test_the_shapes_of_the_past_come_again_and_say_what_quotes_are_told(desk: Desk) -> None:
    world = a_full_world()
    standpoint = a_standpoint(world)
    job = next(item.job for item in standpoint.items if item.job is not None)
    came = RecentJob(
        organization_id=job.organization_id,
        grant_id=None,
        gpu_class=job.gpu_class,
        gpus_per_pod=1,
        pods=2,
        walltime_ms=60_000,
        restartable=False,
        submitted_at=standpoint.now_ms - 86_400_000 + 60_000,
        ran_ms=60_000,
        fallback_classes=("a100",),
        topology=Topology.SAME_NODE,
    )
    desk.past = (came,) * 2
    desk.opportunistic = (came.model_copy(update={"program_id": "ax"}),) * 2
    a_forecaster(desk, Metrics(), Watch()).once(standpoint)
    (document,) = desk.documents
    for found in document.newcomers:
        assert (found.organization_id, found.program_id) == (job.organization_id, None), "nobody waits who is"
        assert found.gpu_classes == (job.gpu_class, "a100")
        assert found.topology is Topology.SAME_NODE
        assert found.jobs == 16, "two in each of eight futures"
        assert (found.gpus_over, found.gpus_to) == (1, 4)
        assert found.eta.low >= standpoint.now_ms
    assert [(each.walltime_over_ms, each.walltime_to_ms) for each in document.newcomers] == [
        (0, 3_600_000),
        (0, None),
    ]


def test_where_nothing_waits_no_process_is_asked(desk: Desk) -> None:
    world = World()
    world.boot()
    world.rounds(4)
    a_forecaster(desk, Metrics(), Watch(), FAILS).once(a_standpoint(world))
    assert [dict(document.etas) for document in desk.documents] == [{}]


@pytest.mark.parametrize(("command", "limit_s"), [(SLEEPS, 0.2), (FAILS, 60.0)])
def test_a_process_that_hangs_or_dies_costs_a_forecast_and_a_pause(
    desk: Desk, command: Sequence[str], limit_s: float
) -> None:
    metrics, watch = Metrics(), Watch()
    watch.now_s = 1000.0
    forecaster = a_forecaster(desk, metrics, watch, command, limit_s)
    watch.now_s += 60.0
    assert forecaster.due()
    forecaster.once(a_standpoint(a_full_world()))
    assert desk.documents == []
    assert not forecaster.due()
    watch.now_s += 60.0
    assert forecaster.due()
    assert value(metrics, "hub_sched_forecast_failures_total") == 1


@pytest.mark.parametrize("trouble", [ServiceUnavailable("away"), problem(409, "stale_epoch")])
def test_a_document_that_quota_does_not_take_is_dropped(desk: Desk, trouble: Exception) -> None:
    metrics, desk.trouble = Metrics(), trouble
    a_forecaster(desk, metrics, Watch()).once(a_standpoint(a_full_world()))
    assert value(metrics, "hub_sched_forecast_failures_total") == 1


def test_who_does_not_lead_any_more_publishes_nothing(desk: Desk) -> None:
    a_forecaster(desk, Metrics(), Watch(), holds=False).once(a_standpoint(a_full_world()))
    assert desk.documents == []


def test_stopping_kills_the_process_and_ends_the_thread(desk: Desk, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = f"import os,time,pathlib; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(60)"
    metrics = Metrics()
    forecaster = a_forecaster(desk, metrics, Watch(), (sys.executable, "-c", code))
    thread = threading.Thread(target=forecaster.run)
    thread.start()
    forecaster.ask(a_standpoint(a_full_world()))
    assert not forecaster.due(), "one at a time"
    while not (mark.exists() and mark.read_text()):
        thread.join(0.02)
    forecaster.stop()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert value(metrics, "hub_sched_forecast_failures_total") == 0, "an end is no failure"


def test_the_process_is_given_no_secret(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUB_TOKEN", "secret")
    mark = tmp_path / "environment"
    code = f"import os,pathlib; pathlib.Path({str(mark)!r}).write_text(repr(dict(os.environ)))"
    a_forecaster(desk, Metrics(), Watch(), (sys.executable, "-c", code)).once(a_standpoint(a_full_world()))
    assert "secret" not in mark.read_text()


def test_the_process_ends_with_its_parent() -> None:
    """Also when nobody closes what it reads from."""
    code = (
        "import os, subprocess, sys, time;"
        "child = [sys.executable, '-m', 'scheduler.ahead.process', str(os.getpid())];"
        "print(subprocess.Popen(child).pid, flush=True); time.sleep(60)"
    )
    reader, writer = os.pipe()
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=reader, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    try:
        assert not select.select([child], [], [], 0.5)[0], "it waits for its question"
        parent.kill()
        parent.wait()
        assert select.select([child], [], [], 30)[0], "it ended"
    finally:
        parent.stdout.close()
        for number in (child, reader, writer):
            os.close(number)
