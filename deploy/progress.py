"""What the supervisor tells: a spinner and ticks on a terminal, plain lines in a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text


class Progress:
    """Steps with their durations, and single lines. May be told from several threads."""

    def __init__(self, out: Console | None = None) -> None:
        self.out = out or _console()
        self._status: Status | None = None

    def say(self, line: str, style: str = "") -> None:
        """One line."""
        self.out.print(Text(line, style=style), soft_wrap=True)

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[None]:
        """Something that takes a moment: shown while it runs, ticked off with its duration."""
        began = time.monotonic()
        if self.out.is_terminal:
            with self.out.status(doing) as status:
                self._status = status
                try:
                    yield
                finally:
                    self._status = None
        else:
            yield
        self.say(f"✓ {done} ({time.monotonic() - began:.1f} s)")

    def update(self, line: str) -> None:
        """Where the running step is; on a terminal only."""
        if self._status is not None:
            self._status.update(line)


def _console() -> Console:
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=160)
