"""Keeps the hub's programs running: starts them in order, restarts what dies, stops them in reverse.

One thread owns every child from start to end, because Linux ties a child's life to the *thread* that made it.
The caller's thread stays free to seed, to check or to play a trace.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2

from deploy.child import Child, Program

TICK_S = 0.05


class StartFailed(Exception):
    """A program ended, or stayed silent, before it was healthy."""

    def __init__(self, name: str, status: int | None, lines: Sequence[str], log: Path | None) -> None:
        self.name = name
        self.status = status
        self.lines = tuple(lines)
        self.log = log
        how = "did not become healthy in time" if status is None else f"ended with exit status {status}"
        super().__init__(f"{name} {how}" + (f"; its log is {log}" if log else ""))


class Supervisor:
    """The children, in the order in which they were started."""

    def __init__(self, logs: Path, announce: Callable[[str], None]) -> None:
        self._logs = logs
        self._announce = announce
        self._children: dict[str, Child] = {}
        self._first_exits: dict[str, int] = {}
        self._settled: set[str] = set()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._all_ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="supervisor", daemon=True)
        self._thread.start()

    def start(self, program: Program, timeout_s: float = 60.0) -> None:
        """Start a program and wait until it is healthy. Raises StartFailed."""
        self.launch(program)
        self.await_healthy(program.name, timeout_s)

    def launch(self, program: Program) -> None:
        """Start a program without waiting for it."""
        child = Child(program, self._logs / f"{program.name}.log")
        child.restart_at = 0.0
        with self._lock:
            self._children[program.name] = child

    def await_healthy(self, name: str, timeout_s: float = 60.0) -> None:
        """Wait until a launched program is healthy; from then on it is restarted. Raises StartFailed."""
        child = self._children[name]
        deadline = time.monotonic() + timeout_s
        while not _is_healthy(child.program.health_url):
            with self._lock:
                status = self._first_exits.get(name)
            if status is not None or time.monotonic() > deadline:
                raise StartFailed(name, status, child.last_lines(), child.log)
            time.sleep(TICK_S)
        with self._lock:
            self._settled.add(name)

    def pids(self) -> dict[str, int | None]:
        """The present process id of every program."""
        with self._lock:
            return {name: child.pid for name, child in self._children.items()}

    def restarts(self) -> dict[str, int]:
        """How often every program was started again."""
        with self._lock:
            return {name: max(child.starts - 1, 0) for name, child in self._children.items()}

    def stop(self, order: Sequence[str]) -> None:
        """Stop the programs cleanly in `order`; an interruption on the way kills what is left."""
        self._done.set()
        with self._lock:
            children = dict(self._children)
        try:
            for name in order:
                if name in children and not children[name].stop():
                    self._announce(f"{name} did not stop in time and was killed")
        finally:
            for child in children.values():
                child.kill()
            self._all_ended.set()
        self._thread.join(5.0)

    def _keep(self) -> None:
        while not self._done.wait(TICK_S):
            with self._lock:
                for child in self._children.values():
                    self._look_after(child, time.monotonic())
        # The children would die with this thread, so it outlives their clean end.
        self._all_ended.wait()

    def _look_after(self, child: Child, now: float) -> None:
        if self._done.is_set():
            return
        name = child.program.name
        status = child.reap(now)
        if status is not None and name not in self._settled:
            self._first_exits.setdefault(name, status)
            child.restart_at = None
        elif status is not None:
            wait_s = (child.restart_at or now) - now
            self._announce(f"{name} ended ({_status_text(status)}); starting it again in {wait_s:.1f} s")
        if child.restart_at is not None and now >= child.restart_at:
            child.spawn(now)


def _status_text(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _is_healthy(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
