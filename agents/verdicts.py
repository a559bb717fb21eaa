"""From readings to verdicts, and both to the quota service: called by the sampling thread, delivers in one of its own.

Sampling never waits for the service. Verdicts that it has not taken are kept, in the file too, and sent again under
the same id; rows say how a GPU is now, so the newest is enough. A refused delivery is halved until what is refused
stands alone: a verdict that the service will never take is dropped with an error in the log, a row waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agents import log
from agents.health import Judgement, Memory, Sign, Signs, Timing, judge
from agents.health_file import HealthFile, Remembered
from agents.health_rules import RECOVERED, RULES, THROTTLE_REASONS
from agents.model import GpuReading, NodeReading
from quota.refusals import ServiceProblem, ServiceUnavailable
from quota.schemas.gpus import BAD, GpuHealth, GpuReport, GpuReportReply, GpuRow, GpuVerdict, Holder

MOST_UNSENT = 10_000
"""Verdicts kept for a service that is away; the oldest go first, each said in the log."""
BATCH_VERDICTS = 500
BATCH_ROWS = 2000
SLACK_MS = 5_000
"""A program may be seen to die this much before the driver dates what killed it."""
_HELD = 64


class GpuDoor(Protocol):
    """Where verdicts are delivered; `agents.quota_door.QuotaDoor` is one."""

    def report_gpus(self, body: GpuReport, /) -> GpuReportReply:
        """Deliver rows and verdicts. Delivering them again changes nothing.

        Raises `quota.refusals.ServiceUnavailable` (what happened is unknown) or `ServiceProblem` (refused).
        """


@dataclass(slots=True)
class HealthCounts:
    """What `/metrics` may know; replaced or counted, never taken back."""

    health: Mapping[tuple[str, str], GpuHealth] = field(default_factory=dict)
    """By (node, GPU)."""
    verdicts: int = 0
    unsent: int = 0
    failed: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """A GPU as it was last read and judged."""

    reading: NodeReading
    gpu: GpuReading
    found: Judgement


class Verdicts:
    """Judges every reading; thread-safe between the one who observes and the one who delivers."""

    def __init__(
        self,
        file: HealthFile,
        counts: HealthCounts,
        timing: Timing,
        at_wall: Callable[[int], int],
    ) -> None:
        """`at_wall` turns wall ms, in which drivers date XIDs, into business ms."""
        self.news = threading.Event()
        """Set while there is a verdict to send."""
        self._file, self._counts, self._timing, self._at_wall = file, counts, timing, at_wall
        self._turn = threading.Lock()
        known = file.read()
        self._memories = dict(known.memories)
        self._unsent = list(known.unsent)
        self._seen: dict[str, _Seen] = {}
        self._number = 0
        self._named: dict[tuple[str, str], set[tuple[str, int]]] = {}
        self._unwritten = False
        self._note_unsent()

    def observe(self, readings: Sequence[NodeReading]) -> None:
        """Judge one cycle's readings, keep what changed on disk, then show it to the one who delivers."""
        with self._turn:
            changed = self._unwritten
            self._forget(readings)
            for reading in readings:
                for gpu in reading.gpus:
                    if gpu.detail is not None and not gpu.detail.parent_uuid:
                        changed = self._judge(reading, gpu) or changed
            if changed:
                self._write()
            self._counts.health = {
                (seen.reading.node, gpu_uuid): seen.found.memory.health
                for gpu_uuid, seen in self._seen.items()
            }
            self._note_unsent()

    def to_send(self) -> tuple[tuple[GpuRow, ...], tuple[GpuVerdict, ...]]:
        """The newest row of every GPU, and the verdicts that wait, oldest first."""
        with self._turn:
            self.news.clear()
            # made here and not with every reading: on a fast clock there are many more of those
            return tuple(map(_row, self._seen.values())), tuple(self._unsent)

    def sent(self, verdicts: Iterable[GpuVerdict]) -> None:
        """The service has them."""
        gone = {verdict.id for verdict in verdicts}
        if not gone:
            return
        with self._turn:
            self._unsent = [verdict for verdict in self._unsent if verdict.id not in gone]
            self._write()
            self._note_unsent()

    def _forget(self, readings: Sequence[NodeReading]) -> None:
        """A GPU that is no longer there is told of no more: the service sees that it is missing."""
        read = {reading.node for reading in readings}
        there = {gpu.gpu_uuid for reading in readings for gpu in reading.gpus}
        self._seen = {
            gpu_uuid: seen
            for gpu_uuid, seen in self._seen.items()
            if gpu_uuid in there or seen.reading.node not in read
        }

    def _judge(self, reading: NodeReading, gpu: GpuReading) -> bool:
        before = self._memories.get(gpu.gpu_uuid, Memory())
        found = judge(before, self._signs(reading, gpu), self._timing)
        self._memories[gpu.gpu_uuid] = found.memory
        made = list(self._verdicts(reading, gpu, before, found))
        self._unsent += made
        self._counts.verdicts += len(made)
        last = self._seen.get(gpu.gpu_uuid)
        self._seen[gpu.gpu_uuid] = _Seen(reading, gpu, found)
        if found.memory.health in BAD and last is not None and _withdrawn(last.gpu) != _withdrawn(gpu):
            # its node opens or closes by this: it does not wait for the next round
            self.news.set()
        return bool(made) or _lasting_part(before) != _lasting_part(found.memory)

    def _signs(self, reading: NodeReading, gpu: GpuReading) -> Signs:
        detail = gpu.detail
        assert detail is not None
        slowed = [detail.throttled_s[name] for name in THROTTLE_REASONS if name in detail.throttled_s]
        return Signs(
            at_ms=reading.now_ms,
            readable=gpu.up,
            others_readable=any(other.up and not _is_of(other, gpu.gpu_uuid) for other in reading.gpus),
            lost=detail.lost,
            xids={xid.xid: self._at_wall(xid.last_wall_ms) for xid in detail.xids if xid.xid >= 0},
            recovery_action=detail.recovery_action,
            row_remap_pending=detail.row_remap_pending,
            row_remap_failed=detail.row_remap_failed,
            ecc_uncorrected=detail.ecc_errors.get("uncorrected"),
            throttled_s=sum(slowed) if slowed else None,
        )

    def _verdicts(
        self, reading: NodeReading, gpu: GpuReading, before: Memory, found: Judgement
    ) -> Iterator[GpuVerdict]:
        health = found.memory.health
        for sign in found.signs:
            rule = RULES[sign.rule]
            held = _holders(reading, gpu.gpu_uuid, sign)
            named = self._named.setdefault((gpu.gpu_uuid, f"{sign.rule}:{sign.xid}"), set())
            # A storm of the same event is one verdict, and one more for each attempt that it hits.
            if found.changed or sign.xid is None or not named or not held <= named:
                named |= held or {("", 0)}
                yield self._verdict(reading, gpu, sign, health, fault=rule.fault, held=held)
        if found.changed and _rank(health) < _rank(before.health):
            for key in [key for key in self._named if key[0] == gpu.gpu_uuid]:
                del self._named[key]
            well = Sign(RECOVERED, reading.now_ms, reading.now_ms, detail=f"was {before.health.value}")
            yield self._verdict(reading, gpu, well, health, fault=False, held=set())

    def _verdict(
        self,
        reading: NodeReading,
        gpu: GpuReading,
        sign: Sign,
        health: GpuHealth,
        *,
        fault: bool,
        held: set[tuple[str, int]],
    ) -> GpuVerdict:
        self._number += 1
        verdict = GpuVerdict(
            id=f"{self._file.life}-{self._number}",
            gpu_uuid=gpu.gpu_uuid,
            node=reading.node,
            health=health,
            rule=sign.rule,
            xid=sign.xid,
            fault=fault,
            since=sign.since_ms,
            at=sign.at_ms,
            detail=sign.detail[:200],
            holders=tuple(Holder(job_id=job, attempt=number) for job, number in sorted(held)[:_HELD]),
        )
        log.warning(
            "gpu_verdict",
            gpu=gpu.gpu_uuid,
            node=reading.node,
            health=health.value,
            rule=sign.rule,
            xid=sign.xid,
            holders=[f"{each.job_id}-{each.attempt}" for each in verdict.holders],
        )
        return verdict

    def _write(self) -> None:
        while len(self._unsent) > MOST_UNSENT:
            log.error("verdict_dropped", verdict=self._unsent.pop(0).model_dump(mode="json"))
        try:
            self._file.write(Remembered(self._memories, self._unsent))
        except OSError as error:
            if not self._unwritten:
                log.error("health_file_unwritable", file=str(self._file.path), reason=str(error))
            self._unwritten = True
            return
        self._unwritten = False

    def _note_unsent(self) -> None:
        self._counts.unsent = len(self._unsent)
        if self._unsent:
            self.news.set()


class VerdictSender:
    """Delivers in a thread: at once when there is a verdict, else every `every_s` wall seconds."""

    def __init__(self, door: GpuDoor, verdicts: Verdicts, counts: HealthCounts, every_s: float) -> None:
        self._door, self._verdicts, self._counts, self._every_s = door, verdicts, counts, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="verdicts", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, patience_s: float) -> bool:
        """One last delivery; True if it was done within `patience_s`."""
        self._stopping.set()
        self._verdicts.news.set()
        if self._thread.ident is not None:
            self._thread.join(patience_s)
        return not self._thread.is_alive()

    def deliver_once(self) -> bool:
        """Send what there is; False if the service did not take it all."""
        rows, verdicts = self._verdicts.to_send()
        try:
            for report in _reports(rows, verdicts):
                self._send(report)
        except ServiceUnavailable as error:
            self._counts.failed += 1
            log.warning("verdicts_not_delivered", reason=str(error))
            return False
        except ServiceProblem as problem:
            self._counts.failed += 1
            log.error("verdicts_refused", status=problem.status, code=problem.code, reason=problem.detail)
            return False
        return True

    def _send(self, report: GpuReport) -> None:
        parts = [report]
        while parts:
            part = parts.pop()
            try:
                self._door.report_gpus(part)
            except ServiceProblem as problem:
                if problem.status not in (413, 422):
                    raise
                if len(part.gpus) + len(part.verdicts) > 1:
                    parts += _halves(part)
                    continue
                self._counts.refused += 1
                wrong = part.model_dump(mode="json")
                log.error("verdict_refused", code=problem.code, reason=problem.detail, sent=wrong)
            self._verdicts.sent(part.verdicts)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            if wait_s:
                self._stopping.wait(wait_s)
            wait_s = 0.0 if self._attempt() else min(self._every_s, 5.0)
            if not wait_s:
                self._verdicts.news.wait(self._every_s)
        self._attempt()

    def _attempt(self) -> bool:
        try:
            return self.deliver_once()
        except Exception:
            # The loop's edge: whatever it was, the next turn tries again.
            log.exception("verdicts_turn_failed")
            return False


def _reports(rows: tuple[GpuRow, ...], verdicts: tuple[GpuVerdict, ...]) -> Iterator[GpuReport]:
    """Rows first: a verdict speaks of a GPU that the service knows."""
    for start in range(0, len(rows), BATCH_ROWS):
        yield GpuReport(gpus=rows[start : start + BATCH_ROWS])
    for start in range(0, len(verdicts), BATCH_VERDICTS):
        yield GpuReport(verdicts=verdicts[start : start + BATCH_VERDICTS])


def _halves(report: GpuReport) -> list[GpuReport]:
    rows, verdicts = len(report.gpus) // 2, len(report.verdicts) // 2
    if report.gpus and report.verdicts:
        return [GpuReport(verdicts=report.verdicts), GpuReport(gpus=report.gpus)]
    return [
        GpuReport(gpus=report.gpus[rows:], verdicts=report.verdicts[verdicts:]),
        GpuReport(gpus=report.gpus[:rows], verdicts=report.verdicts[:verdicts]),
    ]


def _row(seen: _Seen) -> GpuRow:
    reading, gpu, found = seen.reading, seen.gpu, seen.found
    detail = gpu.detail
    assert detail is not None
    return GpuRow(
        gpu_uuid=gpu.gpu_uuid,
        node=reading.node,
        gpu_class=gpu.gpu_class,
        model=_said(gpu.model),
        serial=_said(detail.serial),
        pci_bus_id=_said(detail.pci_bus_id),
        driver=_said(detail.driver),
        health=found.memory.health,
        proven=found.proven,
        withdrawn=_withdrawn(gpu),
        observed_at=reading.now_ms,
    )


def _withdrawn(gpu: GpuReading) -> bool:
    """Whether it is known that its node gives it to nobody."""
    return gpu.detail is not None and gpu.detail.withdrawn is True


def _said(text: str) -> str:
    return text.replace("\x00", "")[:200]


def _holders(reading: NodeReading, gpu_uuid: str, sign: Sign) -> set[tuple[str, int]]:
    """Who was on the GPU, or on a MIG device of it, between the sign's two times."""
    own = {gpu.gpu_uuid for gpu in reading.gpus if _is_of(gpu, gpu_uuid)}
    held = {
        (gpu.workload.job_id, gpu.workload.attempt)
        for gpu in reading.gpus
        if gpu.gpu_uuid in own and gpu.workload is not None and gpu.workload.since_ms <= sign.at_ms
    }
    return held | {
        (stay.job_id, stay.attempt)
        for stay in reading.past
        if stay.gpu_uuid in own and stay.since_ms <= sign.at_ms and sign.since_ms - SLACK_MS <= stay.until_ms
    }


def _is_of(gpu: GpuReading, gpu_uuid: str) -> bool:
    """Whether it is that GPU, or a MIG device of it."""
    return gpu.gpu_uuid == gpu_uuid or (gpu.detail is not None and gpu.detail.parent_uuid == gpu_uuid)


def _lasting_part(memory: Memory) -> tuple[object, ...]:
    """What of a memory is worth a write: not the moment up to which nothing happened."""
    return memory.health, memory.xids, memory.ecc, memory.lasting


def _rank(health: GpuHealth) -> int:
    return list(GpuHealth).index(health)
