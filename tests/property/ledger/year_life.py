"""A year of a city's hub, lived in process: firms submit, a scheduler and a cluster of its own run, operators act.

Every step goes through the real services; this file keeps a diary of what it asked for and of what really ran, which
`year_books` holds against the tables. The same seed lives the same year.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from quota import tasks
from quota.clock import HOUR_MS, day_start_ms
from quota.errors import HubError
from quota.identity import caps
from quota.identity import service as identity
from quota.jobs import service as job_service
from quota.jobs.tables import attempts, jobs
from quota.programs import awards, policies
from quota.schemas.caps import CapsPut, HubCaps
from quota.schemas.identity import NewOrganization
from quota.schemas.jobs import Job
from quota.schemas.policies import GrantPolicy, PolicyPut
from quota.schemas.programs import NewProgram
from quota.schemas.scheduling import (
    EndedItem,
    FreedItem,
    LostItem,
    PodPlacement,
    ReportItem,
    StartedItem,
    StartItem,
    StopItem,
    StopReason,
)
from tests.builders import GPU_HOUR_US, MINUTE_MS, OPERATOR, RATES, Hub, a_hub, a_member, a_submission
from tests.property.ledger.year_books import Diary, Ran

FIRST_DAY, DAYS = "2027-01-01", 365
NODES = {f"n{number:02d}": {"h100": 8} for number in range(20)} | {
    f"a{number:02d}": {"a100": 8} for number in range(8)
}
BUDGETS = {"firms": 90_000, "poc": 30_000, "edu": 12_000}
POLICIES = {
    "firms": GrantPolicy(),
    "poc": GrantPolicy(when_grant_ends="stop_at_end", carry_over_thousandths=500),
    "edu": GrantPolicy(overdraft_thousandths=100, refund_cap_ms=HOUR_MS),
}
STEPS_MS = (5 * HOUR_MS + 7, 14 * HOUR_MS + 59 * MINUTE_MS + 999, 19 * HOUR_MS + 31 * MINUTE_MS + 11)
"""When on a day of Asia/Seoul something happens; each is moved a little, and the day ends at 15:00 UTC."""
TRIES = 6


@dataclass(frozen=True, slots=True)
class Size:
    """How much lives in the year."""

    firms: int = 100
    consortia: int = 20
    universities: int = 10
    jobs_a_day: int = 5
    every_days: int = 1


@dataclass
class Given:
    """A grant as the year knows it. A consortium has parties; the others have one organization."""

    id: str
    account: str
    program: str
    owner: str
    ends_at: int
    parties: tuple[str, ...] = ()
    released: int = 0
    """Tranches that can be drawn on; 0: it has none."""

    def paths(self, organization: str) -> list[tuple[str, ...]]:
        """The accounts that a start may take, the newest tranche first."""
        share = (f"share:{self.id}:{organization}",) if self.parties else ()
        if not self.released:
            return [(*share, self.account)]
        numbers = range(self.released, 0, -1)
        return [(*share, f"tranche:{self.id}:{number}", self.account) for number in numbers]


@dataclass
class Waiting:
    """A job in the queue."""

    job: Job
    organization: str
    tries: int = 0
    attempt: int = 0


@dataclass
class Running:
    """An attempt as its cluster knows it; the diary has what really was."""

    waiting: Waiting
    number: int
    ran: Ran
    ends: int
    how: str
    told: bool = False
    walltime_ms: int = 0
    late: bool = False
    """Its end is reported one step too late."""

    @property
    def key(self) -> tuple[str, int]:
        return self.waiting.job.id, self.number


@dataclass
class Year:
    """The hub and everything that the year keeps in mind."""

    hub: Hub
    size: Size
    rng: random.Random
    diary: Diary = field(default_factory=Diary)
    grants: dict[str, Given] = field(default_factory=dict)
    queue: list[Waiting] = field(default_factory=list)
    running: dict[tuple[str, int], Running] = field(default_factory=dict)
    out_of_sight: list[Running] = field(default_factory=list)
    finished: list[Running] = field(default_factory=list)
    rates: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(RATES))
    used_gpus: Counter[str] = field(default_factory=Counter)
    placed: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)

    @property
    def now(self) -> int:
        return self.hub.now

    def try_to(self, what: str, work: Callable[..., Any]) -> Any:
        """One write; what the service refuses is counted and answered as None."""
        try:
            answer = self.hub.database.write(work)
        except HubError as refusal:
            self.done[f"{what} refused: {refusal.code}"] += 1
            return None
        self.done[what] += 1
        return answer

    # --- the beginning ---

    def firms(self) -> list[str]:
        return [f"firm-{number:03d}" for number in range(self.size.firms)]

    def universities(self) -> list[str]:
        return [f"uni-{number}" for number in range(self.size.universities)]

    # --- a day ---

    def step(self, at_ms: int) -> None:
        """Live until a moment: what runs out of time is stopped on the way, then everybody has a turn."""
        for due, run in sorted(
            ((run.ran.last + run.walltime_ms, run.key) for run in self.running.values() if run.ran.last),
        ):
            known = self.running.get(run)
            if known is not None and self.now <= due < min(at_ms, known.ends):
                self.hub.clock.set(due)
                self._stop(known, StopReason.TIME_LIMIT, due)
        self.hub.clock.set(at_ms)
        self._report()
        self._stop_what_was_asked()
        self._start_waiting()

    def submit(self) -> None:
        """Some organization wants something; often more than fits, or than it has."""
        given = self.rng.choice(list(self.grants.values()))
        organization = self.rng.choice(given.parties or (given.owner,))
        classes = self.rng.choice((("h100",), ("h100",), ("a100",), ("h100", "a100"), ("a100", "h100")))
        body = a_submission(
            gpu_class=classes[0],
            gpu_classes=classes if len(classes) > 1 else (),
            walltime_s=self.rng.choice((600, 3600, 5 * 3600 + 13, 9 * 3600, 20 * 3600)),
            gpus_per_pod=self.rng.choice((1, 1, 2, 4)),
            pods=self.rng.choice((1, 1, 1, 2)),
            restartable=self.rng.random() < 0.5,
            checkpoint_interval_s=self.rng.choice((None, 900)),
        )
        caller = a_member(organization)
        job = self.try_to("submit", lambda tx: job_service.submit(tx, caller, body))
        if job is not None:
            self.queue.append(Waiting(job, organization))

    def run_tasks(self) -> None:
        """What the service does by itself, by its own registry of tasks."""
        for task in tasks.TASKS:
            answer = tasks.run_due(self.hub.database, task)
            assert answer is None or not answer.startswith("failed"), answer
            self.done[f"task {task.name}"] += answer is not None

    # --- the cluster ---

    def _report(self) -> None:
        items: list[ReportItem] = []
        gone: list[Running] = []
        for run in list(self.running.values()):
            job_id, number = run.key
            ran = run.ran
            if not run.told and ran.first is not None and ran.first <= self.now:
                last = ran.last if ran.last is not None and ran.last <= self.now else None
                items.append(
                    StartedItem(
                        job_id=job_id, attempt=number, first_started_at=ran.first, last_started_at=last
                    )
                )
                run.told = last is not None
            if run.ends > self.now:
                continue
            if run.late:
                run.late = False
                self.done["late truth"] += 1
                continue
            if ran.last is not None and ran.last > run.ends:
                ran.last = None
            if ran.first is not None and ran.first > run.ends:
                ran.first = ran.last = None
            items.append(self._end(run))
            gone.append(run)
        still = []
        for run in self.out_of_sight:
            if self.rng.random() < 0.5:
                items.append(self._free(run))
            else:
                still.append(run)
        self.out_of_sight = still
        reply = self.hub.report(*items)
        assert all(result.outcome != "refused" for result in reply.results), reply.results
        self._after_the_end(gone)

    def _end(self, run: Running) -> EndedItem | LostItem:
        job_id, number = run.key
        ran = run.ran
        del self.running[run.key]
        self.done[f"ended: {run.how}"] += 1
        ran.end = run.ends
        if run.how == "lost":
            ran.seen = run.ends
            self.out_of_sight.append(run)
            return LostItem(
                job_id=job_id,
                attempt=number,
                first_started_at=ran.first,
                last_started_at=ran.last,
                last_seen_at=run.ends,
            )
        self._give_room_back(run)
        return EndedItem(
            job_id=job_id,
            attempt=number,
            first_started_at=ran.first,
            last_started_at=ran.last,
            ended_at=run.ends,
            exit_code=0 if run.how == "completed" else None,
            reason=run.how,
        )

    def _free(self, run: Running) -> FreedItem:
        """Its pods are gone; perhaps it is known that they ended sooner or later than they were seen."""
        job_id, number = run.key
        self._give_room_back(run)
        truth = run.ends + self.rng.choice((0, -20 * MINUTE_MS - 3, 90 * MINUTE_MS + 5))
        if run.ran.first is None or self.rng.random() < 0.3:
            return FreedItem(job_id=job_id, attempt=number)
        run.ran.end = min(max(truth, run.ran.first), self.now)
        return FreedItem(job_id=job_id, attempt=number, ended_at=run.ran.end)

    def _give_room_back(self, run: Running) -> None:
        node, gpus = self.placed.pop(run.key)
        self.used_gpus[node] -= gpus

    def _after_the_end(self, gone: list[Running]) -> None:
        """What waits again waits here too."""
        if not gone:
            return
        ids = [run.waiting.job.id for run in gone]
        with self.hub.database.read() as connection:
            states = {
                row.id: row.state
                for row in connection.execute(select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids)))
            }
        for run in gone:
            self.finished.append(run)
            if states[run.waiting.job.id] == "queued":
                self.done["requeued"] += 1
                run.waiting.tries = 0
                self.queue.append(run.waiting)

    # --- the scheduler ---

    def preempt(self) -> None:
        """Something runs that could come again: it makes room."""
        able = [run for run in self.running.values() if run.told and run.waiting.job.restartable]
        if able:
            self._stop(self.rng.choice(able), StopReason.PREEMPTED, self.now)

    def _stop_what_was_asked(self) -> None:
        asked = select(attempts.c.job_id, attempts.c.attempt, attempts.c.stop_asked).where(
            attempts.c.state.in_(("starting", "running")), attempts.c.stop_asked.is_not(None)
        )
        cancelled = select(jobs.c.id, jobs.c.attempt).where(
            jobs.c.state.in_(("starting", "running")), jobs.c.cancel_requested_at_ms.is_not(None)
        )
        with self.hub.database.read() as connection:
            rows = [(tuple(row)[:2], StopReason(row.stop_asked)) for row in connection.execute(asked)]
            rows += [(tuple(row), StopReason.CANCELLED) for row in connection.execute(cancelled)]
        for key, reason in rows:
            if key in self.running:
                self._stop(self.running[key], reason, self.now)

    def _stop(self, run: Running, reason: StopReason, stop_at: int) -> None:
        job_id, number = run.key
        grace_ms = self.rng.choice((0, 30_000))
        item = StopItem(job_id=job_id, attempt=number, reason=reason, stop_at=stop_at, grace_ms=grace_ms)
        result = self.hub.decide(item).results[0]
        self.done[f"stop {reason.value} {result.outcome}"] += 1
        if result.outcome == "accepted" and run.ends > self.now:
            # often within its grace, sometimes after it: the platform's time
            run.ends, run.how, run.late = self.now + self.rng.randrange(1, 45_000), "stopped", False

    def _start_waiting(self) -> None:
        items, chosen = [], []
        for waiting in self.queue[:40]:
            item = self._start_item(waiting)
            if item is not None:
                items.append(item)
                chosen.append(waiting)
            waiting.tries += 1
        if items:
            for waiting, item, result in zip(chosen, items, self.hub.decide(*items).results, strict=True):
                outcome = result.outcome if result.outcome == "accepted" else result.code
                self.done[f"start {outcome}"] += 1
                if result.outcome == "accepted":
                    self.queue.remove(waiting)
                    self._began(waiting, item)
                else:
                    self.used_gpus[item.pods[0].node] -= len(item.pods) * item.pods[0].count
        for waiting in [waiting for waiting in self.queue if waiting.tries >= TRIES]:
            self.queue.remove(waiting)
            self.try_to("cancel a waiting job", lambda tx, job=waiting.job: self._cancel(tx, job))

    def _cancel(self, tx: Any, job: Job) -> Job:
        return job_service.cancel(tx, OPERATOR, job.id, self.hub.queue)

    def _start_item(self, waiting: Waiting) -> StartItem | None:
        job, organization = waiting.job, waiting.organization
        gpus = job.pods * job.gpus_per_pod
        accepted = set(job.gpu_classes)
        nodes = [name for name in NODES if accepted & NODES[name].keys() and self.used_gpus[name] + gpus <= 8]
        mine = [given for given in self.grants.values() if organization in (given.parties or (given.owner,))]
        mine = [given for given in mine if self.now + job.walltime_s * 1000 <= given.ends_at]
        if not nodes or not mine:
            return None
        given = min(mine, key=lambda known: (known.ends_at, known.id))
        if waiting.tries:
            given = self.rng.choice(mine)
        node, path = self.rng.choice(nodes), self.rng.choice(given.paths(organization))
        self.used_gpus[node] += gpus
        (gpu_class,) = NODES[node]
        return StartItem(
            job_id=job.id,
            attempt=waiting.attempt + 1,
            grant_id=given.id,
            account_path=path,
            cluster="sim",
            pods=tuple(
                PodPlacement(index=index, node=node, gpu_class=gpu_class, count=job.gpus_per_pod)
                for index in range(job.pods)
            ),
        )

    def _began(self, waiting: Waiting, item: StartItem) -> None:
        """The cluster's own plan for it: when it starts, how long it runs, how it ends."""
        waiting.attempt = item.attempt
        job, rng = waiting.job, self.rng
        ran = Ran(job.pods * job.gpus_per_pod, self.rates[item.pods[0].gpu_class][0])
        ran.first = self.now + rng.randrange(1, 60_000)
        ran.last = ran.first + (rng.randrange(0, 40_000) if job.pods > 1 else 0)
        walltime_ms = self._walltime_ms(waiting)
        lives = int(walltime_ms * rng.choice((0.02, 0.3, 0.6, 0.9, 1.1))) + rng.randrange(0, 5000)
        how = rng.choices(("completed", "failed", "node_lost", "lost", "never_started"), (60, 20, 7, 7, 3))[0]
        if how == "never_started":
            ran.first = ran.last = None
        run = Running(
            waiting, item.attempt, ran, (ran.last or self.now) + lives, how, walltime_ms=walltime_ms
        )
        run.late = how == "failed" and rng.random() < 0.6
        self.running[run.key] = run
        self.placed[run.key] = (item.pods[0].node, ran.gpus)
        self.diary.ran[run.key] = ran

    def _walltime_ms(self, waiting: Waiting) -> int:
        """An extension of an earlier attempt is the job's."""
        with self.hub.database.read() as connection:
            wanted = select(jobs.c.walltime_ms).where(jobs.c.id == waiting.job.id)
            return int(connection.execute(wanted).scalar_one())


def a_year(url: str, size: Size, seed: int) -> Year:
    """The first morning: organizations, programmes with their policies, and nothing awarded yet."""
    hub = a_hub(url, nodes=NODES, now_ms=day_start_ms(FIRST_DAY), budget_hours="1")
    year = Year(hub, size, random.Random(seed))
    year.diary.budgets["ax"] = GPU_HOUR_US

    def seed_rows(tx: Any) -> None:
        # whoever is let by chance starts here: no core plans it
        lifted = CapsPut(caps=HubCaps(organization_pool_thousandths=1000), reason="a year by chance")
        caps.put_caps(tx, OPERATOR, lifted)
        for name in (*year.firms(), *year.universities()):
            identity.create_organization(tx, OPERATOR, NewOrganization(id=name, name=name))
        for program, hours in BUDGETS.items():
            policies.put_policy(tx, OPERATOR, program, PolicyPut(policy=POLICIES[program], reason="the call"))
            body = NewProgram(id=program, name=program, budget_gpu_hours=str(hours), policy_id=program)
            awards.create_program(tx, OPERATOR, body)
            year.diary.budgets[program] = hours * GPU_HOUR_US

    hub.database.write(seed_rows)
    return year
