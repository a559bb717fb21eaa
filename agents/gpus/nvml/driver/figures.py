"""What one device says of itself: memory, power, errors, throttling, processes."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import pynvml

from agents.gpus.nvml.codes import GARBAGE, RECOVERY_ACTION_FIELD, THROTTLE_FIELDS
from agents.gpus.nvml.driver.library import Asking, Handle, number

MOST_PIDS = 1 << 22
"""Linux' greatest pid_max."""

INVALID_ARGUMENT = 2


def figures(asking: Asking, handle: Handle) -> dict[str, Any]:
    values: dict[str, Any] = memory_of(asking, handle)
    celsius = pynvml.NVML_TEMPERATURE_GPU
    for field, calls in {
        "power_mw": (lambda: pynvml.nvmlDeviceGetPowerUsage(handle),),
        "power_limit_mw": (lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle),),
        "energy_mj": (lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),),
        "temperature_celsius": (
            lambda: pynvml.nvmlDeviceGetTemperatureV(handle, celsius),
            lambda: pynvml.nvmlDeviceGetTemperature(handle, celsius),
        ),
        "clocks_event_reasons": (
            lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
            lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        ),
        "pcie_replays": (lambda: pynvml.nvmlDeviceGetPcieReplayCounter(handle),),
        "remapped_rows": (lambda: tuple(pynvml.nvmlDeviceGetRemappedRows(handle)),),
    }.items():
        values[field] = asking.ask(
            field.removesuffix("_mw").removesuffix("_mj").removesuffix("_celsius"), *calls
        )
    values["ecc"] = _ecc(asking, handle)
    values |= _fields(asking, handle)
    values["processes"] = processes_of(asking, handle, values.get("memory_total_bytes"))
    return values


def memory_of(asking: Asking, handle: Handle) -> dict[str, Any]:
    memory = asking.ask(
        "memory",
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2),
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle),
    )
    if memory is None:
        return {}
    if memory.used > memory.total:
        asking.errors["memory"] = GARBAGE
        return {}
    return {"memory_total_bytes": int(memory.total), "memory_used_bytes": int(memory.used)}


def _ecc(asking: Asking, handle: Handle) -> dict[str, int]:
    counts = {}
    for name, uncorrected, ever in (
        ("corrected", 0, 0),
        ("uncorrected", 1, 0),
        ("corrected_ever", 0, 1),
        ("uncorrected_ever", 1, 1),
    ):
        count = asking.ask(
            f"ecc_{name}",
            partial(pynvml.nvmlDeviceGetTotalEccErrors, handle, uncorrected, ever),
        )
        if count is not None:
            counts[name] = int(count)
    return counts


def _fields(asking: Asking, handle: Handle) -> dict[str, Any]:
    wanted = [RECOVERY_ACTION_FIELD, *THROTTLE_FIELDS]
    fields = asking.ask("fields", lambda: pynvml.nvmlDeviceGetFieldValues(handle, wanted))
    action, throttled_ns = None, {}
    for field in () if fields is None else fields:
        field_id = int(field.fieldId)
        operation = (
            "recovery_action"
            if field_id == RECOVERY_ACTION_FIELD
            else f"throttle_{THROTTLE_FIELDS[field_id]}"
        )
        # Fields that a driver does not know are answered as invalid arguments.
        if field.nvmlReturn == INVALID_ARGUMENT:
            asking.unsupported.add(operation)
        elif field.nvmlReturn:
            asking.refuse(operation, int(field.nvmlReturn))
        else:
            value = number(int(field.valueType), field.value)
            if not 0 <= value < 1 << 63:
                asking.errors[operation] = GARBAGE
            elif field_id == RECOVERY_ACTION_FIELD:
                action = int(value)
            else:
                throttled_ns[THROTTLE_FIELDS[field_id]] = int(value)
    return {"recovery_action": action, "throttled_ns": throttled_ns}


class _WideProcess(ctypes.Structure):
    """The process entry of early R535 drivers, under the same function name as the narrow one."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("usedGpuMemory", ctypes.c_ulonglong),
        ("gpuInstanceId", ctypes.c_uint),
        ("computeInstanceId", ctypes.c_uint),
        ("usedGpuCcProtectedMemory", ctypes.c_ulonglong),
    ]


def processes_of(
    asking: Asking, handle: Handle, most_bytes: int | None
) -> list[tuple[int, int | None]] | None:
    narrow = (
        lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle),
        lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle),
    )
    calls = (lambda: _wide_processes(handle),) if _writes_wide_processes() else narrow
    listed = asking.ask("processes", *calls)
    if listed is None:
        return None
    processes = []
    for process in listed:
        used = process.usedGpuMemory
        used = None if used in (None, (1 << 64) - 1) else int(used)
        if not 0 < process.pid <= MOST_PIDS or (used or 0) > (most_bytes or 1 << 63):
            asking.errors["processes"] = GARBAGE
        else:
            processes.append((int(process.pid), used))
    return processes


def _has(function: str) -> bool:
    try:
        pynvml._nvmlGetFunctionPointer(function)
    except pynvml.NVMLError:
        return False
    return True


def _writes_wide_processes() -> bool:
    """The wide entry came with the first of these functions and went with the second (as nvitop tells them apart)."""
    return _has("nvmlDeviceGetConfComputeMemSizeInfo") and not _has("nvmlDeviceGetRunningProcessDetailList")


def _wide_processes(handle: Handle) -> list[Any]:
    function = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetComputeRunningProcesses_v3")
    count = ctypes.c_uint(0)
    code = function(handle, ctypes.byref(count), None)
    if code == 0:
        return []
    if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
        raise pynvml.NVMLError(code)
    count.value = count.value * 2 + 5
    entries = (_WideProcess * count.value)()
    pynvml._nvmlCheckReturn(function(handle, ctypes.byref(count), entries))
    return list(entries[: count.value])
