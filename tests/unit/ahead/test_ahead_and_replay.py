"""A look ahead that knows every run and every arrival sees exactly what the replay then plays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from scheduler.ahead.play import look_ahead
from scheduler.core.cycle import decide
from scheduler.core.model import Job, JobState, Reservations
from scheduler.core.policy import PRESETS, Policy, Preemption
from scheduler.core.state import State
from scheduler.replay.engine import replay
from scheduler.replay.life import life_of
from scheduler.replay.scene import Scene
from scheduler.replay.settings import LedgerKind, Settings
from scheduler.replay.traces import TraceJob, limit_of
from tests.unit.replay.replay_world import HOUR_S, a_pool

FOR_EVER_MS = 1 << 50
EAGER = replace(
    PRESETS["gpuhub"],
    gang_first_gpus=4,
    reservation_gpus=2,
    promise_gpus=4,
    preemption=Preemption(
        gang_gpus=4,
        victim_gpus=3,
        lead_ms=0,
        protected_ms=0,
        cooldown_ms=0,
        times_per_day=3,
        notice_ms=600_000,
    ),
)
POLICIES = {name: PRESETS[name] for name in ("fifo-skip", "decay-easy", "grant-easy", "gpuhub")} | {
    "eager": EAGER
}


def some_jobs(seed: int, count: int = 60) -> list[TraceJob]:
    rng = random.Random(seed)
    jobs = []
    for i in range(count):
        run_s = rng.choice((60, 600, 3000, 9000, 40_000))
        gpus = rng.choice((1, 1, 1, 2, 3, 4, 6))
        jobs.append(
            TraceJob(
                f"j{i:03d}", rng.choice("xyz"), rng.randrange(2 * 24 * HOUR_S), gpus, run_s, limit_of(run_s)
            )
        )
    return sorted(jobs, key=lambda job: (job.submit_s, job.id))


def scenes_of(
    policy: Policy, jobs: Sequence[TraceJob], settings: Settings, every: int
) -> tuple[list[Scene], dict[str, list[int]], dict[str, int | None]]:
    """Every so manieth scene of a replay, when each job started in it, first and later ones, and when it ended."""
    scenes: list[Scene] = []
    starts: dict[str, list[int]] = {}
    seen: set[str] = set()
    cycles = 0

    def look(now_ms: int, scene: Callable[[], Scene]) -> None:
        nonlocal cycles
        cycles += 1
        now = scene()
        for each in now.objects:
            if isinstance(each, Job) and each.attempt and f"{each.id}-{each.attempt}" not in seen:
                seen.add(f"{each.id}-{each.attempt}")
                starts.setdefault(each.id, []).append(now_ms)
        if cycles % every == 0:
            scenes.append(now)

    history = replay("test", policy, jobs, settings, look=look)
    return scenes, starts, {r.id: None if r.end_s is None else r.end_s * 1000 for r in history.records}


def is_settled(scene: Scene) -> bool:
    """A replay decides again only when something happened; a look ahead decides first of all."""
    plan, _ = decide(State(), scene.objects, scene.now_ms, brief=True)
    kept = next(each.kept for each in scene.objects if isinstance(each, Reservations))
    return not plan.starts and not plan.stops and plan.reservations == kept


def arrivals_after(jobs: Sequence[TraceJob], settings: Settings, now_ms: int) -> list[Job]:
    return [life_of(job, settings).job(JobState.QUEUED) for job in jobs if job.submit_s * 1000 > now_ms]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_look_that_knows_everything_sees_what_happens(policy: str, seed: int) -> None:
    jobs, settings = some_jobs(seed), a_pool(gpus=4, nodes=2)
    scenes, starts, ends = scenes_of(POLICIES[policy], jobs, settings, every=9)
    lasts_ms = {job.id: job.run_s * 1000 for job in jobs}
    scenes = [scene for scene in scenes if is_settled(scene)]
    assert len(scenes) > 5
    for scene in scenes:
        known = lasts_ms | dict(scene.run_ms)
        outlook = look_ahead(
            scene.objects,
            scene.now_ms,
            lambda job, known=known: known[job.id],
            horizon_ms=FOR_EVER_MS,
            arrivals=arrivals_after(jobs, settings, scene.now_ms),
            walltime_shrinks=True,
        )
        waiting = set(scene.order)
        for id, prospect in outlook.jobs.items():
            later = [at for at in starts[id] if at > scene.now_ms]
            if id in waiting or prospect.submitted_at_ms > scene.now_ms:
                assert prospect.start_ms == later[0], (scene.now_ms, id)
            assert prospect.end_ms == ends[id], (scene.now_ms, id)


def test_preemptions_were_among_what_was_seen() -> None:
    """Or the test above would not show that stopped jobs come again in the same way."""
    jobs, settings = some_jobs(0), a_pool(gpus=4, nodes=2)
    _, starts, _ = scenes_of(EAGER, jobs, settings, every=10**9)
    assert any(len(found) > 1 for found in starts.values())


@pytest.mark.parametrize("seed", range(2))
def test_money_that_runs_out_is_seen_too(seed: int) -> None:
    jobs = some_jobs(seed, count=40)
    settings = replace(a_pool(gpus=4, nodes=2, ledger=LedgerKind.HARD, days=300.0), until_days=4.0)
    scenes, starts, _ = scenes_of(PRESETS["grant-skip"], jobs, settings, every=7)
    lasts_ms = {job.id: job.run_s * 1000 for job in jobs}
    for scene in scenes[:4]:
        known = lasts_ms | dict(scene.run_ms)
        outlook = look_ahead(
            scene.objects,
            scene.now_ms,
            lambda job, known=known: known[job.id],
            horizon_ms=4 * 24 * HOUR_S * 1000 - scene.now_ms - 1,
            arrivals=arrivals_after(jobs, settings, scene.now_ms),
            walltime_shrinks=True,
        )
        for id in scene.order:
            later = [at for at in starts.get(id, ()) if at > scene.now_ms]
            assert outlook.jobs[id].start_ms == (later[0] if later else None), (scene.now_ms, id)
