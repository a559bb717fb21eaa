"""What a job costs in steps of the interpreter: they do not depend on how busy the machine is, as seconds do.

The same jobs as in the ledger's benchmark, one per batch. A step is one bytecode instruction of Python in the service;
what SQLite and other C code do within one is not counted.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from quota.schemas.identity import Role
from tests import databases
from tests.bench import ledger
from tests.bench.world import World

WARM, JOBS = 10, 20
PARTS = {
    "statements": ("quota/prepared.py",),
    "objects": ("quota/dispatch/objects.py", "quota/schemas/values.py", "quota/programs/paths.py"),
}
"""Shares of the steps in process: binding and reading statements; building the objects of replies."""


class _Counter:
    """Steps by file while it is on; it makes everything many times slower."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()

    def trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self.steps[frame.f_code.co_filename] += 1
        return self.trace


def run() -> list[dict[str, Any]]:
    """Rows `in_process` and `http`, in steps per job, and the shares of `PARTS` in the former."""
    steps = _in_process()
    total = sum(steps.values())
    rows = [_row("in_process", total / JOBS, "steps/job"), _row("http", _http() / JOBS, "steps/job")]
    for name, files in PARTS.items():
        found = sum(count for file, count in steps.items() if file.endswith(files))
        rows.append(_row(f"in_process_{name}", found / total, "ratio"))
    return rows


def _row(metric: str, value: float, unit: str) -> dict[str, Any]:
    return {"bench": "steps", "metric": metric, "value": round(value, 3), "unit": unit}


def _in_process() -> Counter[str]:
    counter = _Counter()
    with tempfile.TemporaryDirectory() as folder:
        world = World(databases.new_sqlite(Path(folder)))
        for number, job_id in enumerate(world.submit(WARM + JOBS), 1):
            for make, send in ((world.starts, world.decide), (world.ends, world.report)):
                batch: Any = make([job_id], number)
                sys.settrace(counter.trace if number > WARM else None)
                send(batch)
                sys.settrace(None)
        world.close()
    return counter.steps


def _http() -> int:
    counter = _Counter()
    with tempfile.TemporaryDirectory() as folder:
        world = World(databases.new_sqlite(Path(folder)))
        sent = ledger.bodies(world, world.submit(WARM + JOBS), 1)
        threading.settrace(counter.trace)  # of the threads that the service starts from here on
        try:
            with world.serve(), multiprocessing.get_context("spawn").Pool(1) as pool:
                secret = world.secrets[Role.SCHEDULER]
                pool.apply(ledger.send, (world.port, secret, sent[: 2 * WARM]))
                counter.steps.clear()
                pool.apply(ledger.send, (world.port, secret, sent[2 * WARM :]))
                total = sum(counter.steps.values())
        finally:
            threading.settrace(None)
        world.close()
    return total
