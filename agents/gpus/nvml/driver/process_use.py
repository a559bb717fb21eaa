"""Which processes kept a GPU busy since the last read; the only thing that can divide a shared GPU's busy time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pynvml

from agents.gpus.nvml import wire
from agents.gpus.nvml.codes import GARBAGE
from agents.gpus.nvml.driver.figures import MOST_PIDS
from agents.gpus.nvml.driver.library import Asking, Handle

AHEAD_US = 1_000_000
LONGEST_US = 15_000_000
"""The driver remembers some seconds; of a longer time its answer tells only the end."""


class ProcessUse:
    """One GPU's; remembers until when it was told."""

    def __init__(self) -> None:
        self._until_us = 0

    def read(self, asking: Asking, handle: Handle) -> wire.ProcessUse | None:
        """Use since the last read that was answered. None for the first, and where that is not to be had."""
        since_us = self._until_us
        told = asking.ask("process_utilization", lambda: _ask(handle, since_us), no_news=True)
        if "process_utilization" in asking.unsupported or "process_utilization" in asking.errors:
            return None
        now_us = self._until_us = time.time_ns() // 1000
        if not 0 < now_us - since_us <= LONGEST_US:
            return None
        percents: dict[int, list[int]] = {}
        for sample in told or ():
            pid, at_us, percent = int(sample.pid), int(sample.timeStamp), int(sample.smUtil)
            if not 0 < pid <= MOST_PIDS or percent > 100 or at_us > now_us + AHEAD_US:
                asking.errors["process_utilization"] = GARBAGE
            elif at_us > since_us:
                percents.setdefault(pid, []).append(percent)
        return wire.ProcessUse(
            since_us, now_us, [(pid, sum(found) / len(found)) for pid, found in percents.items()]
        )


def _ask(handle: Handle, since_us: int) -> Sequence[Any]:
    try:
        listed: Sequence[Any] = pynvml.nvmlDeviceGetProcessUtilization(handle, since_us)
    except pynvml.NVMLError as error:
        # a size of none is raised as if it were an error
        if error.value == 0:
            return ()
        raise
    return listed
