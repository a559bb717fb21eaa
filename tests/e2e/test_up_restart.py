"""The hub is killed and started again: nothing is left behind, nothing is lost, running jobs go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_up_world import PROGRAMS, Up, processes_of, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    made.start()
    yield made
    made.close()


def running_job(up: Up, name: str) -> Any:
    """The demo job of that name once it runs."""

    def look() -> Any:
        found = [job for job in up.ask("jobs", "--state", "running") if job["name"] == name]
        return found and up.ask("job", found[0]["id"])

    return until(look, f"{name} runs")


def test_a_killed_supervisor_leaves_no_children_and_the_next_start_goes_on(up: Up) -> None:
    before = running_job(up, "nightly-train")
    url, jobs = up.url, {job["id"] for job in up.ask("jobs", "--limit", "100", who="operator")}
    assert set(processes_of(up.data_dir)) == set(PROGRAMS)
    up.kill()
    until(lambda: not processes_of(up.data_dir), "all children died", 5.0)

    up.start()
    assert up.url == url, "ports are remembered"
    after = running_job(up, "nightly-train")
    assert after["attempt"] == before["attempt"] == 1
    assert after["attempts"][0]["first_started_at"] == before["attempts"][0]["first_started_at"]
    assert {job["id"] for job in up.ask("jobs", "--limit", "100", who="operator")} == jobs, (
        "the demo is seeded once"
    )

    assert up.stop() == 0
    assert not processes_of(up.data_dir)
    assert "the next start goes on from here" in up.output.read_text()


def test_a_half_made_demo_is_finished_by_the_next_start(up: Up) -> None:
    grants = up.ask("balance", who="operator")
    up.kill()
    until(lambda: not processes_of(up.data_dir), "all children died", 5.0)
    state = up.data_dir / "state.json"
    began = state.read_text().replace('"complete"', '"half-made"')
    state.write_text(began)

    up.start()
    again = up.ask("balance", who="operator")
    assert [grant["id"] for grant in again] == [grant["id"] for grant in grants]
    assert [grant["granted_gpu_us"] for grant in again] == [grant["granted_gpu_us"] for grant in grants]
    names = [job["name"] for job in up.ask("jobs", "--limit", "100", who="operator")]
    assert len(names) == len(set(names))
    assert '"complete"' in state.read_text()
    assert os.stat(up.data_dir / "secrets.json").st_mode & 0o777 == 0o600
