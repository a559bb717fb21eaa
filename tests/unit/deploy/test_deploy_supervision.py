"""Backoff, restarts and ends of child processes, with small fake programs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import lifeline
from deploy.child import CALM_S, Backoff, Program, child_environment, held, last_lines
from deploy.supervisor import StartFailed, Supervisor

SERVER = """
import http.server, sys
class Well(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *parts): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Well).serve_forever()
"""


def a_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def a_program(name: str, code: str = SERVER, stop_s: float = 5.0) -> Program:
    port = a_port()
    command = (sys.executable, "-c", code, str(port))
    return Program(name, command, f"http://127.0.0.1:{port}/", stop_s=stop_s)


def until(holds: Callable[[], bool], patience_s: float = 10.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[str]) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path, said.append)
    yield made
    made.stop(())


def test_backoff_doubles_to_five_seconds_and_starts_again_after_calm() -> None:
    backoff = Backoff()
    assert [backoff.after(1.0) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.after(CALM_S) == 0.2
    assert backoff.after(0.0) == 0.4


def test_a_killed_child_comes_back(supervisor: Supervisor, said: list[str]) -> None:
    supervisor.start(a_program("well"))
    first = supervisor.pids()["well"]
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: supervisor.restarts()["well"] == 1)
    assert supervisor.pids()["well"] != first
    assert said == ["well ended (signal 9); starting it again in 0.2 s"]


def test_a_child_that_was_taken_down_stays_down_until_it_is_brought_up(
    supervisor: Supervisor, said: list[str]
) -> None:
    supervisor.start(a_program("well"))
    first = supervisor.pids()["well"]
    supervisor.take_down("well")
    supervisor.start(a_program("other"))
    assert supervisor.pids()["well"] is None
    supervisor.bring_up("well")
    assert supervisor.pids()["well"] not in (None, first)
    assert said == []


def test_a_frozen_child_ends_as_cleanly_as_any(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append)
    supervisor.start(a_program("frozen"))
    pid = supervisor.pids()["frozen"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    supervisor.stop(("frozen",))
    assert said == []
    assert not is_alive(pid)


def test_a_child_that_ends_at_its_start_is_told_with_its_last_lines(supervisor: Supervisor) -> None:
    broken = a_program("broken", "import sys; print('line'); sys.exit('port 80 is taken')")
    with pytest.raises(StartFailed) as told:
        supervisor.start(broken)
    assert told.value.status == 1
    assert told.value.lines == ("line", "port 80 is taken")
    assert supervisor.restarts() == {"broken": 0}


def test_a_child_that_stays_silent_is_told(supervisor: Supervisor) -> None:
    with pytest.raises(StartFailed, match="did not become healthy in time"):
        supervisor.start(a_program("silent", "import time; time.sleep(60)"), timeout_s=0.3)


def test_a_stop_keeps_the_order_and_kills_who_does_not_listen(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    supervisor.start(a_program("deaf", deaf, stop_s=0.3))
    supervisor.start(a_program("well"))
    pids = [pid for pid in supervisor.pids().values() if pid is not None]
    supervisor.stop(("well", "deaf"))
    assert said == ["deaf did not stop in time and was killed"]
    assert not any(is_alive(pid) for pid in pids)


def test_a_child_may_end_cleanly_when_asked(tmp_path: Path) -> None:
    polite = (
        "import signal, sys\n"
        "def end(*_):\n    print('said goodbye', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n" + SERVER
    )
    supervisor = Supervisor(tmp_path, lambda line: None)
    supervisor.start(a_program("polite", polite))
    supervisor.stop(("polite",))
    assert last_lines(tmp_path / "polite.log") == ["said goodbye"]


def test_a_child_dies_with_its_parent() -> None:
    child = (
        "from deploy import lifeline; lifeline.hold(); print('held', flush=True); import time; time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        "from deploy.child import child_environment\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE,"
        " env=child_environment({}), process_group=0)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        assert is_alive(pid)
        running.kill()
    until(lambda: not is_alive(pid))


def test_a_program_that_is_not_ours_dies_with_its_parent_too() -> None:
    parent = (
        "import subprocess, time\n"
        "from deploy.child import child_environment, held\n"
        "child = subprocess.Popen(held('sh', '-c', 'echo held; exec sleep 60'), stdout=subprocess.PIPE,"
        " env=child_environment({}), process_group=0)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        assert is_alive(pid)
        running.kill()
    until(lambda: not is_alive(pid))


def test_a_program_that_is_not_there_is_named() -> None:
    done = subprocess.run(held("/nowhere/program"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/nowhere/program cannot be run" in done.stderr


def test_a_child_whose_parent_is_gone_already_ends() -> None:
    environment = {lifeline.PARENT: "1", "OTHER": "kept"}
    if os.getppid() == 1:
        environment[lifeline.PARENT] = "2"
    code = "import os; from deploy import lifeline; lifeline.hold(); print('lived on')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the supervisor" in done.stderr
    assert done.stdout == ""


def test_a_child_does_not_inherit_the_callers_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUB_TOKEN", "a person's")
    environment = child_environment({"GPUHUB_CLOCK": "0,0,1"})
    assert "GPUHUB_TOKEN" not in environment
    assert environment["GPUHUB_CLOCK"] == "0,0,1"
    assert environment[lifeline.PARENT] == str(os.getpid())
