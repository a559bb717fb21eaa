"""The kubelet's messages by Google's own compiler and runtime, which share no code with the agent's decoder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessages
from grpc_tools import protoc

PROTO = Path(__file__).with_name("kubelet.proto")


def compiled(proto: Path) -> FileDescriptorSet:
    """What protoc makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        status = protoc.main(["protoc", f"-I{proto.parent}", f"--descriptor_set_out={out}", str(proto)])
        assert status == 0, f"protoc refuses {proto}"
        return FileDescriptorSet.FromString(out.read_bytes())


@cache
def _messages() -> dict[str, Any]:
    files = list(compiled(PROTO).file)
    return dict(GetMessages(files, DescriptorPool()))


@dataclass
class FakePod:
    """A pod of the kubelet's list; `devices` are ids by resource, `claims` are (driver, device)."""

    namespace: str
    name: str
    devices: dict[str, list[str]] = field(default_factory=dict)
    claims: list[tuple[str, str]] = field(default_factory=list)


def allocatable(devices: dict[str, list[str]]) -> bytes:
    """An AllocatableResourcesResponse: one entry per device, as the kubelet makes it, with CPUs and memory."""
    answer = _messages()["v1.AllocatableResourcesResponse"]()
    answer.cpu_ids.extend(range(200))
    answer.memory.add(memory_type="memory", size=1 << 40).topology.nodes.add(ID=0)
    for resource, ids in devices.items():
        for device_id in ids:
            given = answer.devices.add(resource_name=resource, device_ids=[device_id])
            given.topology.nodes.add(ID=1)
    return bytes(answer.SerializeToString())


def response(pods: Iterable[FakePod]) -> bytes:
    """A ListPodResourcesResponse: each resource in a container of its own, with everything that the agent skips."""
    answer = _messages()["v1.ListPodResourcesResponse"]()
    for pod in pods:
        listed = answer.pod_resources.add(name=pod.name, namespace=pod.namespace)
        listed.containers.add(name="sidecar", cpu_ids=[1, 2, 300])
        for resource, ids in pod.devices.items():
            container = listed.containers.add(name="main", from_the_future=1, and_this=2)
            given = container.devices.add(resource_name=resource, device_ids=ids)
            given.topology.nodes.add(ID=1)
            memory = container.memory.add(memory_type="memory", size=1 << 40)
            memory.topology.nodes.add(ID=0)
        if pod.claims:
            claim = listed.containers.add(name="claimer").dynamic_resources.add(
                class_name="gpu", claim_name="one", claim_namespace=pod.namespace
            )
            for driver, device in pod.claims:
                made = claim.claim_resources.add(driver_name=driver, pool_name="node", device_name=device)
                made.cdi_devices.add(name=f"k8s.{driver}/device={device}")
    return bytes(answer.SerializeToString())
