"""kill -9 of the simulated cluster: what was answered stays so, what fell due meanwhile has its due time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from simulator_process import SimulatorProcess, deadline

from scheduler.clusters.port import (
    ClusterUnavailable,
    ObjectSpec,
    ObjectStatus,
    PodPhase,
    PodPlacement,
    StartOutcome,
)
from scheduler.clusters.simulated import SimulatedCluster

pytestmark = pytest.mark.crash

OVER = (PodPhase.SUCCEEDED, PodPhase.FAILED)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[SimulatorProcess]:
    process = SimulatorProcess(tmp_path, "n-[0-3]:h100=8", 500)
    process.start()
    yield process
    process.kill()


def a_spec(number: int, count: int = 2, **words: str) -> ObjectSpec:
    return ObjectSpec(
        name=f"job-{number}-1",
        job_id=f"job-{number}",
        attempt=1,
        pods=(PodPlacement(0, f"n-{number % 4}", "h100", count),),
        walltime_ms=3_600_000,
        grace_ms=20_000,
        annotations=tuple((f"simulate.gpuhub/{word}", text) for word, text in words.items()),
    )


class Caller(threading.Thread):
    """Starts, stops and looks, without a pause, and writes down what was answered until nobody answers."""

    def __init__(self, url: str, first: int, rng: random.Random) -> None:
        super().__init__()
        self._cluster = SimulatedCluster("here", url)
        self._first, self._rng = first, rng
        self.started: list[ObjectSpec] = []
        self.stopped: list[ObjectSpec] = []
        self.ended: dict[str, ObjectStatus] = {}

    def run(self) -> None:
        try:
            for number in range(self._first, self._first + 100_000):
                self._step(number)
        except ClusterUnavailable:
            self._cluster.close()

    def _step(self, number: int) -> None:
        spec = a_spec(number, duration_s=str(self._rng.choice([0, 5, 40, 600])), stop_s="10")
        assert self._cluster.start(spec) is StartOutcome.CREATED
        self.started.append(spec)
        if self._rng.random() < 0.5:
            chosen = self._rng.choice(self.started)
            self._cluster.stop(chosen, abandoned=self._rng.random() < 0.5)
            self.stopped.append(chosen)
        for thing in self._cluster.observe(wait_s=0).objects:
            if thing.pods[0].phase in OVER:
                self.ended[thing.name] = thing


def test_kill_at_any_moment_loses_nothing_that_was_answered(process):
    rng = random.Random(20261122)
    started, stopped, ended = [], [], {}
    for round_ in range(4):
        caller = Caller(process.url, round_ * 100_000, rng)
        caller.start()
        killed_at = time.monotonic() + rng.uniform(0.2, 0.5)
        while time.monotonic() < killed_at or not caller.ended:
            caller.join(0.01)
            assert caller.is_alive()
        process.kill()
        caller.join(30)
        process.start()
        started += caller.started
        stopped += caller.stopped
        ended |= caller.ended
        with SimulatedCluster("here", process.url) as cluster:
            there = {thing.name: thing for thing in cluster.observe(wait_s=0).objects}
        assert {spec.name for spec in started} <= set(there)
        assert all(there[spec.name].suspended for spec in stopped)
        # What had ended and been answered ended exactly so; only a label may have come since.
        assert {name: there[name].pods for name in ended} == {
            name: thing.pods for name, thing in ended.items()
        }
    check_journal(process.journal)


def check_journal(path: Path) -> None:
    """No two pods on one GPU, no second start or end, ends not before starts, lines in order of time."""
    on_gpu: dict[str, str] = {}
    started: dict[str, int] = {}
    ended: dict[str, int] = {}
    last_ms = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        event = json.loads(line)
        assert event["n"] == number
        assert event["t"] >= last_ms
        last_ms = event["t"]
        match event["event"]:
            case "pod_started":
                assert event["name"] not in started
                assert not set(event["gpu_uuids"]) & set(on_gpu)
                started[event["name"]] = event["t"]
                on_gpu |= dict.fromkeys(event["gpu_uuids"], event["name"])
            case "pod_ended":
                assert event["name"] not in ended
                assert event["t"] >= started[event["name"]]
                ended[event["name"]] = event["t"]
                on_gpu = {uuid: name for uuid, name in on_gpu.items() if name != event["name"]}


def test_ends_that_fell_due_while_it_was_dead_have_their_due_times(process):
    spec, waiting = a_spec(0, 8, duration_s="250"), a_spec(4, 8, duration_s="50", start_s="0")
    with SimulatedCluster("here", process.url) as cluster:
        cluster.start(spec)
        until = deadline()
        while cluster.get(spec.name).pods[0].started_ms is None:
            assert time.monotonic() < until
            cluster.observe(wait_s=1.0)
        started_ms = cluster.get(spec.name).pods[0].started_ms
        # not before: of two that come in the same millisecond either may be the first
        cluster.start(waiting)
    process.kill()
    while process.clock.now_ms() < started_ms + 400_000:
        assert time.monotonic() < until
        time.sleep(0.02)
    process.start()
    with SimulatedCluster("here", process.url) as cluster:
        observation = cluster.observe(wait_s=0)
    first, second = (thing.pods[0] for thing in sorted(observation.objects, key=lambda thing: thing.name))
    assert (first.started_ms, first.ended_ms) == (started_ms, started_ms + 250_000)
    # The GPUs went on to the next pod at the very moment they became free.
    assert (second.started_ms, second.ended_ms) == (first.ended_ms, first.ended_ms + 50_000)


def test_restart_keeps_the_journal_s_fleet_whatever_is_asked_for(process, tmp_path):
    process.kill()
    again = SimulatorProcess(tmp_path, "other-[0-9]:a100=1", 500)
    again.start()
    try:
        with SimulatedCluster("here", again.url) as cluster:
            nodes = {node.node: node.classes for node in cluster.observe(wait_s=0).nodes}
    finally:
        again.kill()
    assert nodes == {f"n-{number}": (("h100", 8),) for number in range(4)}


def refused(*options: str, environment: dict[str, str] | None = None) -> str:
    """The one line on which a simulator that cannot start ends."""
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.simulator", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ) | (environment or {}),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_second_process_on_the_same_directory_is_refused_in_one_line(process):
    line = refused("--data-dir", str(process.data_dir), "--port", "0")
    assert line.endswith("journal.jsonl is in use by another simulated cluster")


def test_taken_port_is_refused_in_one_line(process, tmp_path):
    port = process.url.rpartition(":")[2]
    line = refused("--data-dir", str(tmp_path / "other"), "--port", port)
    assert line.startswith(f"gpuhub simulate: cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("options", "environment", "complaint"),
    [
        (["--nodes", "n-0=8"], {}, "--nodes: 'n-0=8' is not NODES[@RACK]:CLASS=COUNT"),
        (["--clock", "yesterday"], {}, "--clock: clock 'yesterday' is not BUSINESS_MS,WALL_MS,SPEED"),
        ([], {"GPUHUB_CLOCK": "0,0,0"}, "--clock: clock speed 0 is below 1"),
        (["--token-env", "NOT_SET"], {}, "--token-env: the environment has no NOT_SET"),
    ],
)
def test_option_that_makes_no_sense_is_refused_in_one_line(tmp_path, options, environment, complaint):
    line = refused("--data-dir", str(tmp_path), "--port", "0", *options, environment=environment)
    assert complaint in line


def test_journal_that_cannot_be_written_ends_the_process_unanswered(tmp_path):
    # No file may grow beyond 64 KiB here, as if the disk were full.
    command = f"{sys.executable} -m scheduler.simulator --data-dir {tmp_path} --port 0"
    process = subprocess.Popen(
        ["bash", "-c", f"ulimit -f 64; trap '' XFSZ; exec {command}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    caller = Caller(process.stdout.readline().split()[3], 0, random.Random(7))
    caller.start()
    _, complaint = process.communicate(timeout=60)
    caller.join(30)
    assert process.returncode == 70
    assert "the journal cannot be written" in complaint
    again = SimulatorProcess(tmp_path, "n-0:h100=1", 1)
    again.start()
    try:
        with SimulatedCluster("here", again.url) as cluster:
            there = {thing.name for thing in cluster.observe(wait_s=0).objects}
    finally:
        again.kill()
    assert {spec.name for spec in caller.started} <= there


def test_asked_to_end_it_does_not_wait_for_long_polls(process):
    polled = threading.Event()
    answers = []

    def poll() -> None:
        with httpx2.Client(base_url=process.url, trust_env=False, timeout=60) as client:
            version = client.get("/v1/objects").json()["version"]
            polled.set()
            answers.append(client.get("/v1/objects", params={"after": version, "wait_s": 50}).status_code)

    reader = threading.Thread(target=poll)
    reader.start()
    assert polled.wait(20)
    process.stop()
    reader.join(20)
    assert not reader.is_alive()
