"""A real `gpuhub up` in a directory of its own, for the tests beside this file. (It holds no test itself.)"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from deploy.cli import firm_app

GPUHUB = (sys.executable, "-m", "deploy.cli")
PROGRAMS = {
    "quota": "deploy.cli quota",
    "cluster": "deploy.cli simulate",
    "scheduler": "deploy.cli scheduler run",
    "agent": "agents.node",
}
"""What stands behind `-m` in the command lines of the programs at work."""
START_S = 90.0
"""A cold start takes about five seconds; the tests of others may keep both cores busy."""


def clean_environment(**more: str) -> dict[str, str]:
    """The test's environment without anybody's login."""
    return {k: v for k, v in os.environ.items() if not k.startswith("GPUHUB_")} | more


def until(holds: Callable[[], Any], what: str, patience_s: float = 30.0) -> Any:
    """The first true answer; fails when there is none in time."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = holds()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not in {patience_s:.0f} s: {what}"
        time.sleep(0.05)


def processes_of(data_dir: Path) -> dict[str, int]:
    """Pids of the programs that serve a data directory, found as the operating system lists them."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        for name, words in PROGRAMS.items():
            # The scheduler's command line does not name the directory; the mark in its environment does.
            if f"-m {words}" in line and f"HUB_TEST_MARK={data_dir}\0" in environment:
                found[name] = int(entry.name)
    return found


class Up:
    """One `gpuhub up`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.output = folder / "up.out"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start it and wait until it tells what to try next."""
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [*GPUHUB, "up", "--data-dir", str(self.data_dir), *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=clean_environment(HUB_TEST_MARK=str(self.data_dir)),
                start_new_session=True,
            )
        until(self._is_up, "gpuhub up is up", START_S)

    def _is_up(self) -> bool:
        assert self.process is not None
        text = self.output.read_text()
        assert self.process.poll() is None, f"gpuhub up ended with {self.process.returncode}:\n{text}"
        return "Ctrl-C stops it" in text

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """End it without a chance to clean up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for pid in processes_of(self.data_dir).values():
            os.kill(pid, signal.SIGKILL)

    @property
    def url(self) -> str:
        """The API's address."""
        ports = json.loads((self.data_dir / "ports.json").read_text())
        return f"http://127.0.0.1:{ports['quota']}"

    def login(self, who: str = "operator") -> dict[str, str]:
        """The environment of a command that speaks for `operator` or an organization."""
        token = json.loads((self.data_dir / "secrets.json").read_text())[who]
        return clean_environment(GPUHUB_URL=self.url, GPUHUB_TOKEN=token)

    def run(self, *arguments: str, who: str = "alpha-lab") -> subprocess.CompletedProcess[str]:
        """Run a command of the hub."""
        return gpuhub(*arguments, environment=self.login(who))

    def ask(self, *arguments: str, who: str = "alpha-lab") -> Any:
        """Run a command with --json, in this process; what it printed."""
        login = {name: value for name, value in self.login(who).items() if name.startswith("GPUHUB_")}
        done = CliRunner().invoke(firm_app(), [*arguments, "--json"], env=login)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)


def gpuhub(
    *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command of `gpuhub` to its end."""
    return subprocess.run(
        [*GPUHUB, *arguments],
        env=environment or clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        cwd=cwd,
    )
