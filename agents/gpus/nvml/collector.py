"""The collector's process: `python -m agents.gpus.nvml.collector`, started and ended by `supervisor`.

The main thread calls nothing of the driver's, so it says something every cycle whatever hangs. The driver itself, each
GPU and the events have a thread of their own: a call that hangs holds back its own GPU only (`ctypes` lets go of the
interpreter during a call, and NVML is thread-safe). Standard input is the parent's hand: when it is closed, or on
SIGTERM, what was taken from the driver is given back and the process ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple

from agents import memory
from agents.gpus.nvml import wire
from agents.gpus.nvml.driver import library
from agents.gpus.nvml.driver.events import EventSet
from agents.gpus.nvml.driver.gpu import GpuCalls
from agents.gpus.nvml.places import Places

CANNOT_BEGIN = 3
"""The exit status after a `wire.Failed` line."""

FIRST_READ_DEADLINES = 6
"""So many deadlines may the first read take: the driver initializes a GPU that nobody uses, one after the other."""

EVENT_WAIT_MS = 1_000
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 30.0
END_S = 1.5
"""How long the end waits for calls under way before it leaves them behind."""


def main(arguments: Sequence[str]) -> int:
    """Collect until told to stop; `arguments` are the cycle's and the deadline's seconds. The exit status."""
    cycle_s, deadline_s = map(float, arguments)
    memory.keep_little()
    memory.give_back()
    lines = _take_stdout()
    stopping = threading.Event()
    _stop_when_told(stopping)
    try:
        library.start()
    except library.Refused as refused:
        _write(lines, wire.line(wire.Failed(refused.operation, refused.code)))
        return CANNOT_BEGIN
    collector = Collector(cycle_s, deadline_s, stopping)
    with suppress(BrokenPipeError):  # The parent is gone or has let go: that is an end like any other.
        collector.run(lambda cycle: _write(lines, wire.line(cycle)))
    stopping.set()
    if collector.close(END_S):
        library.shutdown()
    return 0


class Collector:
    """Reads the driver and every GPU once per cycle, each in its own thread."""

    def __init__(self, cycle_s: float, deadline_s: float, stopping: threading.Event) -> None:
        self._cycle_s, self._deadline_s = cycle_s, deadline_s
        self._stopping = stopping
        self._idle = threading.Condition()
        self._system = _Worker(self._read_system, self._idle)
        self._gpus: list[_Worker] = []
        self._places = Places()
        self._events = _Events(stopping)
        self._seen = _System()

    def run(self, tell: Callable[[wire.Cycle], None]) -> None:
        """One `tell` per cycle until stopping."""
        while not self._stopping.is_set():
            started_s = time.monotonic()
            self._work(self._system, *self._gpus)
            for found in self._system.take():
                self._seen = found
            count = self._seen.gpu_count or 0
            if count > len(self._gpus):
                calls = [GpuCalls(index) for index in range(len(self._gpus), count)]
                fresh = [_Worker(gpu.read, self._idle, gpu.close) for gpu in calls]
                self._gpus += fresh
                self._work(*fresh)
            self._events.watch(count)
            tell(self._cycle())
            self._stopping.wait(max(0.0, started_s + self._cycle_s - time.monotonic()))

    def close(self, patience_s: float) -> bool:
        """Wait for the calls under way; False if one of them does not come back, and nothing may be given back."""
        until_s = time.monotonic() + patience_s
        if not self._wait_idle([self._system, *self._gpus], until_s) or not self._events.ended(until_s):
            return False
        for worker in self._gpus:
            worker.close()
        return True

    def _work(self, *workers: _Worker) -> None:
        """Let the idle ones read, and wait for all of them, but no longer than half a cycle."""
        for worker in workers:
            worker.begin()
        self._wait_idle(workers, time.monotonic() + self._cycle_s / 2)

    def _wait_idle(self, workers: Sequence[_Worker], until_s: float) -> bool:
        with self._idle:
            return self._idle.wait_for(
                lambda: all(worker.began_s is None for worker in workers),
                max(0.0, until_s - time.monotonic()),
            )

    def _cycle(self) -> wire.Cycle:
        now_s = time.monotonic()
        late = {}
        for index, worker in enumerate([self._system, *self._gpus], -1):
            began_s = worker.began_s
            patience_s = self._deadline_s * (1 if worker.has_read else FIRST_READ_DEADLINES)
            if began_s is not None and now_s - began_s > patience_s:
                late[index] = round(now_s - began_s, 3)
        return wire.Cycle(
            time.time_ns() // 1000,
            self._seen.driver,
            self._seen.gpu_count,
            self._places.named([[gpu for gpus in worker.take() for gpu in gpus] for worker in self._gpus]),
            late,
            self._events.take(),
            self._events.error,
            self._seen.errors,
        )

    def _read_system(self) -> _System:
        errors: dict[str, int] = {}
        driver, count = library.system(errors)
        # A count that could not be had is no count of zero: the GPUs known so far are read on.
        return _System(driver, self._seen.gpu_count if count is None else count, errors)


class _System(NamedTuple):
    driver: str = ""
    gpu_count: int | None = None
    errors: Mapping[str, int] = MappingProxyType({})


class _Worker:
    """A thread that reads one thing whenever it is told to and not at it already."""

    def __init__(
        self, read: Callable[[], Any], idle: threading.Condition, close: Callable[[], None] = lambda: None
    ) -> None:
        self.close = close
        """Gives back what the reading holds of the driver's."""
        self.began_s: float | None = None
        """Since when (monotonic) it has been reading; None if it is not."""
        self.has_read = False
        """Whether a read has come back."""
        self._read, self._idle = read, idle
        self._results: list[Any] = []
        threading.Thread(target=self._run, daemon=True).start()

    def begin(self) -> None:
        """Read once more, if the last read has come back."""
        with self._idle:
            if self.began_s is None:
                self.began_s = time.monotonic()
                self._idle.notify_all()

    def take(self) -> list[Any]:
        """What was read since the last take."""
        with self._idle:
            results, self._results = self._results, []
            return results

    def _run(self) -> None:
        while True:
            with self._idle:
                self._idle.wait_for(lambda: self.began_s is not None)
            found = self._read()
            with self._idle:
                self._results.append(found)
                self.began_s, self.has_read = None, True
                self._idle.notify_all()


class _Events:
    """Waits for events in a thread; made anew after every error and whenever the GPUs change."""

    def __init__(self, stopping: threading.Event) -> None:
        self.error: int | None = None
        """NVML's code if events cannot be waited for at present."""
        self._stopping = stopping
        self._found: list[wire.Event] = []
        self._turn = threading.Lock()
        self._count = 0
        self._thread: threading.Thread | None = None

    def watch(self, count: int) -> None:
        """Wait for events of the first `count` GPUs."""
        self._count = count
        if self._thread is None and count:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def take(self) -> list[wire.Event]:
        """The events since the last take."""
        with self._turn:
            found, self._found = self._found, []
            return found

    def ended(self, until_s: float) -> bool:
        """Whether the thread came to its end in time."""
        if self._thread is not None:
            self._thread.join(max(0.0, until_s - time.monotonic()))
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            try:
                self._listen()
                backoff_s = FIRST_BACKOFF_S
            except library.Refused as refused:
                self.error = refused.code
                self._stopping.wait(backoff_s)
                backoff_s = min(LONGEST_BACKOFF_S, backoff_s * 2)

    def _listen(self) -> None:
        """Until the GPUs change or a GPU refused is to be tried again. Raises Refused."""
        count = self._count
        events = EventSet(range(count))
        self.error = next(iter(events.refused.values()), None)
        renew_s = time.monotonic() + LONGEST_BACKOFF_S if events.refused else None
        try:
            while not self._stopping.is_set() and count == self._count:
                if renew_s is not None and time.monotonic() > renew_s:
                    return
                began_s = time.monotonic()
                event = events.wait(EVENT_WAIT_MS)
                if event is not None:
                    with self._turn:
                        self._found.append(event)
                elif time.monotonic() - began_s < EVENT_WAIT_MS / 4000:
                    # A driver that does not wait would keep a processor busy.
                    self._stopping.wait(EVENT_WAIT_MS / 1000)
        finally:
            events.close()


def _take_stdout() -> int:
    """A file descriptor of our own for the lines: whatever the library prints goes to standard error."""
    lines = os.dup(1)
    os.dup2(2, 1)
    return lines


def _write(lines: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(lines, rest) :]


def _stop_when_told(stopping: threading.Event) -> None:
    def told(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def parent_lets_go() -> None:
        while os.read(0, 4096):
            pass
        stopping.set()
        # The main thread may be stuck in a write that nobody reads.
        time.sleep(2 * END_S)
        os._exit(0)

    threading.Thread(target=parent_lets_go, daemon=True).start()


if __name__ == "__main__":
    status = 1
    try:
        status = main(sys.argv[1:])
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        # Threads that hang in the driver must not hold the end up.
        sys.stderr.flush()
        os._exit(status)
