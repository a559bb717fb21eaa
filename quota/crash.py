"""Named points at which tests kill or pause this process; without `GPUHUB_CRASH_AT` they do nothing.

`POINT.OPERATION[:N[:stop]]`: SIGKILL (or SIGSTOP) when the operation, named by its route's function, passes the
point for the N-th time, as in `after_commit.send_decisions:3`. Called by `create_app` when it opens the database.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from quota.clock import Clock
from quota.db import Database, Tx

T = TypeVar("T")

VARIABLE = "GPUHUB_CRASH_AT"
_PLAN = re.compile(r"(before_commit|after_commit)\.([a-z_]+)(?::([1-9][0-9]*))?(?::(kill|stop))?")


def open_database(url: str, clock: Clock, pool_size: int, environment: Mapping[str, str]) -> Database:
    """The database, which ends or pauses the process where the environment says. Raises ValueError."""
    text = environment.get(VARIABLE, "")
    if not text:
        return Database(url, clock, pool_size=pool_size)
    plan = _PLAN.fullmatch(text)
    if plan is None:
        raise ValueError(f"{VARIABLE}: {text!r} is not before_commit or after_commit .OPERATION[:N[:stop]]")
    return _CrashingDatabase(url, clock, pool_size, plan)


class _CrashingDatabase(Database):
    def __init__(self, url: str, clock: Clock, pool_size: int, plan: re.Match[str]) -> None:
        super().__init__(url, clock, pool_size=pool_size)
        self._point, self._operation = plan[1], plan[2]
        self._left = int(plan[3] or 1)
        self._signal = signal.SIGSTOP if plan[4] == "stop" else signal.SIGKILL
        self._turn = threading.Lock()

    def write(self, work: Callable[[Tx], T]) -> T:
        # a route writes in a lambda, whose name begins with the route's
        if work.__qualname__.partition(".")[0] != self._operation:
            return super().write(work)

        def crashing(tx: Tx) -> T:
            result = work(tx)
            tx.publish()
            self._reach("before_commit")
            return result

        result = super().write(crashing)
        self._reach("after_commit")
        return result

    def _reach(self, point: str) -> None:
        if point != self._point:
            return
        with self._turn:
            self._left -= 1
            if self._left == 0:
                signal.pthread_kill(threading.get_ident(), self._signal)  # stops here, not a little later
