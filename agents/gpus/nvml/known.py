"""What the parent remembers of one GPU between cycles: samples, counters that never go back, events."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from agents.detail import GpuDetail, XidCount
from agents.gpus.nvml import wire
from agents.gpus.nvml.codes import CLOCKS_EVENT_REASONS, EVENT_TYPES, EVENT_XID, xid_class
from agents.gpus.nvml.processes import Orphans
from agents.model import Shares

MOST_SAMPLES = 6_000
"""Two minutes of the fastest known sampling (20 ms); who asks later finds a gap, which is not counted."""

MOST_SHARES = 600
"""As many reads of the driver as two minutes have at its fastest pace."""

MOST_XIDS = 32
"""Different XIDs of one GPU that have a count of their own."""

OTHER_XID = -1

SET_BACK_US = 2_000_000
"""A sample may be a little ahead of the line that tells it; so far ahead is a clock set back."""


@dataclass(slots=True)
class Meter:
    """A counter of the driver's as it would be without resets: 0 when first read, then only growing."""

    total: int = 0
    last: int | None = None

    def read(self, value: int | None) -> None:
        """Take the driver's counter; None: not read.

        A smaller value than the last is a reset, since which it counted `value`. A reset that has already passed the
        last value cannot be told from growth, which says too little and never too much.
        """
        if value is None:
            return
        if self.last is not None:
            self.total += value - self.last if value >= self.last else value
        self.last = value


@dataclass(slots=True)
class Known:
    """One GPU or MIG device; written in the supervisor's thread and read in others under the reader's lock."""

    gpu: wire.Gpu
    """As it was last read."""
    read_s: float | None = None
    """When (monotonic) it last answered."""
    lost: bool = False
    samples: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))
    """(business ms, ratio), oldest first."""
    shares: deque[Shares] = field(default_factory=lambda: deque(maxlen=MOST_SHARES))
    """How the busy time was divided, while several shared it; oldest first."""
    last_us: int = 0
    energy_mj: Meter = field(default_factory=Meter)
    throttled_ns: dict[str, Meter] = field(default_factory=dict)
    xids: dict[int, XidCount] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    orphans: Orphans = field(default_factory=Orphans)
    orphan_bytes: int | None = None
    sm_activity: float | None = None
    logged: set[tuple[str, int]] = field(default_factory=set)
    """Errors that the log has."""

    def take(self, gpu: wire.Gpu, now_s: float) -> list[tuple[int, float]]:
        """Learn from one read; the samples that are new, oldest first, for the caller to keep."""
        self.lost = gpu.lost
        if not answered(gpu):
            return []
        self.gpu, self.read_s = gpu, now_s
        self.energy_mj.read(gpu.energy_mj)
        for reason, value_ns in gpu.throttled_ns.items():
            self.throttled_ns.setdefault(reason, Meter()).read(value_ns)
        self.orphan_bytes = None if gpu.processes is None else self.orphans.bytes_of(gpu.processes)
        if gpu.sm_activity is not None or not gpu.gpm:
            self.sm_activity = gpu.sm_activity
        # A process started anew reads the driver's buffer from its beginning.
        fresh = [sample for sample in gpu.samples_us if sample[0] > self.last_us]
        if fresh:
            self.last_us = fresh[-1][0]
        return fresh

    def set_back(self, at_wall_us: int, at_ms: int) -> None:
        """If the clock was set back to `at_wall_us` (`at_ms` in business time), drop what is ahead of it now: it would
        come between the samples that follow."""
        if self.last_us <= at_wall_us + SET_BACK_US:
            return
        self.last_us = at_wall_us
        kept = [sample for sample in self.samples if sample[0] <= at_ms]
        self.samples = deque(kept, MOST_SAMPLES)
        self.shares.clear()

    def forget(self, until_ms: int) -> None:
        """Drop samples and shares up to a moment."""
        while self.samples and self.samples[0][0] <= until_ms:
            self.samples.popleft()
        while self.shares and self.shares[0].until_ms <= until_ms:
            self.shares.popleft()

    def note(self, event: wire.Event) -> None:
        """Count an event."""
        if event.type != EVENT_XID:
            kind = EVENT_TYPES.get(event.type, "other")
            self.events[kind] = self.events.get(kind, 0) + 1
            return
        known = event.data in self.xids or len(self.xids) < MOST_XIDS
        xid = event.data if known else OTHER_XID
        count = self.xids[xid].count if xid in self.xids else 0
        self.xids[xid] = XidCount(xid, xid_class(event.data), count + 1, event.at_wall_us // 1000)

    def detail(self, driver: str, readable: bool) -> GpuDetail:
        """For a reading; figures of a GPU that is not readable now are left out, its counters and events stay."""
        gpu = self.gpu
        lasting = GpuDetail(
            parent_uuid=gpu.parent_uuid,
            serial=gpu.serial,
            pci_bus_id=gpu.pci_bus_id,
            driver=driver,
            utilization_supported=gpu.gpm or not (gpu.mig or "samples" in gpu.unsupported),
            lost=self.lost,
            energy_joules=None if self.energy_mj.last is None else self.energy_mj.total / 1000,
            throttled_s={reason: meter.total / 1e9 for reason, meter in self.throttled_ns.items()},
            xids=tuple(self.xids.values()),
            events=dict(self.events),
            unsupported=tuple(gpu.unsupported),
        )
        return _with_figures(lasting, gpu, self.orphan_bytes, self.sm_activity) if readable else lasting


def answered(gpu: wire.Gpu) -> bool:
    """Whether a read brought anything: a UUID alone is no life sign."""
    return not gpu.lost and (
        any(
            value is not None
            for value in (gpu.memory_total_bytes, gpu.power_mw, gpu.temperature_celsius, gpu.energy_mj)
        )
        or bool(gpu.samples_us)
    )


def _with_figures(
    detail: GpuDetail, gpu: wire.Gpu, orphan_bytes: int | None, sm_activity: float | None
) -> GpuDetail:
    rows = gpu.remapped_rows
    reasons = gpu.clocks_event_reasons
    kinds = ("corrected", "uncorrected")
    return replace(
        detail,
        power_limit_watts=None if gpu.power_limit_mw is None else gpu.power_limit_mw / 1000,
        sm_activity_ratio=sm_activity,
        compute_processes=None if gpu.processes is None else len(gpu.processes),
        orphan_memory_bytes=orphan_bytes,
        recovery_action=gpu.recovery_action,
        ecc_errors={kind: gpu.ecc[kind] for kind in kinds if kind in gpu.ecc},
        ecc_errors_ever={kind: gpu.ecc[f"{kind}_ever"] for kind in kinds if f"{kind}_ever" in gpu.ecc},
        remapped_rows={} if rows is None else {"correctable": rows[0], "uncorrectable": rows[1]},
        row_remap_pending=None if rows is None else bool(rows[2]),
        row_remap_failed=None if rows is None else bool(rows[3]),
        clocks_event_reasons=None
        if reasons is None
        else {name: bool(reasons & bit) for bit, name in CLOCKS_EVENT_REASONS.items()},
        pcie_replays=gpu.pcie_replays,
    )
