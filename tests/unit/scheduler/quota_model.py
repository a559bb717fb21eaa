"""The quota service in memory, as far as a scheduler can see it: lease, feed, streams, decisions, reports.

It keeps the contract's promises in the plainest way and records what the tests ask about: how often an
attempt was started and ended, and every breach of the watermark.
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
    AccountBalance,
    AccountPath,
    AttemptObject,
    ClusterObject,
    DecisionBatch,
    DecisionReply,
    EndedItem,
    EndReason,
    FeedItem,
    FeedKind,
    FeedPage,
    FindingItem,
    FreedItem,
    GpuClassObject,
    GrantObject,
    ItemResult,
    JobObject,
    JobState,
    LeaseReply,
    LeaseRequest,
    LostItem,
    NodeCapacityObject,
    NodeObject,
    NodeReport,
    OrganizationObject,
    PolicyObject,
    RankingDocument,
    RankingReply,
    ReportBatch,
    ReportItem,
    ReportReply,
    SnapshotPage,
    StartedItem,
    StartItem,
    StopItem,
    StopReason,
    StopRecord,
)
from quota.schemas.service import Problem
from tests.unit.scheduler.cluster_model import Time

R = TypeVar("R", bound=BaseModel)
TTL_MS = 15_000
YEAR_MS = 366 * 86_400_000


def problem(status: int, code: str, detail: str = "") -> ServiceProblem:
    """A refusal as the client raises it."""
    return ServiceProblem(Problem(type="about:blank", title=code, status=status, code=code, detail=detail))


@dataclass
class StreamRow:
    """The last batch of a stream."""

    seq: int = 0
    digest: str = ""
    reply: BaseModel | None = None


@dataclass
class QuotaModel:
    """`faults` are taken one by one by the next decision, report or ranking: drop, forget, late."""

    time: Time
    faults: list[str] = field(default_factory=list)
    late: list[Callable[[], object]] = field(default_factory=list)
    head: int = 0
    oldest: int = 0
    objects: dict[tuple[FeedKind, str], FeedItem] = field(default_factory=dict)
    feed: dict[tuple[FeedKind, str], int] = field(default_factory=dict)
    epoch: int = 0
    holder: tuple[str, str, int] = ("", "", 0)
    streams: dict[str, StreamRow] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, list[EndReason]] = field(default_factory=dict)
    job_ends: dict[str, EndReason] = field(default_factory=dict)
    abandonments: dict[str, int] = field(default_factory=dict)
    through_ms: int = 0
    breaches: list[str] = field(default_factory=list)
    findings: list[FindingItem] = field(default_factory=list)
    rankings: list[RankingDocument] = field(default_factory=list)
    refuse_starts: list[str] = field(default_factory=list)
    """Codes with which the next starts are refused."""

    def __post_init__(self) -> None:
        now_ms = self.time.now_ms
        self._change(
            ("policy", "default", PolicyObject(
                half_life_ms=7 * 86_400_000, lag_bound_thousandths=100, cluster_unseen_wall_s=60,
                start_limit_wall_s=600, abandonments_limit=3)),
            ("cluster", "sim", ClusterObject(id="sim", paused=False, observed_through=None)),
            ("gpu_class", "h100", GpuClassObject(id="h100", rate_id="r1", rate_thousandths=1000)),
            ("organization", "alpha", OrganizationObject(
                id="alpha", frozen=False, decayed_usage_gpu_us=0.0, decayed_as_of=now_ms)),
            ("grant", "g1", GrantObject(
                id="g1", program_id="p1", organization_id="alpha", starts_at=now_ms - YEAR_MS,
                ends_at=now_ms + YEAR_MS, pace=None,
                paths=(AccountPath(accounts=(AccountBalance(
                    id="a1", granted_gpu_us=10**17, held_gpu_us=0, used_gpu_us=0),)),))),
        )  # fmt: skip

    # --- what people do ---

    def submit(self, job_id: str, **changes: Any) -> JobObject:
        """A job waits."""
        job = a_job(job_id, submitted_at=self.time.now_ms).model_copy(update=changes)
        self._change(("job", job_id, job))
        return job

    def cancel(self, job_id: str) -> None:
        """A waiting job ends at once, a placed one is asked to stop."""
        job = self.job(job_id)
        if job is None or job.cancel_requested_at is not None:
            return
        if job.state is JobState.QUEUED:
            self.job_ends[job_id] = EndReason.CANCELLED
            self._change(("job", job_id, None))
        else:
            self._change(("job", job_id, job.model_copy(update={"cancel_requested_at": self.time.now_ms})))

    def job(self, job_id: str) -> JobObject | None:
        """A job that has not ended."""
        item = self.objects.get(("job", job_id))
        return None if item is None else item.job

    def attempt(self, ident: str) -> AttemptObject | None:
        """An attempt that has not ended or keeps its capacity."""
        item = self.objects.get(("attempt", ident))
        return None if item is None else item.attempt

    def used(self) -> int:
        """GPUs given away."""
        nodes = [item.node for item in self.objects.values() if item.node is not None]
        return sum(capacity.used for node in nodes for capacity in node.capacities)

    def expire_cursors(self) -> None:
        """The feed no longer reaches back."""
        self.oldest = self.head
        self._change(("organization", "alpha", self.objects["organization", "alpha"].organization))

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

    def read_snapshot(self, after: str | None = None, limit: int = 3) -> SnapshotPage:
        """Small pages, so that several are needed."""
        cursor, start = (self.head, 0) if after is None else map(int, after.split("|"))
        items = sorted(self.objects.values(), key=lambda item: (item.kind, item.id))
        page = tuple(self._as_read(item) for item in items[start : start + 3])
        more = start + 3 < len(items)
        return SnapshotPage(cursor=cursor, items=page, next=f"{cursor}|{start + 3}" if more else None)

    def follow_feed(self, after: int, wait_s: float = 25.0, limit: int = 2000) -> FeedPage:
        """Everything that changed after the cursor."""
        if not self.oldest <= after <= self.head:
            raise problem(410, "cursor_expired")
        changed = [key for key, seq in self.feed.items() if seq > after]
        return FeedPage(cursor=self.head, items=tuple(self._read(*key) for key in changed))

    def send_decisions(self, body: bytes) -> DecisionReply:
        """A batch of starts and stops."""
        self.bodies.append(body)
        return self._with_fault(lambda: self._decide(body))

    def send_reports(self, body: bytes) -> ReportReply:
        """A batch of what a cluster shows."""
        self.bodies.append(body)
        return self._with_fault(lambda: self._report(body))

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
        touched: dict[tuple[FeedKind, str], None] = {}
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
        touched: dict[tuple[FeedKind, str], None] = {}
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

    def _start(self, item: StartItem, touched: dict[tuple[FeedKind, str], None]) -> ItemResult:
        if self.refuse_starts:
            return _result(item, "refused", self.refuse_starts.pop(0))
        job = self.job(item.job_id)
        if job is None or job.state is not JobState.QUEUED or item.attempt != job.attempt + 1:
            return _result(item, "refused", "wrong_state")
        if not self._take(item, touched):
            return _result(item, "refused", "capacity_taken")
        attempt = an_attempt(job.id, item.attempt, pods=item.pods, claimed_at=self.time.now_ms)
        self.starts[attempt.id] = self.starts.get(attempt.id, 0) + 1
        started = {"state": JobState.STARTING, "attempt": item.attempt}
        self._put(touched, "attempt", attempt.id, attempt)
        self._put(touched, "job", job.id, job.model_copy(update=started))
        return _result(item, "accepted")

    def _take(self, item: StartItem, touched: dict[tuple[FeedKind, str], None]) -> bool:
        before = dict(self.objects)
        for pod in item.pods:
            if not self._move_used(item.cluster, pod.node, pod.count, touched):
                self.objects = before
                return False
        return True

    def _move_used(
        self, cluster: str, name: str, count: int, touched: dict[tuple[FeedKind, str], None]
    ) -> bool:
        item = self.objects[("node", f"{cluster}/{name}")]
        assert item.node is not None
        capacity = item.node.capacities[0]
        used = capacity.used + count
        if count > 0 and not (item.node.schedulable and used <= capacity.total):
            return False
        assert used >= 0, "capacity was freed twice"
        capacities = (capacity.model_copy(update={"used": used}),)
        changed = item.node.model_copy(update={"capacities": capacities})
        self._put(touched, "node", f"{cluster}/{name}", changed)
        return True

    def _stop(self, item: StopItem, touched: dict[tuple[FeedKind, str], None]) -> ItemResult:
        attempt = self.attempt(f"{item.job_id}-{item.attempt}")
        job = self.job(item.job_id)
        if attempt is None or job is None:
            return _result(item, "refused", "not_found")
        if attempt.state not in (JobState.STARTING, JobState.RUNNING):
            return _result(item, "unchanged", attempt.state.value)
        stop = StopRecord(reason=item.reason, stop_at=item.stop_at, grace_ms=item.grace_ms)
        stopping = {"state": JobState.STOPPING}
        self._put(touched, "attempt", attempt.id, attempt.model_copy(update=stopping | {"stop": stop}))
        self._put(touched, "job", job.id, job.model_copy(update=stopping))
        return _result(item, "accepted")

    def _take_report(self, item: ReportItem, touched: dict[tuple[FeedKind, str], None]) -> ItemResult:
        if isinstance(item, FindingItem):
            self.findings.append(item)
            return _result(item, "accepted")
        attempt = self.attempt(f"{item.job_id}-{item.attempt}")
        if attempt is None:
            return _result(item, "unchanged", "ended")
        match item:
            case StartedItem():
                self._started(attempt, item, touched)
            case EndedItem():
                self._watch(item, item.ended_at)
                self._ended(attempt, item, touched, free=True)
            case LostItem():
                self._ended(attempt, item, touched, free=False)
            case FreedItem():
                assert attempt.state is JobState.ENDED, "freed before it ended"
                self._free(attempt, touched)
        return _result(item, "accepted")

    def _started(
        self, attempt: AttemptObject, item: StartedItem, touched: dict[tuple[FeedKind, str], None]
    ) -> None:
        if attempt.first_started_at is None:
            self._watch(item, item.first_started_at)
        times = {"first_started_at": item.first_started_at, "last_started_at": item.last_started_at}
        running = attempt.state is JobState.STARTING and item.last_started_at is not None
        state = JobState.RUNNING if running else attempt.state
        self._put(touched, "attempt", attempt.id, attempt.model_copy(update=times | {"state": state}))
        job = self.job(attempt.job_id)
        assert job is not None
        self._put(touched, "job", job.id, job.model_copy(update={"state": state}))

    def _ended(
        self,
        attempt: AttemptObject,
        item: EndedItem | LostItem,
        touched: dict[tuple[FeedKind, str], None],
        *,
        free: bool,
    ) -> None:
        if attempt.state is not JobState.ENDED:
            ended_at = item.ended_at if isinstance(item, EndedItem) else item.last_seen_at
            attempt = attempt.model_copy(update={"state": JobState.ENDED, "ended_at": ended_at})
            self._put(touched, "attempt", attempt.id, attempt)
            reason = _end_reason(attempt, item)
            self.ends.setdefault(attempt.id, []).append(reason)
            self._after(attempt, reason, touched)
        if free:
            self._free(attempt, touched)

    def _after(
        self, attempt: AttemptObject, reason: EndReason, touched: dict[tuple[FeedKind, str], None]
    ) -> None:
        job = self.job(attempt.job_id)
        assert job is not None
        abandoned = reason is EndReason.ABANDONED
        times = self.abandonments[job.id] = self.abandonments.get(job.id, 0) + abandoned
        again = (abandoned and times < 3) or reason is EndReason.NODE_FAILED
        if again and job.cancel_requested_at is None:
            self._put(touched, "job", job.id, job.model_copy(update={"state": JobState.QUEUED}))
            return
        cancelled = job.cancel_requested_at is not None and reason is not EndReason.SUCCEEDED
        self.job_ends[job.id] = EndReason.CANCELLED if cancelled else reason
        self._put(touched, "job", job.id, None)

    def _free(self, attempt: AttemptObject, touched: dict[tuple[FeedKind, str], None]) -> None:
        for pod in attempt.pods:
            self._move_used(attempt.cluster, pod.node, -pod.count, touched)
        self._put(touched, "attempt", attempt.id, None)

    def _watch(self, item: StartedItem | EndedItem, at_ms: int) -> None:
        if at_ms < self.through_ms:
            self.breaches.append(f"{item} reported after the watermark {self.through_ms}")

    def _put_node(self, cluster: str, report: NodeReport, touched: dict[tuple[FeedKind, str], None]) -> None:
        known = self.objects.get(("node", f"{cluster}/{report.node}"))
        used = known.node.capacities[0].used if known is not None and known.node is not None else 0
        capacities = tuple(
            NodeCapacityObject(gpu_class=count.gpu_class, total=count.total, foreign=count.foreign, used=used)
            for count in report.classes
        )
        node = NodeObject(
            cluster=cluster, node=report.node, schedulable=report.schedulable, capacities=capacities
        )
        self._put(touched, "node", f"{cluster}/{report.node}", node)

    # --- the feed ---

    def _change(self, *changes: tuple[FeedKind, str, BaseModel | None]) -> None:
        for kind, ident, found in changes:
            self._put({}, kind, ident, found)

    def _put(
        self,
        touched: dict[tuple[FeedKind, str], None],
        kind: FeedKind,
        ident: str,
        found: BaseModel | None,
    ) -> None:
        self.head += 1
        touched[kind, ident] = None
        self.feed[kind, ident] = self.head
        if found is None:
            self.objects.pop((kind, ident), None)
        else:
            self.objects[kind, ident] = FeedItem.model_validate(
                {"kind": kind, "id": ident, "seq": self.head, kind: found}
            )

    def _read(self, kind: FeedKind, ident: str) -> FeedItem:
        item = self.objects.get((kind, ident))
        return (
            FeedItem(kind=kind, id=ident, seq=self.head, gone=True) if item is None else self._as_read(item)
        )

    def _as_read(self, item: FeedItem) -> FeedItem:
        return item.model_copy(update={"seq": self.head})


def a_job(job_id: str = "job-1", **changes: Any) -> JobObject:
    """A waiting job for one GPU."""
    words: dict[str, Any] = {
        "id": job_id,
        "organization_id": "alpha",
        "grant_id": None,
        "gpu_class": "h100",
        "gpus_per_pod": 1,
        "pods": 1,
        "walltime_ms": 3_600_000,
        "grace_ms": 30_000,
        "restartable": True,
        "submitted_at": 1_800_000_000_000,
        "state": JobState.QUEUED,
        "attempt": 0,
        "not_before": None,
        "cancel_requested_at": None,
    }
    return JobObject.model_validate(words | changes)


def an_attempt(job_id: str = "job-1", number: int = 1, **changes: Any) -> AttemptObject:
    """An attempt that was claimed a moment ago, for one GPU on n0."""
    words: dict[str, Any] = {
        "id": f"{job_id}-{number}",
        "job_id": job_id,
        "organization_id": "alpha",
        "attempt": number,
        "state": JobState.STARTING,
        "cluster": "sim",
        "pods": ({"index": 0, "node": "n0", "gpu_class": "h100", "count": 1},),
        "grant_id": "g1",
        "hold_id": f"{job_id}:{number}:hold",
        "cost_gpu_us": 3_600_000_000,
        "walltime_ms": 3_600_000,
        "grace_ms": 30_000,
        "claimed_at": 1_800_000_000_000,
        "first_started_at": None,
        "last_started_at": None,
        "ended_at": None,
        "capacity_held": True,
        "stop": None,
    }
    return AttemptObject.model_validate(words | changes)


def _end_reason(attempt: AttemptObject, item: EndedItem | LostItem) -> EndReason:
    if isinstance(item, LostItem) or item.reason == "node_lost":
        return EndReason.NODE_FAILED
    if item.reason == "completed" and item.exit_code == 0:
        return EndReason.SUCCEEDED
    if attempt.stop is None:
        return EndReason.ABANDONED if item.first_started_at is None else EndReason.FAILED
    match attempt.stop.reason:
        case StopReason.CANCELLED:
            return EndReason.CANCELLED
        case StopReason.TIME_LIMIT:
            return EndReason.TIME_LIMIT
        case StopReason.PREEMPTED:
            return EndReason.PREEMPTED
        case StopReason.ABANDONED:
            return EndReason.ABANDONED


def _result(item: Any, outcome: str, code: str = "") -> ItemResult:
    return ItemResult.model_validate(
        {"job_id": item.job_id, "attempt": item.attempt, "outcome": outcome, "code": code}
    )
