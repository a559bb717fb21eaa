"""Reports of a cluster: what runs, what ended, what was lost; the watermark that lets slices close."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Literal, assert_never

from sqlalchemy import BindParameter, Row, bindparam, select, tuple_, update

from quota.audit import service as audit
from quota.db import Tx
from quota.dispatch import lease, objects, streams
from quota.dispatch.policy import ABANDONMENTS_LIMIT, COOLDOWN_WALL_S
from quota.errors import NotFound
from quota.fleet import service as fleet
from quota.fleet.tables import clusters
from quota.jobs import faults, settlement
from quota.jobs.states import AttemptEnd, End, Requeue, after_attempt
from quota.jobs.tables import attempts, jobs, placements
from quota.prepared import Prepared
from quota.schemas.scheduling import (
    EndedItem,
    FindingItem,
    FreedItem,
    ItemResult,
    JobState,
    LostItem,
    PendingItem,
    PodPlacement,
    ReportBatch,
    ReportItem,
    ReportReply,
    StartedItem,
    StopReason,
)
from quota.schemas.values import built

TOLERANCE_MS = 2000
"""A cluster's time may lie this much before the claim or after now (its clock, not ours)."""

Outcome = Literal["accepted", "unchanged", "refused"]

_THIS = (attempts.c.job_id == bindparam("job"), attempts.c.attempt == bindparam("number"))
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_KEYS: BindParameter[Any] = bindparam("keys", expanding=True)
"""(job, attempt). The jobs go by themselves as well: for pairs alone SQLite reads the whole table."""
_CLUSTER = Prepared(select(clusters.c.id).where(clusters.c.id == bindparam("cluster")))
_JOBS = Prepared(
    select(jobs).where(jobs.c.id.in_(_IDS)).order_by(jobs.c.id).with_for_update(),
    lists=("ids",),
)
_ATTEMPTS = Prepared(
    select(attempts)
    .where(attempts.c.job_id.in_(_IDS), tuple_(attempts.c.job_id, attempts.c.attempt).in_(_KEYS))
    .order_by(attempts.c.job_id, attempts.c.attempt)
    .with_for_update(),
    lists=("ids", "keys"),
)
_PODS = Prepared(
    select(placements)
    .where(placements.c.job_id.in_(_IDS), tuple_(placements.c.job_id, placements.c.attempt).in_(_KEYS))
    .order_by(placements.c.pod_index),
    lists=("ids", "keys"),
)
_STARTED = Prepared(
    update(attempts)
    .where(*_THIS)
    .values(
        state=bindparam("becomes"),
        first_started_at_ms=bindparam("first"),
        last_started_at_ms=bindparam("last"),
    )
)
_JOB_RUNS = Prepared(update(jobs).where(jobs.c.id == bindparam("job")).values(state=JobState.RUNNING.value))
_END = Prepared(
    update(attempts)
    .where(*_THIS)
    .values(
        state=JobState.ENDED.value,
        first_started_at_ms=bindparam("first"),
        last_started_at_ms=bindparam("last"),
        ended_at_ms=bindparam("ended"),
        exit_code=bindparam("code"),
        end_reason=bindparam("why"),
        lost=bindparam("was_lost"),
        detail=bindparam("said"),
    )
)
_SAY = Prepared(update(attempts).where(*_THIS).values(detail=bindparam("said")))
_TRUE_END = Prepared(update(attempts).where(*_THIS).values(ended_at_ms=bindparam("truth")))
_FREE = Prepared(update(attempts).where(*_THIS).values(capacity_held=False))
_END_JOB = Prepared(
    update(jobs)
    .where(jobs.c.id == bindparam("job"))
    .values(state=JobState.ENDED.value, end_reason=bindparam("why"), ended_at_ms=bindparam("ended"))
)
_REQUEUE_JOB = Prepared(
    update(jobs)
    .where(jobs.c.id == bindparam("job"))
    .values(state=JobState.QUEUED.value, not_before_ms=bindparam("wait"), abandonments=bindparam("counted"))
)


@dataclass
class _Report:
    """A batch and what it speaks of, read once; `stale` names the jobs that an earlier item changed."""

    cluster: str
    observed_ms: int
    clock_speed: int
    evidence: str
    """`report:<cluster>:<number>`: what its transfers rest on."""
    jobs: dict[str, Row[Any]] = field(default_factory=dict)
    attempts: dict[tuple[str, int], Row[Any]] = field(default_factory=dict)
    pods: dict[tuple[str, int], list[Row[Any]]] = field(default_factory=lambda: defaultdict(list))
    stale: set[str] = field(default_factory=set)
    gone: set[tuple[str, str]] = field(default_factory=set)
    """Objects that this report took out of the feed for good: ended jobs, attempts that keep nothing."""

    def read_again(self, tx: Tx, key: tuple[str, int]) -> None:
        """Read the job and the attempt as this transaction left them."""
        self.jobs[key[0]] = _JOBS.one(tx.connection, {"ids": [key[0]]})
        self.attempts[key] = _ATTEMPTS.one(tx.connection, {"ids": [key[0]], "keys": [key]})


def report(tx: Tx, batch: ReportBatch, body: bytes, clock_speed: int) -> streams.Answer[ReportReply]:
    """Take over what a cluster shows, then close slices up to its watermark.

    Raises StaleEpoch, StaleSequence, NotFound for an unknown cluster.
    """
    lease.check_epoch(tx, batch.epoch)
    stored = streams.replayed(tx, batch.stream, batch.seq, body, ReportReply)
    if stored is not None:
        return stored
    if batch.nodes is not None:
        _must_be_known(tx, batch.cluster)
        fleet.store_nodes(tx, batch.cluster, batch.nodes)
    seen = _lock_rows(tx, batch, clock_speed)
    results = tuple(_item(tx, seen, item) for item in batch.items)
    # a watermark from the future would close slices that are not over
    through = min(batch.observed_through, tx.now_ms)
    if not fleet.advance_watermark(tx, batch.cluster, through):
        _must_be_known(tx, batch.cluster)
    settlement.settle_cluster(tx, batch.cluster, through, seen.evidence)
    seq = tx.publish() or 0
    reply = built(
        ReportReply,
        stream=batch.stream,
        stream_seq=batch.seq,
        seq=seq,
        results=results,
        objects=objects.load(tx.connection, tx.touched, seq, tx.now_ms, seen.gone) if seq else (),
    )
    return streams.remember(tx, batch.stream, batch.seq, body, reply)


def _must_be_known(tx: Tx, cluster: str) -> None:
    if _CLUSTER.one_or_none(tx.connection, {"cluster": cluster}) is None:
        raise NotFound("there is no cluster {cluster}", field="cluster", cluster=cluster)


def _lock_rows(tx: Tx, batch: ReportBatch, clock_speed: int) -> _Report:
    """The jobs and attempts that the batch speaks of, locked in the order of ids."""
    keys = sorted({(item.job_id, item.attempt) for item in batch.items})
    evidence = f"report:{batch.cluster}:{batch.seq}"
    seen = _Report(batch.cluster, batch.observed_through, clock_speed, evidence)
    for start in range(0, len(keys), 300):
        part = keys[start : start + 300]
        ids = [job_id for job_id, _ in part]
        spoken_of = {"ids": ids, "keys": part}
        for job in _JOBS.all(tx.connection, {"ids": ids}):
            seen.jobs[job.id] = job
        for row in _ATTEMPTS.all(tx.connection, spoken_of):
            seen.attempts[(row.job_id, row.attempt)] = row
        for pod in _PODS.all(tx.connection, spoken_of):
            seen.pods[(pod.job_id, pod.attempt)].append(pod)
    return seen


def _item(tx: Tx, seen: _Report, item: ReportItem) -> ItemResult:
    if isinstance(item, FindingItem):
        audit.find(tx, item.code, f"{item.job_id}-{item.attempt}", item.detail)
        return _result(item, "accepted")
    key = (item.job_id, item.attempt)
    if item.job_id in seen.stale and key in seen.attempts:
        seen.read_again(tx, key)
    job, row = seen.jobs.get(item.job_id), seen.attempts.get(key)
    if job is None or row is None or row.cluster != seen.cluster:
        audit.find(
            tx, "unknown_attempt", f"{item.job_id}-{item.attempt}", f"reported {item.kind} by {seen.cluster}"
        )
        return _result(item, "refused", "not_found")
    seen.stale.add(item.job_id)
    match item:
        case StartedItem():
            return _result(item, _started(tx, job, row, item, seen.observed_ms))
        case PendingItem():
            return _result(item, _pending(tx, row, item))
        case EndedItem():
            return _result(item, _ended(tx, job, row, item, seen))
        case LostItem():
            return _result(item, _lost(tx, job, row, item, seen))
        case FreedItem():
            if row.state != JobState.ENDED.value:
                subject = f"{row.job_id}-{row.attempt}"
                audit.find(tx, "freed_before_its_end", subject, f"reported freed while {row.state}")
                return _result(item, "refused", "wrong_state")
            return _result(item, _freed(tx, row, seen, item.ended_at))
        case _:
            assert_never(item)


def _started(tx: Tx, job: Row[Any], row: Row[Any], item: StartedItem, observed_ms: int) -> Outcome:
    if row.state == JobState.ENDED.value or row.last_started_at_ms is not None:
        return "unchanged"
    first, last = _start_times(tx, row, item.first_started_at, item.last_started_at, observed_ms)
    if (first, last) == (row.first_started_at_ms, row.last_started_at_ms):
        return "unchanged"
    values: dict[str, Any] = {"becomes": row.state, "first": first, "last": last}
    if last is not None and row.state == JobState.STARTING.value:
        values["becomes"] = JobState.RUNNING.value
        _JOB_RUNS.change(tx.connection, {"job": job.id})
        tx.touch("job", job.id)
    _STARTED.change(tx.connection, values | {"job": row.job_id, "number": row.attempt})
    tx.touch("attempt", f"{row.job_id}-{row.attempt}")
    return "accepted"


def _pending(tx: Tx, row: Row[Any], item: PendingItem) -> Outcome:
    # what is said late, of an attempt that has started or ended since, is not news
    if row.state != JobState.STARTING.value or row.detail == item.detail:
        return "unchanged"
    _SAY.change(tx.connection, {"said": item.detail, "job": row.job_id, "number": row.attempt})
    tx.touch("attempt", f"{row.job_id}-{row.attempt}")
    return "accepted"


def _ended(tx: Tx, job: Row[Any], row: Row[Any], item: EndedItem, seen: _Report) -> Outcome:
    if row.state == JobState.ENDED.value:
        # an attempt reported lost whose pods are now known to be gone
        return _freed(tx, row, seen, item.ended_at)
    first, last, ended = _times(tx, row, item, item.ended_at, seen.observed_ms)
    started = first is not None
    end = AttemptEnd(
        succeeded=item.reason == "completed" and item.exit_code == 0,
        started=started,
        lost=item.reason == "node_lost",
        stop_reason=_reason(row.stop_reason),
        stop_asked=_reason(row.stop_asked),
    )
    # the words about a slow start are no word about an end
    said = item.detail or (None if started else row.detail)
    verdict_id = _fault_of(tx, row, end, ended)
    if verdict_id is not None:
        end, said = replace(end, gpu_fault=True), faults.told(verdict_id)
    _end(tx, job, row, end, (first, last, ended), (item.exit_code, said), seen)
    _freed(tx, row, seen, None)
    return "accepted"


def _fault_of(tx: Tx, row: Row[Any], end: AttemptEnd, ended_ms: int) -> str | None:
    """The verdict that an attempt was stopped for, or of whose fault it died; None if neither."""
    if end.succeeded or end.lost or not end.started:
        return None
    # what was to be stopped for a fault may end before the scheduler has recorded it
    reason = end.stop_asked if end.stop_reason is None else end.stop_reason
    found = faults.stopped_for(tx, row.job_id, row.attempt) if reason is StopReason.GPU_FAILED else None
    if found is None and end.stop_reason is None:
        return faults.dies_of(tx, row.job_id, row.attempt, ended_ms)
    return found


def _lost(tx: Tx, job: Row[Any], row: Row[Any], item: LostItem, seen: _Report) -> Outcome:
    if row.state == JobState.ENDED.value:
        return "unchanged"
    first, last, ended = _times(tx, row, item, item.last_seen_at, seen.observed_ms)
    end = AttemptEnd(
        succeeded=False,
        started=first is not None,
        lost=True,
        stop_reason=_reason(row.stop_reason),
        stop_asked=_reason(row.stop_asked),
    )
    _end(tx, job, row, end, (first, last, ended), (None, "node_lost"), seen)
    return "accepted"


def _freed(tx: Tx, row: Row[Any], seen: _Report, truth_ms: int | None) -> Outcome:
    """Free the capacity; of a lost attempt the true end may be known now, and the ledger follows it."""
    if not row.capacity_held:
        return "unchanged"
    if row.lost and row.first_started_at_ms is not None and truth_ms is not None:
        truth_ms = min(max(truth_ms, row.first_started_at_ms), tx.now_ms)
        if truth_ms < row.ended_at_ms:
            settlement.correct_after(tx, row, truth_ms, seen.evidence)
            _TRUE_END.change(tx.connection, {"job": row.job_id, "number": row.attempt, "truth": truth_ms})
        elif truth_ms > row.ended_at_ms:
            settlement.extend_lost(tx, row, truth_ms, seen.evidence)
    pods = [
        built(PodPlacement, index=pod.pod_index, node=pod.node, gpu_class=pod.gpu_class, count=pod.gpus)
        for pod in seen.pods[(row.job_id, row.attempt)]
    ]
    fleet.give_back_capacity(tx, row.cluster, pods)
    _FREE.change(tx.connection, {"job": row.job_id, "number": row.attempt})
    tx.touch("attempt", f"{row.job_id}-{row.attempt}")
    if row.stop_for_job is None:
        seen.gone.add(("attempt", f"{row.job_id}-{row.attempt}"))
    return "accepted"


def _end(
    tx: Tx,
    job: Row[Any],
    row: Row[Any],
    end: AttemptEnd,
    times: tuple[int | None, int | None, int],
    told: tuple[int | None, str | None],
    seen: _Report,
) -> None:
    """Record the attempt's end, take back what was settled after it, and move the job on.

    `times` are those of `_times`: first start, last start, end. `told`: the exit code, and the cluster's words.
    """
    first, last, ended = times
    exit_code, detail_text = told
    verdict = after_attempt(
        end,
        cancel_requested=job.cancel_requested_at_ms is not None,
        restartable=job.restartable,
        attempt=row.attempt,
        abandonments=job.abandonments,
        limit=ABANDONMENTS_LIMIT,
        opportunistic=row.opportunistic,
    )
    if end.gpu_fault:
        outcome = "requeued" if isinstance(verdict, Requeue) else "ended"
        faults.close(tx, row.job_id, row.attempt, ended, outcome, detail_text)
    settlement.correct_after(tx, row, ended if first is not None else 0, seen.evidence)
    _END.change(
        tx.connection,
        {
            "job": row.job_id,
            "number": row.attempt,
            "first": first,
            "last": last,
            "ended": ended,
            "code": exit_code,
            "why": verdict.reason.value,
            "was_lost": end.lost,
            "said": detail_text,
        },
    )
    tx.touch("attempt", f"{row.job_id}-{row.attempt}")
    # the slices up to this end close with the watermark, at the end of this report
    match verdict:
        case End(reason=reason):
            values = {"job": job.id, "why": reason.value, "ended": ended}
            _END_JOB.change(tx.connection, values)
            seen.gone.add(("job", job.id))
        case Requeue(abandoned=abandoned):
            pause_ms = COOLDOWN_WALL_S * 1000 * 2**job.abandonments * seen.clock_speed if abandoned else 0
            values = {
                "job": job.id,
                "wait": tx.now_ms + pause_ms if pause_ms else None,
                "counted": job.abandonments + (1 if abandoned else 0),
            }
            _REQUEUE_JOB.change(tx.connection, values)
        case _:
            assert_never(verdict)
    tx.touch("job", job.id)
    detail: dict[str, object] = {
        "attempt": row.attempt,
        "end_reason": verdict.reason.value,
        "exit_code": exit_code,
        "requeued": isinstance(verdict, Requeue),
    }
    audit.record(tx, "scheduler", "attempt.end", job.id, detail=detail)


def _times(
    tx: Tx, row: Row[Any], item: EndedItem | LostItem, ended_ms: int, observed_ms: int
) -> tuple[int | None, int | None, int]:
    """The attempt's times, each made possible: ordered, after the claim, not in the future."""
    first, last = row.first_started_at_ms, row.last_started_at_ms
    if last is None and item.first_started_at is not None:
        first, last = _start_times(tx, row, item.first_started_at, item.last_started_at, observed_ms)
    ended = _possible(tx, row, "ended_at", ended_ms, observed_ms)
    latest_start = max(last or 0, first or 0)
    if ended < latest_start:
        subject = f"{row.job_id}-{row.attempt}"
        audit.find(tx, "impossible_time", subject, f"ended_at {ended} before the last start {latest_start}")
        ended = latest_start
    return first, last, ended


def _start_times(
    tx: Tx, row: Row[Any], first_ms: int, last_ms: int | None, observed_ms: int
) -> tuple[int, int | None]:
    first = row.first_started_at_ms
    if first is None:
        first = _possible(tx, row, "first_started_at", first_ms, observed_ms)
    if last_ms is None:
        return first, None
    last = _possible(tx, row, "last_started_at", last_ms, observed_ms)
    if last < first:
        subject = f"{row.job_id}-{row.attempt}"
        audit.find(tx, "impossible_time", subject, f"last_started_at {last} before the first start {first}")
        last = first
    return first, last


def _possible(tx: Tx, row: Row[Any], name: str, moment_ms: int, observed_ms: int) -> int:
    """The cluster's time if it lies in [claim - 2 s, now + 2 s], else the observation's, with a finding."""
    if row.claimed_at_ms - TOLERANCE_MS <= moment_ms <= tx.now_ms + TOLERANCE_MS:
        return moment_ms
    observed: int = min(max(observed_ms, row.claimed_at_ms), tx.now_ms)
    detail = f"{name} {moment_ms} is outside [{row.claimed_at_ms} - 2 s, {tx.now_ms} + 2 s]; {observed} used"
    audit.find(tx, "impossible_time", f"{row.job_id}-{row.attempt}", detail)
    return observed


def _reason(stored: str | None) -> StopReason | None:
    return None if stored is None else StopReason(stored)


def _result(item: ReportItem, outcome: Outcome, code: str = "") -> ItemResult:
    return built(ItemResult, job_id=item.job_id, attempt=item.attempt, outcome=outcome, code=code)
