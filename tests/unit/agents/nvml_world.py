"""NVML readers without a collector: the test says what it would have told."""

from __future__ import annotations

import time
from collections.abc import Callable

from agents.gpus.nvml import wire
from agents.gpus.nvml.reader import NvmlReader
from quota.clock import Clock


def a_reader(clock: Clock | None = None, monotonic: Callable[[], float] = time.monotonic) -> NvmlReader:
    """Without a collector; its cycles come from the test."""
    return NvmlReader(clock or Clock(), "gpu-07", monotonic=monotonic)


def a_gpu(number: int = 0, **others: object) -> wire.Gpu:
    """A healthy GPU as a read of it went."""
    gpu = wire.Gpu(
        number,
        f"GPU-{number}",
        name="NVIDIA H100 80GB HBM3",
        memory_total_bytes=80 << 30,
        memory_used_bytes=1 << 30,
        power_mw=300_500,
        temperature_celsius=41,
        energy_mj=5_000_000,
    )
    return gpu._replace(**others)


def a_mig_device(uuid: str = "MIG-1", **others: object) -> wire.Gpu:
    """A MIG device of GPU-0."""
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    gpu = wire.Gpu(0, uuid, parent_uuid="GPU-0", name=name, memory_total_bytes=10 << 30, memory_used_bytes=0)
    return gpu._replace(gpm=True, unsupported=["samples"], **others)


def a_cycle(*gpus: wire.Gpu, **others: object) -> wire.Cycle:
    """One line of a collector's."""
    cycle = wire.Cycle(time.time_ns() // 1000, "570.86.15", len({gpu.gpu_index for gpu in gpus}), list(gpus))
    return cycle._replace(**others)
