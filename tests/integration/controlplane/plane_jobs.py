"""Jobs and pods for the tests of the control plane, and how to look at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.kubernetes_plane import Api, until

JOBS = "/apis/batch/v1/namespaces/default/jobs"
PODS = "/api/v1/namespaces/default/pods"


def pod_template(
    behavior: Mapping[str, str], gpus: int = 1, finalizers: tuple[str, ...] = (), grace_s: int = 30
) -> dict[str, Any]:
    """A pod that asks for GPUs and behaves as its annotations say."""
    return {
        "metadata": {
            "annotations": {f"simulate.gpuhub/{word}": text for word, text in behavior.items()},
            "finalizers": list(finalizers),
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace_s,
            "tolerations": [{"key": "hub/managed", "operator": "Exists"}],
            "containers": [
                {"name": "main", "image": "train:1", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
            ],
        },
    }


def create_job(
    api: Api, name: str, gpus: int = 1, spec: Mapping[str, object] | None = None, **behavior: str
) -> None:
    """A Job of one pod that is not tried again."""
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": pod_template(behavior, gpus), **(spec or {})},
    }
    status, reply = api.post(JOBS, body)
    assert status == 201, reply


def create_pod(
    api: Api, name: str, finalizers: tuple[str, ...] = (), grace_s: int = 30, **behavior: str
) -> None:
    """A pod by itself."""
    body = {"apiVersion": "v1", "kind": "Pod", **pod_template(behavior, 1, finalizers, grace_s)}
    body["metadata"]["name"] = name
    status, reply = api.post(PODS, body)
    assert status == 201, reply


def job_end(api: Api, name: str) -> str:
    """Wait for the Job's end: `Complete` or `Failed`."""
    ends = ("Complete", "Failed")

    def read() -> list[str]:
        found = api.get(f"{JOBS}/{name}")[1]["status"].get("conditions", [])
        return [one["type"] for one in found if one["status"] == "True" and one["type"] in ends]

    return until(read, bool)[0]


def pod_of(api: Api, job: str) -> dict[str, Any]:
    """The one pod of a Job."""
    (pod,) = until(lambda: api.get(f"{PODS}?labelSelector=job-name={job}")[1]["items"], bool)
    assert isinstance(pod, dict)
    return pod


def await_phase(api: Api, pod: str, *phases: str) -> dict[str, Any]:
    """The pod once it is in one of these phases."""
    return until(
        lambda: api.get(f"{PODS}/{pod}")[1], lambda found: found.get("status", {}).get("phase") in phases
    )


def await_waiting(api: Api, pod: str, reason: str) -> dict[str, Any]:
    """The pod once its container waits for this reason."""

    def holds(found: dict[str, Any]) -> bool:
        states = [one["state"] for one in found["status"].get("containerStatuses", [])]
        return any(state.get("waiting", {}).get("reason") == reason for state in states)

    return until(lambda: api.get(f"{PODS}/{pod}")[1], holds)


def await_gone(api: Api, pod: str) -> None:
    """Wait until there is no such pod."""
    until(lambda: api.get(f"{PODS}/{pod}")[0], lambda status: status == 404)


def terminated(pod: dict[str, Any]) -> dict[str, Any]:
    """How the pod's only container ended."""
    (status,) = pod["status"]["containerStatuses"]
    found = status["state"]["terminated"]
    assert isinstance(found, dict)
    return found
