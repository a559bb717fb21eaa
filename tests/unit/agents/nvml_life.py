"""Days in the life of a node in virtual time: its driver, kubelet and clocks are played, everything else is the agent.

True time only goes on; the wall is true time plus an offset that somebody may set. What must come out is computed
here from the stays alone, second by second, without any of the agent's arithmetic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.gpus.nvml import wire
from agents.gpus.nvml.reader import NvmlReader
from agents.jumps import SlowTime
from agents.loop import Deliverer, Sampler
from agents.metrics import Counts
from agents.model import EvidenceDoor
from agents.outbox import Outbox
from agents.pods.cgroups import Process
from agents.pods.podresources import LIST
from agents.pods.tracker import KubeletSettings, PodTracker
from agents.pods.unary import CallFailed
from quota.clock import Clock
from tests.fakekubelet.messages import FakePod, response
from tests.unit.agents.agent_world import HOUR_MS
from tests.unit.agents.nvml_world import a_gpu
from tests.unit.agents.pods_world import GPU, SPACE, pod_of

BEGIN_MS = 500_000 * HOUR_MS
"""A full hour of the wall, while nobody has set it."""
PERIOD_MS = 1_000
CYCLE_MS = 60_000


@dataclass(frozen=True)
class Stay:
    """A job's pod holds a device from one minute to another (of true time, since the beginning)."""

    job_id: str
    device: str
    since_min: int
    until_min: int
    percent: float = 0.0
    """What its one process keeps the device busy."""

    @property
    def gpu_uuid(self) -> str:
        return self.device.split("::")[0]

    def holds(self, at_ms: int) -> bool:
        """At a true time in milliseconds since the beginning."""
        return self.since_min * 60_000 <= at_ms < self.until_min * 60_000


class Life:
    """A node with GPUs that are always busy by the same ratio; a second Life on the same outbox is a restart."""

    def __init__(
        self,
        outbox: Outbox,
        door: EvidenceDoor,
        stays: Sequence[Stay],
        ratios: dict[str, float],
        true_ms: int = 0,
        offset_ms: int = 0,
        depth: int = 600,
        ring: deque[int] | None = None,
    ) -> None:
        """`ring`: the driver's samples, which a restarted agent finds as they were stamped."""
        self.stays, self.ratios = stays, ratios
        self.cycle_ms = CYCLE_MS
        self.kubelet_away = False
        self._used_us = 0
        self.true_ms, self.offset_ms = true_ms, offset_ms
        first_ms = max(0, true_ms - depth * PERIOD_MS)
        self.ring = ring or deque(
            (BEGIN_MS + at_ms + offset_ms for at_ms in range(first_ms, true_ms + 1, PERIOD_MS)), depth
        )
        self._after_us = 0
        clock = _WallClock(self)
        self.tracker = PodTracker(
            KubeletSettings(), clock, outbox, self, self._answer, lambda: self.true_ms / 1000
        )
        self.tracker.ask_once()
        self.reader = NvmlReader(clock, "gpu-07", monotonic=lambda: self.true_ms / 1000, pods=self.tracker)
        self.counts = Counts()
        self.outbox = outbox
        self.sampler = Sampler(self.reader, outbox, clock, self.counts, ("gpu-07",))
        self.sampler._slow = SlowTime(outbox.newest_ms(), 1, lambda: self.true_ms / 1000)
        self.deliverer = Deliverer(door, outbox, self.counts)

    @property
    def wall_ms(self) -> int:
        return BEGIN_MS + self.true_ms + self.offset_ms

    def present(self) -> list[Stay]:
        """Who is on the node."""
        return [stay for stay in self.stays if stay.holds(self.true_ms)]

    def go_on(self, minutes: int, deliver: bool = True) -> None:
        """Live: with every cycle the kubelet is asked, the driver is read, samples are counted, rows delivered."""
        for _ in range(minutes * 60_000 // self.cycle_ms):
            self.read()
            if deliver:
                self.deliverer.deliver_once()
            self.pass_time(self.cycle_ms)
        self.read()

    def pass_time(self, length_ms: int) -> None:
        """Time goes on and the driver samples."""
        for _ in range(length_ms // PERIOD_MS):
            self.true_ms += PERIOD_MS
            self.ring.append(self.wall_ms)

    def read(self) -> None:
        """One cycle of everything but the delivery."""
        self.tracker.ask_once()
        self.reader._take(self._cycle())
        self.sampler.sample_once()

    def _cycle(self) -> wire.Cycle:
        wall_us = self.wall_ms * 1000
        self._after_us = min(self._after_us, wall_us)
        stamps = sorted(at_ms for at_ms in self.ring if self._after_us < at_ms * 1000 <= wall_us)
        since_us, self._used_us = self._used_us, wall_us
        gpus = []
        for number, (uuid, ratio) in enumerate(self.ratios.items()):
            samples = [(at_ms * 1000, ratio) for at_ms in stamps]
            busy = [
                (pid, stay.percent)
                for pid, stay in enumerate(self.stays, 1)
                if stay.gpu_uuid == uuid and stay in self.present()
            ]
            use = wire.ProcessUse(since_us, wall_us, busy) if 0 < since_us < wall_us else None
            gpus.append(a_gpu(number, gpu_uuid=uuid, samples_us=samples, process_use=use))
        if stamps:
            self._after_us = stamps[-1] * 1000
        return wire.Cycle(wall_us, "570", len(gpus), gpus)

    # --- the node's folders and the kubelet

    def living(self) -> frozenset[str]:
        return frozenset(f"uid-{stay.job_id}" for stay in self.present())

    def uids(self) -> dict[tuple[str, str], frozenset[str]]:
        return {(SPACE, pod_of(stay.job_id)): frozenset({f"uid-{stay.job_id}"}) for stay in self.present()}

    def process(self, pid: int) -> Process | None:
        return Process(pid, 1) if self.stays[pid - 1] in self.present() else None

    def pod_of(self, pid: int) -> str | None:
        return f"uid-{self.stays[pid - 1].job_id}"

    def _answer(self, socket: Path, method: str, request: bytes, timeout_s: float) -> bytes:
        if method != LIST:
            raise CallFailed("unimplemented", "an old kubelet")
        if self.kubelet_away:
            raise CallFailed("absent", "no socket")
        return response(FakePod(SPACE, pod_of(stay.job_id), {GPU: [stay.device]}) for stay in self.present())


class _WallClock(Clock):
    __slots__ = ("_life",)

    def __init__(self, life: Life) -> None:
        super().__init__()
        object.__setattr__(self, "_life", life)

    def now_ms(self) -> int:
        return self._life.wall_ms


def truth(
    stays: Iterable[Stay], ratios: dict[str, float], until_ms: int, offset_ms: int = 0
) -> dict[tuple[str, int], tuple[int, int]]:
    """(busy, observed) milliseconds by job and hour of stays on GPUs of their own, up to a true time."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for stay in stays:
        for at_ms in range(stay.since_min * 60_000, min(until_ms, stay.until_min * 60_000), PERIOD_MS):
            wall_ms = BEGIN_MS + at_ms + offset_ms
            key = (stay.job_id, wall_ms - wall_ms % HOUR_MS)
            busy_ms, observed_ms = found.get(key, (0, 0))
            found[key] = (busy_ms + round(PERIOD_MS * ratios[stay.gpu_uuid]), observed_ms + PERIOD_MS)
    return found


def a_day(minutes: int = 24 * 60) -> list[Stay]:
    """One job all day on the first GPU, jobs of an odd length back to back on the second."""
    long = Stay("job-long", "GPU-0", 0, minutes + 60)
    short = [
        Stay(f"job-{number}", "GPU-1", since_min, since_min + 95)
        for number, since_min in enumerate(range(0, minutes, 95))
    ]
    return [long, *short]


RATIOS = {"GPU-0": 0.5, "GPU-1": 0.25}
