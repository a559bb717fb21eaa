"""The kubelet's PodResources messages, decoded by hand from the protocol buffers' wire. Pure.

A runtime and generated code would take more memory than the rest of this room; nine messages of strings need neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"
"""The methods' paths; their requests are empty."""

POD_RESOURCES = {"pod_resources": 1}
ALLOCATABLE_RESOURCES = {"devices": 1}
POD = {"name": 1, "namespace": 2, "containers": 3}
CONTAINER = {"name": 1, "devices": 2, "dynamic_resources": 5}
DEVICES = {"resource_name": 1, "device_ids": 2}
CLAIM = {"claim_name": 2, "claim_namespace": 3, "claim_resources": 4}
CLAIM_DEVICE = {"driver_name": 2, "pool_name": 3, "device_name": 4}
"""The fields of `podresources.proto` by name."""

_MOST_VARINT_BYTES = 10


class Malformed(ValueError):
    """The bytes are no such message."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device that a container was given: by a device plugin's resource, or by a claim's driver."""

    resource: str
    """`nvidia.com/gpu`; of a claim its driver, `gpu.nvidia.com`."""
    id: str
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class ListedPod:
    """A pod with the devices of all its containers."""

    namespace: str
    name: str
    devices: tuple[Device, ...]


def pods_in(message: bytes) -> tuple[ListedPod, ...]:
    """The pods of a ListPodResourcesResponse, in its order. Raises Malformed."""
    return tuple(_pod(pod) for pod in _parts(message, POD_RESOURCES["pod_resources"]))


def offered_in(message: bytes) -> tuple[Device, ...]:
    """The devices of an AllocatableResourcesResponse: those that the kubelet gives to pods. Raises Malformed."""
    return tuple(
        device for given in _parts(message, ALLOCATABLE_RESOURCES["devices"]) for device in _given(given)
    )


def _pod(message: bytes) -> ListedPod:
    devices = tuple(
        device for container in _parts(message, POD["containers"]) for device in _devices(container)
    )
    return ListedPod(_text(message, POD["namespace"]), _text(message, POD["name"]), devices)


def _devices(container: bytes) -> Iterator[Device]:
    for given in _parts(container, CONTAINER["devices"]):
        yield from _given(given)
    for claim in _parts(container, CONTAINER["dynamic_resources"]):
        for device in _parts(claim, CLAIM["claim_resources"]):
            driver, name = (_text(device, CLAIM_DEVICE[field]) for field in ("driver_name", "device_name"))
            yield Device(driver, name, claimed=True)


def _given(message: bytes) -> Iterator[Device]:
    resource = _text(message, DEVICES["resource_name"])
    for device_id in _parts(message, DEVICES["device_ids"]):
        yield Device(resource, _decoded(device_id))


def _parts(message: bytes, number: int) -> list[bytes]:
    return [part for field, part in _fields(message) if field == number]


def _text(message: bytes, number: int) -> str:
    # the last one counts, as the format says
    parts = _parts(message, number)
    return _decoded(parts[-1]) if parts else ""


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a string is not UTF-8") from error


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the fields that have a length; the others are skipped."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 2:
                length, at = _varint(message, at)
                if at + length > len(message):
                    raise Malformed("a field is longer than its message")
                yield key >> 3, message[at : at + length]
                at += length
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case wire_type:
                raise Malformed(f"wire type {wire_type}")
    if at > len(message):
        raise Malformed("the message is cut short")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[at : at + _MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise Malformed("a number is cut short")
