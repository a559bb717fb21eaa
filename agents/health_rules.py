"""What makes a GPU degraded, unhealthy or lost: a table, with the source of each line. Pure.

XIDs are judged by their class (`agents.gpus.nvml.codes.XIDS`, which has a source for each). What a program does to
itself (13, 31, 43, 45, 68, 109) and what the driver notes for the record (63, 92) says nothing about the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from agents.gpus.nvml.codes import XidClass
from quota.schemas.gpus import GpuHealth


class Rule(NamedTuple):
    """One line: what the sign makes of the GPU, whether work on it may have died of it, and who says so."""

    health: GpuHealth
    fault: bool
    title: str
    source: str


XID_HARDWARE = "xid_hardware"
XID_CONTAINED = "xid_contained"
LOST = "lost"
RECOVERY_ACTION = "recovery_action"
ROW_REMAP_FAILED = "row_remap_failed"
ROW_REMAP_PENDING = "row_remap_pending"
ECC_UNCORRECTED = "ecc_uncorrected"
THROTTLED = "throttled"
UNREADABLE = "unreadable"
HANGS = "hangs"
RECOVERED = "recovered"

_MEMORY = "NVIDIA A100/H100 memory error management"

RULES: dict[str, Rule] = {
    XID_HARDWARE: Rule(
        GpuHealth.UNHEALTHY, True, "an XID that calls for a reset or a reboot", "NVIDIA XID catalogue"
    ),
    XID_CONTAINED: Rule(
        GpuHealth.DEGRADED, True, "a contained memory error: its program dies, the GPU goes on", _MEMORY
    ),
    LOST: Rule(GpuHealth.LOST, True, "fell off the bus", "nvml.h: NVML_ERROR_GPU_IS_LOST"),
    RECOVERY_ACTION: Rule(
        GpuHealth.UNHEALTHY,
        True,
        "the driver asks for a reset, a reboot or a drain",
        "nvml.h: GPU_RECOVERY_ACTION",
    ),
    ROW_REMAP_FAILED: Rule(GpuHealth.UNHEALTHY, False, "a row of memory could not be replaced", _MEMORY),
    ROW_REMAP_PENDING: Rule(
        GpuHealth.DEGRADED,
        False,
        "a row of memory is replaced at the next reset; it is not used until then",
        _MEMORY,
    ),
    ECC_UNCORRECTED: Rule(
        GpuHealth.DEGRADED,
        True,
        "an uncorrectable memory error; one that spread has an XID of its own",
        _MEMORY,
    ),
    THROTTLED: Rule(
        GpuHealth.DEGRADED,
        False,
        "slowed down by heat or power for half of ten minutes",
        "nvml.h: clocks event reasons",
    ),
    UNREADABLE: Rule(
        GpuHealth.DEGRADED, False, "the driver does not answer for it; blind is not broken", "this project"
    ),
    HANGS: Rule(
        GpuHealth.UNHEALTHY,
        True,
        "the driver has not answered for it for ten minutes, while it answers for others",
        "this project",
    ),
}

XID_RULES: dict[XidClass, str] = {XidClass.HARDWARE: XID_HARDWARE, XidClass.CONTAINED: XID_CONTAINED}
"""Classes that are missing say nothing about the GPU's health."""

THROTTLE_REASONS = ("hw_thermal_slowdown", "hw_power_brake_slowdown")
THROTTLE_WINDOW_MS = 600_000
THROTTLE_SHARE = 0.5
UNREADABLE_MS = 120_000
"""A collector that is replaced, or a driver that is updated, is away for less."""
HANGS_MS = 600_000
"""By then the collector was replaced for its sake four times."""
HOLD_DOWN_MS = 600_000
"""So long a GPU must be watched without a break and without a bad sign before it counts as well again."""
