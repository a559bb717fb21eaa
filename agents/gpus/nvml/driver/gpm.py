"""GPM: activity between two readings of a GPU's own counters; the only utilization that MIG devices have."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, NamedTuple

import pynvml

LEAST_US = 100_000
"""Two readings closer than this say nothing (nvml.h)."""

BUSY, SM = 1, 2
"""NVML_GPM_METRIC_GRAPHICS_UTIL and _SM_UTIL, percent."""


class Activity(NamedTuple):
    """What happened between two readings, the later of which was taken `at_us` (wall)."""

    at_us: int
    busy: float
    """Share (0-1) of the time in which anything ran."""
    sm_activity: float | None
    """Share (0-1) of the multiprocessors that were busy."""


class Gpm:
    """The last reading of one GPU or GPU instance. Raises pynvml.NVMLError, and ValueError for garbage."""

    def __init__(self) -> None:
        self._last: Any = None
        self._last_us = 0
        self._joined = False
        self._metrics = pynvml.c_nvmlGpmMetricsGet_t()

    def read(self, gpu: Any, instance: int | None) -> Activity | None:
        """Activity since the last read; None for the first, too early ones, and the one after a hole.

        A pair that begins after a hole would speak for the hole as well to whoever measures from the sample before,
        so it is not told: the distance to the next one is then too long to be counted.
        """
        since_us = time.time_ns() // 1000 - self._last_us
        if self._last is not None and since_us < 0:
            self.close()  # The clock was set back: nobody knows how long the pair would be.
        elif self._last is not None and since_us < LEAST_US:
            return None
        fresh = pynvml.nvmlGpmSampleAlloc()
        try:
            if instance is None:
                pynvml.nvmlGpmSampleGet(gpu, fresh)
            else:
                pynvml.nvmlGpmMigSampleGet(gpu, instance, fresh)
            at_us = time.time_ns() // 1000
            told = None if self._last is None else self._between(fresh, at_us)
        except (pynvml.NVMLError, ValueError):
            _free(fresh)
            self.close()
            raise
        old, self._last, self._last_us = self._last, fresh, at_us
        _free(old)
        joined, self._joined = self._joined, told is not None
        return told if joined else None

    def close(self) -> None:
        """Give the last reading back; what comes next begins after a hole."""
        last, self._last, self._joined = self._last, None, False
        _free(last)

    def _between(self, fresh: Any, at_us: int) -> Activity:
        asked = self._metrics
        asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = 2
        asked.sample1, asked.sample2 = self._last, fresh
        asked.metrics[0].metricId, asked.metrics[1].metricId = BUSY, SM
        pynvml.nvmlGpmMetricsGet(asked)
        busy = _ratio(asked.metrics[0])
        if busy is None:
            raise pynvml.NVMLError(asked.metrics[0].nvmlReturn)
        return Activity(at_us, busy, _ratio(asked.metrics[1]))


def _free(sample: Any) -> None:
    if sample is not None:
        # A library that does not take a sample back has forgotten it, or is about to be left with all of them.
        with suppress(pynvml.NVMLError):
            pynvml.nvmlGpmSampleFree(sample)


def _ratio(metric: Any) -> float | None:
    if metric.nvmlReturn != 0:
        return None
    # Rounding may end a little above: that is full, not garbage.
    if not 0 <= metric.value <= 101:
        raise ValueError(f"not a percentage: {metric.value}")
    return min(1.0, float(metric.value) / 100)
