"""Whatever the collector does, one is running, or it is said why not. Collectors are shell scripts here."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from agents.gpus.nvml import supervisor as supervisor_module
from agents.gpus.nvml import wire
from agents.gpus.nvml.supervisor import Supervisor, Timing
from tests.unit.agents.nvml_world import a_cycle, a_gpu

FAST = {
    "cycle_s": 0.1,
    "deadline_s": 60,
    "start_s": 60,
    "first_backoff_s": 0.02,
    "longest_backoff_s": 0.1,
    "end_s": 0.3,
}


def say(document: wire.Cycle | wire.Failed) -> str:
    return f"echo '{wire.line(document).decode().strip()}'\n"


LOST = wire.Gpu(1, "GPU-1", errors={"power": 15}, lost=True)
WELL = say(a_cycle(a_gpu(0), a_gpu(1)))
ONE_LOST = say(a_cycle(a_gpu(0), LOST))
DOOR_CLOSED = say(a_cycle(*(wire.Gpu(n, "", errors={"handle": 999}) for n in range(2))))
WAIT = "cat >/dev/null\n"
"""Until let go."""


@contextmanager
def supervising(script: str, **timing: float) -> Iterator[tuple[Supervisor, list[wire.Cycle]]]:
    told: list[wire.Cycle] = []
    made = Supervisor(Timing(**(FAST | timing)), told.append, ("sh", "-c", script))
    made.start()
    try:
        yield made, told
    finally:
        made.close()


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_healthy_collector_is_left_alone_and_let_go_at_the_end() -> None:
    with supervising(WELL * 3 + WAIT) as (made, told):
        wait_for(lambda: len(told) == 3)
        pid = made.pid
        assert (made.state, made.restarts, made.hopeless) == ("running", {}, False)
        assert pid is not None
        assert exists(pid)
    assert not exists(pid)


@pytest.mark.parametrize(
    ("script", "reason", "timing"),
    [
        ("exec sleep 100", "hung", {"start_s": 0.2}),
        (WELL + "exec sleep 100", "hung", {"deadline_s": 0.1}),
        ("exit 1", "ended", {}),
        (WELL + "kill -9 $$", "ended", {}),
        ("echo '{\"gpus\": 1}'; " + WAIT, "nonsense", {}),
        ("echo hello; " + WAIT, "nonsense", {}),
        ("echo '[]'; " + WAIT, "nonsense", {}),
        (say(wire.Failed("init", 12)) + "exit 3", "library_not_found", {}),
        (say(wire.Failed("init", 31_337)) + "exit 3", "code_31337", {}),
        (say(a_cycle(LOST)) + WAIT, "gpu_is_lost", {}),
        (say(a_cycle(system_errors={"count": 18}, gpu_count=None)) + WAIT, "lib_rm_version_mismatch", {}),
        (say(a_cycle(late={-1: 1.5}, gpu_count=None)) + WAIT, "hung", {}),
        (say(a_cycle(late={0: 1.5, 1: 1.5})) + WAIT, "hung", {}),
    ],
)
def test_a_collector_that_is_of_no_use_is_replaced_and_it_is_said_why(
    script: str, reason: str, timing: dict[str, float]
) -> None:
    with supervising(script, **timing) as (made, _):
        wait_for(lambda: made.restarts[reason] >= 2)
        assert set(made.restarts) == {reason}


def test_the_pauses_between_attempts_grow(tmp_path: Path) -> None:
    times = tmp_path / "times"
    with supervising(f"date +%s.%N >> {times}; exit 1", first_backoff_s=0.1, longest_backoff_s=0.4):
        wait_for(lambda: times.exists() and len(times.read_text().split()) >= 4)
    began_s = [float(moment) for moment in times.read_text().split()[:4]]
    pauses_s = [later - earlier for earlier, later in pairwise(began_s)]
    for pause_s, least_s in zip(pauses_s, (0.1, 0.2, 0.4), strict=True):
        assert pause_s >= least_s * 0.9


def test_it_recovers_by_itself_when_the_driver_comes(tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    failed = say(wire.Failed("init", 9)).strip()
    with supervising(f"[ -e {driver} ] || {{ {failed}; exit 3; }}\n{WELL}{WAIT}") as (made, told):
        wait_for(lambda: made.restarts["driver_not_loaded"] >= 2)
        assert made.state == "driver_not_loaded"
        assert told == []
        driver.touch()
        wait_for(lambda: told)
        wait_for(lambda: made.state == "running")


def test_a_node_without_gpus_is_no_trouble() -> None:
    with supervising(say(a_cycle(gpu_count=0)) + WAIT) as (made, told):
        wait_for(lambda: told)
        wait_for(lambda: made.state == "running")
        assert made.restarts == {}


def test_a_sick_gpu_waits_for_a_new_collector_while_the_others_go_on() -> None:
    began_s = time.monotonic()
    script = f"while true; do {ONE_LOST.strip()}; sleep 0.02; done"
    with supervising(script, first_retry_s=0.5) as (made, told):
        wait_for(lambda: made.restarts["gpu_is_lost"] == 1)
        first_s = time.monotonic() - began_s
        assert first_s >= 0.5
        assert made.state in ("gpu_is_lost", "running")
        wait_for(lambda: made.restarts["gpu_is_lost"] == 2)
        # The second wait is twice as long.
        assert time.monotonic() - began_s - first_s >= 0.9
        assert all([gpu.lost for gpu in cycle.gpus] == [False, True] for cycle in told)


def test_gpus_not_heard_of_yet_do_not_count_as_recovered() -> None:
    """After each new collector the sick one is silent at first: the waits grow nevertheless."""
    script = (
        f"{say(a_cycle(a_gpu(0), gpu_count=2))}sleep 0.1\nwhile true; do {ONE_LOST.strip()}; sleep 0.02; done"
    )
    began_s = time.monotonic()
    with supervising(script, first_retry_s=0.2) as (made, _):
        wait_for(lambda: made.restarts["gpu_is_lost"] == 3)
        assert time.monotonic() - began_s >= 0.2 + 0.4 + 0.8


def test_a_call_that_failed_once_is_no_sickness() -> None:
    failed = say(a_cycle(a_gpu(0, errors={"power": 2, "name": 4}), a_gpu(1)))
    with supervising(failed * 3 + WAIT, first_retry_s=0) as (made, told):
        wait_for(lambda: len(told) == 3)
        assert made.restarts == {}


def test_two_that_cannot_be_killed_are_left_behind_and_no_third_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a process is that sleeps in the kernel."""
    monkeypatch.setattr(supervisor_module._Child, "_ended", lambda self, patience_s: False)
    monkeypatch.setattr(supervisor_module._Child, "_killed", lambda self, patience_s: False)
    pids = tmp_path / "pids"
    with supervising(f"echo $$ >> {pids}; exec sleep 100", start_s=0.1) as (made, _):
        wait_for(lambda: made.state == "stuck")
        time.sleep(0.3)
        left = pids.read_text().split()
        assert len(left) == 2
        subprocess.run(["kill", "-9", left[0]], check=True)
        wait_for(lambda: len(pids.read_text().split()) == 3)
    for process in made._left_behind:
        process.kill()
        process.wait()


def test_devices_taken_from_a_container_that_had_them_are_hopeless_after_three_attempts(
    tmp_path: Path,
) -> None:
    flag = tmp_path / "was_well"
    with supervising(f"[ -e {flag} ] || {{ touch {flag}; {WELL.strip()}; }}\n{DOOR_CLOSED}{WAIT}") as (
        made,
        _,
    ):
        wait_for(lambda: made.hopeless)
        assert made.restarts["unknown"] >= 2


def test_devices_that_were_never_there_are_waited_for() -> None:
    with supervising(DOOR_CLOSED + WAIT) as (made, _):
        wait_for(lambda: made.restarts["unknown"] >= 4)
        assert not made.hopeless


def test_a_line_that_never_ends_is_no_reason_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "MOST_LINE_BYTES", 100_000)
    with supervising("exec tr '\\0' x < /dev/zero") as (made, _):
        wait_for(lambda: made.restarts["nonsense"] >= 1)
