"""The agent's two rhythms: sampling (business time) and delivering (wall time), each a thread.

What happens when something fails or the process dies between two steps (the disk's side is told in `outbox`):

- a node does not answer: its GPUs are `up 0`; what was not seen is unobserved, never idle. When it answers
  again, it is asked from where it was last seen.
- dies after reading: nothing was stored; the same samples are read again.
- dies after storing: the next start continues behind them.
- the disk is full: states and gains stay in memory and go into the next cycle that the disk takes. If the
  process dies before that, the disk's state is older and the samples are read again.
- the service is away, slow or says no: rows stay to be sent; sampling does not wait for it.
- one row is refused (422): the batch is halved until the row stands alone; the others go through.
- the outbox breaks while open: the process ends with an error; the next start moves the file aside.
- SIGTERM: one last sampling and delivery within a few seconds; what does not make it is sent after the start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from agents import log
from agents.attribution import spans_by_gpu
from agents.gpus.port import GpuReader, ReaderUnavailable
from agents.jumps import SET_BACK_MS, SlowTime, set_back
from agents.metrics import Counts, View
from agents.model import EvidenceDoor, GpuReading, GpuState, Measured, NodeReading, RowKey, Span
from agents.outbox import Outbox, UnsentRow
from agents.outbox_file import OutboxBroken, OutboxUnwritable
from agents.usage import first_state, integrate
from quota.clock import Clock, wall_ms
from quota.refusals import ServiceProblem, ServiceUnavailable
from quota.schemas.usage import EvidenceBatch

BATCH_ROWS = 2000
"""Rows in one delivery: about half a megabyte, and well under the service's limit of 5,000."""

MOST_HALVINGS = 40
"""Extra requests that one pass spends on finding refused rows: three of them in a full batch."""

LAGGING_PERIODS = 10
"""A node this many sample periods behind the foremost is asked on its own."""


class Sampler:
    """Reads GPUs, adds up what they did, stores it."""

    def __init__(
        self, reader: GpuReader, outbox: Outbox, clock: Clock, counts: Counts, nodes: Sequence[str] = ()
    ) -> None:
        """`nodes` are the nodes to read; none means all that the reader knows."""
        self._reader = reader
        self._outbox = outbox
        self._clock = clock
        self._counts = counts
        self._nodes = tuple(nodes)
        self._states = outbox.states()
        self._ratios: dict[str, float] = {}
        self._after_ms: dict[str, int] = {}
        for state in self._states.values():
            self._after_ms[state.node] = min(
                state.last_seen_ms, self._after_ms.get(state.node, state.last_seen_ms)
            )
        self._unstored_states: dict[str, GpuState] = {}
        self._unstored_gains: dict[RowKey, Measured] = {}
        self._silent: set[str] = set()
        self._slow = SlowTime(outbox.newest_ms(), clock.speed)

    def sample_once(self) -> None:
        """One cycle: read, integrate, store in one transaction, publish for /metrics."""
        started_s = time.monotonic()
        now_ms = self._clock.now_ms()
        readings = self._read(now_ms)
        for reading in readings:
            self._take(reading)
        self._store(self._slow.at(now_ms))
        self._publish(readings)
        self._counts.collected(time.monotonic() - started_s)

    def _read(self, now_ms: int) -> tuple[NodeReading, ...]:
        readings, failures = [], {}
        try:
            if self._nodes:
                asked = {node: self._after_ms.get(node, now_ms) for node in self._nodes}
            else:
                asked = {}
                after_ms = self._common_after_ms(now_ms)
                for reading in self._reader.read_all(after_ms):
                    own_ms = self._after_ms.get(reading.node, after_ms)
                    if own_ms < after_ms:
                        asked[reading.node] = own_ms
                    else:
                        readings.append(reading)
        except ReaderUnavailable as error:
            asked, failures = {}, {"*": str(error)}
        for node, after_ms in asked.items():
            try:
                readings.append(self._reader.read(node, after_ms))
            except ReaderUnavailable as error:
                failures[node] = str(error)
        # A node all of whose GPUs are out of reach was not read, though something may be told of them.
        answered = (
            reading for reading in readings if not reading.gpus or any(gpu.up for gpu in reading.gpus)
        )
        self._note(failures, {reading.node for reading in answered})
        return tuple(readings)

    def _common_after_ms(self, now_ms: int) -> int:
        if not self._after_ms:
            return now_ms
        foremost_ms = max(self._after_ms.values())
        behind_ms = foremost_ms - LAGGING_PERIODS * self._reader.sample_period_ms
        return min(after_ms for after_ms in self._after_ms.values() if after_ms >= behind_ms)

    def _note(self, failures: dict[str, str], nodes_read: set[str]) -> None:
        self._counts.collect_failures += len(failures)
        self._counts.collect_success = bool(nodes_read)
        if nodes_read:
            self._counts.collected_at_wall_ms = wall_ms()
        left_out = () if self._nodes or failures else self._after_ms.keys() - nodes_read
        silent = failures.keys() | left_out
        for node in sorted(silent - self._silent):
            log.warning("reading_failed", node=node, reason=failures.get(node, "the node is lost"))
        for node in sorted(self._silent - silent):
            log.info("reading_works_again", node=node)
        self._silent = silent

    def _take(self, reading: NodeReading) -> None:
        spans = spans_by_gpu(reading)
        newest_ms = []
        if self._after_ms.get(reading.node, 0) > reading.now_ms + SET_BACK_MS:
            log.warning(
                "clock_set_back", node=reading.node, by_ms=self._after_ms[reading.node] - reading.now_ms
            )
            self._after_ms[reading.node] = reading.now_ms
        for gpu in reading.gpus:
            before = self._known(gpu, reading)
            state = self._count(gpu, before, spans.get(gpu.gpu_uuid, ()))
            if reading.node not in self._after_ms or state.last_seen_ms > before.last_seen_ms:
                newest_ms.append(state.last_seen_ms)
        if newest_ms:
            # A GPU gone silent does not hold the others back: its next distance is unobserved anyway.
            self._after_ms[reading.node] = max(self._after_ms.get(reading.node, 0), min(newest_ms))

    def _known(self, gpu: GpuReading, reading: NodeReading) -> GpuState:
        state = self._states.get(gpu.gpu_uuid)
        if state is None:
            period_ms = gpu.sample_period_ms or self._reader.sample_period_ms
            return first_state(gpu.gpu_uuid, gpu.gpu_class, reading.node, reading.now_ms, period_ms)
        state = set_back(state, reading.now_ms)
        if (state.node, state.gpu_class) != (reading.node, gpu.gpu_class):
            return replace(state, node=reading.node, gpu_class=gpu.gpu_class)
        return state

    def _count(self, gpu: GpuReading, before: GpuState, spans: Sequence[Span]) -> GpuState:
        holder = None if gpu.workload is None else (gpu.workload.job_id, gpu.workload.attempt)
        state, gains = integrate(before, gpu.samples, spans, holder, gpu.sharers, gpu.shares)
        if state is not self._states.get(gpu.gpu_uuid):
            self._states[gpu.gpu_uuid] = state
            self._unstored_states[gpu.gpu_uuid] = state
        for key, gain in gains.items():
            known = self._unstored_gains.get(key)
            self._unstored_gains[key] = gain if known is None else known.plus(gain)
        if gpu.samples:
            self._ratios[gpu.gpu_uuid] = min(1.0, max(0.0, gpu.samples[-1][1]))
        return state

    def _store(self, now_ms: int) -> None:
        if not self._unstored_states:
            return
        try:
            self._outbox.store(self._unstored_states.values(), self._unstored_gains, now_ms, wall_ms())
        except OutboxUnwritable as error:
            self._counts.store_failures += 1
            if self._counts.stored:
                log.error("outbox_unwritable", reason=str(error), kept_rows=len(self._unstored_gains))
            self._counts.stored = False
            return
        self._counts.stored = True
        self._unstored_states.clear()
        self._unstored_gains.clear()

    def _publish(self, readings: tuple[NodeReading, ...]) -> None:
        seen = {gpu.gpu_uuid for reading in readings for gpu in reading.gpus}
        self._ratios = {gpu_uuid: ratio for gpu_uuid, ratio in self._ratios.items() if gpu_uuid in seen}
        self._counts.view = View(readings, dict(self._states), self._ratios)


class Deliverer:
    """Sends what the outbox holds to the quota service."""

    def __init__(self, door: EvidenceDoor, outbox: Outbox, counts: Counts) -> None:
        self._door = door
        self._outbox = outbox
        self._counts = counts

    def deliver_once(self) -> None:
        """One pass: every row that waits is sent at most once. Ends early if the service takes none."""
        began_wall_ms = wall_ms()
        halvings = MOST_HALVINGS
        after_id = 0
        try:
            while rows := self._outbox.to_send(after_id, BATCH_ROWS):
                after_id = rows[-1].id
                halvings = self._send(rows, began_wall_ms, halvings)
        except ServiceUnavailable as error:
            self._counts.reports_failed += 1
            log.warning("delivery_failed", reason=str(error))
        except ServiceProblem as problem:
            log.error("delivery_refused", status=problem.status, code=problem.code, reason=problem.detail)
        except OutboxUnwritable as error:
            log.error("delivery_not_marked", reason=str(error))

    def _send(self, rows: list[UnsentRow], began_wall_ms: int, halvings: int) -> int:
        """Send the rows, halving a refused batch; returns how many halvings are left."""
        parts = [rows]
        while parts:
            part = parts.pop()
            try:
                reply = self._door.deliver_evidence(EvidenceBatch(rows=tuple(unsent.row for unsent in part)))
            except ServiceProblem as problem:
                self._counts.reports_failed += 1
                if problem.status not in (413, 422):
                    raise
                if len(part) == 1 or halvings == 0:
                    self._refused(part, problem)
                    continue
                halvings -= 1
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            self._outbox.sent(part, began_wall_ms)
            self._counts.reports_sent += 1
            self._counts.records_sent += len(part)
            self._counts.records_unknown += reply.unknown
        return halvings

    def _refused(self, part: list[UnsentRow], problem: ServiceProblem) -> None:
        # Evidence is never thrown away: the rows stay to be sent, and the next pass tries again.
        self._counts.records_refused += len(part)
        example = part[0].row.model_dump(mode="json")
        log.error("rows_refused", rows=len(part), first=example, code=problem.code, reason=problem.detail)


class Loop:
    """Runs both rhythms in threads until it is stopped or the outbox breaks."""

    def __init__(
        self,
        sample: Callable[[], None],
        deliver: Callable[[], None],
        sample_every_s: float,
        deliver_every_s: float,
        first_delivery_s: float,
    ) -> None:
        """All in wall seconds; `first_delivery_s` spreads the agents of a hub over the interval."""
        self.broken = False
        """Whether the outbox broke, which ends the process with an error."""
        self._stopping = threading.Event()
        self._last_sampled = threading.Event()
        self._threads = (
            threading.Thread(
                target=self._sampling, args=(sample, sample_every_s), name="sampling", daemon=True
            ),
            threading.Thread(
                target=self._delivering,
                args=(deliver, deliver_every_s, first_delivery_s),
                name="delivering",
                daemon=True,
            ),
        )

    def start(self) -> None:
        """Begin both rhythms."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience_s: float) -> bool:
        """Ask for the last sampling and delivery; True if both were done within `patience_s`."""
        deadline_s = time.monotonic() + patience_s
        self._stopping.set()
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _sampling(self, sample: Callable[[], None], every_s: float) -> None:
        self._repeat(sample, every_s)
        self._attempt(sample)
        self._last_sampled.set()

    def _delivering(self, deliver: Callable[[], None], every_s: float, first_s: float) -> None:
        if not self._stopping.wait(first_s):
            self._repeat(deliver, every_s)
        self._last_sampled.wait()
        self._attempt(deliver)

    def _repeat(self, step: Callable[[], None], every_s: float) -> None:
        while not self._stopping.is_set():
            started_s = time.monotonic()
            self._attempt(step)
            self._stopping.wait(max(0.0, started_s + every_s - time.monotonic()))

    def _attempt(self, step: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            step()
        except OutboxBroken as error:
            log.error("outbox_broken", reason=str(error))
            self.broken = True
            self._stopping.set()
        except Exception:
            # The loop's edge: whatever it was, the next turn tries again.
            log.exception("turn_failed")
