"""How `SimulatedCluster` reads answers that a healthy simulator does not give."""

from __future__ import annotations

import httpx2
import pytest

from scheduler.clusters.logs import LogRequest
from scheduler.clusters.port import ClusterUnavailable, ObjectSpec, PodPlacement, StartRefused
from scheduler.clusters.simulated import SimulatedCluster

SPEC = ObjectSpec("job-1-1", "job-1", 1, (PodPlacement(0, "n-0", "h100", 1),), 1_000, 0)


def answering(*answers: httpx2.Response, asked: list[httpx2.Request] | None = None) -> SimulatedCluster:
    """A cluster that gives these answers, one after the other."""
    rest = iter(answers)

    def handle(request: httpx2.Request) -> httpx2.Response:
        if asked is not None:
            asked.append(request)
        return next(rest)

    return SimulatedCluster("here", "http://simulator", "secret", transport=httpx2.MockTransport(handle))


def failing(trouble: type[httpx2.TransportError]) -> SimulatedCluster:
    def handle(request: httpx2.Request) -> httpx2.Response:
        raise trouble("no", request=request)

    return SimulatedCluster("here", "http://simulator", transport=httpx2.MockTransport(handle))


EVERY_CALL = [
    pytest.param(lambda cluster: cluster.observe(0), id="observe"),
    pytest.param(lambda cluster: cluster.get("job-1-1"), id="get"),
    pytest.param(lambda cluster: cluster.start(SPEC), id="start"),
    pytest.param(lambda cluster: cluster.stop(SPEC, abandoned=True), id="stop"),
    pytest.param(lambda cluster: cluster.delete("job-1-1"), id="delete"),
    pytest.param(lambda cluster: cluster.logs("job-1-1", 0, LogRequest(1)), id="logs"),
]


@pytest.mark.parametrize("call", EVERY_CALL)
@pytest.mark.parametrize(
    "trouble", [httpx2.ConnectError, httpx2.ReadTimeout, httpx2.RemoteProtocolError, httpx2.PoolTimeout]
)
def test_unanswered_call_is_unavailable(call, trouble):
    with failing(trouble) as cluster, pytest.raises(ClusterUnavailable):
        call(cluster)


@pytest.mark.parametrize("call", EVERY_CALL)
@pytest.mark.parametrize("status", [401, 500, 502, 503])
def test_answer_that_says_nothing_about_the_object_is_unavailable(call, status):
    with (
        answering(httpx2.Response(status, text="out of order")) as cluster,
        pytest.raises(ClusterUnavailable),
    ):
        call(cluster)


def test_body_that_the_cluster_cannot_read_is_a_refusal():
    invalid = httpx2.Response(422, json={"code": "invalid", "field": "pods", "detail": "none"})
    with answering(invalid) as cluster, pytest.raises(StartRefused, match="pods"):
        cluster.start(SPEC)


def test_stop_meets_an_object_that_came_in_between():
    asked: list[httpx2.Request] = []
    answers = [httpx2.Response(404), httpx2.Response(409), httpx2.Response(200)]
    with answering(*answers, asked=asked) as cluster:
        cluster.stop(SPEC, abandoned=True)
    assert [request.method for request in asked] == ["PATCH", "POST", "PATCH"]


def test_stop_of_an_object_that_comes_and_goes_is_tried_again_later():
    answers = [httpx2.Response(404), httpx2.Response(409), httpx2.Response(404)]
    with answering(*answers) as cluster, pytest.raises(ClusterUnavailable, match="ask again"):
        cluster.stop(SPEC, abandoned=True)


def test_token_goes_with_every_call():
    asked: list[httpx2.Request] = []
    with answering(httpx2.Response(404), asked=asked) as cluster:
        cluster.get("job-1-1")
    assert asked[0].headers["authorization"] == "Bearer secret"


def test_hash_ignores_order_and_limits_and_nothing_else():
    spec = ObjectSpec(
        "job-1-1", "job-1", 1, (PodPlacement(0, "a", "h100", 1), PodPlacement(1, "b", "h100", 1)), 1_000, 10
    )
    same = ObjectSpec("job-1-1", "job-1", 1, tuple(reversed(spec.pods)), 9_000, 99)
    assert spec.spec_hash() == same.spec_hash()
    others = [
        ObjectSpec("job-1-1", "job-1", 1, spec.pods[:1], 1_000, 10),
        ObjectSpec("job-1-1", "job-1", 1, spec.pods, 1_000, 10, image="another"),
        ObjectSpec("job-1-1", "job-1", 1, spec.pods, 1_000, 10, command=("sh",)),
        ObjectSpec("job-1-1", "job-1", 1, spec.pods, 1_000, 10, annotations=(("a", "b"),)),
        ObjectSpec("job-1-2", "job-1", 2, spec.pods, 1_000, 10),
    ]
    assert len({thing.spec_hash() for thing in [spec, *others]}) == 6
