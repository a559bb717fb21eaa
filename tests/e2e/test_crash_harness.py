"""The harness can fail: whatever it looks for, it finds when it is planted."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_workload import Crowd, a_job, verdict
from hub_processes import Hub, Shelf, a_hub, until

from tests.oracle.oracle import judge

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Crowd]]:
    """A hub that ran a few jobs and was found sound, and the firms that submitted them."""
    with Shelf(tmp_path_factory) as shelf, shelf.lend() as hub:
        with Crowd(hub, "few", kinds=("one", "several"), pause_s=(0.1, 0.2)) as crowd:
            until(lambda: len(crowd.submitted) > 10, "jobs are submitted")
        verdict(hub, crowd)
        yield hub, crowd


@pytest.fixture
def copy(lived: tuple[Hub, Crowd], tmp_path: Path) -> tuple[Path, Path]:
    """Database and journal of it, to be spoilt."""
    hub, _ = lived
    source, database = sqlite3.connect(hub.database), sqlite3.connect(tmp_path / "quota.db")
    source.backup(database)
    source.close()
    database.close()
    return tmp_path / "quota.db", Path(shutil.copy(hub.journal, tmp_path / "journal.jsonl"))


def faults(copy: tuple[Path, Path]) -> list[str]:
    return judge(f"sqlite:///{copy[0]}", str(copy[1]), final=True)


def again(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The first event of a kind happens once more at the end."""
    first = next(event for event in events if event["event"] == kind)
    return [*events, first | {"n": len(events) + 1, "t": events[-1]["t"] + 1}]


def longer(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The last event of a kind happens a millisecond later."""
    last = max(n for n, event in enumerate(events) if event["event"] == kind)
    return [event | {"t": event["t"] + (n >= last)} for n, event in enumerate(events)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda events: again(events, "pod_started"),
        lambda events: longer(events, "pod_ended"),
        lambda events: events[:-1] if events[-1]["event"] == "pod_ended" else again(events, "pod_started"),
    ],
    ids=["a pod runs twice", "a millisecond is not charged", "an end is missing"],
)
def test_oracle_finds_a_spoilt_journal(
    copy: tuple[Path, Path], spoil: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    assert faults(copy) == []
    events = [json.loads(line) for line in copy[1].read_text().splitlines()]
    copy[1].write_text("".join(json.dumps(event) + "\n" for event in spoil(events)))
    assert faults(copy)


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE transfer_legs SET d_used = d_used + 1 WHERE rowid = (SELECT MAX(rowid) FROM transfer_legs)",
        "UPDATE attempts SET ended_at_ms = ended_at_ms + 1 WHERE rowid = (SELECT MAX(rowid) FROM attempts)",
        "UPDATE node_capacity SET used = 1 WHERE rowid = (SELECT MIN(rowid) FROM node_capacity)",
        "UPDATE jobs SET state = 'running' WHERE rowid = (SELECT MIN(rowid) FROM jobs)",
        "UPDATE holds SET resolved = 0 WHERE rowid = (SELECT MIN(rowid) FROM holds)",
    ],
    ids=["a balance", "a time", "a GPU", "a job", "a hold"],
)
def test_oracle_finds_a_spoilt_database(copy: tuple[Path, Path], spoil: str) -> None:
    database = sqlite3.connect(copy[0])
    database.execute("PRAGMA ignore_check_constraints = ON")
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")
    assert database.execute(spoil).rowcount == 1
    database.commit()
    database.close()
    assert faults(copy)


def test_firms_notice_a_lost_job_and_a_doubled_one(lived: tuple[Hub, Crowd]) -> None:
    hub, crowd = lived
    name, job_id = next(iter(crowd.submitted.items()))
    forgotten = Crowd(hub, crowd.seed)
    forgotten.submitted = {key: value for key, value in crowd.submitted.items() if key != name}
    assert forgotten.broken_promises() == [f"{name} was never submitted"]
    promised = Crowd(hub, crowd.seed)
    promised.submitted = {**crowd.submitted, "another": "job-0"}
    assert promised.broken_promises() == ["another was answered as job-0, but is None"]
    doubled = Crowd(hub, crowd.seed)
    doubled.submitted = {**crowd.submitted, name: "job-0"}
    (broken,) = doubled.broken_promises()
    assert job_id in broken


def test_open_things_and_tracebacks_are_noticed(tmp_path: Path) -> None:
    with a_hub(tmp_path / "hub") as hub:
        assert hub.troubles() == []
        hub.programs["scheduler"].comes_back = False
        hub.kill("scheduler")
        with hub.client("alpha") as firm:
            firm.submit_job(a_job("left behind", "one", random.Random(1)), "left behind")
        with pytest.raises(AssertionError, match="not settled"):
            hub.settle(patience_s=1)
        with hub.programs["agent"].log.open("a") as log:
            log.write("Traceback (most recent call last):\n")
        assert len(hub.troubles()) == 1
