"""Kubernetes under test: a real control plane, a proxy that can lose replies, and mischief by the administrator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tempo import Tempo

from deploy.controlplane.gpus import gpu_class
from deploy.controlplane.nodes import ALIVE, KUBELET
from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.kubernetes.settings import ClassForm, KubernetesSettings
from tests.kubernetes_plane import STRATEGIC_PATCH, ControlPlane, a_plane
from tests.kubernetes_proxy import Asked, Proxy, a_proxy, jobs_written

TEMPO = Tempo(scale=1 / 50, slack_ms=20_000, tells_gpus=False)

NAMESPACE = "hub-contract"
OTHERS = "others"

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class KubernetesUnderTest:
    """One control plane with the organization's namespace, and what may be done to it behind the port's back."""

    plane: ControlPlane
    proxy: Proxy
    kubeconfig: Path

    def connect(self, timeout_s: float) -> KubernetesCluster:
        """A client that goes through the proxy."""
        return KubernetesCluster("here", self.settings(timeout_s))

    def connect_straight(self) -> KubernetesCluster:
        """A client that asks the API server itself."""
        straight = self.settings().model_copy(update={"kubeconfig": self.plane.kubeconfig})
        return KubernetesCluster("here", straight)

    def settings(self, timeout_s: float = 10.0) -> KubernetesSettings:
        """The cluster as the client is told of it."""
        form = gpu_class("h100")
        h100 = ClassForm(
            labels=dict(form.node_labels),
            resource=form.resource,
            cpu_milli=form.cpu_milli,
            memory_mib=form.memory_mib,
        )
        return KubernetesSettings(
            kubeconfig=self.kubeconfig,
            classes={"h100": h100},
            annotation_prefixes=("simulate.gpuhub/",),
            call_timeout_s=timeout_s,
            report_lag_s=0,
            lost_after_s=0,
        )

    def fail_pod(self, name: str, index: int, exit_code: int) -> None:
        pod = next(pod for pod in self.pods(name) if pod["metadata"]["labels"][INDEX] == str(index))
        now = _now()
        container = pod["status"]["containerStatuses"][0]
        started = container["state"]["running"]["startedAt"]
        terminated = {"startedAt": started, "finishedAt": now, "exitCode": exit_code, "reason": "Error"}
        status = {"phase": "Failed", "containerStatuses": [container | {"state": {"terminated": terminated}}]}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}/status"
        _done(self.plane.api.patch(path, {"status": status}, "application/merge-patch+json"))

    def pods(self, name: str) -> list[dict]:
        """The pods of a Job, as the administrator sees them."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=batch.kubernetes.io/job-name={name}"
        return _done(self.plane.api.get(path))["items"]

    def lose_node(self, node: str) -> None:
        """What the node controller writes when a kubelet falls silent, and nobody to write otherwise."""
        _done(self.plane.api.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": {KUBELET: "silent"}}}))
        now = _now()
        ready = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        status = {"status": {"conditions": [ready]}}
        _done(self.plane.api.patch(f"/api/v1/nodes/{node}/status", status, STRATEGIC_PATCH))

    def return_node(self, node: str) -> None:
        _done(self.plane.api.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": {KUBELET: ALIVE}}}))

    def occupy(self, node: str, count: int) -> None:
        path = f"/api/v1/namespaces/{OTHERS}/pods"
        for pod in _done(self.plane.api.get(f"{path}?fieldSelector=spec.nodeName={node}"))["items"]:
            self.plane.api.delete(f"{path}/{pod['metadata']['name']}?gracePeriodSeconds=0")
        if count:
            _done(self.plane.api.post(path, foreign_pod(node, count)))

    def refuse_next_start(self) -> None:
        self.proxy.plant(_starts, refuse=(403, "not now"))

    def lose_next_reply(self, path: str) -> None:
        fits = {
            "create": jobs_written("POST"),
            "suspend": jobs_written("PATCH"),
            "list": lambda asked: asked.query.get("limit") == ["1"] and asked.path.endswith("/pods"),
            "nodes": lambda asked: asked.query.get("limit") == ["1"] and asked.path.endswith("/jobs"),
        }[path]
        self.proxy.plant(fits, lose_reply=True)

    def delay_next_reply(self, path: str, delay_s: float) -> None:
        assert path == "create"
        self.proxy.plant(jobs_written("POST"), delay_s=min(delay_s, 2.0))


INDEX = "batch.kubernetes.io/job-completion-index"


@contextmanager
def running(folder: Path, *nodes: str, **options: object) -> Iterator[KubernetesUnderTest]:
    """A control plane and a proxy, for as long as the block."""
    with a_plane(folder, *nodes, **options) as plane, a_proxy(plane.url, plane.ca_file) as proxy:  # type: ignore[arg-type]
        for namespace in (NAMESPACE, OTHERS):
            _done(plane.api.post("/api/v1/namespaces", {"metadata": {"name": namespace}}))
        yield KubernetesUnderTest(plane, proxy, proxy.kubeconfig(folder / "through-proxy", plane.token))


def foreign_pod(node: str, count: int) -> dict:
    """A pod of somebody else that takes GPUs of a node past the scheduler."""
    return {
        "metadata": {"name": f"foreign-{next(_numbers)}"},
        "spec": {
            "nodeName": node,
            "containers": [
                {
                    "name": "main",
                    "image": "none.invalid/other:1",
                    "resources": {"limits": {"nvidia.com/gpu": str(count)}},
                }
            ],
        },
    }


def _starts(asked: Asked) -> bool:
    return jobs_written("POST")(asked) and not asked.body["spec"]["suspend"]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _done(answer: tuple[int, dict]) -> dict:
    status, body = answer
    assert 200 <= status < 300, body
    return body
