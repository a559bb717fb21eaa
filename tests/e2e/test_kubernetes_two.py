"""Two Kubernetes clusters in one hub, one of which is away; and a gang of which one pod cannot start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.controlplane.binaries import built_binaries
from deploy.controlplane.gpus import gpu_classes
from deploy.controlplane.plane import ControlPlane, running_plane
from deploy.controlplane.programs import API_SERVER, PlaneWish
from deploy.datadir import DataDir
from deploy.kubernetes import CLUSTER_FILE, FOLDER, cluster_text, given_cluster
from deploy.programs import Kubernetes
from deploy.progress import Progress
from quota.schemas.fleet import NewCluster
from quota.schemas.scheduling import EndReason, JobState
from scheduler.cli import app
from tests.kubernetes_hub import KubernetesHub, a_kubernetes_hub
from tests.kubernetes_leader import leading
from tests.kubernetes_plane import until

pytestmark = [pytest.mark.kubernetes, pytest.mark.e2e, pytest.mark.timeout(300)]

NODES = ("sim-[0-1]:h100=8",)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[KubernetesHub]:
    with a_kubernetes_hub(tmp_path, *NODES) as hub:
        yield hub


def test_gang_of_which_one_pod_cannot_start_is_given_up_free_of_charge_and_comes_again(hub):
    hub.plane.lose_node("sim-1")
    try:
        with leading(hub, "impatient", environment={"GPUHUB_SCHEDULER_START_LIMIT_S": "8"}):
            gang = hub.submit("gang", gpus=8, pods=2, runs_s=4)
            # the silent node's pod is given up when the node is: after its grace period and the hub's own patience
            (job,) = hub.await_jobs(
                lambda job: bool(job.attempts) and job.attempts[0].state is JobState.ENDED, [gang], 150
            )
            first = job.attempts[0]
            assert first.end_reason is EndReason.ABANDONED
            assert first.last_started_at is None
            assert (first.settled_gpu_us, first.released_gpu_us) == (0, first.held_gpu_us)
            assert job.state is JobState.QUEUED
    finally:
        hub.plane.return_node("sim-1")
    (job,) = hub.await_settled(gang, patience_s=120)
    assert job.end_reason is EndReason.SUCCEEDED
    assert hub.judge() == []


@contextmanager
def second_cluster(folder: Path) -> Iterator[tuple[ControlPlane, Kubernetes]]:
    """Another control plane with the hub's accounts and the firm's namespace."""
    binaries = built_binaries()
    assert binaries is not None
    data = DataDir(folder)
    data.prepare()
    inside = (folder / FOLDER).absolute()
    inside.mkdir(exist_ok=True)
    (inside / CLUSTER_FILE).write_text(cluster_text(gpu_classes(), is_played=True))
    with running_plane(
        inside, binaries, PlaneWish(nodes=("other-[0-1]:h100=8",), fsync=False), print
    ) as plane:
        given = given_cluster(data, plane.kubeconfig, Progress())
        words = ["provision", "--cluster-file", str(given.file), "--kubeconfig", str(given.provisioner)]
        result = CliRunner().invoke(app, [*words, "--organization", "alpha-lab"])
        assert result.exit_code == 0, result.output
        yield plane, given


def test_quotas_span_two_clusters_and_one_that_is_away_does_not_stop_the_other(hub, tmp_path):
    with second_cluster(tmp_path / "second") as (plane, given):
        with hub.client() as client:
            client.create_cluster(NewCluster(id="second", kind="kubernetes"))
        with leading(hub, "both", "--kubernetes", f"second={given.file}"):
            until(lambda: nodes(hub), lambda found: {"other-0", "other-1"} <= found)
            wide = [hub.submit(f"wide-{number}", gpus=8, runs_s=12) for number in range(4)]
            running = hub.await_state(JobState.RUNNING, *wide)
            assert {job.attempts[0].cluster for job in running} == {"k8s", "second"}
            with hub.client() as client:
                (grant,) = [one for one in client.list_grants().items if one.organization_id == "alpha-lab"]
            assert grant.held_gpu_us == sum(job.attempts[0].held_gpu_us for job in running)
            plane.stop_program(API_SERVER)
            try:
                # what runs where nobody can look goes on; what is new goes where somebody can
                here = [job.id for job in running if job.attempts[0].cluster == "k8s"]
                assert {job.end_reason for job in hub.await_settled(*here)} == {EndReason.SUCCEEDED}
                later = [hub.submit(f"later-{number}", gpus=4, runs_s=2) for number in range(3)]
                done = hub.await_jobs(
                    lambda job: job.attempts and job.attempts[0].ended_at is not None, later, 120
                )
                assert {job.attempts[0].cluster for job in done} == {"k8s"}
            finally:
                plane.start_program(API_SERVER)
            assert {job.end_reason for job in hub.await_settled(*wide)} == {EndReason.SUCCEEDED}


def nodes(hub: KubernetesHub) -> set[str]:
    with hub.client() as client:
        return {one.node for one in client.list_nodes().items}
