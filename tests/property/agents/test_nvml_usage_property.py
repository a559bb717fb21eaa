"""Whatever a driver and its collector do: busy <= observed <= wall, counters only grow, repeats change nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gpus.nvml import wire
from agents.gpus.nvml.reader import NvmlReader
from agents.loop import Sampler
from agents.metrics import Counts
from agents.model import GpuState, NodeReading, Workload
from agents.outbox import Outbox, open_outbox
from quota.clock import Clock
from tests.unit.agents.nvml_world import a_cycle, a_gpu, a_reader

START_US = 500_000 * 3_600_000_000
HOUR_MS = 3_600_000


@dataclass
class Ring:
    """A driver's buffer: a sample at every multiple of the period, the newest `depth` of them."""

    period_us: int = 100_000
    depth: int = 60
    ratio: float = 0.5
    frozen_us: int | None = None

    def read(self, now_us: int, after_us: int) -> list[tuple[int, float]]:
        last = min(now_us, self.frozen_us or now_us) // self.period_us
        numbers = range(last - self.depth + 1, last + 1)
        return [(n * self.period_us, self.ratio) for n in numbers if n * self.period_us > after_us]


@dataclass
class World:
    """One GPU, its collector's memory, and an agent; time stands still between steps."""

    outbox: Outbox
    ring: Ring = field(default_factory=Ring)
    now_us: int = START_US
    after_us: int = 0

    def __post_init__(self) -> None:
        self.reader = a_reader(_At(self), lambda: self.now_us / 1e6)
        self.sampler = Sampler(self.reader, self.outbox, _At(self), Counts(), ("gpu-07",))

    def cycle(self, errors: dict[str, int] | None = None) -> None:
        """The collector reads the driver and tells."""
        samples = self.ring.read(self.now_us, self.after_us)
        self.after_us = max([self.after_us, *(at_us for at_us, _ in samples)])
        gpu = a_gpu(samples_us=samples)
        if errors:
            gpu = wire.Gpu(0, "GPU-0", errors=errors, lost=15 in errors.values())
        self.reader._take(a_cycle(gpu))

    def state(self) -> GpuState | None:
        return next((state for state in self.outbox.states().values()), None)


class _At(Clock):
    __slots__ = ("_world",)

    def __init__(self, world: World) -> None:
        super().__init__()
        object.__setattr__(self, "_world", world)

    def now_ms(self) -> int:
        return self._world.now_us // 1000


@contextmanager
def worlds() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        outbox = open_outbox(Path(folder) / "outbox.sqlite3")
        yield World(outbox)
        outbox.close()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 4_000_000)),
        st.tuples(st.just("pass"), st.integers(0, 200_000_000)),
        st.tuples(st.just("read"), st.just(0)),
        st.tuples(st.just("sample"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("freeze"), st.just(0)),
        st.tuples(st.just("period"), st.sampled_from([16_667, 20_000, 100_000, 166_667, 1_000_000])),
        st.tuples(st.just("ratio"), st.integers(0, 100)),
        st.tuples(st.just("error"), st.sampled_from([2, 15, 18, 999])),
    ),
    max_size=40,
)


def take_step(world: World, step: str, value: int) -> None:
    match step:
        case "pass":
            world.now_us += value
        case "read":
            world.cycle()
        case "restart":
            world.after_us = 0
        case "freeze":
            world.ring.frozen_us = world.now_us if world.ring.frozen_us is None else None
        case "period":
            world.ring.period_us = value
        case "ratio":
            world.ring.ratio = value / 100
        case "error":
            world.cycle({"handle": value})
        case _:
            world.sampler.sample_once()


@settings(max_examples=60, deadline=None)
@given(steps)
def test_busy_within_observed_within_wall_and_counters_only_grow(script: list[tuple[str, int]]) -> None:
    with worlds() as world:
        before: GpuState | None = None
        first_us: int | None = None
        for step, value in script:
            take_step(world, step, value)
            state = world.state()
            if state is None:
                continue
            first_us = first_us or world.now_us
            wall_ms = (world.now_us - first_us) // 1000 + 1
            assert 0 <= state.device.busy_ns <= state.device.observed_ms * 1_000_000
            assert state.device.observed_ms <= wall_ms
            if before is not None:
                assert before.device.busy_ns <= state.device.busy_ns
                assert before.device.observed_ms <= state.device.observed_ms
            before = state


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=15), st.lists(st.booleans(), min_size=30, max_size=30))
def test_new_collectors_and_repeated_lines_change_nothing(restarts: list[bool], doubled: list[bool]) -> None:
    totals = set()
    for disturbed in (False, True):
        with worlds() as world:
            for n, restarted in enumerate(restarts):
                if disturbed and restarted:
                    world.after_us = 0
                world.cycle()
                if disturbed and doubled[n]:
                    world.after_us = 0
                    world.cycle()
                world.sampler.sample_once()
                world.now_us += 2_900_000
            state = world.state()
            assert state is not None
            totals.add(state.device)
    assert len(totals) == 1


@pytest.mark.parametrize(
    ("period_us", "percent", "offset_us"),
    [(16_667, 33, 123), (166_667, 100, 0), (250_001, 80, 999_999), (1_000_000, 0, 1)],
)
def test_a_full_hour_is_3600_seconds(period_us: int, percent: int, offset_us: int) -> None:
    """To the millisecond, for a job that holds the GPU all the time, whatever the sample period."""
    held = Workload("job-1", 1, 0, START_US // 1000 - HOUR_MS)
    with worlds() as world:
        world.ring = Ring(period_us, depth=12_000_000 // period_us, ratio=percent / 100)
        world.sampler = Sampler(_Held(world.reader, held), world.outbox, _At(world), Counts(), ("gpu-07",))
        world.now_us = START_US - 5_000_000 + offset_us
        end_us = START_US + 3_600_000_000 + 10_000_000
        while world.now_us < end_us:
            world.cycle()
            world.sampler.sample_once()
            world.now_us += 9_876_543
        rows = {unsent.row.hour: unsent.row for unsent in world.outbox.to_send(0, 100)}
        hour = rows[START_US // 1000]
        assert hour.observed_ms == HOUR_MS
        assert abs(hour.busy_ms - HOUR_MS * percent / 100) <= 1


class _Held:
    """The reader, with somebody who holds the GPU."""

    def __init__(self, reader: NvmlReader, holder: Workload) -> None:
        self._reader, self._holder = reader, holder
        self.sample_period_ms = reader.sample_period_ms

    def read(self, node: str, after_ms: int) -> NodeReading:
        reading = self._reader.read(node, after_ms)
        return replace(reading, gpus=tuple(replace(gpu, workload=self._holder) for gpu in reading.gpus))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.integers(0, 1 << 40), max_size=30))
def test_energy_never_goes_back_and_is_never_more_than_the_driver_counted(readings: list[int | None]) -> None:
    reader = a_reader()
    last = 0.0
    for reading in readings:
        reader._take(a_cycle(a_gpu(energy_mj=reading)))
        detail = reader.read_all(0)[0].gpus[0].detail
        assert detail is not None
        assert (detail.energy_joules is None) == (reader._known["GPU-0"].energy_mj.last is None)
        assert (detail.energy_joules or 0.0) >= last
        last = detail.energy_joules or 0.0
    counted = [reading for reading in readings if reading is not None]
    grown = sum(max(later - earlier, 0) or later * (later < earlier) for earlier, later in pairwise(counted))
    assert last * 1000 <= grown + 1
