"""The replay itself: virtual time goes from event to event, and `decide` says what starts and what stops."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from heapq import heappop, heappush
from itertools import pairwise

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Capacity,
    Change,
    Cluster,
    GpuClass,
    JobState,
    Kind,
    Node,
    Plan,
    PodPlacement,
    Preempt,
    Start,
    Stop,
    Tombstone,
)
from scheduler.core.policy import DAY_MS, Policy
from scheduler.core.state import State
from scheduler.replay.history import History, Stretch
from scheduler.replay.ledger import books, stretched
from scheduler.replay.life import GPU_CLASS, Run, life_of, record_of
from scheduler.replay.scene import Look, Scene, scene_of
from scheduler.replay.settings import LedgerKind, Settings, demand_gpu_s, grants_gpu_s
from scheduler.replay.traces import TraceJob

CLUSTER = "replay"
ALWAYS_MS = 1 << 62
TELL_EVERY_WALL_S = 5.0

Tell = Callable[[int, int], None]
"""Hears (virtual second, jobs started) about every five seconds of the wall."""


def replay(
    name: str,
    policy: Policy,
    jobs: Sequence[TraceJob],
    settings: Settings,
    tell: Tell | None = None,
    look: Look | None = None,
) -> History:
    """Play jobs, in order of submission, under one policy until all have run, or until `settings.until_days`."""
    assert all(a.submit_s <= b.submit_s for a, b in pairwise(jobs)), "jobs out of order"
    collects = gc.isenabled()
    gc.disable()  # nothing here makes cycles, and a collection walks over every job
    try:
        return _Replay(policy, jobs, settings, tell or (lambda now_s, started: None), look).play(name)
    finally:
        if collects:
            gc.enable()


class _Event(IntEnum):
    END = 0
    STOP = 1
    RENEW = 2


class _Replay:
    def __init__(
        self, policy: Policy, jobs: Sequence[TraceJob], settings: Settings, tell: Tell, look: Look | None
    ) -> None:
        self.settings, self.tell, self.look = settings, tell, look
        self.lives = [life_of(job, settings) for job in jobs]
        self.by_id = {life.trace.id: life for life in self.lives}
        self.grants = grants_gpu_s(jobs, settings)
        self.demand = demand_gpu_s(jobs)
        self.books = books(
            self.grants, settings.term_s, _longest_s(jobs, settings), settings.ledger, policy.half_life_ms
        )
        self.policy = stretched(_priced(policy, settings), self.books.values())
        self.runs: dict[str, Run] = {}
        self.used = {f"n{i:05d}": 0 for i in range(settings.nodes)}  # GPUs by node
        self.kept: dict[str, list[Attempt]] = {}  # that ended for a job that still waits
        self.events: list[tuple[int, int, str, int]] = []  # heap of (ms, what, job, attempt)
        self.next_arrival = 0
        self.started = self.ended = self.cycles = 0
        self.idle_terms = 0  # begun while nothing ran, since the last start
        self.stretches: list[Stretch] = []
        # what the core has not been told yet
        self.changes: list[Change] = []
        self.touched_nodes: set[str] = set(self.used)
        self.touched_books: set[str] = set(self.books)

    def play(self, name: str) -> History:
        """All events in order, then what came of them."""
        began = told = time.monotonic()
        self.changes = [GpuClass(GPU_CLASS, 1000), Cluster(CLUSTER, ALWAYS_MS), self.policy]
        if self.settings.ledger is LedgerKind.HARD:
            heappush(self.events, (self.settings.term_s * 1000, _Event.RENEW, "", 0))
        state, now_ms = State(), 0
        until_ms = ALWAYS_MS if self.settings.until_s is None else self.settings.until_s * 1000
        while (due_ms := self._next_ms()) is not None and due_ms < until_ms:
            now_ms = due_ms
            if not self._happen(now_ms):
                continue
            plan, state = decide(state, self._news(), now_ms, brief=True)
            self.cycles += 1
            self._apply(plan, now_ms)
            if self.look:
                self.look(now_ms, partial(self._scene, plan, now_ms))
            if self.cycles % 256 == 0 and time.monotonic() - told > TELL_EVERY_WALL_S:
                told = time.monotonic()
                self.tell(now_ms // 1000, self.started)
        self.tell(now_ms // 1000, self.started)
        cut = due_ms is not None
        return self._history(name, until_ms if cut else now_ms, time.monotonic() - began)

    # -- events

    def _next_ms(self) -> int | None:
        """When something happens next; None when nothing will any more."""
        arrival = self.next_arrival < len(self.lives)
        if not arrival and not self.runs and (self.ended == len(self.lives) or not self._may_renew()):
            return None
        times = [self.lives[self.next_arrival].trace.submit_s * 1000] if arrival else []
        times += [self.events[0][0]] if self.events else []
        if not times:
            return None
        every_ms = self.settings.every_s * 1000
        return -(-min(times) // every_ms) * every_ms if every_ms else min(times)

    def _may_renew(self) -> bool:
        """Whether a new term could still bring something to a pool that stands still: a job fits one grant."""
        if self.settings.ledger is LedgerKind.SOFT or self.idle_terms > 1:
            return False
        return any(
            life.end_ms is None
            and life.trace.gpus * life.limit_ms <= self.grants[life.trace.organization] * 1000
            and life.pods * life.gpus_per_pod <= self.settings.gpus
            for life in self.lives
        )

    def _happen(self, now_ms: int) -> bool:
        """Let everything happen that is due. Returns whether anything did."""
        happened = False
        while self.events and self.events[0][0] <= now_ms:
            at_ms, what, job_id, attempt = heappop(self.events)
            run = self.runs.get(job_id)
            if what == _Event.RENEW:
                self._renew(at_ms)
            elif run is None or run.attempt.attempt != attempt:
                continue  # a stop that came after the end, or the end of what was stopped
            elif what == _Event.END:
                self._end(run, at_ms)
            else:
                self._stop(run, at_ms)
            happened = True
        while self.next_arrival < len(self.lives):
            life = self.lives[self.next_arrival]
            if life.trace.submit_s * 1000 > now_ms:
                break
            self.next_arrival += 1
            self.changes.append(life.job(JobState.QUEUED))
            happened = True
        return happened

    def _end(self, run: Run, at_ms: int) -> None:
        """The job has done its work."""
        self._vacate(run, at_ms, at_ms - run.work_from_ms)
        run.life.left_ms = 0
        run.life.end_ms = at_ms
        self.ended += 1
        self.changes.append(Tombstone(Kind.JOB, run.life.trace.id))

    def _stop(self, run: Run, at_ms: int) -> None:
        """The job is preempted: it goes back to the queue with what it had not saved."""
        life, checkpoint_ms = run.life, self.settings.checkpoint_s * 1000
        worked_ms = max(0, at_ms - run.work_from_ms)
        saved_ms = worked_ms - worked_ms % checkpoint_ms if checkpoint_ms else worked_ms
        self._vacate(run, at_ms, saved_ms)
        restart_ms = self.settings.restart_s * 1000
        life.left_ms -= saved_ms
        life.limit_ms += restart_ms - (run.work_from_ms - run.start_ms) - saved_ms
        life.preemptions += 1
        life.preempted_at_ms = (*(at for at in life.preempted_at_ms if at > at_ms - DAY_MS), at_ms)
        self.changes.append(life.job(JobState.QUEUED))

    def _vacate(self, run: Run, at_ms: int, saved_ms: int) -> None:
        """The attempt's GPUs are free, its hold is let go and what it saved is used."""
        life, attempt = run.life, run.attempt
        del self.runs[attempt.job_id]
        for pod in attempt.pods:
            self.used[pod.node] -= pod.count
            self.touched_nodes.add(pod.node)
        trace = life.trace
        self.books[trace.organization].settle(attempt.cost_gpu_us, trace.gpus, saved_ms, at_ms)
        self.touched_books.add(trace.organization)
        saved_at_ms = min(at_ms, run.work_from_ms + saved_ms)
        life.lost_ms += at_ms - run.start_ms - saved_ms
        for begin_ms, end_ms, useful in (
            (run.start_ms, min(run.work_from_ms, at_ms), False),
            (run.work_from_ms, saved_at_ms, True),
            (max(saved_at_ms, run.work_from_ms), at_ms, False),
        ):
            if begin_ms < end_ms:
                self.stretches.append(
                    Stretch(trace.organization, trace.gpus, begin_ms // 1000, end_ms // 1000, useful)
                )
        if run.for_job is not None and self._waits(run.for_job):
            # the room it frees is kept for that job only while this is known
            freed = replace(attempt, state=JobState.ENDED, capacity_held=False)
            self.changes.append(freed)
            self.kept.setdefault(run.for_job, []).append(freed)
        else:
            self.changes.append(Tombstone(Kind.ATTEMPT, attempt.id))

    def _waits(self, job_id: str) -> bool:
        return job_id not in self.runs and self.by_id[job_id].end_ms is None

    def _renew(self, at_ms: int) -> None:
        """Every grant begins a new term."""
        self.idle_terms += not self.runs
        running = dict.fromkeys(self.books, 0)
        for run in self.runs.values():
            running[run.life.trace.organization] += (
                run.life.trace.gpus * max(0, at_ms - run.work_from_ms) * 1000
            )
        for organization_id, book in self.books.items():
            book.renew(running[organization_id])
        self.touched_books.update(self.books)
        heappush(self.events, (at_ms + self.settings.term_s * 1000, _Event.RENEW, "", 0))

    # -- decisions

    def _news(self) -> list[Change]:
        """Everything that changed since the last cycle, each object once as it is now."""
        changes, self.changes = self.changes, []
        size = self.settings.gpus_per_node
        for node in sorted(self.touched_nodes):
            changes.append(Node(CLUSTER, node, True, {GPU_CLASS: Capacity(size, 0, self.used[node])}))
        for organization_id in sorted(self.touched_books):
            book = self.books[organization_id]
            changes += (book.grant(), book.organization())
        self.touched_nodes.clear()
        self.touched_books.clear()
        return changes

    def _scene(self, plan: Plan, now_ms: int) -> Scene:
        fixed: list[Change] = [GpuClass(GPU_CLASS, 1000), Cluster(CLUSTER, ALWAYS_MS), self.policy]
        size = self.settings.gpus_per_node
        fixed += (Node(CLUSTER, id, True, {GPU_CLASS: Capacity(size, 0, n)}) for id, n in self.used.items())
        waiting = (life for life in self.lives[: self.next_arrival] if self._waits(life.trace.id))
        return scene_of(plan, now_ms, self.settings, fixed, self.books, waiting, self.runs, self.kept)

    def _apply(self, plan: Plan, now_ms: int) -> None:
        for stop in plan.stops:
            self._give_notice(stop)
        for start in plan.starts:
            self._start(start, now_ms)

    def _give_notice(self, stop: Preempt) -> None:
        """The attempt will be stopped, unless it ends before."""
        run = self.runs[stop.job_id]
        assert run.attempt.attempt == stop.attempt, f"{stop} is for another attempt"
        assert run.for_job is None, f"{stop.job_id} is stopped twice"
        run.for_job = stop.for_job
        ends_at_ms = min(stop.stop_at_ms, run.attempt.ends_at_ms or stop.stop_at_ms)
        run.attempt = replace(
            run.attempt, state=JobState.STOPPING, stop=Stop("preempted", stop.for_job), ends_at_ms=ends_at_ms
        )
        heappush(self.events, (stop.stop_at_ms, _Event.STOP, stop.job_id, stop.attempt))
        self.changes += (run.attempt, run.life.job(JobState.STOPPING))

    def _start(self, start: Start, now_ms: int) -> None:
        """The job runs from now on."""
        life = self.by_id[start.job_id]
        assert start.job_id not in self.runs, f"{start.job_id} runs already"
        overhead_ms = self.settings.restart_s * 1000 if life.preemptions else 0
        if life.first_start_ms is None:
            life.first_start_ms = now_ms
            self.started += 1
        life.attempt = start.attempt
        self.idle_terms = 0
        for pod in start.pods:
            self._occupy(pod)
        attempt = Attempt(
            job_id=start.job_id,
            attempt=start.attempt,
            grant_id=start.grant_id,
            state=JobState.RUNNING,
            cluster=CLUSTER,
            pods=start.pods,
            cost_gpu_us=start.cost_gpu_us,
            claimed_at_ms=now_ms,
            started_at_ms=now_ms,
            ends_at_ms=now_ms + life.limit_ms,
            walltime_ms=life.limit_ms,
            organization_id=life.trace.organization,
        )
        self.runs[start.job_id] = Run(life, attempt, now_ms, now_ms + overhead_ms)
        heappush(self.events, (now_ms + overhead_ms + life.left_ms, _Event.END, start.job_id, start.attempt))
        self.books[life.trace.organization].hold(start.cost_gpu_us)
        self.touched_books.add(life.trace.organization)
        self.changes += (life.job(JobState.RUNNING), attempt)
        self.changes += (Tombstone(Kind.ATTEMPT, each.id) for each in self.kept.pop(start.job_id, ()))

    def _occupy(self, pod: PodPlacement) -> None:
        self.used[pod.node] += pod.count
        assert self.used[pod.node] <= self.settings.gpus_per_node, f"{pod.node} is overfull"
        self.touched_nodes.add(pod.node)

    # -- the end

    def _history(self, name: str, end_ms: int, wall_s: float) -> History:
        for run in self.runs.values():
            for begin_ms, to_ms, useful in (
                (run.start_ms, min(run.work_from_ms, end_ms), False),
                (run.work_from_ms, end_ms, True),
            ):
                if begin_ms < to_ms:
                    trace = run.life.trace
                    self.stretches.append(
                        Stretch(trace.organization, trace.gpus, begin_ms // 1000, to_ms // 1000, useful)
                    )
        return History(
            policy=name,
            settings=self.settings,
            records=tuple(record_of(life) for life in self.lives),
            stretches=tuple(self.stretches),
            grants_gpu_s=self.grants,
            demand_gpu_s=self.demand,
            used_gpu_s={id: book.used_gpu_us // 1_000_000 for id, book in self.books.items()},
            submitted=self.next_arrival,
            end_s=end_ms // 1000,
            cut_jobs=sum(life.trace.run_s > life.trace.limit_s for life in self.lives),
            cycles=self.cycles,
            wall_s=wall_s,
        )


def _priced(policy: Policy, settings: Settings) -> Policy:
    """The policy with the replay's own cost of a preemption, so that it weighs what will be lost."""
    if policy.preemption is None:
        return policy
    costs = replace(
        policy.preemption, checkpoint_ms=settings.checkpoint_s * 1000, restart_ms=settings.restart_s * 1000
    )
    return replace(policy, preemption=costs)


def _longest_s(jobs: Sequence[TraceJob], settings: Settings) -> int:
    """No replay takes longer: all jobs one after another, twice, and a term each where money may run out."""
    work_s = sum(job.run_s + job.limit_s for job in jobs) + max((job.submit_s for job in jobs), default=0)
    return 2 * work_s + (settings.term_s * len(jobs) if settings.ledger is LedgerKind.HARD else 0)
