"""What must hold while a hub is up: one holder, its port, children that come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_up_world import PROGRAMS, Up, gpuhub, processes_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    made = Up(tmp_path_factory.mktemp("hub"))
    made.start()
    yield made
    made.close()


def test_a_second_up_on_the_same_directory_is_refused(up: Up) -> None:
    assert up.process is not None
    done = gpuhub("up", "--data-dir", str(up.data_dir))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"gpuhub up: {up.data_dir} is held by another `gpuhub up` (pid {up.process.pid});"
        " stop that one or choose another --data-dir"
    ]
    assert up.run("whoami").returncode == 0


def test_a_port_that_is_taken_is_one_line(up: Up, tmp_path: Path) -> None:
    port = up.url.rpartition(":")[2]
    done = gpuhub("up", "--data-dir", str(tmp_path / "other"), "--port", port)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"gpuhub up: port {port} for quota is taken; choose another --port or stop what listens there"
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_killed_program_comes_back_and_jobs_still_settle(name: str, up: Up) -> None:
    before = until(lambda: processes_of(up.data_dir).get(name), f"{name} runs")
    os.kill(before, signal.SIGKILL)
    until(lambda: processes_of(up.data_dir).get(name) not in (None, before), f"{name} came back")
    until(lambda: up.run("whoami").returncode == 0, "the service answers")
    done = until(
        lambda: (made := up.run(*JOB, "--", "true")).returncode != 3 and made,
        "a job could be submitted and waited for",
    )
    assert done.returncode == 0, done.stderr
    assert f"{name} ended (signal 9); starting it again" in up.output.read_text()


JOB = (
    *("submit", "after-a-kill", "--gpu-class", "a100", "--walltime", "5m", "--wait"),
    *("--annotation", "simulate.gpuhub/duration_s=1"),
)
