"""A tracker of pods without a thread and a socket: the test says what the kubelet answers and what time it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agents.model import Holding
from agents.outbox_file import OutboxUnwritable
from agents.pods.cgroups import Node
from agents.pods.podresources import ALLOCATABLE
from agents.pods.tracker import KubeletSettings, PodTracker
from agents.pods.unary import CallFailed
from quota.clock import Clock
from tests.fakekubelet.messages import FakePod, allocatable, response
from tests.fakekubelet.node import FakeNode

SPACE = "hub-acme"
GPU = "nvidia.com/gpu"


def pod_of(job_id: str, attempt: int = 1, index: int = 0) -> str:
    """A pod's name as Kubernetes makes it."""
    return f"{job_id}-{attempt}-{index}-h7x2q"


class HandClock(Clock):
    """Says what the test says, in milliseconds of the wall."""

    __slots__ = ("_at",)

    def __init__(self, at: list[int]) -> None:
        super().__init__()
        object.__setattr__(self, "_at", at)

    def now_ms(self) -> int:
        return self._at[0]


class Shelf:
    """A disk for holdings that may be full."""

    def __init__(self) -> None:
        self.kept: tuple[Holding, ...] = ()
        self.full = False
        self.writes = 0

    def holdings(self) -> tuple[Holding, ...]:
        return self.kept

    def keep_holdings(self, holdings: Iterable[Holding]) -> None:
        if self.full:
            raise OutboxUnwritable("disk full")
        self.writes += 1
        self.kept = tuple(holdings)


class Pods:
    """The kubelet's list, the node's folders, and the tracker over both."""

    def __init__(self, folder: Path, now_ms: int = 1_000_000) -> None:
        self.at = [now_ms]
        self.fake = FakeNode(folder)
        self.listed: list[FakePod] = []
        self.away = ""
        self.asked = 0
        self.offered: list[str] | None = None
        """Ids of `GPU`; None: a kubelet without the method."""
        self.asked_offered = 0
        self.shelf = Shelf()
        self.tracker = self.made()

    def made(self) -> PodTracker:
        """A tracker as of a process that starts now."""
        return PodTracker(
            KubeletSettings(),
            HandClock(self.at),
            self.shelf,
            Node(self.fake.cgroups, self.fake.proc, self.fake.logs),
            self._answer,
            lambda: self.at[0] / 1000,
        )

    def start(self, job_id: str, *ids: str, space: str = SPACE, listed: bool = True) -> FakePod:
        """A pod of a job begins to hold devices; its UID can be seen."""
        pod = FakePod(space, pod_of(job_id), {GPU: list(ids)})
        self.fake.pod(pod.namespace, pod.name)
        if listed:
            self.listed.append(pod)
        return pod

    def end(self, pod: FakePod) -> None:
        """Its cgroup goes; the kubelet lists it on."""
        self.fake.end(pod.namespace, pod.name)

    def ask(self, after_s: float = 3.0) -> None:
        """Time goes on, the tracker asks."""
        self.at[0] += round(1000 * after_s)
        self.tracker.ask_once()

    def spans(self) -> list[tuple[str, str, int, int | None]]:
        """(GPU, job, since, until) in the tracker's order."""
        return [
            (held.gpu_uuid, held.job_id, held.since_ms, held.until_ms) for held in self.tracker.view.holdings
        ]

    def series(self) -> dict[str, dict[tuple[str, ...], float]]:
        """The tracker's metrics."""
        return {
            sample.name: {
                tuple(other.labels.values()): other.value
                for other in family.samples
                if other.name == sample.name
            }
            for family in self.tracker.metrics()
            for sample in family.samples
        }

    def _answer(self, socket: Path, method: str, request: bytes, timeout_s: float) -> bytes:
        if method == ALLOCATABLE:
            self.asked_offered += 1
            if self.offered is None:
                raise CallFailed("unimplemented", "an old kubelet")
            return allocatable({GPU: self.offered})
        self.asked += 1
        if self.away:
            raise CallFailed(self.away, "no")
        return response(self.listed)
