"""A control plane that was made ready for the hub, with jobs of the hub and a firm that has all rights it could get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from deploy.controlplane.gpus import gpu_class
from deploy.controlplane.kubeconfig import kubeconfig
from scheduler.cli import app
from scheduler.clusters.kubernetes.admission import POLICIES
from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.kubernetes.provisioning import path_of, setup_objects
from scheduler.clusters.kubernetes.settings import KubernetesSettings, read_cluster_file
from scheduler.clusters.port import ObjectSpec, PodPlacement
from tests.kubernetes_plane import APPLY_PATCH, Api, ControlPlane, a_plane, until

SYSTEM = "gpuhub-system"
FIRM = "hub-acme"
JOB = "job-0000000000000000000one"
GANG = "job-0000000000000000000two"
FOR_EVER = (("simulate.gpuhub/duration_s", "100000"), ("simulate.gpuhub/start_s", "0"))

CLUSTER_FILE = """
kubeconfig = "{kubeconfig}"
annotation_prefixes = ["simulate.gpuhub/"]
default_image = "train:1"

[classes.h100]
labels = {{ "{label}" = "{product}" }}
cpu_milli = {cpu_milli}
memory_mib = {memory_mib}

[isolation]
egress_cidrs = ["10.9.8.0/24"]
break_glass_groups = ["repairers"]
"""


@dataclass(frozen=True, slots=True)
class World:
    """What the tests of isolation share. They leave it as they found it."""

    plane: ControlPlane
    folder: Path

    @property
    def admin(self) -> Api:
        return self.plane.api

    @property
    def cluster_file(self) -> Path:
        return self.folder / "main.toml"

    @property
    def settings(self) -> KubernetesSettings:
        return read_cluster_file(self.cluster_file)

    def caller(self, namespace: str, account: str) -> Api:
        """The API server as a service account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        token = done(self.admin.post(path, {"spec": {"expirationSeconds": 7200}}))["status"]["token"]
        return Api(self.plane.url, self.plane.ca_file, token)

    def kubeconfig(self, namespace: str, account: str) -> Path:
        """A kubeconfig of a service account."""
        path = self.folder / f"{namespace}-{account}.kubeconfig"
        token = self.caller(namespace, account).token
        content = kubeconfig(self.plane.url, self.plane.ca_file.read_bytes(), account, token)
        path.write_text(json.dumps(content))
        return path

    def provision(self, *arguments: str) -> Result:
        """`gpuhub scheduler provision` as its own account."""
        own = self.kubeconfig(SYSTEM, "provisioner")
        given = ("--cluster-file", str(self.cluster_file), "--kubeconfig", str(own), *arguments)
        return CliRunner().invoke(app, ["provision", *given])

    @contextmanager
    def cluster(self) -> Iterator[KubernetesCluster]:
        """The hub's own client as the scheduler's account."""
        settings = self.settings.model_copy(update={"kubeconfig": self.kubeconfig(SYSTEM, "scheduler")})
        with KubernetesCluster("main", settings) as cluster:
            yield cluster

    def pods_of(self, job: str) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{FIRM}/pods?labelSelector=batch.kubernetes.io/job-name={job}"
        items: list[dict[str, Any]] = done(self.admin.get(path))["items"]
        return items

    def set_policies(self) -> None:
        """Every policy and binding as the hub wants it, and in effect."""
        for thing in setup_objects(self.settings)["items"]:
            if not thing["kind"].startswith("Validating"):
                continue
            path = f"{path_of(thing)}?fieldManager=gpuhub-provision&force=true"
            done(self.admin.patch(path, thing, APPLY_PATCH))
        self.await_policies(*POLICIES, in_effect=True)

    def drop_bindings(self, *names: str) -> None:
        """These policies are there, but bind nobody."""
        for name in names:
            path = f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/{name}"
            done(self.admin.delete(path))
        self.await_policies(*names, in_effect=False)

    def await_policies(self, *names: str, in_effect: bool) -> None:
        """The API server takes a moment to notice. Each policy has a request that it alone refuses."""
        probes = {
            "gpuhub-gpus": ("/api/v1/namespaces/default/pods", a_pod("probe", nodeName="sim-0")),
            "gpuhub-bindings": ("/api/v1/namespaces/default/pods/nobody/binding", a_pod_binding("nobody")),
            "gpuhub-isolation": (f"/api/v1/namespaces/{FIRM}/limitranges", a_limit_range()),
            "gpuhub-namespaces": ("/api/v1/namespaces", a_namespace("probe", {"hub/organization": "probe"})),
            "gpuhub-jobs": (
                f"/apis/batch/v1/namespaces/{FIRM}/jobs",
                a_job(JOB[:-3] + "abc-1"),
            ),
        }
        for policy in names:
            if policy in probes:
                path, body = probes[policy]
                until(partial(self._refuses, policy, path, body), lambda found: found is in_effect)

    def _refuses(self, policy: str, path: str, body: object) -> bool:
        prober = self.caller("default", "prober")
        return policy in str(prober.post(f"{path}?dryRun=All", body)[1].get("message", ""))


@contextmanager
def an_isolated_world(folder: Path) -> Iterator[World]:
    """Everything from nothing, in the order in which a cluster admin does it."""
    with a_plane(folder / "plane", "sim-[0-3]:h100=8", audit=True) as plane:
        world = World(plane, folder)
        form = gpu_class("h100")
        ((label, product),) = form.node_labels.items()
        world.cluster_file.write_text(
            CLUSTER_FILE.format(
                kubeconfig=plane.kubeconfig,
                label=label,
                product=product,
                cpu_milli=form.cpu_milli,
                memory_mib=form.memory_mib,
            )
        )
        _set_up(world)
        world.set_policies()
        with world.cluster() as cluster:
            _start_jobs(cluster)
        _await_jobs(world)
        _make_own_things(world)
        yield world


def _set_up(world: World) -> None:
    printed = CliRunner().invoke(app, ["manifests", "--cluster-file", str(world.cluster_file)])
    assert printed.exit_code == 0, printed.output
    listed = json.loads(printed.stdout)["items"]
    for thing in listed:
        done(world.admin.patch(_admin_path(thing), thing, APPLY_PATCH))
    for namespace in ("default", SYSTEM):
        world.plane.await_namespace(namespace)
    result = world.provision("--organization", "acme", "--organization", "other")
    assert result.exit_code == 0, result.output
    grant(world.admin, "default", "prober", "cluster-admin", everywhere=True)
    for account, role in (("firm", "admin"), ("owner", "cluster-admin")):
        grant(world.admin, FIRM, account, role)


def _admin_path(thing: dict[str, Any]) -> str:
    kind, metadata = thing["kind"], thing["metadata"]
    plural = f"{kind.lower()}s" if not kind.endswith("Policy") else f"{kind.lower()[:-1]}ies"
    root = "/api/v1" if thing["apiVersion"] == "v1" else f"/apis/{thing['apiVersion']}"
    space = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{space}/{plural}/{metadata['name']}?fieldManager=gpuhub-provision&force=true"


def grant(admin: Api, namespace: str, account: str, role: str, *, everywhere: bool = False) -> None:
    """Make a service account with a cluster role, in its namespace or everywhere."""
    done(admin.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": account}}))
    kind = "ClusterRoleBinding" if everywhere else "RoleBinding"
    space = "" if everywhere else f"/namespaces/{namespace}"
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": f"test-{account}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    done(admin.post(f"/apis/rbac.authorization.k8s.io/v1{space}/{kind.lower()}s", binding))


def a_spec(job_id: str, *pods: PodPlacement, attempt: int = 1, organization: str = "acme") -> ObjectSpec:
    """An attempt that runs until it is stopped."""
    return ObjectSpec(
        name=f"{job_id}-{attempt}",
        job_id=job_id,
        attempt=attempt,
        pods=pods or (PodPlacement(0, "sim-0", "h100", 1),),
        walltime_ms=3_600_000,
        grace_ms=5_000,
        organization_id=organization,
        annotations=FOR_EVER,
    )


def _start_jobs(cluster: KubernetesCluster) -> None:
    """One that runs, and a gang whose pods wait at their gates."""
    cluster.start(a_spec(JOB))
    cluster.start(a_spec(GANG, PodPlacement(0, "sim-1", "h100", 4), PodPlacement(1, "sim-2", "h100", 4)))


def _await_jobs(world: World) -> None:
    until(lambda: world.pods_of(f"{JOB}-1"), lambda pods: [p["status"]["phase"] for p in pods] == ["Running"])
    until(lambda: world.pods_of(f"{GANG}-1"), lambda pods: len(pods) == 2)


def _make_own_things(world: World) -> None:
    """A Job, a pod and a Service of the firm itself: what the hub's are, but for the hub."""
    firm = world.caller(FIRM, "firm")
    done(firm.post(f"/apis/batch/v1/namespaces/{FIRM}/jobs", a_job("own")))
    done(firm.post(f"/apis/batch/v1/namespaces/{FIRM}/jobs", a_job("suspended", suspend=True)))
    done(firm.post(f"/apis/apps/v1/namespaces/{FIRM}/deployments", a_deployment("own")))
    done(firm.post(f"/api/v1/namespaces/{FIRM}/pods", a_pod("own")))
    done(firm.post(f"/api/v1/namespaces/{FIRM}/services", a_service("own")))
    gated = a_pod("gated", schedulingGates=[{"name": "own/gate"}])
    done(firm.post(f"/api/v1/namespaces/{FIRM}/pods", gated))
    until(lambda: world.pods_of("own"), bool)


def a_container(**parts: Any) -> dict[str, Any]:
    """A container that restricted namespaces take."""
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {"name": "main", "image": "tool:1", "securityContext": safe} | parts


def a_pod_spec(**parts: Any) -> dict[str, Any]:
    """The spec of a pod that restricted namespaces take."""
    safe = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    return {"securityContext": safe, "containers": [a_container()]} | parts


def a_pod(pod_name: str, **spec: Any) -> dict[str, Any]:
    """A pod."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name}, "spec": a_pod_spec(**spec)}


def a_job(job_name: str, **spec: Any) -> dict[str, Any]:
    """A Job without GPUs."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name},
        "spec": {"template": {"spec": a_pod_spec(restartPolicy="Never")}} | spec,
    }


def a_deployment(deployment_name: str) -> dict[str, Any]:
    """A Deployment without GPUs."""
    labels = {"app": deployment_name}
    template = {"metadata": {"labels": labels}, "spec": a_pod_spec()}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": deployment_name},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def a_service(service_name: str, **spec: Any) -> dict[str, Any]:
    """A Service within the cluster."""
    ports = [{"port": 80}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service_name},
        "spec": {"selector": {"app": "own"}, "ports": ports} | spec,
    }


def a_pod_binding(pod: str) -> dict[str, Any]:
    """A pod is put on a GPU node."""
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "sim-3"},
    }


def a_limit_range() -> dict[str, Any]:
    """No container gets more than nothing."""
    limits = [{"type": "Container", "max": {"cpu": "1m"}}]
    return {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "own"}, "spec": {"limits": limits}}


def a_namespace(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def call_as(
    api: Api, user: str, method: str, path: str, body: object = None, *, groups: tuple[str, ...] = ()
) -> tuple[int, dict[str, Any]]:
    """One request in somebody else's name."""
    line = api.connect()
    try:
        line.putrequest(method, path)
        # any body at all, even `null`, takes the place of the query of a DELETE
        content = b"" if body is None else json.dumps(body).encode()
        line.putheader("Authorization", f"Bearer {api.token}")
        line.putheader("Content-Type", "application/json")
        line.putheader("Content-Length", str(len(content)))
        line.putheader("Impersonate-User", user)
        for group in groups:
            line.putheader("Impersonate-Group", group)
        line.endheaders(content)
        reply = line.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        line.close()


def done(reply: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    """The object of a call that worked."""
    status, body = reply
    assert status in (200, 201, 202), (status, body)
    return body
