"""Forecasts beside the loop: one thread that asks a process of its own and publishes what it answers.

The loop hands over what it knows when a forecast is due, and goes on. What goes wrong here costs a forecast, never a
decision: a process that takes too long is killed, a document that quota refuses is dropped, the next try comes later.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

import structlog

from quota.client import ServiceProblem, ServiceUnavailable
from quota.clock import Clock
from quota.schemas.forecasts import (
    EtaBasis,
    EtaItem,
    ForecastDocument,
    ForecastReply,
    NewcomerItem,
    RecentJob,
    RecentJobs,
)
from quota.schemas.scheduling import FeedItem, Topology
from scheduler.ahead.forecast import Eta, Forecast, Method, Question
from scheduler.ahead.habits import Past
from scheduler.ahead.newcomers import Alike
from scheduler.backoff import Backoffs
from scheduler.core import model
from scheduler.translate import Moment, changes_of

PAST_KEPT_WALL_S = 600.0
"""The recent past is read again this often: a day's habits do not change in minutes."""
FIRST_AFTER_SHARE = 0.25
"""The first forecast comes after this share of the interval: a new leader has first to look round."""
LONGEST_PAUSE_WALL_S = 900.0
MOST_NEWCOMERS = 50_000
"""So many the quota service takes."""
GIVEN = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""Of the environment the process gets what it takes to run; no token."""

log = structlog.get_logger()


class ForecastDesk(Protocol):
    """What a forecast asks of the quota service; `QuotaClient` is one implementation."""

    def read_recent_jobs(self, limit: int = 20_000) -> RecentJobs:
        """The newest jobs, newest first."""
        ...

    def put_forecast(self, body: ForecastDocument) -> ForecastReply:
        """When waiting jobs are likely to start."""
        ...


class Counts(Protocol):
    """Where it is counted; `Metrics` is one implementation."""

    def foretold(self, as_of_ms: int, duration_s: float) -> None:
        """A forecast was published."""
        ...

    def forecast_failed(self) -> None:
        """A forecast came to nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Standpoint:
    """What the leader knows at one moment."""

    epoch: int
    now_ms: int
    items: Sequence[FeedItem]
    moment: Moment
    paces: Mapping[str, model.Pace]
    """As of the last cycle; the feed's are older."""
    reservations: Sequence[model.Reservation]
    booked: Sequence[model.BookedRoom] = ()


class NoAnswer(Exception):
    """The process did not answer: what it said last."""


class Forecaster:
    """`due` and `ask` are the loop's; everything else happens in a thread of its own."""

    def __init__(
        self,
        desk: ForecastDesk,
        clock: Clock,
        counts: Counts,
        holds: Callable[[int], bool],
        interval_s: float,
        limit_s: float,
        method: Method | None = None,
        command: Sequence[str] = (sys.executable, "-m", "scheduler.ahead.process"),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk, self._clock, self._counts, self._holds = desk, clock, counts, holds
        self._interval_s, self._limit_s = interval_s, limit_s
        self._method = method or Method()
        self._command = command
        self._monotonic_s = monotonic_s
        self._pauses: Backoffs[str] = Backoffs(
            Random(), monotonic_s, first_s=interval_s, longest_s=max(interval_s, LONGEST_PAUSE_WALL_S)
        )
        self._due_s = monotonic_s() + interval_s * FIRST_AFTER_SHARE
        self._question: Standpoint | None = None
        self._bell = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._past: tuple[Past, ...] = ()
        self._past_read_s = float("-inf")

    def due(self) -> bool:
        """Whether the loop should ask: the interval has passed and nothing is under way."""
        idle = self._question is None and not self._pauses.waits("forecast")
        return idle and self._monotonic_s() >= self._due_s

    def ask(self, standpoint: Standpoint) -> None:
        """Hand over what is known now; the answer goes to the quota service."""
        self._due_s = self._monotonic_s() + self._interval_s
        self._question = standpoint
        self._bell.set()

    def stop(self) -> None:
        """End the thread and the process. Safe in any thread, and more than once."""
        self._stopping.set()
        self._bell.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def run(self) -> None:
        """The thread: one forecast per question until `stop`."""
        while not self._stopping.is_set():
            self._bell.wait()
            self._bell.clear()
            standpoint = self._question
            if standpoint is not None and not self._stopping.is_set():
                self.once(standpoint)
                self._question = None

    def once(self, standpoint: Standpoint) -> None:
        """Foretell and publish; whatever goes wrong is logged and counted."""
        began_s = self._monotonic_s()
        try:
            found = self._foretell(standpoint)
            if self._holds(standpoint.epoch):
                self._desk.put_forecast(_document(found, standpoint.epoch))
        except (ServiceUnavailable, ServiceProblem, NoAnswer) as trouble:
            self._failed(str(trouble))
        except Exception:  # this thread's edge: without it nobody would be told an ETA any more
            log.exception("forecast_broke")
            self._failed("unexpected error")
        else:
            self._pauses.succeeded("forecast")
            took_s = self._monotonic_s() - began_s
            self._counts.foretold(found.as_of_ms, took_s)
            log.info("foretold", jobs=len(found.etas), took_s=round(took_s, 2), epoch=standpoint.epoch)

    def _failed(self, trouble: str) -> None:
        if self._stopping.is_set():
            return
        self._counts.forecast_failed()
        pause_s = round(self._pauses.failed("forecast"), 1)
        log.warning("forecast_failed", trouble=trouble, again_in_s=pause_s)

    def _foretell(self, standpoint: Standpoint) -> Forecast:
        objects = _objects(standpoint, self._clock)
        if not any(isinstance(each, model.Job) and each.waits for each in objects):
            return Forecast(standpoint.now_ms, {})
        return self._answer(Question(objects, standpoint.now_ms, self._recent(), self._method))

    def _recent(self) -> tuple[Past, ...]:
        if self._monotonic_s() >= self._past_read_s + PAST_KEPT_WALL_S:
            found = self._desk.read_recent_jobs()
            self._past = tuple(map(_past_of, (*found.items, *found.opportunistic)))
            self._past_read_s = self._monotonic_s()
        return self._past

    def _answer(self, question: Question) -> Forecast:
        """What the process says. Raises NoAnswer when it dies or takes too long."""
        with self._lock:
            if self._stopping.is_set():
                raise NoAnswer("this process ends")
            process = self._process = subprocess.Popen(
                (*self._command, str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={name: os.environ[name] for name in GIVEN if name in os.environ},
            )
        try:
            said, complained = process.communicate(
                pickle.dumps(question, pickle.HIGHEST_PROTOCOL), timeout=self._limit_s
            )
        except subprocess.TimeoutExpired as late:
            process.kill()
            process.communicate()
            raise NoAnswer(f"no answer within {self._limit_s:g} s") from late
        finally:
            with self._lock:
                self._process = None
        if process.returncode != 0:
            last = complained.decode(errors="replace").strip().splitlines()[-1:]
            raise NoAnswer(f"exit code {process.returncode}: {''.join(last)}")
        found = pickle.loads(said)
        assert isinstance(found, Forecast), f"no forecast: {type(found)}"
        return found


def _objects(standpoint: Standpoint, clock: Clock) -> list[model.Change]:
    """The leader's knowledge as a whole snapshot of the core's objects."""
    objects: list[model.Change] = [
        model.Reservations(tuple(standpoint.reservations)),
        model.BookedRooms(tuple(standpoint.booked)),
    ]
    for each in changes_of(standpoint.items, clock, standpoint.moment):
        pace = standpoint.paces.get(each.id) if isinstance(each, model.Grant) else None
        objects.append(replace(each, pace=pace) if isinstance(each, model.Grant) and pace else each)
    return objects


def _past_of(job: RecentJob) -> Past:
    return Past(
        organization_id=job.organization_id,
        grant_id=job.grant_id,
        gpu_class=job.gpu_class,
        gpus_per_pod=job.gpus_per_pod,
        pods=job.pods,
        walltime_ms=job.walltime_ms,
        restartable=job.restartable,
        submitted_at_ms=job.submitted_at,
        ran_ms=job.ran_ms,
        fallbacks=job.fallback_classes,
        topology=model.Topology(job.topology),
        program_id=job.program_id or "",
    )


def _document(found: Forecast, epoch: int) -> ForecastDocument:
    return ForecastDocument(
        epoch=epoch,
        as_of=found.as_of_ms,
        etas={id: _item(eta) for id, eta in found.etas.items()},
        newcomers=tuple(_newcomer(*each) for each in found.newcomers[:MOST_NEWCOMERS]),
    )


def _newcomer(alike: Alike, eta: Eta, jobs: int) -> NewcomerItem:
    return NewcomerItem(
        organization_id=alike.organization_id,
        program_id=alike.program_id or None,
        gpu_classes=alike.gpu_classes,
        topology=Topology(alike.topology),
        gpus_over=alike.gpus_over,
        gpus_to=alike.gpus_to,
        walltime_over_ms=alike.walltime_over_ms,
        walltime_to_ms=alike.walltime_to_ms,
        eta=_item(eta),
        jobs=jobs,
    )


def _item(eta: Eta) -> EtaItem:
    return EtaItem(low=eta.low_ms, median=eta.median_ms, high=eta.high_ms, basis=EtaBasis(eta.basis.value))
