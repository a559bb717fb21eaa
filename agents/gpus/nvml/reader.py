"""Reads this machine's GPUs through NVML: a `GpuReader` over what the collector's process tells.

Nothing here calls the driver, so nothing here can hang. Samples wait in memory until they are asked for, two minutes
of them at least, and for a while after that, so that the same question has the same answer; figures are given out only
while they are fresh. Who holds a GPU is known as far as `pods` tells.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prometheus_client.metrics_core import Metric

from agents import families, log
from agents.gpus.nvml import wire
from agents.gpus.nvml.classes import gpu_class
from agents.gpus.nvml.codes import XIDS, name_of, xid_class
from agents.gpus.nvml.known import Known
from agents.gpus.nvml.supervisor import Supervisor, Timing, advice_on
from agents.gpus.port import ReaderUnavailable
from agents.model import GpuReading, Holding, NodeReading, Workload
from agents.pods.offers import withdrawn
from agents.pods.tracker import PodTracker, View, alone_and_sharers
from quota.clock import Clock

_NODE_NAME = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"

SAMPLE_PERIOD_MS = 1_000
"""The longest sample period that nvml.h names."""

ASKED_FOR_MS = 15_000
"""How long samples are kept that were asked for."""


class NvmlReader:
    """One node's GPUs; thread-safe."""

    def __init__(
        self,
        clock: Clock,
        node: str = "",
        timing: Timing | None = None,
        classes: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        pods: PodTracker | None = None,
    ) -> None:
        """`node` is the machine's own name if empty; `classes` are GPU classes by product name; without `pods`
        nobody knows who holds a GPU.

        Raises ValueError for a clock that does not run with the wall: the driver's does.
        """
        if clock.speed != 1:
            raise ValueError(f"--clock: speed {clock.speed}, but real GPUs live at speed 1; leave it out")
        self.node = node or socket.gethostname().lower()
        """The node's name."""
        if not re.fullmatch(_NODE_NAME, self.node):
            raise ValueError(
                f"--node: {self.node!r} is no node's name (small letters, digits, dots, dashes); give it"
            )
        self._clock, self._timing, self._classes = clock, timing or Timing(), dict(classes or {})
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._monotonic = monotonic
        self._pods = pods
        self._stale_s = self._timing.cycle_s + self._timing.deadline_s
        """How old figures may be."""
        self._turn = threading.Lock()
        self._known: dict[str, Known] = {}
        self._driver = ""
        self._expected: int | None = None
        self._heard_s: float | None = None
        self._events_error: int | None = None
        self._errors: Counter[tuple[str, str]] = Counter()
        self._logged: set[tuple[str, int]] = set()
        self._supervisor = Supervisor(self._timing, self._take)

    def start(self) -> None:
        """Ask who holds the GPUs, then start the collector's process."""
        if self._pods is not None:
            self._pods.start()
        self._supervisor.start()

    @property
    def sample_period_ms(self) -> int:
        """How often a driver is expected to sample at the least, in milliseconds."""
        return SAMPLE_PERIOD_MS

    @property
    def hopeless(self) -> bool:
        """Whether only a new container can reach the GPUs again."""
        return self._supervisor.hopeless

    def close(self) -> None:
        """End the collector's process."""
        self._supervisor.close()
        if self._pods is not None:
            self._pods.close()

    def read(self, node: str, after_ms: int) -> NodeReading:
        """This node; samples from a little before `after_ms` on. Raises ReaderUnavailable, also for another node."""
        if node != self.node:
            raise ReaderUnavailable(f"this agent reads the GPUs of {self.node}, not of {node}")
        return self._reading(after_ms)

    def read_all(self, after_ms: int) -> tuple[NodeReading, ...]:
        """This node alone. Raises ReaderUnavailable."""
        return (self._reading(after_ms),)

    def metrics(self) -> Iterator[Metric]:
        """How the reading itself goes."""
        with self._turn:
            errors, expected, events_error = dict(self._errors), self._expected, self._events_error
            fresh = self._fresh(self._heard_s)
        yield families.NVML_STATE.gauge_of({(self._supervisor.state,): 1})
        restarts = dict(self._supervisor.restarts)
        yield families.NVML_RESTARTS.counter_of({(reason,): count for reason, count in restarts.items()})
        yield families.NVML_ERRORS.counter_of(errors)
        if fresh:
            yield families.NVML_EVENTS_UP.gauge(float(events_error is None))
            if expected is not None:
                yield families.DEVICES_EXPECTED.gauge_of({(self.node,): expected})
        if self._pods is not None:
            yield from self._pods.metrics()

    def _take(self, cycle: wire.Cycle) -> None:
        """One line of the collector's; called in the supervisor's thread."""
        with self._turn:
            now_s = self._monotonic()
            self._heard_s = now_s
            self._driver = cycle.driver or self._driver
            self._expected = self._expected if cycle.gpu_count is None else cycle.gpu_count
            self._events_error = cycle.events_error
            for operation, code in cycle.system_errors.items():
                self._note_error("", self._logged, operation, code)
            for gpu in cycle.gpus:
                self._take_gpu(gpu, now_s, cycle.at_wall_us)
            self._forget_destroyed(cycle.gpus)
            for event in cycle.events:
                self._take_event(event)

    def _take_gpu(self, gpu: wire.Gpu, now_s: float, at_wall_us: int) -> None:
        known = self._known.get(gpu.gpu_uuid)
        if known is None and gpu.gpu_uuid:
            known = self._known[gpu.gpu_uuid] = Known(gpu)
        for operation, code in gpu.errors.items():
            label = gpu.gpu_uuid or f"index {gpu.gpu_index}"
            self._note_error(label, known.logged if known is not None else self._logged, operation, code)
        if known is not None:
            known.set_back(at_wall_us, self._clock.at_wall(at_wall_us // 1000))
            fresh = known.take(gpu, now_s)
            for at_us, ratio in fresh:
                known.samples.append((self._clock.at_wall(at_us // 1000), ratio))
            if gpu.process_use is not None and fresh:
                self._divide(known, gpu.process_use, sum(ratio for _, ratio in fresh) / len(fresh))

    def _divide(self, known: Known, use: wire.ProcessUse, busy: float) -> None:
        if self._pods is None:
            return
        since_ms, until_ms = (self._clock.at_wall(at_us // 1000) for at_us in (use.since_us, use.until_us))
        shares = self._pods.shares(known.gpu.gpu_uuid, since_ms, until_ms, use.percents, busy)
        if shares is not None:
            known.shares.append(shares)

    def _note_error(self, gpu: str, logged: set[tuple[str, int]], operation: str, code: int) -> None:
        self._errors[operation, name_of(code)] += 1
        if (operation, code) not in logged:
            logged.add((operation, code))
            log.warning("nvml_refused", gpu=gpu or None, op=operation, code=code, name=name_of(code))

    def _forget_destroyed(self, gpus: Sequence[wire.Gpu]) -> None:
        """Drop the MIG devices of GPUs whose devices were all told and that are not among them."""
        told = {gpu.gpu_uuid for gpu in gpus}
        whole = {
            gpu.gpu_uuid
            for gpu in gpus
            if not gpu.parent_uuid
            and not gpu.lost
            and not any(name.startswith(("handle", "uuid", "mig_")) for name in gpu.errors)
        }
        for uuid in [uuid for uuid, known in self._known.items() if known.gpu.parent_uuid in whole]:
            if uuid not in told:
                del self._known[uuid]

    def _take_event(self, event: wire.Event) -> None:
        known = self._known.get(event.gpu_uuid)
        if known is None:
            self._errors["event_of_unknown_gpu", "garbage"] += 1
            return
        known.note(event)
        if event.type == 0x8:
            title = XIDS[event.data].title if event.data in XIDS else ""
            log.warning(
                "xid", gpu=event.gpu_uuid, xid=event.data, xid_class=str(xid_class(event.data)), title=title
            )

    def _fresh(self, at_s: float | None) -> bool:
        return at_s is not None and self._monotonic() - at_s <= self._stale_s

    def _reading(self, after_ms: int) -> NodeReading:
        now_ms = self._clock.now_ms()
        with self._turn:
            if not self._fresh(self._heard_s):
                state = self._supervisor.state
                raise ReaderUnavailable(f"NVML: {state}: {advice_on(state) or 'see the log'}")
            # GPUs are not read at one moment: what came in late is older than what the others have already told.
            since_ms = after_ms - round(1000 * self._stale_s)
            pods = View() if self._pods is None else self._pods.read_until(since_ms)
            holders = alone_and_sharers(pods.holdings)
            for known in self._known.values():
                known.forget(since_ms - ASKED_FOR_MS)
            gone = self._withdrawn()
            gpus = tuple(
                replace(
                    self._gpu(uuid, known, since_ms, now_ms, gone.get(uuid)),
                    workload=_workload(holders[uuid][0]) if uuid in holders else None,
                    sharers=holders[uuid][1] if uuid in holders else (),
                )
                for uuid, known in self._known.items()
            )
        return NodeReading(
            now_ms,
            self.node,
            self._boot_id,
            gpus,
            workloads_known=pods.known,
            holdings=pods.holdings,
        )

    def _withdrawn(self) -> dict[str, bool | None]:
        offer = None if self._pods is None else self._pods.offer()
        return withdrawn(offer, {uuid: known.gpu.parent_uuid for uuid, known in self._known.items()})

    def _gpu(
        self, uuid: str, known: Known, after_ms: int, now_ms: int, gone: bool | None = None
    ) -> GpuReading:
        gpu = known.gpu
        readable = not known.lost and self._fresh(known.read_s)
        parent = self._known.get(gpu.parent_uuid)
        parent_name = "" if not gpu.parent_uuid else parent.gpu.name if parent is not None else "unknown"
        return GpuReading(
            uuid,
            gpu_class(gpu.name, parent_name, self._classes),
            gpu.name,
            gpu.memory_total_bytes if readable else None,
            gpu.memory_used_bytes if readable else None,
            gpu.power_mw / 1000 if readable and gpu.power_mw is not None else None,
            gpu.temperature_celsius if readable else None,
            None,
            [sample for sample in known.samples if after_ms < sample[0] <= now_ms],
            up=readable,
            sample_period_ms=round(self._timing.cycle_s * 1000) if gpu.gpm else None,
            detail=replace(known.detail(self._driver, readable), withdrawn=gone),
            shares=[shares for shares in known.shares if after_ms < shares.until_ms],
        )


def _workload(holding: Holding | None) -> Workload | None:
    if holding is None:
        return None
    return Workload(holding.job_id, holding.attempt, holding.pod_index, holding.since_ms)
