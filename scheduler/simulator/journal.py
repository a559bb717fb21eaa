"""The simulated cluster's memory on disk: one JSON object a line, synced before anyone is answered.

What is left when the process or the machine dies while one command is carried out:

1. before the write: nothing. The caller got no answer and asks again; due pod events are worked out
   anew from what is on disk and carry the same due times.
2. in the middle of the write: whole lines stay, a torn last line is cut off at the next start. A command
   is one line and everything that follows from it is worked out again, so every prefix is a valid history.
3. after the write, before the sync: the kernel has it, so a killed process loses nothing; a machine that
   loses power may be back at 1 or 2.
4. after the sync, before the answer: the work is done. The caller asks again and finds it
   (409, or no change).
5. after the answer: nothing that was answered is ever lost.

A journal that cannot be written (disk full) ends the process: memory must not run ahead of the disk.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from scheduler.simulator.events import Event, event_of, line_of

FILE_NAME = "journal.jsonl"


class JournalTrouble(Exception):
    """The journal cannot be used; the text says why in one line."""


class Journal:
    """An append-only file of events that belongs to one process at a time."""

    def __init__(self, directory: Path) -> None:
        """Open or create the journal in `directory` and lock it. Raises JournalTrouble."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / FILE_NAME
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            os.close(self._file)
            raise JournalTrouble(f"{self.path} is in use by another simulated cluster") from taken
        _sync_directory(directory)
        self.lines = 0

    def read(self) -> list[Event]:
        """All events so far; a torn last line is cut off. Raises JournalTrouble for any other damage."""
        content = self.path.read_bytes()
        lines = content.split(b"\n")
        torn = lines.pop()
        events = list(self._events(lines))
        if torn:
            os.ftruncate(self._file, len(content) - len(torn))
            os.fsync(self._file)
        self.lines = len(events)
        return events

    def append(self, events: Sequence[Event]) -> None:
        """Write the events of one command and sync once. Raises OSError."""
        if not events:
            return
        text = "".join(line_of(event, n) + "\n" for n, event in enumerate(events, self.lines + 1))
        rest = memoryview(text.encode())
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        self.lines += len(events)

    def close(self) -> None:
        """Close the file, which also lets another process lock it."""
        os.close(self._file)

    def _events(self, lines: Iterable[bytes]) -> Iterable[Event]:
        for number, line in enumerate(lines, 1):
            try:
                n, event = event_of(line)
            except (ValueError, KeyError, TypeError) as damage:
                raise JournalTrouble(f"{self.path} line {number} cannot be read: {damage!r}") from damage
            if n != number:
                raise JournalTrouble(f"{self.path} line {number} calls itself line {n}")
            yield event


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
