"""The quota service in memory, as far as a scheduler can see it: lease, feed, streams, decisions, reports.

It keeps the contract's promises in the plainest way and records what the tests ask about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from quota.client import ServiceProblem, ServiceUnavailable
from quota.schemas.scheduling import (
    AttemptObject,
    BookedRoom,
    ClusterObject,
    DecisionBatch,
    DecisionReply,
    EndReason,
    JobObject,
    JobState,
    LeaseReply,
    LeaseRequest,
    RankingDocument,
    RankingReply,
    ReportBatch,
    ReportReply,
    Reservation,
    StartItem,
    StopReason,
)
from tests.unit.scheduler.quota_attempts import QuotaAttempts
from tests.unit.scheduler.quota_book import Touched, problem
from tests.unit.scheduler.quota_objects import a_class, a_hub, a_job, a_policy

R = TypeVar("R", bound=BaseModel)
TTL_MS = 15_000


@dataclass
class StreamRow:
    """The last batch of a stream."""

    seq: int = 0
    digest: str = ""
    reply: BaseModel | None = None


@dataclass
class QuotaModel(QuotaAttempts):
    """`faults` are taken one by one by the next decision, report or ranking: drop, forget, late."""

    faults: list[str] = field(default_factory=list)
    late: list[Callable[[], object]] = field(default_factory=list)
    epoch: int = 0
    holder: tuple[str, str, int] = ("", "", 0)
    streams: dict[str, StreamRow] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    rankings: list[RankingDocument] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.put(*a_hub(self.time.now_ms))

    # --- what people do ---

    def submit(self, job_id: str, **changes: Any) -> JobObject:
        """A job waits."""
        job = a_job(job_id, submitted_at=self.time.now_ms).model_copy(update=changes)
        self.put(("job", job_id, job))
        return job

    def cancel(self, job_id: str) -> None:
        """A waiting job ends at once, a placed one is asked to stop."""
        job = self.job(job_id)
        if job is None or job.cancel_requested_at is not None:
            return
        if job.state is JobState.QUEUED:
            self.job_ends[job_id] = EndReason.CANCELLED
            self.put(("job", job_id, None))
        else:
            self.put(("job", job_id, job.model_copy(update={"cancel_requested_at": self.time.now_ms})))

    def ask_stop(self, job_id: str, reason: StopReason) -> bool:
        """The service wants a job's open attempt stopped; False when there is nothing to ask for."""
        attempt = self._open_attempt(job_id)
        if attempt is None:
            return False
        self.put(("attempt", attempt.id, attempt.model_copy(update={"stop_asked": reason})))
        return True

    def extend(self, job_id: str, by_ms: int) -> bool:
        """A running job may run longer; False once its stop is recorded."""
        attempt = self._open_attempt(job_id)
        if attempt is None:
            return False
        longer = attempt.model_copy(update={"walltime_ms": attempt.walltime_ms + by_ms})
        self.put(("attempt", attempt.id, longer))
        return True

    def pause(self, what: str, paused: bool) -> None:
        """Operators let nothing start on the hub, the class or the cluster, or let it go on."""
        match what:
            case "hub":
                self.put(("policy", "default", a_policy(placement_paused=paused)))
            case "gpu_class":
                self.put(("gpu_class", "h100", a_class(paused=paused)))
            case _:
                cluster = ClusterObject(id="sim", paused=paused, observed_through=None)
                self.put(("cluster", "sim", cluster))

    def _open_attempt(self, job_id: str) -> AttemptObject | None:
        job = self.job(job_id)
        attempt = None if job is None else self.attempt(f"{job_id}-{job.attempt}")
        unstopped = attempt is not None and attempt.state in (JobState.STARTING, JobState.RUNNING)
        return attempt if unstopped else None

    def deliver_late(self) -> None:
        """Requests that were given up reach the service now; nobody reads the answers."""
        while self.late:
            with suppress(ServiceProblem):
                self.late.pop(0)()

    # --- the contract ---

    def take_lease(self, body: LeaseRequest) -> LeaseReply:
        """Like quota/dispatch/lease.py."""
        holder, instance, expires_ms = self.holder
        mine = (holder, instance) == (body.holder, body.instance)
        if body.epoch is not None and (body.epoch != self.epoch or not mine):
            raise problem(409, "stale_epoch")
        if body.epoch is None and not mine:
            if holder not in ("", body.holder) and expires_ms > self.time.now_ms:
                raise problem(409, "lease_held")
            self.epoch += 1
        self.holder = (body.holder, body.instance, self.time.now_ms + TTL_MS)
        streams = {name: row.seq for name, row in self.streams.items()}
        return LeaseReply(epoch=self.epoch, ttl_s=TTL_MS / 1000, streams=streams, seq=self.head)

    def send_decisions(self, body: bytes) -> DecisionReply:
        """A batch of starts and stops."""
        self.bodies.append(body)
        return self._with_fault(lambda: self._decide(body))

    def send_reports(self, body: bytes) -> ReportReply:
        """A batch of what a cluster shows."""
        self.bodies.append(body)
        return self._with_fault(lambda: self._report(body))

    def promised(self) -> tuple[Reservation, ...]:
        """What room the last ranking promised."""
        return self.rankings[-1].reservations if self.rankings else ()

    def booked(self) -> tuple[BookedRoom, ...]:
        """Where the last ranking had the room of bookings."""
        return self.rankings[-1].booked if self.rankings else ()

    def put_ranking(self, body: RankingDocument) -> RankingReply:
        """Accepts a change only to the ranking it has."""
        return self._with_fault(lambda: self._rank(body))

    # --- inside ---

    def _with_fault(self, work: Callable[[], R]) -> R:
        match self.faults.pop(0) if self.faults else "":
            case "drop":
                raise ServiceUnavailable("the request was lost")
            case "late":
                self.late.append(work)
                raise ServiceUnavailable("no answer in time")
            case "forget":
                work()
                raise ServiceUnavailable("the answer was lost")
            case "double":
                work()
                return work()
            case _:
                return work()

    def _rank(self, body: RankingDocument) -> RankingReply:
        if body.epoch != self.epoch:
            raise problem(409, "stale_epoch")
        last = (self.rankings[-1].epoch, self.rankings[-1].cycle) if self.rankings else None
        if body.base_cycle is not None and (body.epoch, body.base_cycle) != last:
            raise problem(409, "ranking_base_unknown")
        self.rankings.append(body)
        return RankingReply(cycle=body.cycle, seq=self.head)

    def _decide(self, body: bytes) -> DecisionReply:
        batch = DecisionBatch.model_validate_json(body)
        stored = self._replayed(batch.epoch, batch.stream, batch.seq, body)
        if stored is not None:
            assert isinstance(stored, DecisionReply)
            return stored
        touched: Touched = {}
        results = tuple(
            self._start(item, touched) if isinstance(item, StartItem) else self._stop(item, touched)
            for item in batch.items
        )
        reply = DecisionReply(
            stream=batch.stream,
            stream_seq=batch.seq,
            seq=self.head,
            results=results,
            objects=tuple(self._read(*key) for key in touched),
        )
        return self._remember(batch.stream, batch.seq, body, reply)

    def _report(self, body: bytes) -> ReportReply:
        batch = ReportBatch.model_validate_json(body)
        stored = self._replayed(batch.epoch, batch.stream, batch.seq, body)
        if stored is not None:
            assert isinstance(stored, ReportReply)
            return stored
        touched: Touched = {}
        for node in batch.nodes or ():
            self._put_node(batch.cluster, node, touched)
        results = tuple(self._take_report(item, touched) for item in batch.items)
        self.through_ms = max(self.through_ms, batch.observed_through)
        reply = ReportReply(
            stream=batch.stream,
            stream_seq=batch.seq,
            seq=self.head,
            results=results,
            objects=tuple(self._read(*key) for key in touched),
        )
        return self._remember(batch.stream, batch.seq, body, reply)

    def _replayed(self, epoch: int, stream: str, seq: int, body: bytes) -> BaseModel | None:
        if epoch != self.epoch:
            raise problem(409, "stale_epoch")
        row = self.streams.setdefault(stream, StreamRow())
        if seq == row.seq + 1:
            return None
        if seq == row.seq and row.digest == hashlib.sha256(body).hexdigest():
            return row.reply
        raise problem(409, "stale_sequence")

    def _remember(self, stream: str, seq: int, body: bytes, reply: R) -> R:
        self.streams[stream] = StreamRow(seq, hashlib.sha256(body).hexdigest(), reply)
        return reply
