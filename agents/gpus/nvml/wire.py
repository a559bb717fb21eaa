"""What the collector's process tells its parent: one JSON line per cycle. Standard library only.

Tuples with names instead of dataclasses: the module that makes those takes 1.4 MiB, and a collector needs it for
nothing else. What is inside of a line is written without names: both ends are of one version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple


class ProcessUse(NamedTuple):
    """How busy processes kept a GPU between two wall times."""

    since_us: int
    until_us: int
    percents: list[tuple[int, float]]
    """(pid, 0-100); processes that did nothing are not in it."""


class Gpu(NamedTuple):
    """One GPU or MIG device as one read of it went. What could not be learned is None, never 0."""

    gpu_index: int
    gpu_uuid: str
    """Empty if not even that could be read in this life of the process."""
    parent_uuid: str = ""
    """The GPU of a MIG device; empty for a GPU."""
    name: str = ""
    serial: str = ""
    pci_bus_id: str = ""
    mig: bool = False
    """A GPU cut into MIG devices."""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    energy_mj: int | None = None
    """Since the driver was loaded."""
    temperature_celsius: int | None = None
    samples_us: Sequence[tuple[int, float]] = ()
    """(when, mean utilization 0-1 since the sample before it), oldest first; may repeat earlier ones."""
    gpm: bool = False
    """The samples are differences of two GPM readings, one per cycle, instead of the driver's own."""
    sm_activity: float | None = None
    """Share (0-1) of the multiprocessors that were busy in the last cycle, where GPM tells."""
    ecc: Mapping[str, int] = MappingProxyType({})
    """By `corrected`, `uncorrected` (since the driver was loaded), `corrected_ever`, `uncorrected_ever`."""
    remapped_rows: tuple[int, int, int, int] | None = None
    """Correctable, uncorrectable, pending (0/1), failed (0/1)."""
    clocks_event_reasons: int | None = None
    throttled_ns: Mapping[str, int] = MappingProxyType({})
    recovery_action: int | None = None
    pcie_replays: int | None = None
    processes: list[tuple[int, int | None]] | None = None
    """(pid, bytes) of compute processes; bytes None if the driver does not tell."""
    process_use: ProcessUse | None = None
    """Which processes kept it busy since the read before, where that was told."""
    unsupported: Sequence[str] = ()
    """Operations that this GPU or driver does not have."""
    errors: Mapping[str, int] = MappingProxyType({})
    """NVML's code by operation; `codes.GARBAGE` for an answer that cannot be true."""
    lost: bool = False


class Event(NamedTuple):
    """An event of a GPU at a wall time."""

    gpu_uuid: str
    at_wall_us: int
    type: int
    data: int
    """The XID, for an XID event."""


class Cycle(NamedTuple):
    """Everything that was learned since the line before."""

    at_wall_us: int
    driver: str = ""
    gpu_count: int | None = None
    """How many GPUs the driver counts; None if it did not say."""
    gpus: Sequence[Gpu] = ()
    late: Mapping[int, float] = MappingProxyType({})
    """GPUs (by index) whose read has passed the deadline, with its seconds so far; -1 is the driver itself."""
    events: Sequence[Event] = ()
    events_error: int | None = None
    """Why events cannot be waited for; None if they can."""
    system_errors: Mapping[str, int] = MappingProxyType({})
    """NVML's code by operation, of calls that concern no GPU."""


class Failed(NamedTuple):
    """The last line of a process that could not begin."""

    operation: str
    code: int


def line(document: Cycle | Failed) -> bytes:
    """The document as it is written, with its end."""
    return json.dumps(document._asdict(), default=dict, separators=(",", ":")).encode() + b"\n"
