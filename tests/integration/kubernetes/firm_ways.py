"""Ways in which a firm could try to get GPUs past the hub, or to meddle with what the hub made. Data.

Each way is a request that must be refused, who refuses it, and where there is one the same request without what
offends, which must be accepted. Every request is a trial (`dryRun=All`): admission sees it, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from scheduler.clusters.kubernetes import admission
from tests.integration.kubernetes.isolated_world import (
    FIRM,
    GANG,
    JOB,
    SYSTEM,
    a_container,
    a_job,
    a_limit_range,
    a_namespace,
    a_pod,
    a_pod_binding,
    a_pod_spec,
    a_service,
)
from tests.kubernetes_plane import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH

Json = dict[str, Any]

RIGHTS = frozenset({"is forbidden: User"})
POD_SECURITY = frozenset({"violates PodSecurity"})
QUOTA = frozenset({"exceeded quota"})
GPUS, BINDINGS, JOBS, ISOLATION, NAMESPACES = (
    frozenset({policy})
    for policy in (
        admission.GPUS,
        admission.BINDINGS,
        admission.JOBS,
        admission.ISOLATION,
        admission.NAMESPACES,
    )
)
BOTH = GPUS | JOBS
"""A change of what has GPUs is one of a hub's job, and asks for GPUs as well."""

CORE = f"/api/v1/namespaces/{FIRM}"
BATCH = f"/apis/batch/v1/namespaces/{FIRM}"
APPS = f"/apis/apps/v1/namespaces/{FIRM}"
NETWORK = f"/apis/networking.k8s.io/v1/namespaces/{FIRM}/networkpolicies"
BUDGETS = f"/apis/policy/v1/namespaces/{FIRM}/poddisruptionbudgets"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `{pod}`, `{gated}`, `{own}` in its path and texts stand for pods whose names are random."""

    method: str
    path: str
    body: object = None
    content: str = "application/json"
    impersonate: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """Something that must not work."""

    name: str
    offends: Request
    refused_by: frozenset[str]
    """Names of policies, or RIGHTS, POD_SECURITY, QUOTA: which of them speaks first is a matter of chance."""
    harmless: Request | None = None
    by: str = "firm"
    """`firm` has the role admin in its namespace, `owner` has cluster-admin there: every verb on everything."""


def all_ways() -> list[Way]:
    """Every way, in groups."""
    return [
        *gpu_ways(),
        *pod_ways(),
        *binding_ways(),
        *hub_job_ways(),
        *hub_pod_ways(),
        *fake_ways(),
        *service_ways(),
        *isolation_ways(),
        *security_ways(),
        *rights_ways(),
    ]


# --- GPUs past the hub: every kind of workload, every offence ---


def _template(pod_spec: Json, marks: Json) -> Json:
    labels = {"app": "own"} | marks.get("labels", {})
    return {"metadata": {"labels": labels, "annotations": marks.get("annotations", {})}, "spec": pod_spec}


def _workload(version: str, kind: str, spec: Json) -> Json:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "new"}, "spec": spec}


def _selecting(template: Json, **more: Any) -> Json:
    return {"selector": {"matchLabels": {"app": "own"}}, "template": template} | more


def _job_spec(template: Json) -> Json:
    return {"template": template | {"spec": template["spec"] | {"restartPolicy": "Never"}}}


KINDS: dict[str, tuple[str, Callable[[Json], Json]]] = {
    "pod": (
        f"{CORE}/pods",
        lambda t: {"kind": "Pod", "metadata": {"name": "new"} | t["metadata"], "spec": t["spec"]},
    ),
    "pod template": (
        f"{CORE}/podtemplates",
        lambda t: {"kind": "PodTemplate", "metadata": {"name": "new"}, "template": t},
    ),
    "replication controller": (
        f"{CORE}/replicationcontrollers",
        lambda t: _workload("v1", "ReplicationController", {"selector": {"app": "own"}, "template": t}),
    ),
    "job": (f"{BATCH}/jobs", lambda t: _workload("batch/v1", "Job", _job_spec(t))),
    "cron job": (
        f"{BATCH}/cronjobs",
        lambda t: _workload(
            "batch/v1", "CronJob", {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": _job_spec(t)}}
        ),
    ),
    "deployment": (f"{APPS}/deployments", lambda t: _workload("apps/v1", "Deployment", _selecting(t))),
    "replica set": (f"{APPS}/replicasets", lambda t: _workload("apps/v1", "ReplicaSet", _selecting(t))),
    "stateful set": (
        f"{APPS}/statefulsets",
        lambda t: _workload("apps/v1", "StatefulSet", _selecting(t, serviceName="own")),
    ),
    "daemon set": (f"{APPS}/daemonsets", lambda t: _workload("apps/v1", "DaemonSet", _selecting(t))),
}

_GPU = {"nvidia.com/gpu": "1"}
_CLAIMED = {
    "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}],
    "containers": [a_container(resources={"claims": [{"name": "gpu"}]})],
}
OFFENCES: dict[str, tuple[Json, Json]] = {
    "asks for a GPU": ({"containers": [a_container(resources={"limits": _GPU})]}, {}),
    "asks for a slice": (
        {
            "containers": [
                a_container(),
                a_container(name="b", resources={"limits": {"nvidia.com/mig-1g.10gb": "1"}}),
            ]
        },
        {},
    ),
    "asks for a GPU in an init container": (
        {"initContainers": [a_container(name="first", resources={"limits": _GPU, "requests": _GPU})]},
        {},
    ),
    "asks for a device class by name": (
        {"containers": [a_container(resources={"limits": {"deviceclass.resource.kubernetes.io/gpu": "1"}})]},
        {},
    ),
    "claims a device": (_CLAIMED, {}),
    "tolerates the taint": ({"tolerations": [{"key": "hub/managed", "operator": "Exists"}]}, {}),
    "tolerates the taint by value": (
        {"tolerations": [{"key": "hub/managed", "operator": "Equal", "value": "", "effect": "NoSchedule"}]},
        {},
    ),
    "tolerates everything": ({"tolerations": [{"operator": "Exists"}]}, {}),
    "has a label of the hub": ({}, {"labels": {"hub/job-id": JOB}}),
    "has an annotation of the hub": ({}, {"annotations": {"hub/placement": "[]"}}),
    "names its node": ({"nodeName": "sim-3"}, {}),
    "asks the runtime for all GPUs": (
        {"containers": [a_container(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}])]},
        {},
    ),
    "has a device annotation": ({}, {"annotations": {"cdi.k8s.io/x": "nvidia.com/gpu=all"}}),
    "mounts a device list": (
        {
            "volumes": [{"name": "all", "emptyDir": {}}],
            "containers": [
                a_container(
                    volumeMounts=[{"name": "all", "mountPath": "/var/run/nvidia-container-devices/all"}]
                )
            ],
        },
        {},
    ),
    "names its scheduler": ({"schedulerName": "own"}, {}),
}


def gpu_ways() -> Iterator[Way]:
    """Each kind of workload with each offence."""
    for kind, (path, build) in KINDS.items():
        harmless = Request("POST", path, build(_template(a_pod_spec(), {})))
        for offence, (spec, marks) in OFFENCES.items():
            offending = build(_template(a_pod_spec(**spec), marks))
            # no role but cluster-admin has pod templates
            by = "owner" if kind == "pod template" else "firm"
            yield Way(f"{kind} {offence}", Request("POST", path, offending), GPUS, harmless, by)


def pod_ways() -> Iterator[Way]:
    """The firm's own pods and workloads become what they must not be."""
    own = f"{CORE}/pods/own"
    toleration = [{"op": "add", "path": "/spec/tolerations/-", "value": {"operator": "Exists"}}]
    other = [{"op": "add", "path": "/spec/tolerations/-", "value": {"key": "own", "operator": "Exists"}}]
    yield Way(
        "own pod is made to tolerate everything",
        Request("PATCH", own, toleration, JSON_PATCH),
        GPUS,
        Request("PATCH", own, other, JSON_PATCH),
    )
    for part, key in (("labels", "hub/job-id"), ("annotations", "hub/spec-hash")):
        yield Way(
            f"own pod gets the hub's {part}",
            Request("PATCH", own, {"metadata": {part: {key: "x"}}}, MERGE_PATCH),
            GPUS,
            Request("PATCH", own, {"metadata": {part: {"own/key": "x"}}}, MERGE_PATCH),
        )
    for kind, path in (("pod", own), ("Job", f"{BATCH}/jobs/own")):
        yield Way(
            f"own {kind} gets the hub's labels by its status",
            Request("PATCH", f"{path}/status", {"metadata": {"labels": {"hub/job-id": "x"}}}, MERGE_PATCH),
            GPUS,
            Request("PATCH", f"{path}/status", {"metadata": {"labels": {"own/key": "x"}}}, MERGE_PATCH),
            by="owner",
        )
    yield Way(
        "own pod gets the hub's finalizer",
        Request("PATCH", own, {"metadata": {"finalizers": ["hub/end-seen"]}}, MERGE_PATCH),
        GPUS,
        Request("PATCH", own, {"metadata": {"finalizers": ["own/end-seen"]}}, MERGE_PATCH),
    )
    yield Way(
        "own Job is applied with a label of the hub",
        Request(
            "PATCH",
            f"{BATCH}/jobs/own?fieldManager=own&force=true",
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": "own", "labels": {"hub/job-id": JOB}},
            },
            "application/apply-patch+yaml",
        ),
        GPUS,
        Request("PATCH", f"{BATCH}/jobs/own", {"metadata": {"labels": {"own/key": "x"}}}, MERGE_PATCH),
    )
    yield Way(
        "pod in a namespace of its own making",
        Request("POST", "/api/v1/namespaces/default/pods", a_pod("new", nodeName="sim-3")),
        GPUS,
        Request("POST", "/api/v1/namespaces/default/pods", a_pod("new")),
        by="prober",
    )

    def tolerating(key: str) -> Json:
        return {"spec": {"template": {"spec": {"tolerations": [{"key": key, "operator": "Exists"}]}}}}

    for kind, path in (
        ("suspended Job", f"{BATCH}/jobs/suspended"),
        ("Deployment", f"{APPS}/deployments/own"),
    ):
        yield Way(
            f"own {kind} is made to tolerate the taint",
            Request("PATCH", path, tolerating("hub/managed"), MERGE_PATCH),
            GPUS,
            Request("PATCH", path, tolerating("own"), MERGE_PATCH),
        )
    generated = a_pod("x", nodeName="sim-3")
    generated["metadata"] = {"generateName": "own-"}
    yield Way(
        "pod with a generated name names its node",
        Request("POST", f"{CORE}/pods", generated),
        GPUS,
        Request("POST", f"{CORE}/pods", generated | {"spec": a_pod_spec()}),
    )


def binding_ways() -> Iterator[Way]:
    """A pod is put on a GPU node past kube-scheduler."""
    yield Way(
        "binding of an own pod", Request("POST", f"{CORE}/pods/own/binding", a_pod_binding("own")), RIGHTS
    )
    for path in ("pods/own/binding", "bindings"):
        yield Way(
            f"binding of an own pod through {path}",
            Request("POST", f"{CORE}/{path}", a_pod_binding("own")),
            BINDINGS,
            by="owner",
        )


# --- what the hub made ---


def hub_job_ways() -> Iterator[Way]:
    """A Job of the hub is changed, prolonged, ended, or its end told."""
    changes: dict[str, Json] = {
        "suspend": {"spec": {"suspend": True}},
        "prolong": {"spec": {"activeDeadlineSeconds": 9_999_999}},
        "shorten": {"spec": {"activeDeadlineSeconds": 1}},
        "let retry": {"spec": {"backoffLimit": 9}},
        "forget soon": {"spec": {"ttlSecondsAfterFinished": 0}},
        "unlabel": {"metadata": {"labels": {"hub/job-id": None}}},
        "annotate": {"metadata": {"annotations": {"own/key": "x"}}},
        "give an owner to": {
            "metadata": {
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "0-0-0-0"},
                ]
            }
        },
        "hold by a finalizer": {"metadata": {"finalizers": ["own/hold"]}},
    }
    theirs, own = f"{BATCH}/jobs/{JOB}-1", f"{BATCH}/jobs/own"
    for name, change in changes.items():
        harmless = Request("PATCH", own, change, MERGE_PATCH)
        yield Way(f"{name} a hub's Job", Request("PATCH", theirs, change, MERGE_PATCH), BOTH, harmless)
    for name, query in (
        ("", ""),
        (" in the foreground", "propagationPolicy=Foreground"),
        (" as orphan", "propagationPolicy=Orphan"),
    ):
        yield Way(
            f"delete a hub's Job{name}",
            Request("DELETE", f"{theirs}?{query}"),
            JOBS,
            Request("DELETE", f"{own}?{query}"),
        )
    yield Way(
        "delete all Jobs",
        Request("DELETE", f"{BATCH}/jobs"),
        JOBS,
        Request("DELETE", f"{BATCH}/jobs?fieldSelector=metadata.name=own"),
    )
    fake = {"status": {"conditions": [{"type": "SuccessCriteriaMet", "status": "True", "reason": "Own"}]}}
    status = Request("PATCH", f"{theirs}/status", fake, MERGE_PATCH)
    yield Way("tell the end of a hub's Job", status, RIGHTS)
    told = {"status": {"failed": 1}}
    yield Way(
        "tell the status of a hub's Job as owner",
        Request("PATCH", f"{theirs}/status", told, MERGE_PATCH),
        BOTH,
        Request("PATCH", f"{own}/status", told, MERGE_PATCH),
        by="owner",
    )


def hub_pod_ways() -> Iterator[Way]:
    """A pod of the hub is changed, moved, let in, ended, or its end told."""
    theirs, own, gated = f"{CORE}/pods/{{pod}}", f"{CORE}/pods/own", f"{CORE}/pods/{{gated}}"
    changes: dict[str, Json] = {
        "unlabel": {"metadata": {"labels": {"hub/job-id": None}}},
        "annotate": {"metadata": {"annotations": {"simulate.gpuhub/duration_s": "9"}}},
        "release": {"metadata": {"finalizers": None}},
        "hold by a finalizer": {"metadata": {"finalizers": ["own/hold"]}},
        "limit": {"spec": {"activeDeadlineSeconds": 1}},
        "disown": {"metadata": {"ownerReferences": None}},
    }
    for name, change in changes.items():
        harmless = Request("PATCH", own, change, MERGE_PATCH)
        yield Way(f"{name} a hub's pod", Request("PATCH", theirs, change, MERGE_PATCH), BOTH, harmless)
    image = {"spec": {"containers": [{"name": "main", "image": "other:1"}]}}
    yield Way(
        "change the image of a hub's pod",
        Request("PATCH", theirs, image, STRATEGIC_PATCH),
        BOTH,
        Request("PATCH", own, image, STRATEGIC_PATCH),
    )
    move = [
        {"op": "add", "path": "/spec/nodeSelector", "value": {"kubernetes.io/hostname": "sim-3"}},
        {"op": "remove", "path": "/spec/schedulingGates/0"},
    ]
    for name, patch in (("move", move), ("choose the node of", move[:1]), ("let in", move[1:])):
        yield Way(
            f"{name} a hub's waiting pod",
            Request("PATCH", gated, patch, JSON_PATCH),
            BOTH,
            Request("PATCH", f"{CORE}/pods/gated", patch, JSON_PATCH),
        )
    for name, query in (("delete", ""), ("kill", "gracePeriodSeconds=0")):
        yield Way(
            f"{name} a hub's pod",
            Request("DELETE", f"{theirs}?{query}"),
            JOBS,
            Request("DELETE", f"{own}?{query}"),
        )
    yield Way(
        "delete all pods",
        Request("DELETE", f"{CORE}/pods"),
        JOBS,
        Request("DELETE", f"{CORE}/pods?fieldSelector=metadata.name=own"),
    )
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "{pod}"}}
    yield Way("evict a hub's pod", Request("POST", f"{theirs}/eviction", eviction), JOBS)
    more = {"spec": {"ephemeralContainers": [a_container(name="debug", targetContainerName="main")]}}
    yield Way(
        "add a container to a hub's pod",
        Request("PATCH", f"{theirs}/ephemeralcontainers", more, STRATEGIC_PATCH),
        BOTH,
        Request("PATCH", f"{own}/ephemeralcontainers", more, STRATEGIC_PATCH),
        by="owner",
    )
    cpu = {"cpu": "1"}
    bigger = {"spec": {"containers": [{"name": "main", "resources": {"requests": cpu, "limits": cpu}}]}}
    yield Way(
        "resize a hub's pod",
        Request("PATCH", f"{gated}/resize", bigger, STRATEGIC_PATCH),
        BOTH,
        Request("PATCH", f"{CORE}/pods/gated/resize", bigger, STRATEGIC_PATCH),
        by="owner",
    )
    ended = {"status": {"phase": "Succeeded"}}
    yield Way("tell the end of a hub's pod", Request("PATCH", f"{theirs}/status", ended, MERGE_PATCH), RIGHTS)
    yield Way(
        "tell the end of a hub's pod as owner",
        Request("PATCH", f"{theirs}/status", ended, MERGE_PATCH),
        BOTH,
        Request("PATCH", f"{own}/status", ended, MERGE_PATCH),
        by="owner",
    )


def fake_ways() -> Iterator[Way]:
    """What is the firm's own is made to look like the hub's, or like part of it."""

    def pod(**metadata: Any) -> Json:
        made = a_pod("new")
        return made | {"metadata": made["metadata"] | metadata}

    create = f"{CORE}/pods"
    harmless = Request("POST", create, pod(labels={"own": "x"}))
    for label in ("controller-uid", "job-name"):
        yield Way(
            f"pod with the {label} of a hub's Job",
            Request("POST", create, pod(labels={f"batch.kubernetes.io/{label}": "{uid}"})),
            JOBS,
            harmless,
        )
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": f"{JOB}-1", "uid": "{uid}"}
    yield Way(
        "pod owned by a hub's Job",
        Request("POST", create, pod(ownerReferences=[owner | {"controller": True}])),
        JOBS,
        harmless,
    )
    yield Way(
        "own pod is given to a hub's Job",
        Request("PATCH", f"{CORE}/pods/own", {"metadata": {"ownerReferences": [owner]}}, MERGE_PATCH),
        JOBS,
        Request(
            "PATCH",
            f"{CORE}/pods/own",
            {"metadata": {"ownerReferences": [owner | {"kind": "Own"}]}},
            MERGE_PATCH,
        ),
    )
    yield Way(
        "own pod is given to a hub's Job by its status",
        Request(
            "PATCH",
            f"{CORE}/pods/own/status",
            {"metadata": {"labels": {"batch.kubernetes.io/controller-uid": "{uid}"}}},
            MERGE_PATCH,
        ),
        JOBS,
        Request("PATCH", f"{CORE}/pods/own/status", {"metadata": {"labels": {"own": "x"}}}, MERGE_PATCH),
        by="owner",
    )
    yield Way(
        "pod of an own Job is given to a hub's Job",
        Request(
            "PATCH",
            f"{CORE}/pods/{{own}}",
            {"metadata": {"labels": {"batch.kubernetes.io/controller-uid": "{uid}"}}},
            MERGE_PATCH,
        ),
        JOBS,
        Request("PATCH", f"{CORE}/pods/{{own}}", {"metadata": {"labels": {"own": "x"}}}, MERGE_PATCH),
    )
    chosen = {"own": "x"}
    template = {"metadata": {"labels": chosen}, "spec": a_pod_spec(restartPolicy="Never")}
    choosing = a_job("new", manualSelector=True, selector={"matchLabels": chosen}, template=template)
    yield Way(
        "Job that chooses its pods",
        Request("POST", f"{BATCH}/jobs", choosing),
        JOBS,
        Request("POST", f"{BATCH}/jobs", a_job("new", template=template)),
    )
    yield Way(
        "Job that takes the name of a later attempt",
        Request("POST", f"{BATCH}/jobs", a_job(f"{JOB}-2")),
        JOBS,
        Request("POST", f"{BATCH}/jobs", a_job("new")),
    )


def service_ways() -> Iterator[Way]:
    """Services: the hub's, those that look like the hub's, and those that let the world in."""
    create, theirs, own = f"{CORE}/services", f"{CORE}/services/{GANG}-1", f"{CORE}/services/own"
    harmless = Request("POST", create, a_service("new"))
    redirect = {"spec": {"selector": {"app": "own"}}}
    yield Way(
        "change a hub's Service",
        Request("PATCH", theirs, redirect, MERGE_PATCH),
        JOBS,
        Request("PATCH", own, redirect, MERGE_PATCH),
    )
    yield Way("delete a hub's Service", Request("DELETE", theirs), JOBS, Request("DELETE", own))
    marked = a_service("new")
    marked["metadata"]["labels"] = {"hub/job-id": JOB}
    yield Way("Service with a label of the hub", Request("POST", create, marked), JOBS, harmless)
    yield Way(
        "Service that takes the name of a later attempt",
        Request("POST", create, a_service(f"{JOB}-2")),
        JOBS,
        harmless,
    )
    yield Way(
        "Service with an external address",
        Request("POST", create, a_service("new", externalIPs=["203.0.113.9"])),
        JOBS,
        harmless,
    )
    for kind in ("NodePort", "LoadBalancer"):
        yield Way(
            f"Service of type {kind}", Request("POST", create, a_service("new", type=kind)), QUOTA, harmless
        )


# --- what keeps organizations apart ---


def isolation_ways() -> Iterator[Way]:
    """Limits, network rules, shields, and the namespace itself."""
    open_all = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "open"},
        "spec": {"podSelector": {}, "ingress": [{}], "egress": [{}], "policyTypes": ["Ingress", "Egress"]},
    }
    yield Way("network rule that allows all", Request("POST", NETWORK, open_all), ISOLATION)
    yield Way(
        "network rule of the hub is opened",
        Request("PATCH", f"{NETWORK}/hub-deny", {"spec": {"ingress": [{}]}}, MERGE_PATCH),
        ISOLATION,
    )
    yield Way("network rule of the hub is deleted", Request("DELETE", f"{NETWORK}/hub-deny"), ISOLATION)
    yield Way("all network rules are deleted", Request("DELETE", NETWORK), ISOLATION)
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "shield"},
        "spec": {"minAvailable": "100%", "selector": {}},
    }
    yield Way("shield against drains", Request("POST", BUDGETS, budget), ISOLATION)
    quota = f"{CORE}/resourcequotas"
    yield Way("quota is deleted", Request("DELETE", f"{quota}/hub-limits"), RIGHTS)
    yield Way("quota is deleted as owner", Request("DELETE", f"{quota}/hub-limits"), ISOLATION, by="owner")
    raised = {"spec": {"hard": {"services.nodeports": "9"}}}
    yield Way(
        "quota is raised", Request("PATCH", f"{quota}/hub-limits", raised, MERGE_PATCH), ISOLATION, by="owner"
    )
    used = {"status": {"used": {"services.nodeports": "0"}}}
    yield Way(
        "quota's use is told",
        Request("PATCH", f"{quota}/hub-limits/status", used, MERGE_PATCH),
        ISOLATION,
        by="owner",
    )
    none = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    yield Way("quota that stops the hub's pods", Request("POST", quota, none), ISOLATION, by="owner")
    yield Way(
        "limit that stops the hub's pods",
        Request("POST", f"{CORE}/limitranges", a_limit_range()),
        ISOLATION,
        by="owner",
    )
    own = f"/api/v1/namespaces/{FIRM}"
    for name, label, value in (
        ("pod security is lowered", "pod-security.kubernetes.io/enforce", "privileged"),
        ("the namespace leaves the hub", "hub/organization", None),
        ("the namespace becomes another firm's", "hub/organization", "other"),
    ):
        change = {"metadata": {"labels": {label: value}}}
        yield Way(name, Request("PATCH", own, change, MERGE_PATCH), NAMESPACES, by="owner")
    yield Way("pod security is lowered by the firm", Request("PATCH", own, {}, MERGE_PATCH), RIGHTS)
    yield Way("the namespace is deleted", Request("DELETE", own), NAMESPACES, by="owner")
    yield Way(
        "a namespace that is trusted but not there",
        Request("POST", "/api/v1/namespaces", a_namespace("gpu-operator", {})),
        NAMESPACES,
        Request("POST", "/api/v1/namespaces", a_namespace("own-operator", {})),
        by="prober",
    )
    yield Way(
        "a namespace that looks like the hub's",
        Request("POST", "/api/v1/namespaces", a_namespace("new", {"hub/organization": "new"})),
        NAMESPACES,
        Request("POST", "/api/v1/namespaces", a_namespace("new", {"own": "new"})),
        by="prober",
    )


def security_ways() -> Iterator[Way]:
    """Pods that reach past their sandbox."""
    unsafe: dict[str, Json] = {
        "privileged": {"containers": [a_container(securityContext={"privileged": True})]},
        "as root": {"securityContext": {"runAsUser": 0}},
        "with the node's network": {"hostNetwork": True},
        "with the node's processes": {"hostPID": True},
        "with the node's devices": {"volumes": [{"name": "dev", "hostPath": {"path": "/dev"}}]},
        "with a capability": {
            "containers": [a_container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}})],
        },
    }
    for name, spec in unsafe.items():
        offends = Request("POST", f"{CORE}/pods", a_pod("new", **spec))
        yield Way(f"pod {name}", offends, POD_SECURITY, Request("POST", f"{CORE}/pods", a_pod("new")))
    for priority in ("system-cluster-critical", "system-node-critical"):
        yield Way(
            f"pod of priority {priority}",
            Request("POST", f"{CORE}/pods", a_pod("new", priorityClassName=priority)),
            QUOTA,
            Request("POST", f"{CORE}/pods", a_pod("new")),
        )


def rights_ways() -> Iterator[Way]:
    """What no role of a namespace gives, whichever it is."""
    token: Json = {"spec": {"expirationSeconds": 600}}
    taints: Json = {"spec": {"taints": None}}
    bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    everything = {
        "metadata": {"name": "own"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "owner", "namespace": FIRM}],
    }
    tries = {
        "a token of the scheduler": Request(
            "POST", f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/scheduler/token", token
        ),
        "a token of the Job controller": Request(
            "POST", "/api/v1/namespaces/kube-system/serviceaccounts/job-controller/token", token
        ),
        "speak as the scheduler": Request(
            "POST", f"{BATCH}/jobs", a_job("new"), impersonate=f"system:serviceaccount:{SYSTEM}:scheduler"
        ),
        "speak as the Job controller": Request(
            "POST",
            f"{CORE}/pods",
            a_pod("new"),
            impersonate="system:serviceaccount:kube-system:job-controller",
        ),
        "a pod in the hub's namespace": Request("POST", f"/api/v1/namespaces/{SYSTEM}/pods", a_pod("new")),
        "a pod in a trusted namespace": Request("POST", "/api/v1/namespaces/kube-system/pods", a_pod("new")),
        "a pod in another firm's namespace": Request(
            "POST", "/api/v1/namespaces/hub-other/pods", a_pod("new")
        ),
        "read another firm's Jobs": Request("GET", "/apis/batch/v1/namespaces/hub-other/jobs"),
        "read another firm's log": Request("GET", "/api/v1/namespaces/hub-other/pods/x/log"),
        "read the hub's secrets": Request("GET", f"/api/v1/namespaces/{SYSTEM}/secrets"),
        "untaint a node": Request("PATCH", "/api/v1/nodes/sim-3", taints, MERGE_PATCH),
        "delete a node": Request("DELETE", "/api/v1/nodes/sim-3"),
        "unbind a policy": Request("DELETE", f"{bindings}/{admission.GPUS}"),
        "all rights": Request("POST", f"{RBAC}/clusterrolebindings", everything),
        "all rights in the hub's namespace": Request(
            "POST", f"{RBAC}/namespaces/{SYSTEM}/rolebindings", everything
        ),
        "more rights for the scheduler's role": Request(
            "PATCH", f"{RBAC}/clusterroles/gpuhub-scheduler", {"rules": []}, MERGE_PATCH
        ),
    }
    for name, request in tries.items():
        yield Way(name, request, RIGHTS, by="owner")
