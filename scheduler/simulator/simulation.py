"""The model joined to clock and journal: nothing is answered that is not on disk.

One event loop runs it, and a command goes from clock to synced journal without an `await`, so no request ever
sees half of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import structlog

from quota.clock import Clock
from scheduler.simulator.events import Event, GpuSpec, NodeAdded
from scheduler.simulator.journal import Journal
from scheduler.simulator.model import Model

log = structlog.get_logger()

TICK_WALL_S = 0.05
"""How late a waiting reader may hear of a pod's start or end. Whoever asks is always told everything due."""


class Simulation:
    """What the door works on."""

    def __init__(
        self, model: Model, journal: Journal, clock: Clock, end_process: Callable[[str], NoReturn]
    ) -> None:
        self.model = model
        self._journal = journal
        self._clock = clock
        self._end_process = end_process
        self._answered_ms = 0
        self._changed = asyncio.Event()
        self._closing = False

    @contextmanager
    def turn(self) -> Iterator[int]:
        """One command at the present moment; all that it causes is on disk when the block is left.

        The moment is later than any watermark answered before: an answer contains all events up to its time.
        """
        now_ms = max(self._clock.now_ms(), self.model.now_ms, self._answered_ms + 1)
        self.model.advance(now_ms)
        try:
            yield now_ms
        finally:
            self.model.advance(now_ms)
            self._commit()

    def do(self, event: Event | None) -> None:
        """Carry out what a rule allowed, inside a turn."""
        if event is not None:
            self.model.do(event)

    def present(self) -> int:
        """Bring the state up to the present moment and return it: the watermark of an answer."""
        now_ms = max(self._clock.now_ms(), self.model.now_ms)
        self.model.advance(now_ms)
        self._commit()
        self._answered_ms = now_ms
        return now_ms

    def add_fleet(
        self, fleet: Mapping[str, tuple[GpuSpec, ...]], racks: Mapping[str, str] | None = None
    ) -> bool:
        """Give a cluster without nodes its nodes. False if it has some already: the journal's fleet stays."""
        if self.model.nodes:
            return False
        with self.turn() as now_ms:
            for node, gpus in fleet.items():
                self.do(NodeAdded(now_ms, node, gpus, (racks or {}).get(node, "")))
        return True

    async def wait_beyond(self, version: int, wait_s: float) -> None:
        """Return when something happened after `version`, or after `wait_s` wall seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while self.model.version == version and not self._closing:
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), until - loop.time())
            except TimeoutError:
                return

    async def wait_a_tick(self) -> bool:
        """Let a moment pass. False if the process is about to end."""
        await asyncio.sleep(TICK_WALL_S)
        return not self._closing

    async def tick_forever(self) -> None:
        """Let due events happen although nobody asks, so that waiting readers wake."""
        while True:
            await asyncio.sleep(TICK_WALL_S)
            try:
                due_ms = self.model.next_due_ms()
                if due_ms is not None and due_ms <= self._clock.now_ms():
                    self.present()
            except Exception as bug:
                log.exception("tick_failed")
                # A state machine that contradicts itself must not go on answering.
                self._end_process(f"a bug: {bug!r}")

    def release_readers(self) -> None:
        """Answer all waiting readers now and let none wait again: the process is about to end."""
        self._closing = True
        self._changed.set()

    def _commit(self) -> None:
        events = self.model.drain()
        if not events:
            return
        try:
            self._journal.append(events)
        except OSError as trouble:
            # Memory is now ahead of the disk, and nobody may be told.
            self._end_process(f"the journal cannot be written: {trouble}")
        assert self._journal.lines == self.model.version, "every event is a line"
        self._changed.set()
        self._changed = asyncio.Event()
