"""The simulated cluster as a real process on a free port, which can be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from quota.clock import Clock, wall_ms


class SimulatorProcess:
    """One `python -m scheduler.simulator`; after `kill`, `start` goes on with the same journal."""

    def __init__(self, data_dir: Path, nodes: str, speed: int, *options: str) -> None:
        self.data_dir = data_dir
        self.clock = Clock(1_700_000_000_000, wall_ms(), speed)
        self._command = [sys.executable, "-m", "scheduler.simulator", "--data-dir", str(data_dir)]
        self._command += ["--port", "0", "--nodes", nodes, "--clock", self.clock.text(), *options]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def journal(self) -> Path:
        return self.data_dir / "journal.jsonl"

    def start(self) -> None:
        """Start the process and wait for the line that says where it listens."""
        assert self._process is None
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("simulated cluster on http://"):
            self.kill()
            raise AssertionError(f"the simulator did not start: {line!r}")
        self.url = line.split()[3]

    def kill(self) -> None:
        """kill -9, and nothing else."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.kill(process.pid, how)
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()

    def plant(self, **fault: object) -> None:
        """Plant a fault."""
        httpx2.post(f"{self.url}/v1/faults", json=fault, timeout=10, trust_env=False).raise_for_status()

    def clear_faults(self) -> None:
        """Let nothing more go wrong at the door."""
        httpx2.delete(f"{self.url}/v1/faults", timeout=10, trust_env=False).raise_for_status()


def deadline(seconds: float = 30) -> float:
    """A moment that a passing test never reaches."""
    return time.monotonic() + seconds
