"""The Node objects that kwok plays, from the same texts that the simulated cluster's nodes are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from deploy.controlplane.api import STRATEGIC_PATCH, Api
from deploy.controlplane.gpus import MODELS, PRODUCT, gpu_class, mig_resource, split_class
from scheduler.simulator.fleet import read_fleet, read_racks

TAINT = {"key": "hub/managed", "effect": "NoSchedule"}
KWOK = {"kwok.x-k8s.io/node": "fake"}
KUBELET = "simulate.gpuhub/kubelet"
ALIVE = "alive"
"""kwok plays the nodes with this label only: one that loses it is no longer heard of, as when a machine dies."""

PODS_PER_NODE = 110
SPARE_CPU_MILLI = 2_000
SPARE_MEMORY_MIB = 8_192
"""What a node has beyond its GPUs' parts, for pods that every node runs."""

Node = dict[str, Any]
RACK = "topology.kubernetes.io/rack"
"""The label by which a cluster's configuration finds racks unless it names another."""


class NodeTrouble(Exception):
    """The API server refused a node."""


def read_nodes(specs: Sequence[str]) -> list[Node]:
    """Node objects from texts like `sim-[0-3]:h100=8` or `sim-5:h100-1g.10gb=28`. Raises ValueError."""
    racks = read_racks(specs)
    return [
        node_object(name, Counter(gpu.gpu_class for gpu in gpus), racks.get(name))
        for name, gpus in read_fleet(specs).items()
    ]


def node_object(name: str, gpus: Counter[str], rack: str | None = None) -> Node:
    """A node with so many GPUs of each class. Raises ValueError."""
    resources = _resources(gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": KWOK,
            "labels": {
                KUBELET: ALIVE,
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **({} if rack is None else {RACK: rack}),
                **_gpu_labels(name, gpus),
            },
        },
        "spec": {"taints": [TAINT]},
        "status": {"capacity": resources, "allocatable": resources},
    }


def _resources(gpus: Counter[str]) -> dict[str, str]:
    classes = [(gpu_class(name), count) for name, count in gpus.items()]
    cpu_milli = SPARE_CPU_MILLI + sum(known.cpu_milli * count for known, count in classes)
    memory_mib = SPARE_MEMORY_MIB + sum(known.memory_mib * count for known, count in classes)
    return {
        "cpu": f"{cpu_milli}m",
        "memory": f"{memory_mib}Mi",
        "pods": str(PODS_PER_NODE),
        **{known.resource: str(count) for known, count in classes},
    }


def _gpu_labels(name: str, gpus: Counter[str]) -> dict[str, str]:
    """What GPU feature discovery would say of the node."""
    cuts = {split_class(gpu): count for gpu, count in gpus.items()}
    models = {whole for whole, _ in cuts}
    if len(models) > 1:
        raise ValueError(f"node {name!r} has GPUs of several models: {', '.join(sorted(models))}")
    (model_name,) = models
    model = MODELS[model_name]
    physical = sum(
        count if not cut else -(-count // model.profiles[cut].per_gpu) for (_, cut), count in cuts.items()
    )
    major, _, minor = model.compute.partition(".")
    labels = {
        "nvidia.com/gpu.present": "true",
        PRODUCT: model.product,
        "nvidia.com/gpu.family": model.family,
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
        "nvidia.com/gpu.memory": str(model.memory_mib),
        "nvidia.com/gpu.count": str(physical),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/mig.capable": str(bool(model.profiles)).lower(),
        "nvidia.com/mig.strategy": "mixed",
    }
    for (_, cut), count in cuts.items():
        if not cut:
            continue
        profile, prefix = model.profiles[cut], mig_resource(cut)
        labels |= {
            f"{prefix}.count": str(count),
            f"{prefix}.memory": str(profile.memory_gib * 1024),
            f"{prefix}.product": f"{model.product}-MIG-{cut}",
            f"{prefix}.replicas": "1",
            f"{prefix}.slices.gi": str(profile.slices),
            f"{prefix}.slices.ci": str(profile.slices),
        }
    return labels


def ensure_nodes(api: Api, nodes: Sequence[Node]) -> None:
    """Make the nodes, or bring those that exist into this shape. Raises NodeTrouble."""
    for node in nodes:
        name = node["metadata"]["name"]
        status, reply = api.post("/api/v1/nodes", node)
        if status == 409:
            status, reply = _change(api, node)
        if status not in (200, 201):
            raise NodeTrouble(f"node {name!r} was refused ({status}): {reply.get('message')}")


def _change(api: Api, node: Node) -> tuple[int, dict[str, Any]]:
    path = f"/api/v1/nodes/{node['metadata']['name']}"
    status, reply = api.patch(path, {key: node[key] for key in ("metadata", "spec")}, STRATEGIC_PATCH)
    if status != 200:
        return status, reply
    # A resource that the node no longer has must go, so the lists are replaced as a whole.
    resources = {kind: {"$patch": "replace", **found} for kind, found in node["status"].items()}
    return api.patch(f"{path}/status", {"status": resources}, STRATEGIC_PATCH)


def set_kubelet(api: Api, name: str, is_alive: bool) -> None:
    """Let a node be heard of, or not. Raises NodeTrouble."""
    labels = {KUBELET: ALIVE if is_alive else None}
    status, reply = api.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}})
    if status != 200:
        raise NodeTrouble(f"node {name!r} could not be changed ({status}): {reply.get('message')}")


def is_usable(node: Node) -> bool:
    """Whether the node is ready and Kubernetes has taken away the taint of a new one."""
    conditions = {
        condition["type"]: condition["status"] for condition in node["status"].get("conditions", [])
    }
    taints = {taint["key"] for taint in node["spec"].get("taints", [])}
    return conditions.get("Ready") == "True" and not any(
        key.startswith("node.kubernetes.io/") for key in taints
    )
