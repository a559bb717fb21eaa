"""Keeps the hub's programs running: starts them in order, restarts what dies, stops them in reverse.

One thread owns every child from start to end, because Linux ties a child's life to the *thread* that made it.
The caller's thread stays free to seed, to check or to play a trace.
"""

from __future__ import annotations

import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from deploy.child import LONGEST_DELAY_S, Child, Program

TICK_S = 0.05


class StartFailed(Exception):
    """A program ended, or stayed silent, before it was healthy."""

    def __init__(self, name: str, status: int | None, lines: Sequence[str], log: Path) -> None:
        self.name = name
        self.status = status
        self.lines = tuple(lines)
        self.log = log
        how = "did not become healthy in time" if status is None else f"ended with exit status {status}"
        super().__init__(f"{name} {how}; its log is {log}")


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
        program = self._children[name].program
        self.await_sign(name, lambda: is_healthy(program), timeout_s)
        with self._lock:
            self._settled.add(name)

    def await_sign(self, name: str, sign: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for a sign of life of a program that is still starting. Raises StartFailed."""
        child = self._children[name]
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                status = self._first_exits.get(name)
            if status is not None or time.monotonic() > deadline:
                raise StartFailed(name, status, child.last_lines(), child.log)
            if sign():
                return
            time.sleep(TICK_S)

    def pids(self) -> dict[str, int | None]:
        """The present process id of every program."""
        with self._lock:
            return {name: child.pid for name, child in self._children.items()}

    def restarts(self) -> dict[str, int]:
        """How often every program was started again."""
        with self._lock:
            return {name: max(child.starts - 1, 0) for name, child in self._children.items()}

    def take_down(self, name: str) -> None:
        """Kill a program and leave it dead until `bring_up`."""
        with self._lock:
            self._children[name].kill()

    def bring_up(self, name: str, timeout_s: float = 60.0) -> None:
        """Start a program again that was taken down, and wait until it is healthy. Raises StartFailed."""
        with self._lock:
            child = self._children[name]
            if child.pid is None:
                child.restart_at = 0.0
        self.await_healthy(name, timeout_s)

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
        try:
            while not self._done.wait(TICK_S):
                with self._lock:
                    for child in self._children.values():
                        self._look_after(child, time.monotonic())
        except BaseException:
            # Nobody looks after the children any more, and they end with this thread: end as a whole.
            os.kill(os.getpid(), signal.SIGTERM)
            raise
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
        if child.restart_at is None or now < child.restart_at:
            return
        try:
            child.spawn(now)
        except OSError as error:
            self._announce(f"{name} could not be started ({error}); trying again in {LONGEST_DELAY_S:.0f} s")
            child.restart_at = now + LONGEST_DELAY_S


def _status_text(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def is_healthy(program: Program) -> bool:
    """Whether the program answers 200 where it says how it is; one that has no such place is well while it runs."""
    if not program.health_url:
        return True
    line: HTTPConnection | None = None
    try:
        line = _line_to(program)
        line.request("GET", urlsplit(program.health_url).path)
        return line.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        if line is not None:
            line.close()


def _line_to(program: Program) -> HTTPConnection:
    address = urlsplit(program.health_url)
    if address.scheme == "http":
        return HTTPConnection(address.netloc, timeout=2.0)
    trust = ssl.create_default_context(cafile=None if program.health_ca is None else str(program.health_ca))
    return HTTPSConnection(address.netloc, timeout=2.0, context=trust)
