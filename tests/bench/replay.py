"""How long a replay takes: `python -m tests.bench.replay` prints the rows.

All 69,351 jobs of Microsoft's ITP trace, GPUs counted, 1,000 of them, the hub's own policy, in a process of its own.
Seconds of the wall and of the CPU, and the most memory that the process had.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from scheduler.core.policy import PRESETS
from scheduler.replay.engine import replay
from scheduler.replay.settings import Settings, arrange
from scheduler.replay.traces import read_trace
from tests.bench.fairness import ITP

WALL_LIMIT_S = 60.0
RSS_LIMIT_MIB = 1024.0


def run(path: Path = ITP) -> list[dict[str, object]]:
    """Wall and CPU seconds and memory, of the plainest policy and of the hub's own; nothing without the trace."""
    if not path.is_dir():
        print(f"bench replay: no trace at {path}, nothing measured", file=sys.stderr)
        return []
    rows = []
    for policy, name in (("grant-skip", "grant_skip_"), ("gpuhub", "")):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            wall_s, cpu_s, rss_mib, cycles = pool.submit(measure, path, policy).result()
        rows += [
            _row(f"{name}wall", wall_s, "s", WALL_LIMIT_S),
            _row(f"{name}cpu", cpu_s, "s", WALL_LIMIT_S),
            _row(f"{name}rss", rss_mib, "MiB", RSS_LIMIT_MIB),
            _row(f"{name}cycles", cycles, "", None),
        ]
    return rows


def measure(path: Path, policy: str) -> tuple[float, float, float, int]:
    """(wall seconds, CPU seconds, MiB, cycles) of one replay, reading the trace not counted."""
    settings = Settings(1, 1000)
    jobs = arrange(read_trace(path), settings)
    wall_s, cpu_s = time.monotonic(), time.process_time()
    history = replay(policy, PRESETS[policy], jobs, settings)
    wall_s, cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
    return wall_s, cpu_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, history.cycles


def _row(metric: str, value: float, unit: str, limit: float | None) -> dict[str, object]:
    return {
        "bench": "replay",
        "metric": metric,
        "value": round(value, 1),
        "unit": unit,
        "limit": limit,
        "ratio": round(value / limit, 3) if limit else None,
    }


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
