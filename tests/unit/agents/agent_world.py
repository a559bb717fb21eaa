"""A small world for the agent's tests: GPUs with samples and holders, and a service that keeps what counts.

It shares no arithmetic with the agent: `Gpus` answers readings from plain lists, `Service` keeps the greatest
`seq` per row and epoch in a dict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agents.gpus.port import ReaderUnavailable
from agents.loop import Deliverer, Sampler
from agents.metrics import Counts
from agents.model import GpuReading, NodeReading, PastWorkload, Workload
from agents.outbox import Outbox
from quota.client import ServiceProblem, ServiceUnavailable
from quota.clock import Clock
from quota.schemas.service import Problem
from quota.schemas.usage import EvidenceBatch, EvidenceReply, EvidenceRow

HOUR_MS = 3_600_000
PERIOD_MS = 10_000
START_MS = 500_000 * HOUR_MS
"""A full hour; business time in the tests counts from here."""


@dataclass(frozen=True)
class Hold:
    """An attempt that holds a GPU from `since_ms` up to `until_ms` (None: to the end of the test)."""

    job_id: str
    since_ms: int
    until_ms: int | None = None
    attempt: int = 1


@dataclass
class Gpu:
    """One GPU's whole truth: every sample it will ever take and everybody who will ever hold it."""

    samples: list[tuple[int, float]] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    node: str = "sim-0"
    gpu_class: str = "h100"


def steady(ratio: float, from_ms: int, until_ms: int, period_ms: int = PERIOD_MS) -> list[tuple[int, float]]:
    """Samples at every period in (from_ms, until_ms]."""
    return [(at_ms, ratio) for at_ms in range(from_ms + period_ms, until_ms + 1, period_ms)]


class Gpus:
    """A GpuReader over GPUs; `now_ms` is set by the test."""

    def __init__(self, gpus: dict[str, Gpu], now_ms: int = START_MS, most_samples: int = 600) -> None:
        self.gpus = gpus
        self.now_ms = now_ms
        self.lost: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.sample_period_ms = PERIOD_MS
        self._most_samples = most_samples

    def read(self, node: str, after_ms: int) -> NodeReading:
        self.asked.append((node, after_ms))
        if node in self.lost or "*" in self.lost:
            raise ReaderUnavailable(f"{node} is lost")
        on_node = {uuid: gpu for uuid, gpu in self.gpus.items() if gpu.node == node}
        return NodeReading(
            self.now_ms,
            node,
            "boot-1",
            tuple(self._gpu(uuid, gpu, after_ms) for uuid, gpu in on_node.items()),
            tuple(past for uuid, gpu in on_node.items() for past in self._past(uuid, gpu, after_ms)),
        )

    def read_all(self, after_ms: int) -> tuple[NodeReading, ...]:
        if "*" in self.lost:
            raise ReaderUnavailable("no cluster")
        nodes = sorted({gpu.node for gpu in self.gpus.values()} - self.lost)
        return tuple(self.read(node, after_ms) for node in nodes)

    def _gpu(self, uuid: str, gpu: Gpu, after_ms: int) -> GpuReading:
        samples = [sample for sample in gpu.samples if after_ms < sample[0] <= self.now_ms]
        present = None
        for hold in gpu.holds:
            if hold.since_ms <= self.now_ms and (hold.until_ms is None or self.now_ms < hold.until_ms):
                present = Workload(hold.job_id, hold.attempt, 0, hold.since_ms)
        return GpuReading(
            uuid,
            gpu.gpu_class,
            "NVIDIA H100",
            80 << 30,
            1 << 30,
            300.5,
            41.0,
            present,
            samples[-self._most_samples :],
        )

    def _past(self, uuid: str, gpu: Gpu, after_ms: int) -> list[PastWorkload]:
        return [
            PastWorkload(uuid, hold.job_id, hold.attempt, 0, hold.since_ms, hold.until_ms)
            for hold in gpu.holds
            if hold.until_ms is not None and after_ms < hold.until_ms <= self.now_ms
        ]


class Service:
    """Keeps the row with the greatest `seq` per key and epoch; adds epochs."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int, str, int, str], EvidenceRow] = {}
        self.deliveries: list[EvidenceBatch] = []
        self.known_jobs: set[str] | None = None
        self.before: Callable[[EvidenceBatch], None] = lambda batch: None
        self.after: Callable[[EvidenceBatch], None] = lambda batch: None

    def deliver_evidence(self, body: EvidenceBatch, /) -> EvidenceReply:
        self.before(body)
        self.deliveries.append(body)
        accepted = unchanged = unknown = 0
        for row in body.rows:
            key = (row.job_id, row.attempt, row.gpu_uuid, row.hour, row.agent_epoch)
            known = self.rows.get(key)
            if known is not None and known.seq >= row.seq:
                unchanged += 1
                continue
            self.rows[key] = row
            accepted += 1
            unknown += self.known_jobs is not None and row.job_id not in self.known_jobs
        self.after(body)
        return EvidenceReply(accepted=accepted, unchanged=unchanged, unknown=unknown)

    def totals(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(busy_ms, observed_ms) by job and hour, epochs and GPUs added."""
        sums: dict[tuple[str, int], tuple[int, int]] = {}
        for row in self.rows.values():
            busy_ms, observed_ms = sums.get((row.job_id, row.hour), (0, 0))
            sums[row.job_id, row.hour] = (busy_ms + row.busy_ms, observed_ms + row.observed_ms)
        return sums


def out_of_service(batch: EvidenceBatch) -> None:
    """A fault for `Service.before` (nothing done) or `after` (done, and the reply lost)."""
    raise ServiceUnavailable("connection reset")


def a_problem(status: int, code: str) -> ServiceProblem:
    return ServiceProblem(Problem(type="about:blank", title=code, status=status, code=code))


@dataclass
class Agent:
    """An agent without threads and sockets."""

    outbox: Outbox
    counts: Counts
    sampler: Sampler
    deliverer: Deliverer


def an_agent(outbox: Outbox, gpus: Gpus, service: Service, nodes: tuple[str, ...] = ()) -> Agent:
    """An agent on this outbox; a second one on the same outbox is the first one restarted."""
    counts = Counts()
    # A clock that stands still at the world's time of construction is enough: readings carry their own now.
    sampler = Sampler(gpus, outbox, _Still(gpus), counts, nodes)
    return Agent(outbox, counts, sampler, Deliverer(service, outbox, counts))


class _Still(Clock):
    __slots__ = ("_gpus",)

    def __init__(self, gpus: Gpus) -> None:
        super().__init__()
        object.__setattr__(self, "_gpus", gpus)

    def now_ms(self) -> int:
        return self._gpus.now_ms
