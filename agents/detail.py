"""What a driver says of a GPU beyond its use: what it is, what it draws, how healthy it is. None: not known."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class XidCount:
    """How often one XID was seen since the agent started, and when last."""

    xid: int
    xid_class: str
    count: int
    last_wall_ms: int


@dataclass(frozen=True, slots=True)
class GpuDetail:
    """One GPU or MIG device as its driver shows it."""

    parent_uuid: str = ""
    """The GPU that a MIG device is a part of; empty for a GPU."""
    serial: str = ""
    pci_bus_id: str = ""
    driver: str = ""
    utilization_supported: bool = True
    """Whether busy time can be measured at all."""
    lost: bool = False
    """Whether it fell off the bus."""
    energy_joules: float | None = None
    """Used since the agent first saw the GPU; resets of the driver's counter are taken out."""
    power_limit_watts: float | None = None
    sm_activity_ratio: float | None = None
    """Share (0-1) of the multiprocessors that were busy."""
    compute_processes: int | None = None
    orphan_memory_bytes: int | None = None
    """Memory of processes that no longer exist; None also where not all of the node's processes can be seen."""
    recovery_action: int | None = None
    """What the driver wants to be done (`agents.gpus.nvml.codes.RECOVERY_ACTIONS`)."""
    ecc_errors: dict[str, int] = field(default_factory=dict)
    """`corrected` and `uncorrected` since the driver was loaded."""
    ecc_errors_ever: dict[str, int] = field(default_factory=dict)
    """The same over the GPU's life."""
    remapped_rows: dict[str, int] = field(default_factory=dict)
    """`correctable` and `uncorrectable`: rows of memory replaced, by the kind of error that made it necessary."""
    row_remap_pending: bool | None = None
    """A row is to be replaced at the next reset."""
    row_remap_failed: bool | None = None
    """A row could not be replaced: the GPU has to be exchanged."""
    clocks_event_reasons: dict[str, bool] | None = None
    """Whether each reason slows the GPU down now."""
    throttled_s: dict[str, float] = field(default_factory=dict)
    """Seconds of being slowed down since the agent first saw the GPU, by reason."""
    pcie_replays: int | None = None
    xids: tuple[XidCount, ...] = ()
    events: dict[str, int] = field(default_factory=dict)
    """Other events since the agent started, by kind."""
    unsupported: tuple[str, ...] = ()
    """What this GPU or driver does not have."""
    withdrawn: bool | None = None
    """Whether its node gives it to nobody any more, as a device plugin does with what it finds broken."""
