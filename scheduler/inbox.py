"""Where the threads put what they saw, and where the loop waits: so only the loop touches the state."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from scheduler.actions import Done
from scheduler.clusters.port import Observation
from scheduler.feed import FeedNews


@dataclass(frozen=True, slots=True)
class Observed:
    """A cluster answered at `at_ms` (business time)."""

    cluster: str
    observation: Observation
    at_ms: int

    @property
    def urgent(self) -> bool:
        """Whether anything but the watermark changed."""
        seen = self.observation
        return bool(seen.complete or seen.objects or seen.gone or seen.nodes is not None)


Message = FeedNews | Done | Observed


class Inbox:
    """Messages in the order of arrival, and a bell for the loop."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._bell = threading.Event()

    def put(self, message: Message) -> None:
        """Leave a message; the loop wakes unless it can wait."""
        self._messages.put(message)
        if not isinstance(message, Observed) or message.urgent:
            self._bell.set()

    def ring(self) -> None:
        """Wake the loop."""
        self._bell.set()

    def wait(self, timeout_s: float) -> None:
        """Sleep until the bell rings or the time is over."""
        self._bell.wait(timeout_s)
        self._bell.clear()

    def drain(self) -> Iterator[Message]:
        """All messages there are now."""
        while True:
            try:
                yield self._messages.get_nowait()
            except queue.Empty:
                return
