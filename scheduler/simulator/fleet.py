"""Which nodes and GPUs a simulated cluster is made of, and what their devices say of themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_DNS, uuid5

from scheduler.simulator.events import GpuSpec

GIB = 1 << 30

DEFAULT_NODES = ("sim-[0-1]:h100=8", "sim-[2-3]:a100=8", "sim-4:h100-1g.10gb=28")
"""Two H100 nodes, two A100 nodes, and four H100 cut into seven MIG slices each."""

_SPACE = uuid5(NAMESPACE_DNS, "simulate.gpuhub")
_RANGE = re.compile(r"^(?P<before>[^\[\]]*)\[(?P<first>\d+)-(?P<last>\d+)\](?P<after>[^\[\]]*)$")
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
_RACK = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
_SLICE = re.compile(r"^(?P<whole>.+)-(?P<part>\dg\.(?P<memory_gib>\d+)gb)$")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the driver reports about every device of a class."""

    model: str
    memory_total_bytes: int
    idle_watts: float
    full_watts: float


_WHOLE = {
    "h100": Hardware("NVIDIA H100 80GB HBM3", 80 * GIB, 70.0, 700.0),
    "h200": Hardware("NVIDIA H200", 141 * GIB, 75.0, 700.0),
    "a100": Hardware("NVIDIA A100-SXM4-80GB", 80 * GIB, 55.0, 400.0),
    "l40s": Hardware("NVIDIA L40S", 48 * GIB, 35.0, 350.0),
}


def hardware(gpu_class: str) -> Hardware:
    """The hardware behind a class; a MIG slice `WHOLE-Ng.Mgb` has its part of the whole's power."""
    cut = _SLICE.match(gpu_class)
    if cut is None:
        return _WHOLE.get(gpu_class, Hardware(f"Simulated {gpu_class}", 80 * GIB, 60.0, 500.0))
    whole = hardware(cut["whole"])
    sevenths = int(cut["part"][0]) / 7
    return Hardware(
        model=f"{whole.model} MIG {cut['part']}",
        memory_total_bytes=int(cut["memory_gib"]) * GIB,
        idle_watts=round(whole.idle_watts * sevenths, 1),
        full_watts=round(whole.full_watts * sevenths, 1),
    )


def read_fleet(specs: Sequence[str]) -> dict[str, tuple[GpuSpec, ...]]:
    """Nodes and their GPUs from texts like `sim-[0-1]:h100=8`, `sim-4@rack-b:a100=4,h100-1g.10gb=28`.

    GPU ids follow from node name and position, so the same fleet always has the same ids. Raises ValueError.
    """
    fleet: dict[str, tuple[GpuSpec, ...]] = {}
    for spec in specs:
        names, colon, counts = spec.partition(":")
        if not colon:
            raise ValueError(f"{spec!r} is not NODES[@RACK]:CLASS=COUNT[,CLASS=COUNT]")
        classes = _classes(spec, counts)
        for node in _names(spec, names.partition("@")[0]):
            if node in fleet:
                raise ValueError(f"node {node!r} is named twice")
            fleet[node] = tuple(
                GpuSpec(_gpu_uuid(node, index, gpu_class), gpu_class)
                for index, gpu_class in enumerate(classes)
            )
    return fleet


def read_racks(specs: Sequence[str]) -> dict[str, str]:
    """The rack of each node of which one is named (`NODES@RACK:…`). Raises ValueError."""
    racks: dict[str, str] = {}
    for spec in specs:
        names, at, rack = spec.partition(":")[0].partition("@")
        if at and _RACK.match(rack) is None:
            raise ValueError(f"{spec!r}: {rack!r} is no rack's name (letters, digits, '-', '_' and '.')")
        if at:
            racks |= dict.fromkeys(_names(spec, names), rack)
    return racks


def _names(spec: str, names: str) -> list[str]:
    several = _RANGE.match(names)
    if several is None:
        found = [names]
    else:
        first, last = int(several["first"]), int(several["last"])
        if first > last:
            raise ValueError(f"{spec!r}: the range runs backwards")
        width = len(several["first"])
        found = [
            f"{several['before']}{number:0{width}}{several['after']}" for number in range(first, last + 1)
        ]
    for name in found:
        if _NAME.match(name) is None:
            raise ValueError(f"{spec!r}: {name!r} is no node name (a-z, 0-9, '-' and '.')")
    return found


def _classes(spec: str, counts: str) -> list[str]:
    """The class of every device of a node, in order."""
    classes: list[str] = []
    for part in counts.split(","):
        gpu_class, equals, count = part.partition("=")
        if (
            not equals
            or _NAME.match(gpu_class) is None
            or not count.isdecimal()
            or not 1 <= int(count) <= 1024
        ):
            raise ValueError(f"{spec!r}: {part!r} is not CLASS=COUNT with a count from 1 to 1024")
        if gpu_class in classes:
            raise ValueError(f"{spec!r}: class {gpu_class!r} is named twice")
        classes.extend([gpu_class] * int(count))
    return classes


def _gpu_uuid(node: str, index: int, gpu_class: str) -> str:
    kind = "GPU" if _SLICE.match(gpu_class) is None else "MIG"
    return f"{kind}-{uuid5(_SPACE, f'{node}/{index}')}"


def boot_id(node: str, boots: int) -> str:
    """The id of a node's current boot; a returned node has a new one."""
    return str(uuid5(_SPACE, f"{node}/boot/{boots}"))
