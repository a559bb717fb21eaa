"""A small day is lived through by the real programs, and the oracle judges the books."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_up_world import gpuhub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

TRACE = """organisation,submit_s,gpus,run_s,limit_s
alpha-lab,86400,1,600,
alpha-lab,86410,8,900,3600
beta-robotics,86460,16,600,
beta-robotics,86500,5,300,
gamma-university,87000,1,3000,1800
gamma-university,87600,2,86400,
alpha-lab,200000,1,60,
"""


def test_a_small_trace_is_lived_through_and_settled(tmp_path: Path) -> None:
    trace = tmp_path / "day.csv"
    trace.write_text(TRACE)
    data = tmp_path / "data"
    cluster = ("--nodes", "2", "--gpus-per-node", "8")
    done = gpuhub(
        *("up", "--trace", str(trace), "--start-day", "1", "--hours", "1", *cluster),
        *("--clock-speed", "240", "--data-dir", str(data)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted   6 jobs; refused: none" in done.stdout
    assert re.search(r"late +0 submissions", done.stdout)
    assert re.search(r"ended .*succeeded.*1 time_limit", done.stdout)
    assert "the oracle found no fault" in done.stdout
    again = gpuhub("up", "--trace", str(trace), "--start-day", "1", "--data-dir", str(data))
    assert again.returncode == 2
    assert "is not empty; a trace needs a fresh --data-dir" in again.stderr
