"""The simulated cluster's reader over a stub transport: the wire's shape, and every way it can fail."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx2
import pytest

from agents.gpus.port import ReaderUnavailable
from agents.gpus.simulated import SimulatedReader
from agents.model import PastWorkload, Workload

GPU = {
    "gpu_uuid": "GPU-1",
    "gpu_class": "h100",
    "model": "NVIDIA H100 80GB HBM3",
    "memory_total_bytes": 85_899_345_920,
    "memory_used_bytes": 1024,
    "power_watts": 350.5,
    "temperature_celsius": 54,
    "workload": {"job_id": "job-1", "attempt": 2, "pod_index": 0, "since_ms": 5},
    "samples": [[10, 0.25], [20, 1]],
    "something_newer": True,
}
PAST = {"gpu_uuid": "GPU-1", "job_id": "job-0", "attempt": 1, "pod_index": 0, "since_ms": 1, "until_ms": 4}
NODE = {"now_ms": 25, "node": "sim-0", "boot_id": "b", "gpus": [GPU], "past": [PAST]}


def a_reader(answer: Callable[[httpx2.Request], httpx2.Response], token: str = "") -> SimulatedReader:
    return SimulatedReader("http://cluster/", token, transport=httpx2.MockTransport(answer))


def test_a_nodes_answer_is_read_as_it_is_written() -> None:
    seen = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append((request.url.path, request.url.params["after_ms"], request.headers["authorization"]))
        return httpx2.Response(200, json=NODE)

    reading = a_reader(answer, "secret").read("sim-0", 7)
    assert seen == [("/v1/nodes/sim-0/gpus", "7", "Bearer secret")]
    (gpu,) = reading.gpus
    assert gpu.workload == Workload("job-1", 2, 0, 5)
    assert gpu.samples == [(10, 0.25), (20, 1.0)]
    assert (gpu.memory_used_bytes, gpu.power_watts) == (1024, 350.5)
    assert reading.past == (PastWorkload("GPU-1", "job-0", 1, 0, 1, 4),)


def test_all_nodes_are_read_in_one_request_without_the_lost_ones() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/v1/gpus"
        return httpx2.Response(200, json={"now_ms": 25, "nodes": [NODE, {"node": "sim-1", "lost": True}]})

    assert [reading.node for reading in a_reader(answer).read_all(7)] == ["sim-0"]


def test_what_a_driver_does_not_know_is_none_and_not_zero() -> None:
    bare = {"gpu_uuid": "GPU-1", "gpu_class": "h100", "model": "x", "workload": None, "power_watts": None}
    (gpu,) = a_reader(lambda _: httpx2.Response(200, json={**NODE, "gpus": [bare]})).read("sim-0", 0).gpus
    assert (gpu.power_watts, gpu.memory_used_bytes, gpu.samples) == (None, None, [])


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        json.dumps({**NODE, "gpus": [{**GPU, "samples": [[10, "much"]]}]}).encode(),
        json.dumps({**NODE, "gpus": [{**GPU, "gpu_class": "Not A Class"}]}).encode(),
        json.dumps({**NODE, "gpus": [{**GPU, "samples": [[-10, 0.5]]}]}).encode(),
        json.dumps({**NODE, "gpus": [{**GPU, "samples": [[10, float("nan")]]}]}).encode(),
        json.dumps({**NODE, "past": [{**PAST, "job_id": "JOB!"}]}).encode(),
    ],
)
def test_an_answer_that_is_not_a_reading_is_refused_in_one_line(body: bytes) -> None:
    with pytest.raises(ReaderUnavailable, match="not a reading") as refusal:
        a_reader(lambda _: httpx2.Response(200, content=body)).read("sim-0", 0)
    assert "\n" not in str(refusal.value)


def test_a_lost_node_is_unavailable() -> None:
    with pytest.raises(ReaderUnavailable, match="status 503"):
        a_reader(lambda _: httpx2.Response(503)).read("sim-0", 0)


@pytest.mark.parametrize("error", [httpx2.ConnectError, httpx2.ReadTimeout, httpx2.RemoteProtocolError])
def test_trouble_on_the_way_is_unavailable(error: type[httpx2.TransportError]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        raise error("cut")

    with pytest.raises(ReaderUnavailable, match=error.__name__):
        a_reader(answer).read_all(0)
