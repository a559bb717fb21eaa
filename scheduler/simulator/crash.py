"""Named points at which tests kill or pause this process; without `GPUHUB_CRASH_AT` they do nothing.

`POINT.EVENT[:N[:stop]]`: SIGKILL (or SIGSTOP) at the N-th writing of such an event, as in
`after_journal.object_created:3`: on disk, not yet answered.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from scheduler.simulator.events import Event, event_word
from scheduler.simulator.journal import Journal

VARIABLE = "GPUHUB_CRASH_AT"
_PLAN = re.compile(r"(before_journal|after_journal)\.([a-z_]+)(?::([1-9][0-9]*))?(?::(kill|stop))?")


def open_journal(directory: Path, environment: Mapping[str, str]) -> Journal:
    """The journal, which ends or pauses the process where the environment says. Raises JournalTrouble, ValueError."""
    text = environment.get(VARIABLE, "")
    if not text:
        return Journal(directory)
    plan = _PLAN.fullmatch(text)
    if plan is None:
        raise ValueError(f"{VARIABLE}: {text!r} is not before_journal or after_journal .EVENT[:N[:stop]]")
    return _CrashingJournal(directory, plan)


class _CrashingJournal(Journal):
    def __init__(self, directory: Path, plan: re.Match[str]) -> None:
        super().__init__(directory)
        self._point, self._word = plan[1], plan[2]
        self._left = int(plan[3] or 1)
        self._signal = signal.SIGSTOP if plan[4] == "stop" else signal.SIGKILL

    def append(self, events: Sequence[Event]) -> None:
        meant = any(event_word(event) == self._word for event in events)
        if meant:
            self._reach("before_journal")
        super().append(events)
        if meant:
            self._reach("after_journal")

    def _reach(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            signal.pthread_kill(threading.get_ident(), self._signal)  # stops here, not a little later
