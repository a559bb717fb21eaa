"""From an attempt to the objects that run it, and to the tombstone that refuses it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.api import Json, JsonPatch
from scheduler.clusters.kubernetes.settings import ClassForm, KubernetesSettings
from scheduler.clusters.port import ObjectSpec, PodPlacement

START_LIMIT_S = 600
"""How long a gang may take to start (images are pulled in it); the scheduler gives up first."""
NET_S = 60
"""How much later than every other limit the cluster's own one comes."""
KEPT_S = 7 * 24 * 3600
"""When the cluster forgets an ended Job if the scheduler never did: it keeps each for a day after its end."""
MASTER_PORT = 29_500
"""Where the first pod of a gang listens: torchrun's own default."""
LONGEST_NAME = 52
"""So that the longest pod name of a gang, with its index and random letters, is still a DNS label."""


_NOTICE: Json = {
    "name": "hub",
    "downwardAPI": {
        "items": [
            {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{key}']"}}
            for path, key in (("stop-at", names.STOP_AT), ("stop-reason", names.STOP_REASON))
        ]
    },
}
"""Files that are empty until the job is told that it will be stopped; the kubelet fills them within a minute or so."""


class Unstartable(ValueError):
    """This cluster cannot run such an attempt; the text says why."""


class Pinning(Enum):
    """How pods are kept to the nodes that the plan chose for them."""

    SELECTOR = auto()
    """One pod, or all on one node: the node's name stands in the template."""
    WHOLE_NODES = auto()
    """Every pod fills a node, so the template lists the nodes and no node can take two."""
    GATES = auto()
    """Pods wait behind a gate until each has been told its own node."""


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What pinning has to know of a node."""

    hostname: str
    totals: Mapping[str, int]
    """All GPUs of each class on it."""


def pinning_of(spec: ObjectSpec, nodes: Mapping[str, NodeShape]) -> Pinning:
    """The cheapest way that is sure: one write, unless pods of a gang share nodes with others."""
    if len({pod.node for pod in spec.pods}) == 1:
        return Pinning.SELECTOR
    shapes = [nodes.get(pod.node) for pod in spec.pods]
    full = all(
        shape is not None and shape.totals.get(pod.gpu_class) == pod.count
        for pod, shape in zip(spec.pods, shapes, strict=True)
    )
    alike = len({(pod.gpu_class, pod.count) for pod in spec.pods}) == 1
    distinct = len({pod.node for pod in spec.pods}) == len(spec.pods)
    return Pinning.WHOLE_NODES if full and alike and distinct else Pinning.GATES


def job_of(spec: ObjectSpec, settings: KubernetesSettings, nodes: Mapping[str, NodeShape]) -> Json:
    """The Job that runs an attempt where the plan put it. Raises Unstartable."""
    if len(spec.name) > LONGEST_NAME:
        raise Unstartable(f"the name {spec.name} has more than {LONGEST_NAME} letters")
    image = spec.image or settings.default_image
    if not image:
        raise Unstartable("the job names no image, and the cluster's configuration no default_image")
    return _job(
        spec,
        settings,
        suspend=False,
        marks={},
        pod=_pod(spec, settings, image, pinning_of(spec, nodes), nodes),
    )


def tombstone_of(spec: ObjectSpec, settings: KubernetesSettings, namespace: str) -> Json:
    """The suspended Job that takes an attempt's name, so that a late start finds it taken."""
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [{"name": names.CONTAINER, "image": "none.invalid/tombstone"}],
    }
    tombstone = _job(spec, settings, suspend=True, marks={names.TOMBSTONE: "true"}, pod=pod)
    tombstone["metadata"]["namespace"] = namespace
    tombstone["metadata"]["labels"][names.ABANDONED] = "true"
    return tombstone


def service_of(spec: ObjectSpec, settings: KubernetesSettings) -> Json | None:
    """The headless Service under which the pods of a gang find each other; None for a single pod."""
    if len(spec.pods) == 1:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": spec.name,
            "namespace": names.namespace_of(settings.namespace_prefix, spec.organization_id),
            "labels": _labels(spec),
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.JOB_NAME: spec.name},
            "ports": [{"name": "rendezvous", "port": MASTER_PORT}],
        },
    }


def gate_patch(placement: PodPlacement, shape: NodeShape | None) -> JsonPatch:
    """Tells a waiting pod its node and opens its gate, both or neither."""
    hostname = placement.node if shape is None else shape.hostname
    return [
        {"op": "test", "path": "/spec/schedulingGates/0/name", "value": names.PLACEMENT},
        {"op": "add", "path": "/spec/nodeSelector", "value": {names.HOSTNAME: hostname}},
        {"op": "remove", "path": "/spec/schedulingGates/0"},
    ]


def deadline_s(walltime_ms: int, grace_ms: int) -> int:
    """The cluster's own limit, counted from the Job's start: later than all that the scheduler does itself."""
    return START_LIMIT_S + _seconds(walltime_ms) + _seconds(grace_ms) + NET_S


def extension_of(walltime_ms: int, grace_ms: int) -> Json:
    """The merge patch that moves the net when an attempt was given more time."""
    return {
        "metadata": {"annotations": {names.WALLTIME_MS: str(walltime_ms)}},
        "spec": {"activeDeadlineSeconds": deadline_s(walltime_ms, grace_ms)},
    }


def placement_text(pods: tuple[PodPlacement, ...]) -> str:
    """Where the pods belong, as the Job remembers it."""
    return json.dumps([[pod.index, pod.node, pod.gpu_class, pod.count] for pod in pods])


def _job(
    spec: ObjectSpec, settings: KubernetesSettings, *, suspend: bool, marks: dict[str, str], pod: Json
) -> Json:
    count = max(1, len(spec.pods))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": spec.name,
            "namespace": names.namespace_of(settings.namespace_prefix, spec.organization_id),
            "labels": _labels(spec),
            "annotations": {
                **marks,
                names.SPEC_HASH: spec.spec_hash(),
                names.PLACEMENT: placement_text(spec.pods),
                names.WALLTIME_MS: str(spec.walltime_ms),
                names.GRACE_MS: str(spec.grace_ms),
            },
        },
        "spec": {
            "suspend": suspend,
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": count,
            # an attempt is one run: what comes after a failure is the hub's next attempt
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}]
            },
            "activeDeadlineSeconds": deadline_s(spec.walltime_ms, spec.grace_ms),
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {
                "metadata": {"labels": _labels(spec), "annotations": _annotations(spec, settings)},
                "spec": pod,
            },
        },
    }


def _labels(spec: ObjectSpec) -> dict[str, str]:
    classes = {pod.gpu_class for pod in spec.pods}
    return {
        names.JOB_ID: spec.job_id,
        names.ATTEMPT: str(spec.attempt),
        names.ORGANIZATION: spec.organization_id,
        **({names.GPU_CLASS: classes.pop()} if len(classes) == 1 else {}),
    }


def _annotations(spec: ObjectSpec, settings: KubernetesSettings) -> dict[str, str]:
    return {key: text for key, text in spec.annotations if key.startswith(settings.annotation_prefixes)}


def _pod(
    spec: ObjectSpec,
    settings: KubernetesSettings,
    image: str,
    pinning: Pinning,
    nodes: Mapping[str, NodeShape],
) -> Json:
    first = spec.pods[0]
    if len({(pod.gpu_class, pod.count) for pod in spec.pods}) > 1:
        raise Unstartable("the pods of one Job are alike: same class, same number of GPUs")
    form = settings.classes.get(first.gpu_class)
    if form is None:
        known = ", ".join(sorted(settings.classes))
        raise Unstartable(f"the cluster's configuration has no class {first.gpu_class}; it has {known}")
    pod: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _seconds(spec.grace_ms),
        "tolerations": [{"key": names.MANAGED_TAINT, "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user_id,
            "runAsGroup": settings.user_id,
            "fsGroup": settings.user_id,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, image, form)],
        "volumes": [_NOTICE],
    }
    if settings.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.image_pull_secret}]
    if len(spec.pods) > 1:
        pod["subdomain"] = spec.name
    return pod | _pinned(spec, pinning, nodes)


def _pinned(spec: ObjectSpec, pinning: Pinning, nodes: Mapping[str, NodeShape]) -> Json:
    hostnames = [nodes[pod.node].hostname if pod.node in nodes else pod.node for pod in spec.pods]
    match pinning:
        case Pinning.SELECTOR:
            return {"nodeSelector": {names.HOSTNAME: hostnames[0]}}
        case Pinning.WHOLE_NODES:
            one_of = {"key": names.HOSTNAME, "operator": "In", "values": sorted(hostnames)}
            required = {"nodeSelectorTerms": [{"matchExpressions": [one_of]}]}
            return {
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
            }
        case Pinning.GATES:
            return {"schedulingGates": [{"name": names.PLACEMENT}]}


def _container(spec: ObjectSpec, image: str, form: ClassForm) -> Json:
    count = spec.pods[0].count
    bundle = {
        form.resource: str(count),
        "cpu": f"{form.cpu_milli * count}m",
        "memory": f"{form.memory_mib * count}Mi",
    }
    container: Json = {
        "name": names.CONTAINER,
        "image": image,
        "env": _environment(spec),
        "resources": {"requests": bundle, "limits": bundle},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": _NOTICE["name"], "mountPath": names.NOTICE_FOLDER, "readOnly": True}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if spec.command:
        container["command"] = list(spec.command)
    return container


def _environment(spec: ObjectSpec) -> list[Json]:
    """The job's own variables, and those of the rendezvous that it does not set itself."""
    own = {key for key, _ in spec.environment}
    ours = [variable for variable in _rendezvous(spec) if variable["name"] not in own]
    return [*ours, *({"name": key, "value": text} for key, text in spec.environment)]


def _rendezvous(spec: ObjectSpec) -> list[Json]:
    """What torchrun (`PET_*`) and plain launchers read."""
    pods, gpus = len(spec.pods), spec.pods[0].count
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{names.COMPLETION_INDEX}']"}}
    known: dict[str, str] = {
        "HUB_JOB_ID": spec.job_id,
        "HUB_ATTEMPT": str(spec.attempt),
        "NNODES": str(pods),
        "NPROC_PER_NODE": str(gpus),
        "WORLD_SIZE": str(pods * gpus),
    }
    if pods > 1:
        known["MASTER_ADDR"] = f"{spec.name}-0.{spec.name}"
        known["MASTER_PORT"] = str(MASTER_PORT)
    torchrun = {
        f"PET_{word}": known[word]
        for word in ("NNODES", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT")
        if word in known
    }
    return [
        *({"name": name, "value": text} for name, text in (known | torchrun).items()),
        {"name": "NODE_RANK", "valueFrom": index},
        {"name": "PET_NODE_RANK", "valueFrom": index},
    ]


def _seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)
