"""Which attempt of which job a pod is, by its name; and which GPU a device id means. Pure.

The scheduler creates one Job named `<job id>-<attempt>` per attempt in a namespace of the organization, and Kubernetes
names its pods `<job name>-<index>-<five letters>`; only the Job controller may create pods there. A test builds the
Job with the scheduler's own code and compares.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_POD = re.compile(r"([a-z0-9][a-z0-9-]{0,59})-([1-9][0-9]{0,3}|10000)-(0|[1-9][0-9]{0,5})-[a-z0-9]{5}")
_DEVICE = re.compile(r"((?:GPU|MIG)-[A-Za-z0-9-]{1,76})(::[0-9]{1,9})?")


class Part(NamedTuple):
    """One pod of an attempt."""

    job_id: str
    attempt: int
    pod_index: int


class Named(NamedTuple):
    """What a device id names: a GPU or MIG device, or one of the replicas into which a GPU is shared."""

    gpu_uuid: str
    replica: bool


def part_of(namespace: str, pod: str, prefix: str) -> Part | None:
    """The part that a pod plays; None for a pod that is not the hub's. `prefix` is that of the hub's namespaces."""
    found = _POD.fullmatch(pod)
    if found is None or not namespace.startswith(prefix) or namespace == prefix:
        return None
    return Part(found[1], int(found[2]), int(found[3]))


def device_named(device_id: str) -> Named | None:
    """The GPU that a device id names; None for ids of other kinds (an index, `nvidia0/vgpu1`), which name none."""
    found = _DEVICE.fullmatch(device_id)
    return None if found is None else Named(found[1], found[2] is not None)
