"""A running hub is saved, explained without it as it explains itself, played on, and asked what would be if."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_processes import Hub, a_hub, until

from quota.client import QuotaClient
from quota.schemas.jobs import Job, JobSubmission
from quota.schemas.scheduling import JobState, WaitReason

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NODES = 3
NODE_GPUS = 8
RUNS_S = 120_000
"""Three minutes of wall time: nothing ends meanwhile."""
SECRET = "hunter2-in-the-environment"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with a_hub(tmp_path_factory.mktemp("whatif") / "hub") as hub:
        _fill(hub)
        yield hub


@pytest.fixture(scope="module")
def state(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a queue whose order and reasons the hub has shown."""
    path = tmp_path_factory.mktemp("saved") / "state.json.gz"
    with hub.client("operator", 10) as client:
        until(lambda: _is_ranked(client), "every waiting job has its place and its reason")
    done = gpuhub(hub, "scheduler", "snapshot", "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert f"gpuhub scheduler explain {path}" in done.stdout
    return path


def gpuhub(hub: Hub | None, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line, of an operator or without any hub."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GPUHUB_")}
    login = {"GPUHUB_CONFIG": "/nonexistent"}
    if hub is not None:
        login |= {"GPUHUB_URL": hub.url("quota"), "GPUHUB_TOKEN": hub.tokens["operator"]}
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=clean | login,
    )


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _fill(hub: Hub) -> None:
    """Beta has every node; alpha and gamma wait for more than one, and for another class's whole room."""
    with hub.client("beta") as beta, hub.client("alpha") as alpha, hub.client("gamma") as gamma:
        running = [_submit(beta, f"busy {n}", pods=1) for n in range(NODES)]
        until(lambda: all(beta.read_job(id).state is JobState.RUNNING for id in running), "all is taken")
        for number in range(2):
            _submit(alpha, f"gang {number}", pods=2 + number)
            _submit(gamma, f"single {number}", pods=1)
        _submit(gamma, "small", pods=1, gpus=1)
        _submit(beta, "more", pods=1)


def _submit(firm: QuotaClient, name: str, *, pods: int, gpus: int = NODE_GPUS) -> str:
    body = JobSubmission(
        name=name,
        gpu_class="h100",
        gpus_per_pod=gpus,
        pods=pods,
        walltime_s=2 * RUNS_S,
        environment={"PASSWORD": SECRET},
        command=("train", SECRET),
        annotations={"simulate.gpuhub/duration_s": str(RUNS_S)},
    )
    return firm.submit_job(body, name).id


def _waiting(client: QuotaClient) -> list[Job]:
    return [job for job in client.list_jobs().items if job.state is JobState.QUEUED]


def _is_ranked(client: QuotaClient) -> bool:
    jobs = _waiting(client)
    new = (None, WaitReason.NEW)
    return len(jobs) == 6 and all(
        job.position is not None and (job.waiting and job.waiting.code) not in new for job in jobs
    )


def test_it_is_explained_offline_as_the_hub_explains_it(hub: Hub, state: Path) -> None:
    found = _json(gpuhub(None, "scheduler", "explain", str(state), "--json"))
    assert found["starts"] == []
    with hub.client("operator", 10) as client:
        shown = sorted(_waiting(client), key=lambda job: job.position or 0)
    assert [job["job_id"] for job in found["queue"]] == [job.id for job in shown]
    assert [job["place"] for job in found["queue"]] == [job.position for job in shown]
    assert [job["code"] for job in found["queue"]] == [job.waiting.code.value for job in shown if job.waiting]
    assert (found["shown"]["jobs"], found["shown"]["other_order"], found["shown"]["other_reason"]) == (
        6,
        0,
        0,
    )
    room = {each["gpu_class"]: (each["total"], each["used"], each["free"]) for each in found["room"]}
    assert room["h100"] == (NODES * NODE_GPUS, NODES * NODE_GPUS, 0)


def test_people_read_it_too(state: Path) -> None:
    done = gpuhub(None, "scheduler", "explain", str(state))
    assert done.returncode == 0, done.stderr
    assert "3 jobs run, 0 would start now" in done.stdout
    assert "of 6 jobs in both, in the same order, for the same reasons" in done.stdout
    job = _json(gpuhub(None, "scheduler", "explain", str(state), "--json"))["queue"][2]
    one = gpuhub(None, "scheduler", "explain", str(state), "--job", job["job_id"])
    assert f"{job['place']}  {job['job_id']}" in one.stdout
    assert job["code"] in one.stdout
    missing = gpuhub(None, "scheduler", "explain", str(state), "--job", "job-of-nobody")
    assert (missing.returncode, missing.stderr) == (2, "gpuhub: --job: job-of-nobody is not in this state\n")


def test_only_its_owner_reads_the_file_and_no_secret_is_in_it(state: Path) -> None:
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    unpacked = subprocess.run(["gzip", "-dc", str(state)], capture_output=True, check=True).stdout
    assert SECRET.encode() not in unpacked
    assert b'"format":"gpuhub-scheduler-state"' in unpacked


def test_the_hub_and_the_file_answer_what_would_be_with_more_nodes(hub: Hub, state: Path) -> None:
    before = (
        hub.ask("SELECT COUNT(*) FROM transfers"),
        hub.ask("SELECT id, state, attempt FROM jobs ORDER BY id"),
    )
    asked = ("--nodes", "h100=+6", "--horizon", "4d", "--runs", "0.5", "--json")
    live = _json(gpuhub(hub, "whatif", *asked))
    saved = _json(gpuhub(None, "whatif", str(state), *asked))
    for reply in (live, saved):
        assert reply["changed_to"] == ["6 nodes with 8 h100 more in cluster sim"]
        assert reply["base"]["all_jobs"]["jobs"] == 6
        for name in ("alpha", "gamma"):
            assert reply["difference"]["organizations"][name]["mean_wait_ms"] < 0
    after = (
        hub.ask("SELECT COUNT(*) FROM transfers"),
        hub.ask("SELECT id, state, attempt FROM jobs ORDER BY id"),
    )
    assert after[1] == before[1], "nothing started for a question"
    told = gpuhub(hub, "whatif", "--set", "hub/paused=true")
    assert told.returncode == 0, told.stderr
    assert "hub: paused False -> True" in told.stdout
    refused = gpuhub(hub, "whatif", "--set", "grant/grant-of-nobody/gpu_hours=1")
    assert refused.returncode == 1
    assert "there are grant-" in refused.stderr


def test_it_is_played_on_to_the_end_of_its_queue(state: Path, tmp_path: Path) -> None:
    out = tmp_path / "played.json"
    done = gpuhub(None, "replay", str(state), "--policy", "hub,fifo-skip", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "what starts when under hub" in done.stdout
    hub_play, fifo = json.loads(out.read_text())["policies"]
    for play in (hub_play, fifo):
        assert play["future"]["all_jobs"]["started"] == 6
        assert all(job["start_ms"] is not None for job in play["jobs"])
        assert play["until_ms"] == max(job["end_ms"] for job in play["jobs"])
    assert (hub_play["policy"], fifo["policy"]) == ("hub", "fifo-skip")
