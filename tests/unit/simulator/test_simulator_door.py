"""The door's own manners: bodies, codes, the token, long polls and faults that need no real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import httpx2
import pytest

from quota.clock import Clock, wall_ms
from scheduler.simulator.door import create_app
from scheduler.simulator.events import event_of
from scheduler.simulator.fleet import read_fleet
from scheduler.simulator.journal import Journal
from scheduler.simulator.model import Model
from scheduler.simulator.readings import Readings
from scheduler.simulator.simulation import Simulation
from scheduler.simulator.view import nodes_view

T = TypeVar("T")


def crashed(reason: str) -> NoReturn:
    raise AssertionError(reason)


@pytest.fixture
def simulation(tmp_path):
    journal = Journal(tmp_path)
    simulation = Simulation(Model(6_000_000), journal, Clock(10**12, wall_ms(), 1), crashed)
    simulation.add_fleet(read_fleet(["n-[0-1]:h100=4"]))
    yield simulation
    journal.close()


def test_a_node_tells_its_rack_and_keeps_it_over_a_restart(tmp_path):
    journal = Journal(tmp_path)
    simulation = Simulation(Model(6_000_000), journal, Clock(10**12, wall_ms(), 1), crashed)
    simulation.add_fleet(read_fleet(["n-[0-1]:h100=4"]), {"n-1": "r1"})
    journal.close()
    again = Model(6_000_000)
    journal = Journal(tmp_path)
    again.replay(journal.read())
    journal.close()
    for model in (simulation.model, again):
        told = nodes_view(model, 10**12)["nodes"]
        assert [(node["node"], node["rack"]) for node in told] == [("n-0", ""), ("n-1", "r1")]


def test_a_journal_from_before_racks_is_read():
    line = '{"t":1,"n":1,"event":"node_added","node":"n-0","gpus":[]}'
    assert event_of(line)[1].rack == ""


@pytest.fixture
def app(simulation):
    return create_app(simulation, Readings(10_000), token="", speedy=True)


def visit(app, visitor: Callable[[httpx2.AsyncClient], Awaitable[T]]) -> T:
    async def come_and_go() -> T:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://door") as client:
            return await visitor(client)

    return asyncio.run(come_and_go())


def ask(app, method: str, path: str, body: object = None, **more) -> httpx2.Response:
    return visit(app, lambda client: client.request(method, path, json=body, **more))


def a_body(**changes: object) -> dict[str, object]:
    body: dict[str, object] = {
        "name": "job-1-1",
        "job_id": "job-1",
        "attempt": 1,
        "spec_hash": "aa",
        "walltime_ms": 3_600_000,
        "grace_ms": 30_000,
        "pods": [{"index": 0, "node": "n-0", "gpu_class": "h100", "count": 1}],
    }
    return body | changes


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"attempt": True}, "attempt"),
        ({"attempt": 1.0}, "attempt"),
        ({"attempt": "1"}, "attempt"),
        ({"walltime_ms": 0}, "walltime_ms"),
        ({"grace_ms": -1}, "grace_ms"),
        ({"suspend": 1}, "suspend"),
        ({"color": "red"}, "color"),
        ({"name": "job-1-2"}, "name"),
        ({"name": "../x-1", "job_id": "../x"}, "name"),
        ({"pods": []}, "pods"),
        ({"pods": [{"index": 0, "node": "n-0", "gpu_class": "h100", "count": 0}]}, "pods.0.count"),
        ({"pods": [{"index": 0, "node": "n-0", "gpu_class": "h100"}]}, "pods.0.count"),
        ({"pods": [{"index": 0, "node": "n-0", "gpu_class": "h100", "count": 1}] * 2}, "pods"),
        ({"abandoned": True}, "abandoned"),
        ({"annotations": {"simulate.gpuhub/load": "much"}}, "annotations.simulate.gpuhub/load"),
        ({"annotations": {"simulate.gpuhub/duration_s": 5}}, "annotations.simulate.gpuhub/duration_s"),
    ],
)
def test_malformed_object_is_refused_and_the_field_named(app, simulation, changes, field):
    answer = ask(app, "POST", "/v1/objects", a_body(**changes))
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid"
    assert answer.json()["field"] == field
    assert not simulation.model.objects


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"fault": "boredom"}, "body"),
        ({"fault": "fail_pod", "name": "job-1-1"}, "pod_index"),
        ({"fault": "lose_node", "node": "n-0", "silent_ms": 1.5}, "silent_ms"),
        ({"fault": "answer_late", "delay_s": 1, "path": "window"}, "path"),
        ({"fault": "answer_late", "delay_s": True}, "delay_s"),
        ({"fault": "forget_reply", "count": 0}, "count"),
        ({"fault": "foreign", "node": "n-0", "gpu_class": "h100", "count": 5}, "count"),
    ],
)
def test_malformed_fault_is_refused_and_the_field_named(app, fault, field):
    answer = ask(app, "POST", "/v1/faults", fault)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/objects/job-9-1", None, 404, "unknown_object"),
        ("DELETE", "/v1/objects/job-9-1", None, 404, "unknown_object"),
        ("PATCH", "/v1/objects/job-9-1", {"suspend": True, "grace_ms": 0}, 404, "unknown_object"),
        ("PATCH", "/v1/objects/job-9-1", {"suspend": False, "grace_ms": 0}, 422, "invalid"),
        ("GET", "/v1/nodes/n-9/gpus", None, 404, "unknown_node"),
        ("GET", "/v1/objects?after=-1", None, 422, "invalid"),
        ("GET", "/v1/objects?wait_s=nan", None, 422, "invalid"),
        ("POST", "/v1/faults", {"fault": "lose_node", "node": "n-9"}, 404, "unknown_node"),
        (
            "POST",
            "/v1/faults",
            {"fault": "fail_pod", "name": "job-9-1", "pod_index": 0},
            404,
            "unknown_object",
        ),
    ],
)
def test_refusal_has_a_stable_code(app, method, path, body, status, code):
    answer = ask(app, method, path, body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_taken_name_is_answered_with_the_object(app):
    created = ask(app, "POST", "/v1/objects", a_body())
    again = ask(app, "POST", "/v1/objects", a_body(spec_hash="bb"))
    assert (created.status_code, again.status_code) == (201, 409)
    assert again.json()["code"] == "already_exists"
    assert again.json()["object"] == created.json()


def test_door_with_a_token_lets_only_its_bearer_in(simulation):
    app = create_app(simulation, Readings(10_000), token="open sesame", speedy=True)
    statuses = [
        ask(app, "GET", "/v1/nodes", headers=headers).status_code
        for headers in ({}, {"authorization": "Bearer sesame"}, {"authorization": "Bearer open sesame"})
    ]
    assert statuses == [401, 401, 200]
    assert ask(app, "GET", "/-/healthy").json()["status"] == "ok"


def test_lost_node_does_not_answer_its_agent(app):
    ask(app, "POST", "/v1/faults", {"fault": "lose_node", "node": "n-0", "silent_ms": 0})
    answer = ask(app, "GET", "/v1/nodes/n-0/gpus")
    assert (answer.status_code, answer.json()["code"]) == (503, "node_lost")
    fleet = ask(app, "GET", "/v1/gpus?after_ms=0").json()
    assert fleet["nodes"][0] == {"node": "n-0", "lost": True}
    assert ask(app, "GET", "/v1/faults").json()["faults"] == [{"fault": "lose_node", "node": "n-0"}]


def test_planted_faults_are_listed_counted_down_and_cleared(app):
    ask(app, "POST", "/v1/faults", {"fault": "refuse_start", "count": 2})
    refused = ask(app, "POST", "/v1/objects", a_body())
    assert (refused.status_code, refused.json()["code"]) == (503, "start_refused")
    assert [fault["count"] for fault in ask(app, "GET", "/v1/faults").json()["faults"]] == [1]
    assert ask(app, "DELETE", "/v1/faults").json()["faults"] == []
    assert ask(app, "POST", "/v1/objects", a_body()).status_code == 201


def test_fault_of_one_path_leaves_the_others_alone(app):
    ask(app, "POST", "/v1/faults", {"fault": "answer_late", "delay_s": 0.001, "count": 1, "path": "nodes"})
    ask(app, "GET", "/v1/objects")
    assert len(ask(app, "GET", "/v1/faults").json()["faults"]) == 1
    assert ask(app, "GET", "/v1/nodes").status_code == 200
    assert ask(app, "GET", "/v1/faults").json()["faults"] == []


def test_hundred_long_polls_wake_at_a_change_and_see_it(app):
    async def poll_and_create(client: httpx2.AsyncClient) -> list[httpx2.Response]:
        version = (await client.get("/v1/objects")).json()["version"]
        polls = [
            asyncio.create_task(client.get("/v1/objects", params={"after": version, "wait_s": 60}))
            for _ in range(100)
        ]
        await asyncio.sleep(0)
        await client.post("/v1/objects", json=a_body())
        return await asyncio.gather(*polls)

    answers = visit(app, poll_and_create)
    assert all([thing["name"] for thing in answer.json()["objects"]] == ["job-1-1"] for answer in answers)


def test_command_is_later_than_every_watermark_answered_before(app):
    async def race(client: httpx2.AsyncClient) -> list[tuple[int, int]]:
        found = []
        for attempt in range(30):
            watermark_ms = (await client.get("/v1/objects", params={"after": 10**6})).json()["now_ms"]
            body = a_body(name=f"job-1-{attempt}", attempt=attempt)
            found.append((watermark_ms, (await client.post("/v1/objects", json=body)).json()["created_ms"]))
        return found

    assert all(watermark_ms < created_ms for watermark_ms, created_ms in visit(app, race))


def test_object_created_suspended_is_a_tombstone_without_pods(app):
    tombstone = ask(app, "POST", "/v1/objects", a_body(suspend=True, abandoned=True)).json()
    assert (tombstone["phase"], tombstone["pods"], tombstone["abandoned"]) == ("ended", [], True)


def test_journal_that_cannot_be_written_ends_the_process(app, simulation, monkeypatch):
    def full(events: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append", lambda journal, events: full(events))
    with pytest.raises(AssertionError, match="No space left"):
        ask(app, "POST", "/v1/objects", a_body())
