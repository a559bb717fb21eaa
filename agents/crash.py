"""Named points at which tests kill or pause this process; without `GPUHUB_CRASH_AT` they do nothing.

Evidence: `before_send`: measured and stored, not yet delivered. `after_send`: delivered, not yet marked as delivered.
Verdicts (deliveries of rows alone do not count): `before_verdicts`: in the file, not yet delivered. `sent_verdicts`:
the request is out, the reply has not come. `after_verdicts`: the reply has come, the file still has them.
`NAME[:N[:stop]]`: SIGKILL (or SIGSTOP) when the point is passed for the N-th time.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from agents.model import EvidenceDoor
from agents.verdicts import GpuDoor
from quota.schemas.gpus import GpuReport, GpuReportReply
from quota.schemas.usage import EvidenceBatch, EvidenceReply

VARIABLE = "GPUHUB_CRASH_AT"
POINTS = ("before_send", "after_send", "before_verdicts", "sent_verdicts", "after_verdicts")
_PLAN = re.compile(rf"({'|'.join(POINTS)})(?::([1-9][0-9]*))?(?::(kill|stop))?")
_REPORTS = "/v1/gpu-reports"


class Doors(EvidenceDoor, GpuDoor, Protocol):
    """Where evidence and verdicts are delivered; `agents.quota_door.QuotaDoor` is one."""

    def when_sent(self, told: Callable[[str], None], /) -> None:
        """Have `told` called with the path of each request that is out and not yet answered."""


def watched(doors: Doors, environment: Mapping[str, str]) -> Doors:
    """The doors, which end or pause the process where the environment says. Raises ValueError."""
    text = environment.get(VARIABLE, "")
    if not text:
        return doors
    plan = _PLAN.fullmatch(text)
    if plan is None:
        raise ValueError(f"{VARIABLE}: {text!r} is not {' or '.join(POINTS)} [:N[:stop]]")
    return _CrashingDoors(doors, plan)


class _CrashingDoors:
    def __init__(self, doors: Doors, plan: re.Match[str]) -> None:
        self._doors = doors
        self._point = plan[1]
        self._left = int(plan[2] or 1)
        self._signal = signal.SIGSTOP if plan[3] == "stop" else signal.SIGKILL
        self._has_verdicts = False
        if self._point == "sent_verdicts":
            doors.when_sent(self._sent)

    def deliver_evidence(self, body: EvidenceBatch, /) -> EvidenceReply:
        """Deliver, with the points before and after."""
        self._reach("before_send")
        reply = self._doors.deliver_evidence(body)
        self._reach("after_send")
        return reply

    def report_gpus(self, body: GpuReport, /) -> GpuReportReply:
        """Deliver, with the points before, between and after if there are verdicts."""
        if not body.verdicts:
            return self._doors.report_gpus(body)
        self._reach("before_verdicts")
        self._has_verdicts = True
        reply = self._doors.report_gpus(body)
        self._has_verdicts = False
        self._reach("after_verdicts")
        return reply

    def when_sent(self, told: Callable[[str], None], /) -> None:
        """As the doors do it."""
        self._doors.when_sent(told)

    def _sent(self, path: str) -> None:
        if self._has_verdicts and path == _REPORTS:
            self._reach("sent_verdicts")

    def _reach(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            signal.pthread_kill(threading.get_ident(), self._signal)  # stops here, not a little later
