"""The hub's accounts can do their work and nothing else; Kubernetes and its admins can go on doing theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from scheduler.clusters.kubernetes.accounts import provisioner_rules, scheduler_rules
from scheduler.clusters.kubernetes.admission import POLICIES
from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.port import (
    ClusterUnavailable,
    ObjectSpec,
    Observation,
    PodPlacement,
    StartOutcome,
    StartRefused,
)
from tests.integration.kubernetes.isolated_world import (
    FIRM,
    JOB,
    SYSTEM,
    World,
    a_container,
    a_job,
    a_pod,
    a_pod_binding,
    a_spec,
    call_as,
    done,
)
from tests.kubernetes_plane import JSON_PATCH, Api, until

pytestmark = pytest.mark.kubernetes

PODS = f"/api/v1/namespaces/{FIRM}/pods"
JOBS = f"/apis/batch/v1/namespaces/{FIRM}/jobs"
DRY = "dryRun=All"
Json = dict[str, Any]

_numbers = count()


@pytest.fixture(scope="module")
def cluster(world: World) -> Iterator[KubernetesCluster]:
    with world.cluster() as made:
        yield made


@pytest.fixture(scope="module")
def scheduler(world: World) -> Api:
    return world.caller(SYSTEM, "scheduler")


@pytest.fixture(scope="module")
def provisioner(world: World) -> Api:
    return world.caller(SYSTEM, "provisioner")


def new_spec(*pods: PodPlacement, organization: str = "acme") -> ObjectSpec:
    return a_spec(f"job-{next(_numbers):022}", *pods, organization=organization)


def phases(world: World, spec: ObjectSpec) -> list[str]:
    return [pod["status"]["phase"] for pod in world.pods_of(spec.name)]


def rules_of(caller: Api) -> set[tuple[str, str, str, str]]:
    """Every right as (group, resource, name, verb), but for those that every account has."""
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    found = done(caller.post(path, {"spec": {"namespace": FIRM}}))["status"]
    assert not found["incomplete"]
    return flat(found["resourceRules"])


def flat(rules: list[Json]) -> set[tuple[str, str, str, str]]:
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or ["*"]
        for verb in rule["verbs"]
    }


# --- the scheduler's ---


def test_scheduler_has_exactly_its_rights(world: World, scheduler: Api) -> None:
    nobody = rules_of(world.caller("hub-other", "default"))
    assert rules_of(scheduler) - nobody == flat(scheduler_rules())


def test_scheduler_runs_a_job_to_its_end(world: World, cluster: KubernetesCluster) -> None:
    spec = new_spec(PodPlacement(0, "sim-3", "h100", 2))
    assert cluster.start(spec) is StartOutcome.CREATED
    assert cluster.start(spec) is StartOutcome.ADOPTED
    until(lambda: phases(world, spec), lambda found: found == ["Running"])
    (pod,) = world.pods_of(spec.name)
    assert pod["spec"]["nodeName"] == "sim-3"
    cluster.extend(spec)
    cluster.stop(spec, abandoned=False)
    until(lambda: phases(world, spec), lambda found: found == ["Failed"])
    (pod,) = world.pods_of(spec.name)
    assert "hub/end-seen" in pod["metadata"]["finalizers"]
    assert cluster.get(spec.name) is not None
    cluster.acknowledge(spec.name)
    until(lambda: phases(world, spec), lambda found: found == [])
    assert cluster.delete(spec.name)
    until(lambda: world.admin.get(f"{JOBS}/{spec.name}")[0], lambda status: status == 404)


def test_scheduler_places_a_gang(world: World, cluster: KubernetesCluster) -> None:
    spec = new_spec(PodPlacement(0, "sim-3", "h100", 2), PodPlacement(1, "sim-2", "h100", 2))
    cluster.start(spec)
    until(lambda: world.pods_of(spec.name), lambda pods: len(pods) == 2)
    cluster.place(spec)
    until(lambda: phases(world, spec), lambda found: found == ["Running", "Running"])
    cluster.stop(spec, abandoned=False)
    until(lambda: phases(world, spec), lambda found: found == ["Failed", "Failed"])
    cluster.acknowledge(spec.name)
    until(lambda: phases(world, spec), lambda found: found == [])
    assert cluster.delete(spec.name)
    service = f"/api/v1/namespaces/{FIRM}/services/{spec.name}"
    assert world.admin.get(service)[0] == 404


def test_scheduler_leaves_a_tombstone(world: World, cluster: KubernetesCluster) -> None:
    spec = new_spec()
    cluster.stop(spec, abandoned=True)
    assert cluster.start(spec) is StartOutcome.ABANDONED
    assert cluster.delete(spec.name)


def test_scheduler_observes_the_cluster(cluster: KubernetesCluster) -> None:
    def observe() -> Observation | None:
        try:
            return cluster.observe(1.0)
        except ClusterUnavailable:
            return None  # not listed yet

    seen = until(observe, lambda found: found is not None and bool(found.objects))
    assert seen is not None
    assert f"{JOB}-1" in {one.name for one in seen.objects}


def test_scheduler_may_read_a_log(world: World, scheduler: Api) -> None:
    pod = world.pods_of(f"{JOB}-1")[0]["metadata"]["name"]
    status, reply = scheduler.get(f"{PODS}/{pod}/log")
    assert status != 403, reply


def test_start_without_a_namespace_is_refused(cluster: KubernetesCluster) -> None:
    with pytest.raises(StartRefused, match="gpuhub scheduler provision"):
        cluster.start(new_spec(organization="unknown"))


def hub_job(name: str = f"{JOB}-7", organization: str = "acme", **labels: str) -> Json:
    job = a_job(name)
    job["metadata"]["labels"] = {"hub/job-id": JOB, "hub/organization": organization} | labels
    return job


def reaching(**container: Any) -> Json:
    job = hub_job()
    job["spec"]["template"]["spec"]["containers"] = [a_container(**container)]
    return job


SCHEDULER_MAY_NOT: dict[str, tuple[str, str, object, str]] = {
    "read secrets": ("GET", f"/api/v1/namespaces/{FIRM}/secrets", None, "User"),
    "read the hub's secrets": ("GET", f"/api/v1/namespaces/{SYSTEM}/secrets", None, "User"),
    "create a pod": ("POST", PODS, a_pod("new"), "User"),
    "delete a pod": ("DELETE", f"{PODS}/own", None, "User"),
    "run a command in a pod": ("POST", f"{PODS}/own/exec?command=sh&stdout=1", None, "User"),
    "evict a pod": ("POST", f"{PODS}/own/eviction", {"metadata": {"name": "own"}}, "User"),
    "bind a pod": ("POST", f"{PODS}/own/binding", a_pod_binding("own"), "User"),
    "tell the end of a pod": ("PATCH", f"{PODS}/own/status", {"status": {"phase": "Failed"}}, "User"),
    "change a node": ("PATCH", "/api/v1/nodes/sim-3", {"spec": {"unschedulable": True}}, "User"),
    "make a namespace": ("POST", "/api/v1/namespaces", {"metadata": {"name": "new"}}, "User"),
    "make a Job in its own namespace": (
        "POST", f"/apis/batch/v1/namespaces/{SYSTEM}/jobs", hub_job(), "gpuhub-accounts",
    ),
    "make a Job in a trusted namespace": (
        "POST", "/apis/batch/v1/namespaces/kube-system/jobs", hub_job(), "gpuhub-accounts",
    ),
    "make a Job elsewhere": (
        "POST", "/apis/batch/v1/namespaces/default/jobs", hub_job(), "gpuhub-",
    ),
    "let a Job reach for all GPUs": (
        "POST", JOBS, reaching(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]), "gpuhub-gpus",
    ),
    "let a Job reach for GPUs that a secret names": (
        "POST",
        JOBS,
        reaching(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        "gpuhub-gpus",
    ),
    "make another firm's Job here": ("POST", JOBS, hub_job(organization="other"), "gpuhub-gpus"),
    "make a Job that is not the hub's": ("POST", JOBS, a_job("new"), "gpuhub-accounts"),
    "suspend a firm's own Job": ("PATCH", f"{JOBS}/own", {"spec": {"suspend": True}}, "gpuhub-accounts"),
    "delete a firm's own Job": ("DELETE", f"{JOBS}/own", None, "gpuhub-accounts"),
    "hold a firm's own pod": ("PATCH", f"{PODS}/own", {"metadata": {"finalizers": ["x/y"]}}, "gpuhub-accounts"),
    "hold a pod of kube-system": (
        "PATCH", "/api/v1/namespaces/kube-system/pods/system", {"metadata": {"labels": {"x": "y"}}}, "gpuhub-accounts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULER_MAY_NOT)
def test_scheduler_may_not(world: World, scheduler: Api, name: str) -> None:
    system = "/api/v1/namespaces/kube-system/pods"
    world.plane.await_namespace("kube-system")
    world.admin.post(system, a_pod("system"))
    method, path, body, why = SCHEDULER_MAY_NOT[name]
    trial = path if method == "GET" else f"{path}{'&' if '?' in path else '?'}{DRY}"
    content = "application/merge-patch+json" if method == "PATCH" else "application/json"
    status, reply = scheduler.call(method, trial, body, content)
    assert status in (403, 422)
    assert why in reply["message"]


def test_scheduler_may_make_what_it_should(scheduler: Api) -> None:
    job = hub_job()
    gpu = {"nvidia.com/gpu": "1"}
    job["spec"]["template"]["spec"] |= {
        "containers": [
            a_container(resources={"limits": gpu}, env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}])
        ],
        "tolerations": [{"key": "hub/managed", "operator": "Exists"}],
    }
    assert scheduler.post(f"{JOBS}?{DRY}", job)[0] == 201


# --- the provisioner's ---


def test_provisioner_has_exactly_its_rights(world: World, provisioner: Api) -> None:
    nobody = rules_of(world.caller("hub-other", "default"))
    assert rules_of(provisioner) - nobody == flat(provisioner_rules(POLICIES))


PROVISIONER_MAY_NOT: dict[str, tuple[str, str, object, str]] = {
    "read secrets": ("GET", f"/api/v1/namespaces/{FIRM}/secrets", None, "User"),
    "make a Job": ("POST", JOBS, a_job("new"), "User"),
    "make a pod": ("POST", PODS, a_pod("new"), "User"),
    "bind a role": ("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{FIRM}/rolebindings", {}, "User"),
    "change its role": (
        "PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/gpuhub-provisioner", {"rules": []}, "User",
    ),
    "take a policy away": (
        "DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/gpuhub-gpus", None, "User",
    ),
    "delete a namespace": ("DELETE", f"/api/v1/namespaces/{FIRM}", None, "User"),
    "take over a namespace": (
        "PATCH", "/api/v1/namespaces/default", {"metadata": {"labels": {"hub/organization": "own"}}}, "gpuhub-accounts",
    ),
    "give a namespace to another": (
        "PATCH", f"/api/v1/namespaces/{FIRM}", {"metadata": {"labels": {"hub/organization": "own"}}}, "gpuhub-accounts",
    ),
    "make any namespace": ("POST", "/api/v1/namespaces", {"metadata": {"name": "new"}}, "gpuhub-accounts"),
    "limit kube-system": (
        "PATCH",
        "/api/v1/namespaces/kube-system/resourcequotas/hub-limits?fieldManager=x&force=true",
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "hub-limits"}, "spec": {}},
        "gpuhub-accounts",
    ),
    "cordon a node": ("PATCH", "/api/v1/nodes/sim-3", {"spec": {"unschedulable": True}}, "gpuhub-accounts"),
    "label a node": ("PATCH", "/api/v1/nodes/sim-3", {"metadata": {"labels": {"x": "y"}}}, "gpuhub-accounts"),
    "untaint a node": ("PATCH", "/api/v1/nodes/sim-3", {"spec": {"taints": []}}, "gpuhub-accounts"),
    "taint a node otherwise": (
        "PATCH", "/api/v1/nodes/sim-3", {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}, "gpuhub-accounts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVISIONER_MAY_NOT)
def test_provisioner_may_not(provisioner: Api, name: str) -> None:
    method, path, body, why = PROVISIONER_MAY_NOT[name]
    trial = path if method == "GET" else f"{path}{'&' if '?' in path else '?'}{DRY}"
    content = "application/json"
    if method == "PATCH":
        content = f"application/{'apply-patch+yaml' if 'force' in path else 'merge-patch+json'}"
    status, reply = provisioner.call(method, trial, body, content)
    assert status in (403, 422)
    assert why in reply["message"]


# --- admins in an emergency ---


def as_group(world: World, group: str, method: str, path: str, body: object = None) -> tuple[int, Json]:
    binding = {
        "metadata": {"name": f"test-{group.replace(':', '-')}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "name": group, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    world.admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    # the authorizer learns of the binding a moment later
    return until(
        lambda: call_as(world.admin, "somebody", method, f"{path}?{DRY}", body, groups=(group,)),
        lambda reply: "User" not in reply[1].get("message", ""),
    )


@pytest.mark.parametrize("group", ["system:masters", "kubeadm:cluster-admins", "repairers"])
def test_admins_may_end_what_the_hub_made(world: World, group: str) -> None:
    pod = world.pods_of(f"{JOB}-1")[0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    assert as_group(world, group, "DELETE", f"{JOBS}/{JOB}-1")[0] == 200
    assert as_group(world, group, "DELETE", f"{PODS}/{pod}")[0] == 200
    assert as_group(world, group, "POST", f"{PODS}/{pod}/eviction", eviction)[0] == 201
    assert as_group(world, group, "DELETE", f"/api/v1/namespaces/{FIRM}")[0] == 200


def test_admin_may_release_a_pod(world: World) -> None:
    pod = world.pods_of(f"{JOB}-1")[0]["metadata"]["name"]
    release = [{"op": "remove", "path": "/metadata/finalizers"}]
    assert world.admin.patch(f"{PODS}/{pod}?{DRY}", release, JSON_PATCH)[0] == 200


@pytest.mark.parametrize(
    ("group", "status"), [("system:masters", 403), ("kubeadm:cluster-admins", 403), ("repairers", 201)]
)
def test_only_who_breaks_the_glass_has_gpus_beside_the_hub(world: World, group: str, status: int) -> None:
    pod = a_pod("new", containers=[a_container(resources={"limits": {"nvidia.com/gpu": "1"}})])
    assert as_group(world, group, "POST", "/api/v1/namespaces/default/pods", pod)[0] == status


def test_cluster_admin_of_another_group_may_not_end_a_job(world: World) -> None:
    status, reply = as_group(world, "developers", "DELETE", f"{JOBS}/{JOB}-1")
    assert status == 403
    assert "gpuhub-jobs" in reply["message"]


def test_firm_may_look_into_its_own_job(world: World) -> None:
    pod = world.pods_of(f"{JOB}-1")[0]["metadata"]["name"]
    firm = world.caller(FIRM, "firm")
    for path in ("log", "exec?command=sh&stdout=1", "attach?stdout=1", "portforward"):
        status, reply = firm.get(f"{PODS}/{pod}/{path}")
        assert status != 403, (path, reply)


# --- Kubernetes goes on working ---


def test_policies_have_no_warnings(world: World) -> None:
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    for name in POLICIES:
        status = until(
            lambda name=name: done(world.admin.get(f"{path}/{name}")).get("status", {}),  # type: ignore[misc]
            lambda found: "typeChecking" in found,
        )
        assert status["typeChecking"] == {}


def test_trusted_namespaces_have_their_gpus(world: World) -> None:
    tolerating = a_pod(
        "plugin",
        nodeName="sim-3",
        tolerations=[{"operator": "Exists"}],
        containers=[a_container(resources={"limits": {"nvidia.com/gpu": "1"}})],
    )
    for namespace in ("kube-system", SYSTEM):
        assert world.admin.post(f"/api/v1/namespaces/{namespace}/pods?{DRY}", tolerating)[0] == 201


def test_firms_own_deployment_gets_its_pod(world: World) -> None:
    until(
        lambda: done(world.admin.get(f"{PODS}?labelSelector=app%3Down"))["items"], lambda pods: len(pods) == 1
    )


def test_quota_counts_the_hubs_pods(world: World) -> None:
    path = f"/api/v1/namespaces/{FIRM}/resourcequotas/hub-limits"

    def used() -> str:
        return str(
            done(world.admin.get(path)).get("status", {}).get("used", {}).get("requests.nvidia.com/gpu")
        )

    until(used, lambda text: text.isdecimal() and int(text) >= 9)


def test_tainted_node_loses_its_pods(world: World, cluster: KubernetesCluster) -> None:
    spec = new_spec(PodPlacement(0, "sim-3", "h100", 1))
    cluster.start(spec)
    until(lambda: phases(world, spec), lambda found: found == ["Running"])
    node = "/api/v1/nodes/sim-3"
    before = done(world.admin.get(node))["spec"]["taints"]
    done(world.admin.patch(node, {"spec": {"taints": [*before, {"key": "own", "effect": "NoExecute"}]}}))
    until(lambda: phases(world, spec), lambda found: "Running" not in found)
    done(world.admin.patch(node, {"spec": {"taints": before}}))
    assert cluster.delete(spec.name)


def test_ended_job_is_collected_with_its_pods(world: World, cluster: KubernetesCluster) -> None:
    short = (("simulate.gpuhub/duration_s", "0.1"), ("simulate.gpuhub/start_s", "0"))
    spec = new_spec(PodPlacement(0, "sim-3", "h100", 1))
    spec = replace(spec, annotations=short)
    cluster.start(spec)
    until(lambda: phases(world, spec), lambda found: found == ["Succeeded"])
    until(
        lambda: done(world.admin.get(f"{JOBS}/{spec.name}"))["status"].get("conditions", []),
        lambda found: "Complete" in {one["type"] for one in found},
    )
    assert cluster.delete(spec.name)
    until(lambda: phases(world, spec), lambda found: found == [])


def test_admin_deletes_a_namespace_with_all_that_runs_in_it(world: World, cluster: KubernetesCluster) -> None:
    assert world.provision("--organization", "leaving").exit_code == 0
    # the namespace controller waits for as long as its pods may take to end
    spec = replace(new_spec(PodPlacement(0, "sim-3", "h100", 1), organization="leaving"), grace_ms=1_000)
    cluster.start(spec)
    space = "/api/v1/namespaces/hub-leaving"
    until(
        lambda: [pod["status"]["phase"] for pod in done(world.admin.get(f"{space}/pods"))["items"]],
        lambda found: found == ["Running"],
    )
    done(world.admin.delete(space))
    until(lambda: world.admin.get(space)[0], lambda status: status == 404)
