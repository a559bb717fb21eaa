"""Which devices the kubelet gives to pods: those that its device plugins call healthy.

The kubelet lists them (`GetAllocatableResources`, since 1.23). A GPU that the driver knows and that is not among them
is withdrawn: nobody gets it. That may open a node with a bad GPU, so it is said only where no doubt is left:

- an answer that failed, was refused by an old kubelet, or is older than half a minute says nothing;
- one without any GPU says nothing of single ones: the kubelet or its plugin has just started, or names them otherwise;
- where a device is offered that cannot be told to be a part of a known GPU (an index, a MIG device that the driver does
  not show), whatever is not offered by name may be that device: nothing is said of it;
- a GPU is offered as long as it, one of its replicas or one of its MIG devices is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents import log
from agents.pods.names import device_named
from agents.pods.podresources import ALLOCATABLE, Device, Malformed, offered_in
from agents.pods.unary import Caller, CallFailed

EVERY = 3
"""It is asked this with every third list, but"""
MOST_EVERY_S = 10.0
"""not more rarely than this, unless lists are."""
FRESH = 3
LEAST_FRESH_S = 10.0
"""So many times longer an answer counts (27 s), at least so long. A kubelet that restarts gives nothing meanwhile."""
LONGEST_BACKOFF_S = 300.0
"""A kubelet that cannot answer this is asked again now and then: it may be replaced by a newer one."""

_GPU_RESOURCES = ("gpu", "mig-")
"""How the names of the resources begin, behind the vendor's, whose devices are GPUs or parts of them."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One answer: GPUs and MIG devices by UUID, and whether there were devices without one."""

    uuids: frozenset[str]
    nameless: bool = False


def offer_of(devices: Iterable[Device]) -> Offer:
    """What a list of devices offers."""
    uuids = set()
    nameless = False
    for device in devices:
        named = device_named(device.id)
        if named is not None:
            uuids.add(named.gpu_uuid)
        elif device.resource.rpartition("/")[2].startswith(_GPU_RESOURCES):
            nameless = True
    return Offer(frozenset(uuids), nameless)


def withdrawn(offer: Offer | None, parents: Mapping[str, str]) -> dict[str, bool | None]:
    """Of each device whether the kubelet gives it to nobody; None where that is not known.

    `parents` are all devices that the driver knows, each with the GPU that it is a part of (itself empty).
    """
    if offer is None or not offer.uuids:
        return dict.fromkeys(parents)
    offered = set(offer.uuids)
    offered |= {parents[uuid] for uuid in offer.uuids if parents.get(uuid)}
    doubtful = offer.nameless or not offer.uuids <= parents.keys()
    return {
        uuid: False if uuid in offered or parent in offer.uuids else None if doubtful else True
        for uuid, parent in parents.items()
    }


class Offers:
    """Asks now and then and keeps the last answer. One thread asks, any may read."""

    def __init__(
        self,
        ask: Caller,
        socket: Path,
        timeout_s: float,
        interval_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`interval_s` is how often lists are asked for."""
        self._ask, self._socket, self._timeout_s, self._monotonic = ask, socket, timeout_s, monotonic
        self.failures: Counter[str] = Counter()
        """Times without an answer, by reason."""
        self._answer: tuple[float, Offer] | None = None
        self._due_s = monotonic()
        self._every_s = max(interval_s, min(MOST_EVERY_S, EVERY * interval_s))
        self._wait_s = self._every_s

    def fresh(self) -> Offer | None:
        """The last answer, if it is not too old."""
        answer = self._answer
        if answer is None or self._monotonic() - answer[0] > max(LEAST_FRESH_S, FRESH * self._every_s):
            return None
        return answer[1]

    def doubt(self) -> None:
        """The kubelet was away: ask at the next occasion, it may be another one now."""
        self._due_s = self._monotonic()

    def ask_if_due(self) -> None:
        """Ask, if it is time."""
        now_s = self._monotonic()
        if now_s < self._due_s:
            return
        try:
            offer = offer_of(offered_in(self._ask(self._socket, ALLOCATABLE, b"", self._timeout_s)))
        except (CallFailed, Malformed) as error:
            reason = error.reason if isinstance(error, CallFailed) else "malformed"
            if reason not in self.failures:
                log.warning("kubelet_does_not_say_what_it_offers", reason=str(error))
            self.failures[reason] += 1
            if self.fresh() is None:
                self._wait_s = min(LONGEST_BACKOFF_S, 2 * self._wait_s)
            self._due_s = now_s + self._wait_s
            return
        # as old as the question: what changed since is not in it
        self._answer = now_s, offer
        self._wait_s = self._every_s
        self._due_s = now_s + self._every_s
