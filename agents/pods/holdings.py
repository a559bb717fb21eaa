"""Who holds which GPU since when, as lists of the kubelet showed it. Pure.

Rules, each with its test:
- A pod holds a GPU from the first list that shows it up to, not including, the first that does not: what lies between
  two lists counts for who was there at the earlier one.
- A pod that has ended is listed for a while longer: without a cgroup it holds nothing.
- A pod that is not listed but has its cgroup still holds what it held (a kubelet that has just started lists nothing),
  for ten minutes at most; while the kubelet does not answer, for as long as the cgroup is there.
- Where a pod's cgroup cannot be looked up it is believed as listed, and for ten minutes without a list.
- An id that names no GPU is counted and attributed to nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from agents.model import Holding
from agents.pods.names import device_named, part_of
from agents.pods.podresources import Device, ListedPod

KEPT_MS = 600_000
"""How long a holding is believed without being seen."""

_VENDOR = "nvidia.com"

Key = tuple[str, str, str]
"""GPU's UUID, namespace, pod."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of the kubelet's, judged."""

    held: dict[Key, Holding] = field(default_factory=dict)
    """As if from its moment on."""
    pods: Counter[str] = field(default_factory=Counter)
    """Pods with devices of ours by what they are: `job`, `foreign`, `ended`, and `unverified` of the first two."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Devices that name no GPU, by resource."""
    claimed: bool = False
    """Whether GPUs are given by claims here, too."""


def judge(
    pods: Iterable[ListedPod],
    living: Collection[str] | None,
    uids: Mapping[tuple[str, str], Collection[str]],
    prefix: str,
    at_ms: int,
) -> Listed:
    """What a list says. `living` are the UIDs with a cgroup (None: cannot be seen), `uids` those of each pod."""
    all_pods = [(pod, [device for device in pod.devices if _is_gpu(device)]) for pod in pods]
    listed = Listed(claimed=any(device.claimed for _, devices in all_pods for device in devices))
    for pod, devices in all_pods:
        if not devices:
            continue
        known = uids.get((pod.namespace, pod.name), ())
        alive = sorted(uid for uid in known if living is not None and uid in living)
        if known and living is not None and not alive:
            listed.pods["ended"] += 1
            continue
        part = part_of(pod.namespace, pod.name, prefix)
        listed.pods["job" if part is not None else "foreign"] += 1
        listed.pods["unverified"] += not alive
        for device in devices:
            named = None if device.claimed else device_named(device.id)
            if named is None:
                listed.unknown[device.resource[:63]] += 1
                continue
            listed.held[named.gpu_uuid, pod.namespace, pod.name] = Holding(
                named.gpu_uuid,
                part.job_id if part is not None else "",
                part.attempt if part is not None else 0,
                part.pod_index if part is not None else 0,
                at_ms,
                None,
                named.replica,
                pod.namespace,
                pod.name,
                alive[0] if alive else "",
            )
    return listed


def _is_gpu(device: Device) -> bool:
    """Whether a device is meant to be a GPU, readable name or not."""
    return device.resource.split("/")[0].endswith(_VENDOR) or device_named(device.id) is not None


class Holdings:
    """The holdings of now and those that ended; changed in one thread."""

    def __init__(self, kept: Iterable[Holding] = ()) -> None:
        """`kept` are those of an agent that ended: open ones go on if the next list shows them."""
        self.open: dict[Key, Holding] = {}
        self.ended: list[Holding] = []
        self._seen_ms: dict[Key, int] = {}
        self._since_start: set[Key] = set()
        for holding in kept:
            if holding.until_ms is None:
                self.open[_key(holding)] = holding
            else:
                self.ended.append(holding)
        self._since_start |= self.open.keys()

    def listed(self, held: Mapping[Key, Holding], living: Collection[str] | None, at_ms: int) -> None:
        """Take a list that was answered."""
        for key, holding in held.items():
            known = self.open.get(key)
            self._seen_ms[key] = at_ms
            if known is None:
                self.open[key] = holding
            else:
                # since: the clock may have been set back meanwhile
                self.open[key] = replace(
                    holding, since_ms=min(known.since_ms, at_ms), uid=holding.uid or known.uid
                )
        for key in self.open.keys() - held.keys():
            lives = living is not None and self.open[key].uid in living
            if not (lives and self._fresh(key, at_ms)):
                self._end(key, at_ms)
        self._since_start.clear()

    def unanswered(self, living: Collection[str] | None, at_ms: int) -> None:
        """The kubelet did not answer; cgroups still tell who has ended."""
        for key in list(self.open):
            uid = self.open[key].uid
            checked = living is not None and bool(uid)
            if (checked and uid not in (living or ())) or (not checked and not self._fresh(key, at_ms)):
                self._end(key, at_ms)

    def forget(self, before_ms: int) -> None:
        """Drop what ended at or before a moment."""
        self.ended = [holding for holding in self.ended if (holding.until_ms or 0) > before_ms]

    def all(self) -> tuple[Holding, ...]:
        """The ended ones, then the open ones."""
        return (*self.ended, *self.open.values())

    def _fresh(self, key: Key, at_ms: int) -> bool:
        # a clock set back makes the age negative: start anew
        seen_ms = self._seen_ms.setdefault(key, at_ms)
        if seen_ms > at_ms:
            self._seen_ms[key] = seen_ms = at_ms
        return at_ms - seen_ms <= KEPT_MS

    def _end(self, key: Key, at_ms: int) -> None:
        holding = self.open.pop(key)
        self._seen_ms.pop(key, None)
        # One that was gone when this agent started ended nobody knows when: it gets nothing more.
        if key not in self._since_start:
            self.ended.append(replace(holding, until_ms=at_ms))


def _key(holding: Holding) -> Key:
    return (holding.gpu_uuid, holding.namespace, holding.pod)
