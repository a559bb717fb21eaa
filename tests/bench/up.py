"""Seconds from the command to the first settled jobs, against what no program could save.

The limit is the demo jobs' own life (start latency and run time on the simulated cluster) and one start of a Python
process that imports what the service needs, measured in the same run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

JOB_LIFE_S = 4.0
"""A demo job of each organization takes 1 s to start and runs for 3 s."""


def run() -> list[dict[str, Any]]:
    """One row `first_settled`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import quota.cli"], check=True)
    limit = JOB_LIFE_S + time.perf_counter() - began
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "up", "--check"], check=True, capture_output=True, text=True
    )
    found = re.search(r"settled ([0-9.]+) s after the start", done.stdout + done.stderr)
    assert found, f"`up --check` did not say how long it took:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    value = float(found[1])
    return [
        {
            "bench": "up",
            "metric": "first_settled",
            "value": value,
            "unit": "s",
            "limit": limit,
            "ratio": value / limit,
        }
    ]
