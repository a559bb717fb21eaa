"""Keeps one collector process running in spite of the driver; calls nothing of the driver's itself.

What happens when something goes wrong:

- the library or the driver is missing, or the two do not fit (after an update): the process says so and ends; it is
  started again after 1, 2, 4 … 30 s, so a new driver is loaded when it is there.
- it dies or says nothing for longer than a cycle and the deadline: it is killed and started again likewise.
- no GPU is readable any more (NVML's `meaning` says a new process may help, or every call hangs): the same.
- some GPUs hang, are lost or ask for a new process while others are well: those go on being read. After 30 s, then
  60 s … 10 min the process is ended and started for the sake of the sick ones; driver buffers bridge the second.
- it cannot even be killed (a call that sleeps in the kernel): one such process is left behind and another started,
  which is then not ended for the sake of some GPUs; with two of them left behind no third is started.
- GPUs were readable, and in three processes in a row none is for want of devices (`systemctl daemon-reload` takes them
  from a container): `hopeless`, and the agent ends with an error, so that its container is made anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from agents import log
from agents.gpus.nvml import wire
from agents.gpus.nvml.codes import Meaning, meaning_of, name_of

DRIVER = -1
"""The index under which `wire.Cycle.late` speaks of the driver itself."""

MOST_LINE_BYTES = 16 << 20
HOPELESS_AFTER = 3
MOST_LEFT_BEHIND = 2


_CYCLE = TypeAdapter(wire.Cycle)
_FAILED = TypeAdapter(wire.Failed)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long what may take; all in wall seconds."""

    cycle_s: float = 3.0
    deadline_s: float = 10.0
    """How long a GPU's read may take before it counts as hanging."""
    start_s: float = 60.0
    """How long a process may take to its first line: a driver that starts initializes GPUs one by one."""
    first_backoff_s: float = 1.0
    longest_backoff_s: float = 30.0
    first_retry_s: float = 30.0
    """How long sick GPUs wait for a new process while others are well."""
    longest_retry_s: float = 600.0
    end_s: float = 4.0
    """How long a process may take to end when asked to, and again when killed."""


_ADVICE = {
    "library_not_found": "libnvidia-ml.so.1 was not found: install the driver, or mount its libraries",
    "driver_not_loaded": "the kernel module is not loaded: load it (modprobe nvidia)",
    "lib_rm_version_mismatch": "library and kernel module are of different versions: reload the module or reboot",
    "no_permission": "the agent may not open the devices: see /dev/nvidia*",
    "hung": "the driver does not answer: see dmesg; the node may need a reboot",
    "stuck": "processes hang in the kernel and cannot be killed: the node needs a reboot",
}


def advice_on(state: str) -> str:
    """What whoever runs the node can do about a state; empty where nothing is known to help."""
    return _ADVICE.get(state, "")


class Supervisor:
    """Starts, watches and ends collector processes in a thread of its own."""

    def __init__(
        self, timing: Timing, take: Callable[[wire.Cycle], None], command: Sequence[str] | None = None
    ) -> None:
        """`take` gets every cycle, in the supervisor's thread; `command` is what to run instead of the collector."""
        self.state = "starting"
        """`starting`, `running`, `hung`, `ended`, `stuck`, or the name of NVML's error."""
        self.restarts: Counter[str] = Counter()
        """Ended processes by reason."""
        self.hopeless = False
        """Whether nothing that this process can do will bring the GPUs back."""
        self.pid: int | None = None
        """The collector's, while there is one."""
        self._timing, self._take = timing, take
        self._command = command or [
            *(sys.executable, "-m", "agents.gpus.nvml.collector"),
            *(str(timing.cycle_s), str(timing.deadline_s)),
        ]
        self._stopping = threading.Event()
        self._left_behind: list[subprocess.Popen[bytes]] = []
        self._backoff_s = timing.first_backoff_s
        self._retry = _Retry(timing)
        self._was_well = False
        self._doors_closed = 0
        self._thread = threading.Thread(target=self._run, name="nvml-supervisor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End the process and the thread."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(3 * self._timing.end_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._live_once()
            except Exception:
                # The edge of this thread: without it nothing would be read any more.
                log.exception("nvml_supervision_failed")
                self.state = "ended"
            self._stopping.wait(self._backoff_s)
            self._backoff_s = min(self._timing.longest_backoff_s, self._backoff_s * 2)

    def _live_once(self) -> None:
        """One process from its start to its end."""
        self._left_behind = [process for process in self._left_behind if process.poll() is None]
        if len(self._left_behind) >= MOST_LEFT_BEHIND:
            self._enter("stuck")
            return
        child = _Child(self._command)
        self.pid = child.process.pid
        try:
            reason = self._watch(child)
        finally:
            self.pid = None
            if not child.end(self._timing.end_s):
                self._left_behind.append(child.process)
                log.error("nvml_collector_cannot_be_killed", pid=child.process.pid)
        if self._stopping.is_set():
            return
        self.restarts[reason] += 1
        self._enter(reason)
        log.warning("nvml_collector_restarts", reason=reason, in_s=self._backoff_s)

    def _enter(self, state: str) -> None:
        if state != self.state:
            log.info("nvml_state", state=state, before=self.state, advice=advice_on(state))
        self.state = state

    def _watch(self, child: _Child) -> str:
        """Pass the process's lines on until it has to be replaced; why."""
        patience_s = self._timing.start_s
        health = _Health()
        while not self._stopping.is_set():
            line = child.line(patience_s, self._stopping)
            if line is None:
                return "ended" if child.at_end else "hung"
            try:
                document = json.loads(line)
                if "code" in document:
                    failed = _FAILED.validate_python(document)
                    return self._failed(failed)
                cycle = _CYCLE.validate_json(line)
            except (ValueError, ValidationError, TypeError) as error:
                log.error("nvml_collector_says_nonsense", reason=str(error)[:300])
                return "nonsense"
            patience_s = self._timing.cycle_s + self._timing.deadline_s
            self._take(cycle)
            reason = self._judge(health, cycle)
            if reason is not None:
                return reason
        return "stopping"

    def _failed(self, failed: wire.Failed) -> str:
        self._count_closed_doors(meaning_of(failed.code) is Meaning.DOOR_CLOSED)
        return name_of(failed.code)

    def _judge(self, health: _Health, cycle: wire.Cycle) -> str | None:
        """Why the process should be replaced now, or None."""
        health.take(cycle)
        if not health.known:
            return None
        if health.well:
            self._was_well, self._doors_closed = True, 0
            self._backoff_s = self._timing.first_backoff_s
            self._enter("running")
            if health.all_well():
                self._retry.all_well()
            elif health.sick and not self._left_behind and self._retry.due():
                return health.reason()
            return None
        if not health.sick:
            self._enter("running")  # A node without GPUs.
            return None
        self._count_closed_doors(health.door_closed())
        return health.reason()

    def _count_closed_doors(self, closed: bool) -> None:
        self._doors_closed = self._doors_closed + 1 if closed else 0
        if self._was_well and self._doors_closed >= HOPELESS_AFTER and not self.hopeless:
            log.error(
                "gpus_are_out_of_reach", advice="the container lost its devices: it has to be made anew"
            )
            self.hopeless = True


class _Health:
    """How the driver and each GPU are, over one process's life."""

    def __init__(self) -> None:
        self.known = False
        """Whether the driver's or a GPU's state was heard of at all."""
        self.well: set[int] = set()
        self.sick: dict[int, str] = {}
        """Why, by index."""
        self._closed: set[int] = set()
        self._count = 0

    def take(self, cycle: wire.Cycle) -> None:
        """Learn from one cycle; a GPU that is not in it is as it was."""
        self._count = self._count if cycle.gpu_count is None else cycle.gpu_count
        judged: dict[int, dict[str, int]] = {}
        for gpu in cycle.gpus:
            judged.setdefault(gpu.gpu_index, {}).update(gpu.errors)
        if cycle.gpu_count is not None or cycle.system_errors:
            judged[DRIVER] = dict(cycle.system_errors)
        for index, errors in judged.items():
            self._judge(index, list(errors.values()))
        for index in cycle.late:
            self._note(index, "hung")
        self.known = self.known or bool(judged or cycle.late)

    def _judge(self, index: int, codes: list[int]) -> None:
        grave = [
            code for code in codes if meaning_of(code) in (Meaning.LOST, Meaning.RESTART, Meaning.DOOR_CLOSED)
        ]
        self._closed.discard(index)
        if grave:
            self._note(index, name_of(grave[0]))
            if any(meaning_of(code) is Meaning.DOOR_CLOSED for code in grave):
                self._closed.add(index)
            return
        self.sick.pop(index, None)
        if index != DRIVER:
            self.well.add(index)

    def _note(self, index: int, reason: str) -> None:
        self.sick[index] = reason
        self.well.discard(index)

    def all_well(self) -> bool:
        """Whether every GPU was heard of and none is sick; one not heard of yet may still turn out to hang."""
        return not self.sick and self.well.issuperset(range(self._count))

    def reason(self) -> str:
        """The commonest trouble."""
        return Counter(self.sick.values()).most_common(1)[0][0]

    def door_closed(self) -> bool:
        """Whether what is sick is so for want of devices."""
        return bool(self._closed)


class _Retry:
    """When sick GPUs are worth a new process while others are well."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._wait_s = timing.first_retry_s
        self._at_s: float | None = None

    def all_well(self) -> None:
        """Forget the waiting."""
        self._wait_s, self._at_s = self._timing.first_retry_s, None

    def due(self) -> bool:
        """Whether it is time; each time the next one is twice as far."""
        now_s = time.monotonic()
        if self._at_s is None:
            self._at_s = now_s + self._wait_s
        if now_s < self._at_s:
            return False
        self._wait_s = min(self._timing.longest_retry_s, self._wait_s * 2)
        self._at_s = now_s + self._wait_s
        return True


class _Child:
    """A collector process: its lines, and its end."""

    def __init__(self, command: Sequence[str]) -> None:
        # A new program, never a fork: the library's state does not survive one.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.at_end = False
        """Whether it closed its end."""
        self._buffer = bytearray()

    def line(self, patience_s: float, stopping: threading.Event) -> bytes | None:
        """The next line; None if there was none in time, at the end, or when stopping."""
        assert self.process.stdout is not None
        lines = self.process.stdout.fileno()
        until_s = time.monotonic() + patience_s
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if len(self._buffer) > MOST_LINE_BYTES:
                return b"too long"
            left_s = until_s - time.monotonic()
            if left_s <= 0 or stopping.is_set():
                return None
            if select.select([lines], [], [], min(left_s, 0.2))[0]:
                received = os.read(lines, 1 << 16)
                if not received:
                    self.at_end = True
                    return None
                self._buffer += received

    def end(self, patience_s: float) -> bool:
        """Ask it to end, then kill it; False if not even that helps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        # Nobody reads its lines any more: it must not wait for room to write them.
        self.process.stdout.close()
        return self._ended(patience_s) or self._killed(patience_s)

    def _killed(self, patience_s: float) -> bool:
        self.process.kill()
        return self._ended(patience_s)

    def _ended(self, patience_s: float) -> bool:
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return False
        return True
