"""The look ahead itself: virtual time goes from event to event, and `decide` says what starts and what stops.

It is to the live hub what `scheduler.replay.engine` is to a trace: it begins in the middle, with attempts under way,
holds on shared accounts, several clusters and classes, promised room, pauses and stops that are recorded already.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from enum import IntEnum
from heapq import heappop, heappush
from itertools import pairwise

from scheduler.ahead.books import Books, Hold
from scheduler.ahead.life import ALWAYS_MS, Life, Run, kept_in_sight
from scheduler.ahead.outlook import Outlook
from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Booking,
    Capacity,
    Change,
    Cluster,
    Fund,
    Grant,
    Job,
    JobState,
    Kind,
    Node,
    Organization,
    Plan,
    Preempt,
    Start,
    Stop,
    Tombstone,
)
from scheduler.core.policy import DAY_MS, Policy, Preemption
from scheduler.core.state import State

COMES_AGAIN = frozenset({"preempted", "requeued"})
"""Reasons of a stop after which the job waits again."""

Runs = Callable[[Job], int]
"""How long a job really runs in its present or next attempt, in milliseconds; more than its walltime counts as that.

Asked once for each attempt under way and once for each job before its first start. Whoever knows that a job runs
already says how long its attempt lasts in all; what should be over by now ends now.
"""
Tell = Callable[[int, Plan], None]
"""Hears the moment and the plan of every cycle."""


def look_ahead(
    objects: Iterable[Change],
    now_ms: int,
    run_ms: Runs,
    *,
    horizon_ms: int,
    arrivals: Sequence[Job] = (),
    awaited: Collection[str] | None = None,
    every_ms: int = 0,
    walltime_shrinks: bool = False,
    tell: Tell | None = None,
) -> Outlook:
    """Play what the hub will do from `now_ms` on, for `horizon_ms` or until nothing more happens.

    `objects` is a whole snapshot, what a fresh `State` is given: the latest version of each object and no tombstones;
    hand in the promised `Reservations`, the `BookedRooms` and the grants' latest paces, or they are forgotten.
    `arrivals` are jobs that come later, in order of submission. Given `awaited`, ids of jobs that wait or arrive, it
    ends once all of them have started.
    `every_ms`: decide at multiples of this after `now_ms` only, which is quicker; 0: whenever something happened.

    Assumed is what nobody can know: clusters heard of now stay in sight and others out of it; nodes, grants, rates
    and the policy stay as they are; whoever cancels, cancels nothing more; starting takes no time; a stop for another
    job comes at its moment. A stopped job goes on from its last checkpoint, pays the restart (both as the policy's
    `preemption` says) and asks for its whole walltime again, or, if `walltime_shrinks`, for what is left of it.

    The same arguments give the same answer. Raises AssertionError if `objects` contradict themselves or arrivals are
    out of order.
    """
    assert all(a.submitted_at_ms <= b.submitted_at_ms for a, b in pairwise(arrivals)), "arrivals out of order"
    assert not arrivals or arrivals[0].submitted_at_ms >= now_ms, "an arrival lies in the past"
    collects = gc.isenabled()
    gc.disable()  # nothing here makes cycles, and a collection walks over every job
    try:
        ahead = _Ahead(objects, now_ms, run_ms, arrivals, tell or (lambda now, plan: None), walltime_shrinks)
        return ahead.play(now_ms + horizon_ms, awaited, every_ms)
    finally:
        if collects:
            gc.enable()


class _Event(IntEnum):
    END = 0
    STOP = 1
    WAKE = 2
    """Nothing happens but time: a pause is over, a grant begins or ends."""


class _Ahead:
    def __init__(
        self,
        objects: Iterable[Change],
        now_ms: int,
        run_ms: Runs,
        arrivals: Sequence[Job],
        tell: Tell,
        walltime_shrinks: bool,
    ) -> None:
        self.began_ms = now_ms
        self.run_ms, self.arrivals, self.tell = run_ms, arrivals, tell
        self.walltime_shrinks = walltime_shrinks
        by_type: dict[type, list[Change]] = defaultdict(list)
        for each in objects:
            by_type[type(each)].append(each)
        assert not by_type[Tombstone], "a snapshot holds no tombstones"
        policy = next((each for each in by_type[Policy] if isinstance(each, Policy)), Policy())
        self.costs = policy.preemption or Preemption()
        self.nodes = {each.id: each for each in by_type.pop(Node, []) if isinstance(each, Node)}
        self.used = {
            (id, gpu_class): capacity.used
            for id, node in self.nodes.items()
            for gpu_class, capacity in node.capacities.items()
        }
        grants = [each for each in by_type[Grant] if isinstance(each, Grant)]
        organizations = [each for each in by_type[Organization] if isinstance(each, Organization)]
        funds = [each for each in by_type[Fund] if isinstance(each, Fund)]
        self.books = Books(grants, organizations, policy.half_life_ms, funds)
        jobs = [each for each in by_type.pop(Job, []) if isinstance(each, Job)]
        attempts = [each for each in by_type.pop(Attempt, []) if isinstance(each, Attempt)]
        clusters = [each for each in by_type.pop(Cluster, []) if isinstance(each, Cluster)]
        self.lives = {job.id: Life(job) for job in jobs if job.state is not JobState.ENDED}
        self.runs: dict[str, Run] = {}
        self.kept: dict[str, list[str]] = {}  # freed attempts by the job that still waits for their room
        self.events: list[tuple[int, int, str, int]] = []  # heap of (ms, what, job, attempt)
        self.next_arrival = self.cycles = self.busy_gpu_ms = 0
        self.touched_nodes: set[str] = set(self.nodes)
        self.changes: list[Change] = [each for found in by_type.values() for each in found]
        self.changes += (kept_in_sight(each, now_ms, policy) for each in clusters)
        self._resume(attempts)
        self.changes += (life.job for life in self.lives.values())
        self._wake_at([job.not_before_ms for job in jobs])
        self._wake_at([moment for grant in grants for moment in (grant.starts_at_ms, grant.ends_at_ms)])
        self._wake_at([moment for fund in funds for moment in (fund.starts_at_ms, fund.ends_at_ms)])
        for each in by_type[Booking]:
            assert isinstance(each, Booking)
            released_ms = each.from_ms + policy.booking_unused_ms
            self._wake_at([each.from_ms, released_ms, each.until_ms])

    def play(self, until_ms: int, awaited: Collection[str] | None, every_ms: int) -> Outlook:
        """All events in order, then what came of them."""
        coming = {job.id for job in self.arrivals}
        missing = None if awaited is None else {id for id in awaited if self._waits(id) or id in coming}
        state, now_ms = State(), self.began_ms
        self._happen(now_ms)
        complete = False
        while True:
            plan, state = decide(state, self._news(), now_ms, brief=True)
            self.cycles += 1
            self.tell(now_ms, plan)
            self._apply(plan, now_ms)
            if missing is not None:
                missing.difference_update(start.job_id for start in plan.starts)
                if not missing:
                    until_ms = now_ms
                    break
            due_ms = self._next_event_ms()
            if due_ms is not None and every_ms:
                due_ms = self.began_ms - (self.began_ms - due_ms) // every_ms * every_ms  # rounded up
            if due_ms is None or due_ms > until_ms:
                complete = due_ms is None or self._is_over()
                break
            now_ms = due_ms
            self._happen(now_ms)
        return self._outlook(until_ms, complete)

    # -- the beginning

    def _resume(self, attempts: Sequence[Attempt]) -> None:
        """Take over what is under way at the beginning."""
        now_ms = self.began_ms
        going: list[Attempt] = []
        for attempt in sorted(attempts, key=lambda each: each.id):  # whoever draws runs draws in this order
            life = self.lives.get(attempt.job_id)
            if attempt.state is JobState.ENDED:
                self.changes.append(attempt)
                for_job = attempt.stop.for_job if attempt.stop else None
                if for_job is not None and not attempt.capacity_held:
                    self.kept.setdefault(for_job, []).append(attempt.id)
            else:
                assert life is not None, f"attempt {attempt.id} is of no job"
                going.append(attempt)
        organizations = [(each, self.lives[each.job_id].job.organization_id) for each in going]
        holds = self.books.open_holds(organizations, now_ms)
        for attempt in going:
            self._go_on(self.lives[attempt.job_id], attempt, holds[attempt.id])

    def _go_on(self, life: Life, attempt: Attempt, hold: Hold) -> None:
        now_ms, job = self.began_ms, life.job
        start_ms = attempt.claimed_at_ms if attempt.started_at_ms is None else attempt.started_at_ms
        life.start_ms, life.grant_id = start_ms, attempt.grant_id
        if attempt.state is JobState.STARTING:
            walltime_ms = attempt.walltime_ms or job.walltime_ms
            start_ms = now_ms
            attempt = replace(
                attempt, state=JobState.RUNNING, started_at_ms=now_ms, ends_at_ms=now_ms + walltime_ms
            )
            life.job = replace(job, state=JobState.RUNNING)
        overhead_ms = self._overhead_ms(job)
        life.left_ms = self._work_ms(job)
        self.runs[job.id] = Run(life, attempt, hold, start_ms, start_ms + overhead_ms)
        limit_ms = ALWAYS_MS if attempt.ends_at_ms is None else attempt.ends_at_ms
        if attempt.stop is not None:
            self._push(max(now_ms, limit_ms), _Event.STOP, job.id, attempt.attempt)
            limit_ms = ALWAYS_MS  # the stop says what becomes of it, unless its work is done before
        elif job.cancel_requested:
            limit_ms = now_ms
        self._push(
            max(now_ms, min(start_ms + overhead_ms + life.left_ms, limit_ms)),
            _Event.END,
            job.id,
            attempt.attempt,
        )
        self.changes.append(attempt)

    def _overhead_ms(self, job: Job) -> int:
        """What its attempt pays before it works: one that was preempted has to come back first."""
        return self.costs.restart_ms if job.preempted_at_ms else 0

    def _work_ms(self, job: Job) -> int:
        return max(0, self.run_ms(job) - self._overhead_ms(job))

    def _wake_at(self, moments: Iterable[int | None]) -> None:
        for moment in {moment for moment in moments if moment is not None and moment > self.began_ms}:
            self._push(moment, _Event.WAKE, "", 0)

    def _push(self, at_ms: int, what: _Event, job_id: str, attempt: int) -> None:
        heappush(self.events, (at_ms, what, job_id, attempt))

    # -- events

    def _next_event_ms(self) -> int | None:
        """When something happens next; None when nothing will any more."""
        times = [self.events[0][0]] if self.events else []
        if self.next_arrival < len(self.arrivals):
            times.append(self.arrivals[self.next_arrival].submitted_at_ms)
        return min(times, default=None)

    def _is_over(self) -> bool:
        arrives = self.next_arrival < len(self.arrivals)
        return not arrives and not self.runs and not any(self._waits(id) for id in self.lives)

    def _happen(self, now_ms: int) -> None:
        """Let everything happen that is due."""
        while self.events and self.events[0][0] <= now_ms:
            at_ms, what, job_id, attempt = heappop(self.events)
            run = self.runs.get(job_id)
            if what == _Event.WAKE or run is None or run.attempt.attempt != attempt:
                continue  # also a stop that came after the end, or the end of what was stopped
            if what == _Event.STOP and _comes_again(run):
                self._come_again(run, at_ms)
            else:
                self._end(run, at_ms)
        while self.next_arrival < len(self.arrivals):
            job = self.arrivals[self.next_arrival]
            if job.submitted_at_ms > now_ms:
                break
            self.next_arrival += 1
            assert job.id not in self.lives, f"job {job.id} arrives twice"
            self.lives[job.id] = Life(job)
            self.changes.append(job)

    def _end(self, run: Run, at_ms: int) -> None:
        """The job has done its work, or is stopped for good."""
        self._vacate(run, at_ms, max(0, at_ms - run.work_from_ms))
        run.life.end_ms = at_ms
        self.changes.append(Tombstone(Kind.JOB, run.life.job.id))
        self._forget_kept(run.life.job.id)

    def _come_again(self, run: Run, at_ms: int) -> None:
        """The job goes back to the queue with what it had not saved."""
        life, every_ms = run.life, self.costs.checkpoint_ms
        worked_ms = max(0, at_ms - run.work_from_ms)
        saved_ms = worked_ms - worked_ms % every_ms if every_ms else worked_ms
        self._vacate(run, at_ms, saved_ms)
        assert life.left_ms is not None, "it ran, so somebody asked"
        life.left_ms = max(0, life.left_ms - saved_ms)
        walltime_ms = life.job.walltime_ms
        if self.walltime_shrinks:
            walltime_ms += self.costs.restart_ms - (run.work_from_ms - run.start_ms) - saved_ms
        life.preemptions += 1
        life.job = replace(
            life.job,
            state=JobState.QUEUED,
            walltime_ms=walltime_ms,
            preempted_at_ms=(*(at for at in life.job.preempted_at_ms if at > at_ms - DAY_MS), at_ms),
        )
        self.changes.append(life.job)

    def _vacate(self, run: Run, at_ms: int, charged_ms: int) -> None:
        """The attempt's GPUs are free, its hold is let go and what counts is charged."""
        attempt = run.attempt
        del self.runs[attempt.job_id]
        if attempt.capacity_held:
            self._occupy(attempt, -1)
        self.busy_gpu_ms += self._occupied_gpu_ms(run, at_ms)
        self.books.settle(
            run.hold,
            run.life.job.organization_id,
            charged_ms,
            at_ms,
            opportunistic=attempt.opportunistic,
        )
        for_job = attempt.stop.for_job if attempt.stop else None
        if for_job is not None and self._waits(for_job):
            # the room it frees is kept for that job only while this is known
            self.changes.append(replace(attempt, state=JobState.ENDED, capacity_held=False))
            self.kept.setdefault(for_job, []).append(attempt.id)
        else:
            self.changes.append(Tombstone(Kind.ATTEMPT, attempt.id))

    def _occupied_gpu_ms(self, run: Run, until_ms: int) -> int:
        return run.attempt.gpus_held * max(0, until_ms - max(run.start_ms, self.began_ms))

    def _waits(self, job_id: str) -> bool:
        life = self.lives.get(job_id)
        return life is not None and life.end_ms is None and job_id not in self.runs and life.job.waits

    # -- decisions

    def _news(self) -> list[Change]:
        """Everything that changed since the last cycle, each object once as it is now."""
        changes, self.changes = self.changes, []
        changes += (self._node(id) for id in sorted(self.touched_nodes))
        changes += self.books.news()
        self.touched_nodes.clear()
        return changes

    def _node(self, node_id: str) -> Node:
        node = self.nodes[node_id]
        capacities = {
            gpu_class: Capacity(each.total, each.foreign, self.used[node_id, gpu_class])
            for gpu_class, each in node.capacities.items()
        }
        return replace(node, capacities=capacities)

    def _apply(self, plan: Plan, now_ms: int) -> None:
        for stop in plan.stops:
            self._give_notice(stop)
        for start in plan.starts:
            self._start(start, now_ms)

    def _give_notice(self, stop: Preempt) -> None:
        """The attempt will be stopped, unless it ends before."""
        run = self.runs[stop.job_id]
        assert run.attempt.attempt == stop.attempt, f"{stop} is for another attempt"
        assert run.attempt.stop is None, f"{stop.job_id} is stopped twice"
        ends_at_ms = min(stop.stop_at_ms, run.attempt.ends_at_ms or stop.stop_at_ms)
        run.attempt = replace(
            run.attempt, state=JobState.STOPPING, stop=Stop("preempted", stop.for_job), ends_at_ms=ends_at_ms
        )
        run.life.job = replace(run.life.job, state=JobState.STOPPING)
        self._push(stop.stop_at_ms, _Event.STOP, stop.job_id, stop.attempt)
        self.changes += (run.attempt, run.life.job)

    def _start(self, start: Start, now_ms: int) -> None:
        """The job runs from now on."""
        life = self.lives[start.job_id]
        assert start.job_id not in self.runs, f"{start.job_id} runs already"
        if life.left_ms is None:
            life.left_ms = self._work_ms(life.job)
        if life.start_ms is None:
            life.start_ms = now_ms
        walltime_ms = life.job.walltime_ms
        life.grant_id = start.grant_id
        life.job = replace(life.job, state=JobState.RUNNING, attempt=start.attempt)
        attempt = Attempt(
            job_id=start.job_id,
            attempt=start.attempt,
            grant_id=start.grant_id,
            state=JobState.RUNNING,
            cluster=start.cluster,
            pods=start.pods,
            cost_gpu_us=start.cost_gpu_us,
            claimed_at_ms=now_ms,
            started_at_ms=now_ms,
            ends_at_ms=now_ms + walltime_ms,
            walltime_ms=walltime_ms,
            organization_id=life.job.organization_id,
            opportunistic=life.job.program_id != "",
        )
        self._occupy(attempt, 1)
        overhead_ms = self._overhead_ms(life.job)
        hold = self.books.hold(start.account_path, start.cost_gpu_us, walltime_ms)
        self.runs[start.job_id] = Run(life, attempt, hold, now_ms, now_ms + overhead_ms)
        end_ms = now_ms + min(overhead_ms + life.left_ms, walltime_ms)
        self._push(end_ms, _Event.END, start.job_id, start.attempt)
        self.changes += (life.job, attempt)
        self._forget_kept(start.job_id)

    def _forget_kept(self, job_id: str) -> None:
        """Nobody waits for this room any more."""
        self.changes += (Tombstone(Kind.ATTEMPT, id) for id in self.kept.pop(job_id, ()))

    def _occupy(self, attempt: Attempt, sign: int) -> None:
        for pod in attempt.pods:
            node_id = f"{attempt.cluster}/{pod.node}"
            if node_id in self.nodes:  # a node that left the fleet gets nothing back
                self.used[node_id, pod.gpu_class] += sign * pod.count
                self.touched_nodes.add(node_id)

    # -- the end

    def _outlook(self, until_ms: int, complete: bool) -> Outlook:
        used = self.books.used_gpu_us()
        busy = self.busy_gpu_ms
        for run in self.runs.values():
            busy += self._occupied_gpu_ms(run, until_ms)
            charged = run.hold.rate * max(0, until_ms - run.work_from_ms) - run.hold.settled_gpu_us
            if run.attempt.grant_id in used:
                used[run.attempt.grant_id] += max(0, charged)
        return Outlook(
            now_ms=self.began_ms,
            until_ms=until_ms,
            jobs={id: life.prospect() for id, life in self.lives.items()},
            used_gpu_us=used,
            busy_gpu_ms=busy,
            cycles=self.cycles,
            complete=complete,
        )


def _comes_again(run: Run) -> bool:
    """Whether the job waits again after its stop: an opportunistic one that is not restartable does not."""
    stop, job = run.attempt.stop, run.life.job
    if stop is None or stop.reason not in COMES_AGAIN:
        return False
    return job.restartable or not run.attempt.opportunistic
