"""The decoder against Google's own encoder, and against the .proto file that describes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.pods import podresources
from agents.pods.podresources import Device, ListedPod, Malformed, offered_in, pods_in
from tests.fakekubelet.messages import FakePod, allocatable, compiled, response

PROTO = Path(podresources.__file__).with_name("podresources.proto")
READ = {
    "AllocatableResourcesResponse": podresources.ALLOCATABLE_RESOURCES,
    "ListPodResourcesResponse": podresources.POD_RESOURCES,
    "PodResources": podresources.POD,
    "ContainerResources": podresources.CONTAINER,
    "ContainerDevices": podresources.DEVICES,
    "DynamicResource": podresources.CLAIM,
    "ClaimResource": podresources.CLAIM_DEVICE,
}


def test_numbers_are_those_of_the_proto_file() -> None:
    (file,) = compiled(PROTO).file
    written = {
        message.name: {field.name: field.number for field in message.field} for message in file.message_type
    }
    assert {name: fields for name, fields in written.items() if fields} == READ
    (service,) = file.service
    assert [f"/{file.package}.{service.name}/{method.name}" for method in service.method] == [
        podresources.LIST,
        podresources.ALLOCATABLE,
    ]


def test_devices_of_all_containers_and_claims_are_read_and_the_rest_is_passed_over() -> None:
    pods = [
        FakePod("hub-acme", "job-a-1-0-abcde", {"nvidia.com/gpu": ["GPU-1", "GPU-2"], "x/y": ["z"]}),
        FakePod("kube-system", "한글", {}, [("gpu.nvidia.com", "gpu-0")]),
        FakePod("default", "none"),
    ]
    assert pods_in(response(pods)) == (
        ListedPod(
            "hub-acme",
            "job-a-1-0-abcde",
            (Device("nvidia.com/gpu", "GPU-1"), Device("nvidia.com/gpu", "GPU-2"), Device("x/y", "z")),
        ),
        ListedPod("kube-system", "한글", (Device("gpu.nvidia.com", "gpu-0", claimed=True),)),
        ListedPod("default", "none", ()),
    )


def test_what_is_offered_is_read_and_cpus_and_memory_are_passed_over() -> None:
    offered = {"nvidia.com/gpu": ["GPU-1", "GPU-2::0"], "nvidia.com/mig-1g.10gb": ["MIG-1"]}
    assert offered_in(allocatable(offered)) == tuple(
        Device(resource, each) for resource, ids in offered.items() for each in ids
    )


def test_an_empty_list_is_a_list() -> None:
    assert pods_in(b"") == ()
    assert offered_in(b"") == ()


@pytest.mark.parametrize("times", [1, 3])
def test_whatever_is_cut_short_is_refused_or_a_shorter_list(times: int) -> None:
    whole = response([FakePod("hub-acme", f"job-{n}-1-0-abcde", {"r": ["GPU-1"]}) for n in range(times)])
    read = 0
    for length in range(len(whole)):
        try:
            assert len(pods_in(whole[:length])) < times
            read += 1
        except Malformed:
            continue
    assert read == times


@pytest.mark.parametrize(
    "wrong", [b"\x0b", b"\x0a\x05a", b"\xff" * 11, b"\x0a\x04\x0a\x02\xff\xfe", b"\x09\x00", b"\x0d\x00\x00"]
)
def test_nonsense_is_refused(wrong: bytes) -> None:
    with pytest.raises(Malformed):
        pods_in(wrong)
    with pytest.raises(Malformed):
        offered_in(wrong)
