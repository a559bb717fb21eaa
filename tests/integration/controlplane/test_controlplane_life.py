"""A control plane ends with its starter, goes on from its folder, and comes back from what is done to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from deploy.child import gpuhub
from deploy.controlplane.programs import API_SERVER, CONTROLLER_MANAGER, ETCD, KWOK, SCHEDULER, STOP_ORDER
from tests.integration.controlplane.plane_jobs import (
    JOBS,
    PODS,
    await_phase,
    create_job,
    create_pod,
    job_end,
    pod_of,
)
from tests.kubernetes_plane import Api, ControlPlane, a_plane, until

pytestmark = pytest.mark.kubernetes

NAMESPACES = "/api/v1/namespaces"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    quick = {CONTROLLER_MANAGER: ("--node-monitor-period=1s", "--node-monitor-grace-period=4s")}
    folder = tmp_path_factory.mktemp("plane")
    with a_plane(folder, "sim-[0-1]:h100=8", audit=True, node_lease_s=4, arguments=quick) as started:
        yield started


def processes_of(folder: Path) -> list[str]:
    """The command lines that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


def answers(api: Api) -> bool:
    try:
        return api.get("/readyz")[0] == 200
    except (OSError, HTTPException):
        return False


def ready_status(api: Api, node: str) -> str:
    conditions = api.get(f"/api/v1/nodes/{node}")[1]["status"]["conditions"]
    return str(next(one["status"] for one in conditions if one["type"] == "Ready"))


def test_killed_starter_leaves_no_process_and_its_folder_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "plane"
    command = (sys.executable, "-m", "tests.integration.controlplane.plane_starter", str(folder))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        for line in starter.stdout:
            if line == "started\n":
                break
        assert len(processes_of(folder)) == 1 + len(STOP_ORDER)
        starter.kill()
    until(lambda: processes_of(folder), lambda left: not left)
    ports = json.loads((folder / "ports.json").read_text())
    kubeconfig = (folder / "kubeconfig").read_bytes()
    with a_plane(folder, "sim-0:h100=8") as plane:
        assert (folder / "kubeconfig").read_bytes() == kubeconfig
        create_job(plane.api, "kept", duration_s="0.5")
        assert job_end(plane.api, "kept") == "Complete"
    assert not processes_of(folder)
    with a_plane(folder, "sim-0:h100=8") as plane:
        assert json.loads((folder / "ports.json").read_text()) == ports
        assert plane.api.get(f"{JOBS}/kept")[1]["status"]["succeeded"] == 1
        create_job(plane.api, "after", duration_s="0.5")
        assert job_end(plane.api, "after") == "Complete"


@pytest.mark.parametrize("name", [API_SERVER, ETCD])
def test_killed_program_comes_back_by_itself(plane: ControlPlane, name: str) -> None:
    before = plane.pid(name)
    plane.kill_program(name)
    until(lambda: plane.pid(name), lambda pid: pid not in (None, before))
    until(lambda: answers(plane.api), bool)
    created = plane.api.post(NAMESPACES, {"metadata": {"name": f"after-{name}"}})
    assert created[0] == 201


def test_stopped_program_stays_down_until_it_is_started(plane: ControlPlane) -> None:
    plane.stop_program(SCHEDULER)
    create_job(plane.api, "unplaced", duration_s="0.5")
    assert "nodeName" not in pod_of(plane.api, "unplaced")["spec"]
    assert plane.pid(SCHEDULER) is None
    plane.start_program(SCHEDULER)
    assert job_end(plane.api, "unplaced") == "Complete"


def test_frozen_api_server_answers_nothing_until_it_is_thawed(plane: ControlPlane) -> None:
    plane.freeze_program(API_SERVER)
    impatient = Api(plane.url, plane.ca_file, plane.token, timeout_s=0.5)
    with pytest.raises(TimeoutError):
        impatient.get("/readyz")
    plane.thaw_program(API_SERVER)
    until(lambda: answers(plane.api), bool)


def test_new_kwok_takes_over_running_pods(plane: ControlPlane) -> None:
    create_pod(plane.api, "surviving", start_s="0", duration_s="3")
    await_phase(plane.api, "surviving", "Running")
    plane.restart_program(KWOK)
    await_phase(plane.api, "surviving", "Succeeded")


def test_lost_node_becomes_unknown_and_returns(plane: ControlPlane) -> None:
    plane.lose_node("sim-1")
    until(lambda: ready_status(plane.api, "sim-1"), lambda status: status == "Unknown")
    assert ready_status(plane.api, "sim-0") == "True"
    plane.return_node("sim-1")
    plane.await_nodes({"sim-1"})


def test_audit_log_has_the_words_of_jobs_and_only_the_fact_of_others(plane: ControlPlane) -> None:
    create_job(plane.api, "audited", duration_s="0.1")
    plane.api.post(NAMESPACES, {"metadata": {"name": "audited"}})
    job_end(plane.api, "audited")

    def created(resource: str) -> list[dict[str, object]]:
        entries = [json.loads(line) for line in plane.audit_log.read_text().splitlines()]
        return [
            one
            for one in entries
            if one["verb"] == "create"
            and one["objectRef"].get("resource") == resource
            and one["objectRef"].get("name") == "audited"
        ]

    (job,) = until(lambda: created("jobs"), bool)
    assert "requestObject" in job
    (namespace,) = until(lambda: created("namespaces"), bool)
    assert "requestObject" not in namespace
    assert plane.api.get(f"{PODS}?labelSelector=job-name=audited")[0] == 200


def test_command_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    folder = tmp_path / "plane"
    words = ("controlplane", "run", "--folder", str(folder), "--nodes", "sim-0:h100=8", "--audit")
    with subprocess.Popen(gpuhub(*words), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        told = []
        for line in running.stdout:
            told.append(line)
            if line.startswith("Ctrl-C"):
                break
        assert any(line.split() == ["kubeconfig", str(folder / "kubeconfig")] for line in told), told
        kubectl = next(line.split()[1] for line in told if line.startswith("try"))
        command = (kubectl, "--kubeconfig", str(folder / "kubeconfig"), "get", "nodes", "-o", "name")
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert shown.stdout == "node/sim-0\n"
        second = subprocess.run(gpuhub(*words), capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert "held by another `gpuhub controlplane run`" in second.stderr
        running.terminate()
        assert running.wait() == 0
    assert not processes_of(folder)
    assert (folder / "audit.jsonl").exists()


def test_command_refuses_impossible_nodes(tmp_path: Path) -> None:
    words = ("controlplane", "run", "--folder", str(tmp_path / "plane"), "--nodes", "sim-0:tpu=8")
    refused = subprocess.run(gpuhub(*words), capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "GPU class 'tpu' is unknown" in refused.stderr
