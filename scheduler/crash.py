"""Named points at which tests kill or pause this process; without `GPUHUB_CRASH_AT` they do nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping

VARIABLE = "GPUHUB_CRASH_AT"

POINTS = (
    "after_decision_sent_before_reply",
    "between_claim_and_create",
    "after_create",
    "before_started_report",
    "after_started_report",
    "between_stop_and_suspend",
    "after_suspend",
    "before_ended_report",
    "after_ended_report",
    "before_ranking",
)
"""On every cluster."""

KUBERNETES_POINTS = (
    "between_service_and_job",
    "after_gate",
    "between_finalizers_and_suspend",
)
"""Between two writes of one call; only Kubernetes needs more than one."""

ALL_POINTS = (*POINTS, *KUBERNETES_POINTS)


class CrashPlan:
    """`NAME[:N[:stop]]`: SIGKILL (or SIGSTOP) this process when it passes the point for the N-th time."""

    def __init__(self, text: str = "") -> None:
        self._name, self._left, self._signal = _parse(text)
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> CrashPlan:
        """The plan in `GPUHUB_CRASH_AT`. Raises ValueError if it names no point."""
        return cls(environment.get(VARIABLE, ""))

    def reach(self, name: str) -> None:
        """Say that the process is at this point now."""
        assert name in ALL_POINTS, f"{name} is not a documented crash point"
        if name != self._name:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                signal.pthread_kill(threading.get_ident(), self._signal)  # stops here, not a little later


def _parse(text: str) -> tuple[str, int, signal.Signals]:
    if not text:
        return "", 0, signal.SIGKILL
    name, _, rest = text.partition(":")
    count, _, verb = rest.partition(":")
    if name not in ALL_POINTS:
        raise ValueError(f"{VARIABLE}: {name!r} is none of {', '.join(ALL_POINTS)}")
    if count and not (count.isascii() and count.isdigit() and int(count) >= 1):
        raise ValueError(f"{VARIABLE}: {count!r} is not a count from 1")
    if verb not in ("", "kill", "stop"):
        raise ValueError(f"{VARIABLE}: {verb!r} is neither kill nor stop")
    return name, int(count or 1), signal.SIGSTOP if verb == "stop" else signal.SIGKILL
