"""The whole of a replay at one moment, as a live hub would know it; forecasts are judged by what then comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from scheduler.core.model import Attempt, Change, JobState, Plan, Reservations
from scheduler.replay.ledger import Book
from scheduler.replay.life import Life, Run
from scheduler.replay.settings import Settings


@dataclass(frozen=True, slots=True)
class Scene:
    """After the cycle at `now_ms`, its starts and stops included."""

    now_ms: int
    objects: tuple[Change, ...]
    """A whole snapshot: what a fresh `State` is given to go on from here."""
    order: tuple[str, ...]
    """Jobs that wait, in order of submission."""
    run_ms: Mapping[str, int]
    """How long the present or next attempt of each job lasts unless it is stopped: what no live hub knows."""


Look = Callable[[int, Callable[[], Scene]], None]
"""Hears the moment of every cycle and may ask how everything stands then."""


def scene_of(
    plan: Plan,
    now_ms: int,
    settings: Settings,
    fixed: Iterable[Change],
    books: Mapping[str, Book],
    waiting: Iterable[Life],
    runs: Mapping[str, Run],
    kept: Mapping[str, Iterable[Attempt]],
) -> Scene:
    """What the engine knows, as objects of the core. `fixed`: the pool and the policy."""
    objects = [*fixed, Reservations(plan.reservations)]
    for id, book in books.items():
        objects += (replace(book.grant(), pace=plan.paces.get(id)), book.organization())
    run_ms: dict[str, int] = {}
    order = []
    for life in waiting:
        order.append(life.trace.id)
        objects.append(life.job(JobState.QUEUED))
        run_ms[life.trace.id] = life.left_ms + (settings.restart_s * 1000 if life.preemptions else 0)
    for id, run in runs.items():
        objects += (run.life.job(run.attempt.state), run.attempt)
        run_ms[id] = run.work_from_ms - run.start_ms + run.life.left_ms
    objects += (attempt for attempts in kept.values() for attempt in attempts)
    return Scene(now_ms, tuple(objects), tuple(order), run_ms)
