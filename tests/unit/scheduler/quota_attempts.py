"""What starts, stops and reports make of jobs and attempts, in the plainest way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from quota.schemas.scheduling import (
    AttemptObject,
    EndedItem,
    EndReason,
    FindingItem,
    FreedItem,
    ItemResult,
    JobState,
    LostItem,
    NodeCapacityObject,
    NodeObject,
    NodeReport,
    PendingItem,
    ReportItem,
    StartedItem,
    StartItem,
    StopItem,
    StopReason,
    StopRecord,
)
from tests.unit.scheduler.quota_book import QuotaBook, Touched
from tests.unit.scheduler.quota_objects import an_attempt


@dataclass
class QuotaAttempts(QuotaBook):
    """Counts how often an attempt was started and ended, and every breach of the watermark."""

    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, list[EndReason]] = field(default_factory=dict)
    job_ends: dict[str, EndReason] = field(default_factory=dict)
    abandonments: dict[str, int] = field(default_factory=dict)
    through_ms: int = 0
    breaches: list[str] = field(default_factory=list)
    findings: list[FindingItem] = field(default_factory=list)
    refuse_starts: list[str] = field(default_factory=list)
    """Codes with which the next starts are refused."""
    refuse_stops: list[str] = field(default_factory=list)
    """Codes with which the next preemptions are refused."""

    def _start(self, item: StartItem, touched: Touched) -> ItemResult:
        if self.refuse_starts:
            return _result(item, "refused", self.refuse_starts.pop(0))
        job = self.job(item.job_id)
        if job is None or job.state is not JobState.QUEUED or item.attempt != job.attempt + 1:
            return _result(item, "refused", "wrong_state")
        if not self._take(item, touched):
            return _result(item, "refused", "capacity_taken")
        attempt = an_attempt(
            job.id,
            item.attempt,
            organization_id=job.organization_id,
            pods=item.pods,
            grant_id=item.grant_id,
            walltime_ms=job.walltime_ms,
            grace_ms=job.grace_ms,
            claimed_at=self.time.now_ms,
        )
        self.starts[attempt.id] = self.starts.get(attempt.id, 0) + 1
        started = {"state": JobState.STARTING, "attempt": item.attempt}
        self._put(touched, "attempt", attempt.id, attempt)
        self._put(touched, "job", job.id, job.model_copy(update=started))
        self._give_up_room(job.id, touched)
        return _result(item, "accepted")

    def _give_up_room(self, job_id: str, touched: Touched) -> None:
        """The job needs no room any more that others were stopped for."""
        for item in list(self.objects.values()):
            attempt = item.attempt
            if attempt is None or attempt.stop is None or attempt.stop.for_job != job_id:
                continue
            kept = attempt.model_copy(update={"stop": attempt.stop.model_copy(update={"for_job": None})})
            self._put(touched, "attempt", attempt.id, kept if attempt.capacity_held else None)

    def _take(self, item: StartItem, touched: Touched) -> bool:
        before = dict(self.objects)
        for pod in item.pods:
            if not self._move_used(item.cluster, pod.node, pod.count, touched):
                self.objects = before
                return False
        return True

    def _move_used(self, cluster: str, name: str, count: int, touched: Touched) -> bool:
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

    def _stop(self, item: StopItem, touched: Touched) -> ItemResult:
        attempt = self.attempt(f"{item.job_id}-{item.attempt}")
        job = self.job(item.job_id)
        if attempt is None or job is None:
            return _result(item, "refused", "not_found")
        if attempt.state not in (JobState.STARTING, JobState.RUNNING):
            return _result(item, "unchanged", attempt.state.value)
        if item.reason is StopReason.TIME_LIMIT and item.stop_at < _limit_ms(attempt):
            return _result(item, "refused", "extended")  # since the scheduler looked
        if item.reason is StopReason.PREEMPTED and self.refuse_stops:
            return _result(item, "refused", self.refuse_stops.pop(0))
        stop = StopRecord(
            reason=item.reason, stop_at=item.stop_at, grace_ms=item.grace_ms, for_job=item.for_job
        )
        stopping = {"state": JobState.STOPPING}
        self._put(touched, "attempt", attempt.id, attempt.model_copy(update=stopping | {"stop": stop}))
        self._put(touched, "job", job.id, job.model_copy(update=stopping))
        return _result(item, "accepted")

    def _take_report(self, item: ReportItem, touched: Touched) -> ItemResult:
        if isinstance(item, FindingItem):
            self.findings.append(item)
            return _result(item, "accepted")
        attempt = self.attempt(f"{item.job_id}-{item.attempt}")
        if attempt is None:
            return _result(item, "unchanged", "ended")
        match item:
            case StartedItem():
                self._started(attempt, item, touched)
            case PendingItem():
                if attempt.state is JobState.STARTING:
                    told = attempt.model_copy(update={"detail": item.detail})
                    self._put(touched, "attempt", attempt.id, told)
            case EndedItem():
                self._watch(item, item.ended_at)
                self._ended(attempt, item, touched, free=True)
            case LostItem():
                self._ended(attempt, item, touched, free=False)
            case FreedItem():
                assert attempt.state is JobState.ENDED, "freed before it ended"
                self._free(attempt, touched)
        return _result(item, "accepted")

    def _started(self, attempt: AttemptObject, item: StartedItem, touched: Touched) -> None:
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
        touched: Touched,
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

    def _after(self, attempt: AttemptObject, reason: EndReason, touched: Touched) -> None:
        job = self.job(attempt.job_id)
        assert job is not None
        abandoned = reason is EndReason.ABANDONED
        times = self.abandonments[job.id] = self.abandonments.get(job.id, 0) + abandoned
        comes_again = (EndReason.NODE_FAILED, EndReason.REQUEUED, EndReason.PREEMPTED)
        again = (abandoned and times < 3) or reason in comes_again
        if again and job.cancel_requested_at is None:
            changed: dict[str, object] = {"state": JobState.QUEUED}
            if reason is EndReason.PREEMPTED:
                changed["preempted_at"] = (*job.preempted_at, self.time.now_ms)
            self._put(touched, "job", job.id, job.model_copy(update=changed))
            return
        cancelled = job.cancel_requested_at is not None and reason is not EndReason.SUCCEEDED
        self.job_ends[job.id] = EndReason.CANCELLED if cancelled else reason
        self._put(touched, "job", job.id, None)

    def _free(self, attempt: AttemptObject, touched: Touched) -> None:
        for pod in attempt.pods:
            self._move_used(attempt.cluster, pod.node, -pod.count, touched)
        kept = attempt.stop is not None and attempt.stop.for_job is not None
        freed = attempt.model_copy(update={"capacity_held": False}) if kept else None
        self._put(touched, "attempt", attempt.id, freed)

    def _watch(self, item: StartedItem | EndedItem, at_ms: int) -> None:
        if at_ms < self.through_ms:
            self.breaches.append(f"{item} reported after the watermark {self.through_ms}")

    def _put_node(self, cluster: str, report: NodeReport, touched: Touched) -> None:
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


def _end_reason(attempt: AttemptObject, item: EndedItem | LostItem) -> EndReason:
    if isinstance(item, LostItem) or item.reason == "node_lost":
        return EndReason.NODE_FAILED
    if item.reason == "completed" and item.exit_code == 0:
        return EndReason.SUCCEEDED
    if attempt.stop is None:
        return EndReason.ABANDONED if item.first_started_at is None else EndReason.FAILED
    if attempt.stop.reason is StopReason.GPU_FAILED:
        return EndReason.NODE_FAILED
    return EndReason(attempt.stop.reason.value)


def _limit_ms(attempt: AttemptObject) -> int:
    assert attempt.last_started_at is not None, "a limit counts from the last start"
    return attempt.last_started_at + attempt.walltime_ms


def _result(item: Any, outcome: str, code: str = "") -> ItemResult:
    return ItemResult.model_validate(
        {"job_id": item.job_id, "attempt": item.attempt, "outcome": outcome, "code": code}
    )
