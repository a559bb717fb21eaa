"""Named points at which tests kill or pause this process; without `GPUHUB_CRASH_AT` they do nothing.

`before_send`: measured and stored, not yet delivered. `after_send`: delivered, not yet marked as delivered.
`NAME[:N[:stop]]`: SIGKILL (or SIGSTOP) when the point is passed for the N-th time.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Mapping

from agents.model import EvidenceDoor
from quota.schemas.usage import EvidenceBatch, EvidenceReply

VARIABLE = "GPUHUB_CRASH_AT"
_PLAN = re.compile(r"(before_send|after_send)(?::([1-9][0-9]*))?(?::(kill|stop))?")


def watched(door: EvidenceDoor, environment: Mapping[str, str]) -> EvidenceDoor:
    """The door, which ends or pauses the process where the environment says. Raises ValueError."""
    text = environment.get(VARIABLE, "")
    if not text:
        return door
    plan = _PLAN.fullmatch(text)
    if plan is None:
        raise ValueError(f"{VARIABLE}: {text!r} is not before_send or after_send [:N[:stop]]")
    return _CrashingDoor(door, plan)


class _CrashingDoor:
    def __init__(self, door: EvidenceDoor, plan: re.Match[str]) -> None:
        self._door = door
        self._point = plan[1]
        self._left = int(plan[2] or 1)
        self._signal = signal.SIGSTOP if plan[3] == "stop" else signal.SIGKILL

    def deliver_evidence(self, body: EvidenceBatch) -> EvidenceReply:
        """Deliver, with the points before and after."""
        self._reach("before_send")
        reply = self._door.deliver_evidence(body)
        self._reach("after_send")
        return reply

    def _reach(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            signal.pthread_kill(threading.get_ident(), self._signal)  # stops here, not a little later
