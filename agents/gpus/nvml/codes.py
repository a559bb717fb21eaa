"""What NVML's numbers mean to the agent, as data. Pure: no driver, no library.

Names and numbers are those of nvml.h 13; the XID catalogue is docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

FUNCTION_NOT_FOUND = 13
GARBAGE = -1
"""Not a code of NVML: the answer could not be believed or decoded."""


class Meaning(StrEnum):
    """What an error code says about the thing that was asked."""

    UNSUPPORTED = "unsupported"
    """This GPU or driver does not have it: no series, and nothing to repair."""
    NO_NEWS = "no_news"
    """Nothing newer; the answer to give next is the same question."""
    FORBIDDEN = "forbidden"
    """The agent may not: said once."""
    LOST = "lost"
    """The GPU fell off the bus: it is down, the others go on."""
    RESTART = "restart"
    """Driver and library no longer fit each other: only a new process can load them again."""
    DOOR_CLOSED = "door_closed"
    """As `RESTART`; if that does not help, the container lost its devices (`systemctl daemon-reload`)."""
    FAILED = "failed"
    """This call failed this time; the next cycle asks again."""


class Error(NamedTuple):
    """One error code: NVML's name for it and what it means to the agent."""

    name: str
    meaning: Meaning


ERRORS: dict[int, Error] = {
    1: Error("uninitialized", Meaning.RESTART),
    2: Error("invalid_argument", Meaning.FAILED),
    3: Error("not_supported", Meaning.UNSUPPORTED),
    4: Error("no_permission", Meaning.FORBIDDEN),
    5: Error("already_initialized", Meaning.FAILED),
    6: Error("not_found", Meaning.NO_NEWS),
    7: Error("insufficient_size", Meaning.FAILED),
    8: Error("insufficient_power", Meaning.FAILED),
    9: Error("driver_not_loaded", Meaning.RESTART),
    10: Error("timeout", Meaning.FAILED),
    11: Error("irq_issue", Meaning.FAILED),
    12: Error("library_not_found", Meaning.RESTART),
    13: Error("function_not_found", Meaning.UNSUPPORTED),
    14: Error("corrupted_inforom", Meaning.FAILED),
    15: Error("gpu_is_lost", Meaning.LOST),
    16: Error("reset_required", Meaning.FAILED),
    17: Error("operating_system", Meaning.DOOR_CLOSED),
    18: Error("lib_rm_version_mismatch", Meaning.RESTART),
    19: Error("in_use", Meaning.FAILED),
    20: Error("memory", Meaning.FAILED),
    21: Error("no_data", Meaning.NO_NEWS),
    22: Error("vgpu_ecc_not_supported", Meaning.UNSUPPORTED),
    23: Error("insufficient_resources", Meaning.FAILED),
    24: Error("freq_not_supported", Meaning.FAILED),
    25: Error("argument_version_mismatch", Meaning.UNSUPPORTED),
    26: Error("deprecated", Meaning.UNSUPPORTED),
    27: Error("not_ready", Meaning.FAILED),
    28: Error("gpu_not_found", Meaning.RESTART),
    29: Error("invalid_state", Meaning.FAILED),
    30: Error("reset_type_not_supported", Meaning.FAILED),
    999: Error("unknown", Meaning.DOOR_CLOSED),
    GARBAGE: Error("garbage", Meaning.FAILED),
}


def meaning_of(code: int) -> Meaning:
    """What a code means; a code of a newer driver is a failure of that call."""
    return ERRORS[code].meaning if code in ERRORS else Meaning.FAILED


def name_of(code: int) -> str:
    """NVML's name of a code in small letters, `code_31` for one of a newer driver."""
    return ERRORS[code].name if code in ERRORS else f"code_{code}"


class XidClass(StrEnum):
    """Who has to act on an XID."""

    HARDWARE = "hardware"
    """The GPU needs a reset, a reboot or a repair."""
    CONTAINED = "contained"
    """The error was contained: the application that saw it has to be started again, the GPU goes on."""
    APPLICATION = "application"
    """A program's own fault; says nothing about the GPU."""
    INFORMATIONAL = "informational"
    """For the record: the driver repaired it or counts it elsewhere."""
    UNKNOWN = "unknown"
    """Not in the table."""


class Xid(NamedTuple):
    """One XID: its class, what NVIDIA calls it, and where the class comes from."""

    xid_class: XidClass
    title: str
    source: str


_CATALOGUE = "NVIDIA XID catalogue"
_CONTAINED = "NVIDIA A100/H100 memory error management"
_CRASHES = "NVIDIA k8s-device-plugin health.go ignores it; NVSentinel PR 1629 flagged healthy nodes by it"

XIDS: dict[int, Xid] = {
    13: Xid(XidClass.APPLICATION, "graphics engine exception", _CRASHES),
    31: Xid(XidClass.APPLICATION, "GPU memory page fault", _CRASHES),
    43: Xid(XidClass.APPLICATION, "GPU stopped processing", _CRASHES),
    45: Xid(XidClass.APPLICATION, "preemptive cleanup", _CRASHES),
    48: Xid(XidClass.HARDWARE, "double bit ECC error", _CATALOGUE),
    62: Xid(XidClass.HARDWARE, "internal micro-controller halt", _CATALOGUE),
    63: Xid(XidClass.INFORMATIONAL, "row remapping or page retirement recorded", _CONTAINED),
    64: Xid(XidClass.HARDWARE, "row remapping or page retirement failed", _CONTAINED),
    68: Xid(XidClass.APPLICATION, "NVDEC0 exception", _CRASHES),
    74: Xid(XidClass.HARDWARE, "NVLink error", _CATALOGUE),
    79: Xid(XidClass.HARDWARE, "GPU has fallen off the bus", _CATALOGUE),
    92: Xid(XidClass.INFORMATIONAL, "high single-bit ECC error rate", _CATALOGUE),
    94: Xid(XidClass.CONTAINED, "contained ECC error", _CONTAINED),
    95: Xid(XidClass.HARDWARE, "uncontained ECC error", _CONTAINED),
    109: Xid(XidClass.APPLICATION, "context switch timeout", _CRASHES),
    119: Xid(XidClass.HARDWARE, "GSP RPC timeout", _CATALOGUE),
    120: Xid(XidClass.HARDWARE, "GSP error", _CATALOGUE),
}


def xid_class(xid: int) -> XidClass:
    """The class of an XID."""
    return XIDS[xid].xid_class if xid in XIDS else XidClass.UNKNOWN


CLOCKS_EVENT_REASONS: dict[int, str] = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
"""The bits of nvmlDeviceGetCurrentClocksEventReasons that mean slower than could be; idle and settings do not."""

THROTTLE_FIELDS: dict[int, str] = {
    74: "sw_power_cap",
    269: "sw_thermal_slowdown",
    270: "hw_thermal_slowdown",
    271: "hw_power_brake_slowdown",
}
"""Field ids whose values are nanoseconds of throttling since the driver was loaded."""

RECOVERY_ACTION_FIELD = 230
RECOVERY_ACTIONS = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "bus_reset",
    "system_reboot",
)
"""The values of that field (nvmlDeviceGpuRecoveryAction_t)."""

EVENT_XID = 0x8
EVENT_TYPES = {
    0x2: "double_bit_ecc_error",
    EVENT_XID: "xid_critical_error",
    0x800: "dram_retirement_failure",
    0x2000: "fatal_poison_error",
    0x4000: "gpu_unavailable",
    0x8000: "gpu_recovery_action",
}
"""What the agent listens to, as far as a GPU offers it."""
