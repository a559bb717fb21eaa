"""One child process of the supervisor: how it is started, watched and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy import lifeline

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
CALM_S = 30.0
"""A child that was up this long has shown that it works: its next restart is quick again."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run and where to ask whether it is well."""

    name: str
    command: tuple[str, ...]
    health_url: str
    """Empty: it has none, and is well while it runs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    first_command: tuple[str, ...] = ()
    """What to run the first time, if that differs."""
    stop_s: float = 15.0
    """How long it may take to end before it is killed."""
    health_ca: Path | None = None
    """The CA that signed its certificate, when `health_url` is https."""


def gpuhub(*arguments: str) -> tuple[str, ...]:
    """The command line of one of our own programs, with this very interpreter."""
    return (sys.executable, "-m", "deploy.cli", *arguments)


def held(*command: str) -> tuple[str, ...]:
    """The command line of a program that is not ours, tied to our life all the same."""
    return (sys.executable, "-m", "deploy.lifeline", "--", *command)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: ours, less the caller's login, plus `extra` and the lifeline."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GPUHUB_")}
    return {**inherited, "PYTHONUNBUFFERED": "1", **extra, lifeline.PARENT: str(os.getpid())}


@dataclass(slots=True)
class Backoff:
    """How long to wait before a restart: 0.2 s, doubling to 5 s, from the start again after 30 s of calm."""

    delay_s: float = 0.0

    def after(self, up_s: float) -> float:
        """The delay after a child that was up for `up_s` seconds died."""
        if up_s >= CALM_S or not self.delay_s:
            self.delay_s = FIRST_DELAY_S
        else:
            self.delay_s = min(self.delay_s * 2, LONGEST_DELAY_S)
        return self.delay_s


class Child:
    """A program and its present process."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.starts = 0
        self.started_at = 0.0
        self.restart_at: float | None = None
        """When to start it again; None while it runs."""
        self._backoff = Backoff()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return None if self._process is None else self._process.pid

    def spawn(self, now: float) -> None:
        """Start a process in its own group, so that Ctrl-C at the terminal reaches only the supervisor."""
        assert self._process is None, f"{self.program.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.program.command if self.starts else self.program.first_command or self.program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(self.program.environment),
                process_group=0,
            )
        self.starts += 1
        self.started_at, self.restart_at = now, None

    def reap(self, now: float) -> int | None:
        """The exit status if the process has just died; plans its restart."""
        if self._process is None:
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._end_group()
        self._process = None
        self.restart_at = now + self._backoff.after(now - self.started_at)
        return status

    def stop(self) -> bool:
        """Ask the process to end and wait; kill it when it takes too long. False if it had to be killed."""
        process, self._process, self.restart_at = self._process, None, None
        if process is None:
            return True
        process.terminate()
        # One that was frozen would not hear the request to end.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(self.program.stop_s)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            process.wait()
            return False
        except BaseException:
            self._process = process
            raise
        _kill_group(process.pid)
        return True

    def kill(self) -> None:
        """End the process and all it started, now."""
        process, self._process, self.restart_at = self._process, None, None
        if process is not None:
            _kill_group(process.pid)
            process.wait()

    def last_lines(self, count: int = 15) -> Sequence[str]:
        """The end of its log."""
        return last_lines(self.log, count)

    def _end_group(self) -> None:
        if self._process is not None:
            _kill_group(self._process.pid)


def last_lines(log: Path, count: int = 15) -> Sequence[str]:
    """The last lines of a log file; none if it is missing."""
    try:
        text = log.read_bytes()[-65536:].decode(errors="replace")
    except OSError:
        return ()
    return [line for line in text.splitlines() if line.strip()][-count:]


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
