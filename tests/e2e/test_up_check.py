"""`gpuhub up --check` proves itself, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_up_world import clean_environment, gpuhub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_check_settles_a_job_of_each_organization(tmp_path: Path) -> None:
    done = gpuhub("up", "--check", environment=clean_environment(TMPDIR=str(tmp_path)), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for organization in ("alpha-lab", "beta-robotics", "gamma-university"):
        assert f"({organization}, ax-demo)" in done.stdout
    assert "check passed: a job of each organization was settled" in done.stdout
    assert "GPU-us" in done.stdout, "statements show their arithmetic"
    assert "the sealed ledger and its statements break no rule" in done.stdout
    assert done.stdout.count(", seal ") == 3, "what is printed is sealed"
    assert list(tmp_path.iterdir()) == []


def test_check_on_a_fast_clock(tmp_path: Path) -> None:
    done = gpuhub(
        "up",
        "--check",
        "--clock-speed",
        "60",
        environment=clean_environment(TMPDIR=str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
