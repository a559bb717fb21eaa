"""Pods of a real control plane behave as their annotations say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.integration.controlplane.plane_jobs import (
    JOBS,
    PODS,
    await_gone,
    await_phase,
    await_waiting,
    create_job,
    create_pod,
    job_end,
    pod_of,
    terminated,
)
from tests.kubernetes_plane import JSON_PATCH, Api, ControlPlane, a_plane, until

pytestmark = pytest.mark.kubernetes

END_SEEN = "hub/end-seen"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane"), "sim-[0-1]:h100=8", "sim-2:h100-1g.10gb=7") as started:
        yield started


@pytest.fixture
def api(plane: ControlPlane) -> Api:
    return plane.api


def seconds(state: dict[str, Any]) -> float:
    start, end = (datetime.fromisoformat(state[name]) for name in ("startedAt", "finishedAt"))
    return (end - start).total_seconds()


def test_nodes_offer_what_their_texts_say(api: Api) -> None:
    nodes = {node["metadata"]["name"]: node for node in api.get("/api/v1/nodes")[1]["items"]}
    assert sorted(nodes) == ["sim-0", "sim-1", "sim-2"]
    assert nodes["sim-0"]["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert nodes["sim-2"]["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] == "7"
    assert nodes["sim-0"]["spec"]["taints"] == [{"key": "hub/managed", "effect": "NoSchedule"}]


def test_node_changes_its_shape(plane: ControlPlane) -> None:
    plane.add_nodes("changing:a100=4")
    plane.add_nodes("changing:h100-2g.20gb=3")
    node = plane.api.get("/api/v1/nodes/changing")[1]
    assert node["status"]["capacity"]["nvidia.com/mig-2g.20gb"] == "3"
    assert "nvidia.com/gpu" not in node["status"]["capacity"]
    assert plane.api.delete("/api/v1/nodes/changing")[0] == 200


def test_job_completes_after_its_duration(api: Api) -> None:
    create_job(api, "good", duration_s="3")
    assert job_end(api, "good") == "Complete"
    end = terminated(pod_of(api, "good"))
    assert (end["exitCode"], end["reason"]) == (0, "Completed")
    assert seconds(end) >= 2  # whole seconds, cut off


def test_job_fails_with_its_exit_code(api: Api) -> None:
    create_job(api, "bad", duration_s="0.5", exit_code="7")
    assert job_end(api, "bad") == "Failed"
    pod = pod_of(api, "bad")
    assert pod["status"]["phase"] == "Failed"
    assert terminated(pod)["exitCode"] == 7


def test_job_runs_out_of_memory(api: Api) -> None:
    create_job(api, "oom", duration_s="0.5", end="oom")
    assert job_end(api, "oom") == "Failed"
    end = terminated(pod_of(api, "oom"))
    assert (end["exitCode"], end["reason"]) == (137, "OOMKilled")


def test_pod_that_never_starts_stays_pending(api: Api) -> None:
    create_job(api, "stuck", start="never", start_s="0")
    stuck = pod_of(api, "stuck")["metadata"]["name"]
    pod = await_waiting(api, stuck, "ContainerCreating")
    assert pod["status"]["phase"] == "Pending"
    assert api.delete(f"{PODS}/{stuck}")[0] == 200
    await_gone(api, stuck)


def test_pod_whose_image_is_missing_says_so(api: Api) -> None:
    create_job(api, "imageless", start="image_pull_error", start_s="0")
    pod = await_waiting(api, pod_of(api, "imageless")["metadata"]["name"], "ImagePullBackOff")
    assert pod["status"]["phase"] == "Pending"


def test_pod_too_large_for_every_node_is_unschedulable(api: Api) -> None:
    create_job(api, "huge", gpus=9)
    name = pod_of(api, "huge")["metadata"]["name"]
    pod = await_phase(api, name, "Pending")
    assert "nodeName" not in pod["spec"]


def test_deleted_pod_shows_its_end_to_a_finalizer(api: Api) -> None:
    create_pod(api, "watched", finalizers=(END_SEEN,), start_s="0", stop_s="1")
    await_phase(api, "watched", "Running")
    assert api.delete(f"{PODS}/watched")[0] == 200
    pod = await_phase(api, "watched", "Failed")
    end = terminated(pod)
    assert (end["exitCode"], end["reason"]) == (143, "Error")
    assert end["startedAt"] <= end["finishedAt"]
    removal = [{"op": "remove", "path": "/metadata/finalizers"}]
    assert api.patch(f"{PODS}/watched", removal, JSON_PATCH)[0] == 200
    await_gone(api, "watched")


def test_pod_that_outlasts_its_grace_is_killed(api: Api) -> None:
    create_pod(api, "stubborn", finalizers=(END_SEEN,), grace_s=1, start_s="0", stop_s="1000")
    await_phase(api, "stubborn", "Running")
    assert api.delete(f"{PODS}/stubborn")[0] == 200
    pod = await_phase(api, "stubborn", "Failed")
    assert terminated(pod)["exitCode"] == 137
    assert api.patch(f"{PODS}/stubborn", {"metadata": {"finalizers": None}})[0] == 200
    await_gone(api, "stubborn")


def test_pod_deleted_before_it_started_ends_without_times(api: Api) -> None:
    create_pod(api, "unborn", finalizers=(END_SEEN,), start="never", start_s="0")
    await_waiting(api, "unborn", "ContainerCreating")
    assert api.delete(f"{PODS}/unborn")[0] == 200
    pod = await_phase(api, "unborn", "Failed")
    end = terminated(pod)
    assert (end["reason"], end["startedAt"], end["finishedAt"]) == ("ContainerStatusUnknown", None, None)
    assert api.patch(f"{PODS}/unborn", {"metadata": {"finalizers": None}})[0] == 200
    await_gone(api, "unborn")


def test_pod_deleted_after_its_end_goes_at_once_and_keeps_its_end(api: Api) -> None:
    create_pod(api, "done", finalizers=(END_SEEN,), start_s="0", duration_s="0.1", exit_code="3")
    before = terminated(await_phase(api, "done", "Failed"))
    assert api.delete(f"{PODS}/done")[0] == 200
    assert terminated(await_phase(api, "done", "Failed")) == before
    assert api.patch(f"{PODS}/done", {"metadata": {"finalizers": None}})[0] == 200
    await_gone(api, "done")


def test_change_on_the_way_does_not_prolong_a_pod(api: Api) -> None:
    create_pod(api, "touched", start_s="0", duration_s="3")
    await_phase(api, "touched", "Running")
    touches = 0
    while (pod := api.get(f"{PODS}/touched")[1])["status"]["phase"] == "Running":
        touches += 1
        assert (
            api.patch(f"{PODS}/touched", {"metadata": {"annotations": {"touches": str(touches)}}})[0] == 200
        )
    assert pod["status"]["phase"] == "Succeeded"
    print(f"touched {touches} times, ran {seconds(terminated(pod)):.0f} s")


def test_suspended_job_loses_its_pod_and_has_not_failed(api: Api) -> None:
    create_job(api, "suspended", start_s="0", stop_s="0.5")
    name = pod_of(api, "suspended")["metadata"]["name"]
    await_phase(api, name, "Running")
    assert api.patch(f"{JOBS}/suspended", {"spec": {"suspend": True}})[0] == 200
    await_gone(api, name)
    job = until(
        lambda: api.get(f"{JOBS}/suspended")[1]["status"], lambda status: not status.get("terminating", 0)
    )
    assert [one["type"] for one in job["conditions"]] == ["Suspended"]
    assert "failed" not in job


def test_evicted_pod_fails_its_job_when_the_job_asks_for_it(api: Api) -> None:
    on_disruption = {"type": "DisruptionTarget", "status": "True"}
    create_job(
        api,
        "evicted",
        spec={"podFailurePolicy": {"rules": [{"action": "FailJob", "onPodConditions": [on_disruption]}]}},
        start_s="0",
        stop_s="0.5",
    )
    name = pod_of(api, "evicted")["metadata"]["name"]
    await_phase(api, name, "Running")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    assert api.post(f"{PODS}/{name}/eviction", eviction)[0] == 201
    assert job_end(api, "evicted") == "Failed"
    await_gone(api, name)
