"""What-if questions at a leader's door: each played by a process of its own, a few at a time, and never for long."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

GLANCE_S = 0.25
"""How often a question under way looks whether anybody still waits for its answer."""
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG", "LC_ALL", "TMPDIR")
"""Of the environment. The leader's own holds its token."""


CHILD = (sys.executable, "-m", "scheduler.whatif.child")


class TooManyQuestions(Exception):
    """As many are being played as may be."""


class TookTooLong(Exception):
    """The question was not played within its time."""


class Unanswered(Exception):
    """The process ended without an answer, or nobody waits for it any more."""


class WhatIfDesk:
    """Plays what the quota service asks."""

    def __init__(self, admits: Callable[[str], bool], at_once: int = 1, child: Sequence[str] = CHILD) -> None:
        """`admits` says whether an Authorization header opens the door; `child` is the program that plays."""
        self.admits = admits
        self._child = child
        self._places = threading.BoundedSemaphore(at_once)
        self._closing = threading.Event()

    def answer(self, question: bytes, limit_s: float, gone: Callable[[], bool]) -> bytes:
        """What the child says to a question, as JSON. `gone`: whether the asker has left.

        Raises TooManyQuestions, TookTooLong or Unanswered; whatever happens, no process stays behind.
        """
        with self._place():
            started = subprocess.Popen(
                [*self._child, str(math.ceil(limit_s))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            )
            with started as child:
                try:
                    return self._wait(child, question, time.monotonic() + limit_s, gone)
                finally:
                    child.kill()

    def close(self) -> None:
        """End what is under way; nothing more is played."""
        self._closing.set()

    def _wait(
        self, child: subprocess.Popen[bytes], question: bytes, until_s: float, gone: Callable[[], bool]
    ) -> bytes:
        rest: bytes | None = question
        while True:
            try:
                answer, _ = child.communicate(rest, timeout=GLANCE_S)
            except subprocess.TimeoutExpired:
                rest = None  # it goes on with what it has not taken yet
                if time.monotonic() >= until_s:
                    raise TookTooLong from None
                if self._closing.is_set() or gone():
                    raise Unanswered("nobody waits for it any more") from None
                continue
            if child.returncode != 0:
                raise Unanswered(f"its process ended with {child.returncode}")
            return answer

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise TooManyQuestions
        try:
            yield
        finally:
            self._places.release()
