"""Node specs become Node objects with NVIDIA's resources and labels."""

from __future__ import annotations

from collections import Counter

import pytest

from deploy.controlplane.gpus import MODELS, gpu_class, gpu_classes
from deploy.controlplane.nodes import is_usable, node_object, read_nodes


def test_whole_gpus() -> None:
    first, second = read_nodes(["sim-[0-1]:h100=8"])
    labels = first["metadata"]["labels"]
    assert [node["metadata"]["name"] for node in (first, second)] == ["sim-0", "sim-1"]
    assert labels["kubernetes.io/hostname"] == "sim-0"
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert labels["nvidia.com/gpu.count"] == "8"
    assert labels["nvidia.com/mig.strategy"] == "mixed"
    assert first["metadata"]["annotations"] == {"kwok.x-k8s.io/node": "fake"}
    assert first["spec"]["taints"] == [{"key": "hub/managed", "effect": "NoSchedule"}]
    assert first["status"]["capacity"]["nvidia.com/gpu"] == "8"
    assert first["status"]["allocatable"] == first["status"]["capacity"]


def test_mig_devices_have_a_resource_of_their_own() -> None:
    (node,) = read_nodes(["sim-5:h100-1g.10gb=28"])
    labels, capacity = node["metadata"]["labels"], node["status"]["capacity"]
    assert capacity["nvidia.com/mig-1g.10gb"] == "28"
    assert "nvidia.com/gpu" not in capacity
    assert labels["nvidia.com/gpu.count"] == "4"
    assert labels["nvidia.com/mig-1g.10gb.count"] == "28"
    assert labels["nvidia.com/mig-1g.10gb.product"] == "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"
    assert labels["nvidia.com/mig-1g.10gb.slices.gi"] == "1"


def test_whole_and_cut_gpus_of_one_model_share_a_node() -> None:
    node = node_object("mixed", Counter({"a100": 4, "a100-3g.40gb": 8}))
    assert node["metadata"]["labels"]["nvidia.com/gpu.count"] == "8"
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "4"
    assert node["status"]["capacity"]["nvidia.com/mig-3g.40gb"] == "8"


def test_node_has_room_for_every_gpu_with_its_cpu_and_memory() -> None:
    node = node_object("full", Counter({"h100": 8}))
    known = gpu_class("h100")
    capacity = node["status"]["capacity"]
    assert int(capacity["cpu"].removesuffix("m")) >= 8 * known.cpu_milli
    assert int(capacity["memory"].removesuffix("Mi")) >= 8 * known.memory_mib


@pytest.mark.parametrize(
    ("spec", "trouble"),
    [
        ("sim-0:tpu=8", "GPU class 'tpu' is unknown"),
        ("sim-0:h100-9g.90gb=1", "h100 has no profile '9g.90gb'"),
        ("sim-0:l40s-1g.10gb=1", "it has none"),
        ("sim-0:h100=4,a100=4", "GPUs of several models: a100, h100"),
        ("sim-0", "is not NODES.@RACK.:CLASS=COUNT"),
    ],
)
def test_impossible_nodes_are_refused(spec: str, trouble: str) -> None:
    with pytest.raises(ValueError, match=trouble):
        read_nodes([spec])


def test_resource_and_labels_tell_every_class_from_every_other() -> None:
    known = gpu_classes()
    told = {(each.resource, *sorted(each.node_labels.items())) for each in known.values()}
    assert len(told) == len(known)
    assert set(MODELS) < set(known)
    assert {"h100-1g.10gb", "h200-1g.18gb", "a100-40gb-1g.5gb"} < set(known)


def test_every_class_comes_with_cpu_and_memory_that_all_devices_of_a_gpu_can_have() -> None:
    for name, each in gpu_classes().items():
        assert each.cpu_milli > 0, name
        assert each.memory_mib > 0, name
    whole, part = gpu_class("h100"), gpu_class("h100-1g.10gb")
    assert part.cpu_milli * 7 <= whole.cpu_milli
    assert part.memory_mib * 7 <= whole.memory_mib


def test_node_is_usable_when_ready_and_free_of_kubernetes_own_taints() -> None:
    (node,) = read_nodes(["sim-0:h100=8"])
    assert not is_usable(node)
    node["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert is_usable(node)
    node["spec"]["taints"] = [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    assert not is_usable(node)


def test_a_rack_is_a_label_of_its_nodes() -> None:
    racks = [
        node["metadata"]["labels"].get("topology.kubernetes.io/rack")
        for node in read_nodes(["a-[0-1]@r1:h100=8", "b:h100=8"])
    ]
    assert racks == ["r1", "r1", None]
