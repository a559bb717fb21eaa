"""A whole hub on a real control plane runs jobs of every kind, and the oracle finds nothing wrong with it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quota.schemas.jobs import JobDetail
from quota.schemas.scheduling import EndReason, JobState
from tests.kubernetes_hub import KubernetesHub, a_kubernetes_hub
from tests.oracle import kubernetes_oracle

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]

ROOT = Path(kubernetes_oracle.__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesHub]:
    """A hub that has run jobs of every kind."""
    with a_kubernetes_hub(tmp_path_factory.mktemp("hub")) as hub:
        _run_jobs_of_all_kinds(hub)
        yield hub


def _run_jobs_of_all_kinds(hub: KubernetesHub) -> None:
    cancelled = hub.submit("cancelled", gpu_class="a100", gpus=2, runs_s=600)
    pending = hub.submit("pending", gpu_class="a100", played={"start": "never"})
    jobs = [
        cancelled,
        pending,
        hub.submit("succeeds", runs_s=2),
        hub.submit("fails", runs_s=2, played={"exit_code": "3"}),
        hub.submit("whole-nodes", gpus=8, pods=2, runs_s=4),
        # neither of its nodes is full, so each pod waits at a gate until it is told its own
        hub.submit("gated", gpus=6, pods=2, runs_s=4, firm="beta-robotics"),
        hub.submit("slice", gpu_class="h100-1g.10gb", gpus=2, firm="gamma-university"),
        hub.submit("too-long", walltime_s=5, runs_s=600),
        hub.submit("stubborn", walltime_s=5, runs_s=600, grace_s=2, played={"stop_s": "60"}),
    ]
    hub.await_state(JobState.RUNNING, cancelled)
    assert hub.judge() == []
    hub.cancel(cancelled)
    hub.cancel(pending)
    hub.await_settled(*jobs)


def test_jobs_end_as_they_should(world: KubernetesHub) -> None:
    with world.client() as client:
        ended = {job.name: job for job in client.list_jobs().items}
    reasons = {name: job.end_reason for name, job in ended.items()}
    assert reasons == {
        "cancelled": EndReason.CANCELLED,
        "pending": EndReason.CANCELLED,
        "succeeds": EndReason.SUCCEEDED,
        "fails": EndReason.FAILED,
        "whole-nodes": EndReason.SUCCEEDED,
        "gated": EndReason.SUCCEEDED,
        "slice": EndReason.SUCCEEDED,
        "too-long": EndReason.TIME_LIMIT,
        "stubborn": EndReason.TIME_LIMIT,
    }
    free = {name for name, job in ended.items() if not job.charged_gpu_us}
    assert free == {"pending"}, "what never ran costs nothing"
    gated = world.read(ended["gated"].id)
    assert len(_nodes(gated)) == 2, "a gang on one node needs no gates"


def test_the_oracle_finds_nothing_wrong(world: KubernetesHub) -> None:
    assert world.judge(final=True) == []


def test_the_oracle_says_so_as_a_program(world: KubernetesHub) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.oracle.kubernetes_oracle",
        str(world.database),
        str(world.audit_log),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("oracle: ok (9 attempts, 10 pods, ")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("rule", "lie"),
    [
        (
            "ledger_equals_journal",
            "UPDATE attempts SET ended_at_ms = ended_at_ms + 1 WHERE first_started_at_ms > 0",
        ),
        ("ledger_equals_journal", "UPDATE transfer_legs SET d_used = d_used + 1 WHERE d_used > 0"),
        ("placement_as_decided", "UPDATE placements SET node = 'sim-9'"),
        ("one_run_per_attempt", "UPDATE attempts SET claimed_at_ms = claimed_at_ms + 60000"),
        ("node_not_overfull", "UPDATE node_capacity SET used = used + 1"),
        ("hold_once", "UPDATE holds SET resolved = 0"),
    ],
)
def test_the_oracle_sees_a_lie_in_a_real_hubs_books(
    world: KubernetesHub, tmp_path: Path, rule: str, lie: str
) -> None:
    copy = tmp_path / "quota.db"
    with sqlite3.connect(world.database) as source, sqlite3.connect(copy) as target:
        source.backup(target)
        target.execute("PRAGMA ignore_check_constraints = ON")
        for (trigger,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            target.execute(f'DROP TRIGGER "{trigger}"')
        target.execute(lie)
    source.close()
    target.close()
    log = shutil.copy(world.audit_log, tmp_path)
    found = kubernetes_oracle.judge(str(copy), Path(log))
    assert rule in {line.split(":")[0] for line in found}


def _nodes(job: JobDetail) -> set[str]:
    return {pod.node for attempt in job.attempts for pod in attempt.pods}
