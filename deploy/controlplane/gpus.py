"""What a node of each GPU model looks like to Kubernetes: resource, labels, CPU and memory. Data, no behaviour.

The labels are those of NVIDIA's GPU feature discovery; a node with MIG devices follows its `mixed` strategy, which
names every profile a resource of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

WHOLE_RESOURCE = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"


@dataclass(frozen=True, slots=True)
class Profile:
    """A way to cut a GPU."""

    slices: int
    """Compute slices, of seven."""
    memory_gib: int
    per_gpu: int
    """How many of it fit on one GPU."""


@dataclass(frozen=True, slots=True)
class Model:
    """A whole GPU, and its part of the machine that it sits in."""

    product: str
    family: str
    compute: str
    """Compute capability."""
    memory_mib: int
    machine_cpu_milli: int
    machine_memory_mib: int
    profiles: Mapping[str, Profile] = field(default_factory=dict)


def _profiles(gib: int) -> dict[str, Profile]:
    """The common profiles of a GPU whose smallest slice has `gib` GiB."""
    return {
        f"1g.{gib}gb": Profile(1, gib, 7),
        f"1g.{2 * gib}gb": Profile(1, 2 * gib, 4),
        f"2g.{2 * gib}gb": Profile(2, 2 * gib, 3),
        f"3g.{4 * gib}gb": Profile(3, 4 * gib, 2),
        f"4g.{4 * gib}gb": Profile(4, 4 * gib, 1),
        f"7g.{8 * gib}gb": Profile(7, 8 * gib, 1),
    }


_H200_PROFILES = {
    "1g.18gb": Profile(1, 18, 7),
    "1g.35gb": Profile(1, 35, 4),
    "2g.35gb": Profile(2, 35, 3),
    "3g.71gb": Profile(3, 71, 2),
    "4g.71gb": Profile(4, 71, 1),
    "7g.141gb": Profile(7, 141, 1),
}

MODELS = {
    "h100": Model("NVIDIA-H100-80GB-HBM3", "hopper", "9.0", 81559, 24_000, 229_376, _profiles(10)),
    "h200": Model("NVIDIA-H200", "hopper", "9.0", 143771, 24_000, 262_144, _H200_PROFILES),
    "a100": Model("NVIDIA-A100-SXM4-80GB", "ampere", "8.0", 81920, 16_000, 131_072, _profiles(10)),
    "a100-40gb": Model("NVIDIA-A100-SXM4-40GB", "ampere", "8.0", 40960, 12_000, 131_072, _profiles(5)),
    "l40s": Model("NVIDIA-L40S", "ada-lovelace", "8.9", 46068, 16_000, 98_304),
}

_MIG = re.compile(r"^(?P<whole>.+)-(?P<profile>\dg\.\d+gb)$")


@dataclass(frozen=True, slots=True)
class GpuClass:
    """What a scheduler must know of a class to ask Kubernetes for its devices."""

    name: str
    resource: str
    node_labels: Mapping[str, str]
    """Together with the resource they tell this class from every other."""
    cpu_milli: int
    """What comes with one device."""
    memory_mib: int


def gpu_classes() -> dict[str, GpuClass]:
    """Every class that nodes can be made of, by name."""
    names = [*MODELS, *(f"{whole}-{cut}" for whole, model in MODELS.items() for cut in model.profiles)]
    return {name: gpu_class(name) for name in names}


def gpu_class(name: str) -> GpuClass:
    """A class by the name that the hub gives it: `h100`, `h100-1g.10gb`. Raises ValueError."""
    whole, cut = split_class(name)
    model = MODELS[whole]
    labels = {PRODUCT: model.product}
    if not cut:
        return GpuClass(name, WHOLE_RESOURCE, labels, model.machine_cpu_milli, model.machine_memory_mib)
    profile = model.profiles[cut]
    return GpuClass(
        name,
        mig_resource(cut),
        labels,
        # Half cores and whole GiB: what people would write into a request.
        cpu_milli=model.machine_cpu_milli // profile.per_gpu // 500 * 500,
        memory_mib=model.machine_memory_mib // profile.per_gpu // 1024 * 1024,
    )


def split_class(name: str) -> tuple[str, str]:
    """The model and the MIG profile, which is empty for a whole GPU. Raises ValueError."""
    if name in MODELS:
        return name, ""
    cut = _MIG.match(name)
    if cut is None or cut["whole"] not in MODELS:
        raise ValueError(f"GPU class {name!r} is unknown; models are {', '.join(MODELS)}")
    known = MODELS[cut["whole"]].profiles
    if cut["profile"] not in known:
        raise ValueError(
            f"{cut['whole']} has no profile {cut['profile']!r}; it has {', '.join(known) or 'none'}"
        )
    return cut["whole"], cut["profile"]


def mig_resource(profile: str) -> str:
    """The resource that the device plugin's `mixed` strategy gives a profile."""
    return f"nvidia.com/mig-{profile}"
