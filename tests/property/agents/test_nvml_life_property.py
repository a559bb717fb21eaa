"""Whatever driver, kubelet, clock, disk, service and death do to an agent: its books stay in order."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents.metrics import AgentCollector
from agents.outbox import Outbox, open_outbox
from tests.unit.agents.agent_world import HOUR_MS, Service, out_of_service
from tests.unit.agents.logs import captured
from tests.unit.agents.nvml_life import RATIOS, Life, Stay, truth

STAYS = [
    Stay("job-whole", "GPU-0", 0, 70),
    Stay("job-next", "GPU-0", 70, 200),
    Stay("job-a", "GPU-1::0", 0, 100, percent=10),
    Stay("job-b", "GPU-1::1", 10, 60, percent=5),
    Stay("job-c", "GPU-1::2", 60, 150, percent=90),
    Stay("", "GPU-2", 30, 90),
]
"""A GPU that is handed on, and one that is shared by two or three, one of which says more than the device did."""

GPUS = RATIOS | {"GPU-2": 1.0}

steps = st.lists(
    st.one_of(
        st.tuples(st.just("live"), st.integers(1, 12)),
        st.tuples(st.just("live"), st.integers(1, 12)),
        st.tuples(st.just("idle"), st.integers(1, 20)),
        st.tuples(
            st.just("set_clock"), st.sampled_from([-5_000_000, -600_000, -4_000, 0, 0, 9_000, 7_200_000])
        ),
        st.tuples(st.just("kubelet"), st.booleans()),
        st.tuples(st.just("disk"), st.booleans()),
        st.tuples(st.just("die"), st.booleans()),
        st.tuples(st.sampled_from(["deliver", "lose", "refuse", "replay"]), st.integers(0, 9)),
    ),
    max_size=25,
)


@contextmanager
def outboxes() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "outbox.sqlite3"


def opened(path: Path) -> Outbox:
    outbox = open_outbox(path)
    outbox._connection.execute("PRAGMA synchronous = OFF")
    return outbox


class Books:
    """A life on its outbox, the service, and everything that must never go wrong."""

    def __init__(self, path: Path) -> None:
        self.path, self.outbox = path, opened(path)
        self.service = Service()
        self.life = Life(self.outbox, self.service, STAYS, GPUS)
        self.lived_ms = 0
        self.before: dict[str, tuple[int, ...]] = {}

    def take(self, step: str, value: int) -> None:
        match step:
            case "live":
                self.life.go_on(value)
            case "idle":
                self.life.pass_time(value * 60_000)
            case "set_clock":
                self.life.offset_ms = value
            case "kubelet":
                self.life.kubelet_away = bool(value)
            case "disk":
                self.outbox._connection.execute(f"PRAGMA query_only = {'ON' if value else 'OFF'}")
            case "die":
                self.outbox.close()
                self.outbox = opened(self.path)
                life = self.life
                self.life = Life(
                    self.outbox, self.service, STAYS, GPUS, life.true_ms, life.offset_ms, ring=life.ring
                )
                # what was in memory only may be gone
                self.before = {}
            case _:
                self.send(step, value)

    def send(self, step: str, value: int) -> None:
        match step:
            case "deliver":
                self.life.deliverer.deliver_once()
            case "lose":
                self.service.after = out_of_service
                self.life.deliverer.deliver_once()
                self.service.after = lambda batch: None
            case "refuse":
                self.service.before = out_of_service
                self.life.deliverer.deliver_once()
                self.service.before = lambda batch: None
            case _:
                known = self.service.totals()
                for batch in list(self.service.deliveries[:value]):
                    self.service.deliver_evidence(batch)
                assert self.service.totals() == known

    def check(self) -> None:
        observed: Counter[str] = Counter()
        for row in self.service.rows.values():
            assert 0 <= row.busy_ms <= row.observed_ms <= HOUR_MS
            observed[row.job_id] += row.observed_ms
        for stay in STAYS:
            # a holder is seen from a list to a list, at most a cycle late, and longer where nobody looked
            assert observed[stay.job_id] <= self.life.true_ms
        busy_ns: Counter[str] = Counter()
        for row_gpu, row_busy_ns in self.outbox._connection.execute("SELECT gpu_uuid, busy_ns FROM evidence"):
            busy_ns[row_gpu] += row_busy_ns
        for uuid, state in self.outbox.states().items():
            assert 0 <= state.device.busy_ns <= state.device.observed_ms * 1_000_000
            assert state.device.observed_ms <= self.life.true_ms + 1_000
            # what went to attempts is what stands in their rows, and never more than the device did
            assert busy_ns[uuid] == state.attributed_ns <= state.device.busy_ns
        for uuid, state in self.life.counts.view.states.items():
            counters = (state.device.busy_ns, state.device.observed_ms, state.attributed_ns)
            rest = state.device.busy_ns - state.attributed_ns
            now = (*counters, rest)
            assert all(a <= b for a, b in zip(self.before.get(uuid, (0, 0, 0, 0)), now, strict=True))
            self.before[uuid] = now


@settings(max_examples=40, deadline=None)
@example([("live", 1), ("set_clock", 9_000), ("die", False)])
@given(steps)
def test_the_books_stay_in_order(script: list[tuple[str, int]]) -> None:
    with outboxes() as path, captured():
        books = Books(path)
        for step, value in script:
            books.take(step, value)
            books.check()
        books.outbox._connection.execute("PRAGMA query_only = OFF")
        books.life.go_on(2)
        books.life.deliverer.deliver_once()
        books.check()
        assert books.outbox.spool().records == 0
        books.outbox.close()


calm = st.lists(
    st.tuples(
        st.sampled_from(["live", "live", "die", "deliver", "lose", "replay", "kubelet"]), st.integers(1, 9)
    ),
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(calm)
def test_deaths_lost_replies_and_a_kubelet_that_is_away_between_changes_leave_the_truth(
    script: list[tuple[str, int]],
) -> None:
    with outboxes() as path, captured():
        books = Books(path)
        for step, value in script:
            if step == "kubelet":
                # away and back before anything happens on the node
                books.take("kubelet", 1)
                books.life.read()
                books.take("kubelet", 0)
                books.life.pass_time(60_000)
                continue
            books.take(step, value)
        # past the kubelet's last backoff
        books.life.go_on(2)
        books.life.deliverer.deliver_once()
        found = books.service.totals()
        whole = truth(STAYS[:1], GPUS, books.life.true_ms)
        assert {key: value for key, value in found.items() if key[0] == "job-whole"} == whole
        books.outbox.close()


def test_a_shared_gpu_is_divided_as_its_processes_say_and_every_part_has_its_series() -> None:
    with outboxes() as path:
        books = Books(path)
        books.life.go_on(45)
        books.life.deliverer.deliver_once()
        found: dict[str, Counter[str]] = {}
        for family in AgentCollector(books.life.counts, books.outbox.spool).collect():
            for sample in family.samples:
                key = sample.labels.get("job_id") or sample.labels.get("gpu_uuid", "")
                found.setdefault(sample.name, Counter())[key] += sample.value
        busy_s, device_s = found["hub_gpu_workload_busy_seconds_total"], found["hub_gpu_busy_seconds_total"]
        rest_s = found["hub_gpu_unattributed_busy_seconds_total"]
        assert device_s["GPU-1"] == 45 * 60 / 4
        assert busy_s["job-a"] + busy_s["job-b"] + rest_s["GPU-1"] == pytest.approx(device_s["GPU-1"])
        # ten minutes alone, of which everything is its own, then a tenth and a twentieth of the time
        assert busy_s["job-a"] == pytest.approx(10 * 60 * 0.25 + 35 * 60 * 0.10, abs=15)
        assert busy_s["job-b"] == pytest.approx(35 * 60 * 0.05, abs=5)
        assert (busy_s["job-whole"], rest_s["GPU-0"]) == (45 * 60 / 2, 0)
        assert rest_s["GPU-2"] == 45 * 60
        assert found["hub_gpu_allocated"] == {"GPU-0": 1, "GPU-1": 1, "GPU-2": 1}
        assert set(found["hub_gpu_allocation_info"]) == {"job-whole", "job-a", "job-b", "GPU-2"}
        books.outbox.close()
