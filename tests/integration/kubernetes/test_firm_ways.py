"""A firm with every right in its own namespace gets no GPU past the hub and meddles with none of its jobs."""

from __future__ import annotations

import json

import pytest

from scheduler.clusters.kubernetes.admission import ACCOUNTS, POLICIES
from tests.integration.kubernetes.firm_ways import Request, Way, all_ways
from tests.integration.kubernetes.isolated_world import FIRM, GANG, JOB, World, call_as, done

pytestmark = pytest.mark.kubernetes

WAYS = all_ways()
GUARDS = [policy for policy in POLICIES if policy != ACCOUNTS]
"""Those that keep firms out; the other bounds the hub's own accounts."""
REFUSALS = (403, 422)
ACCEPTED = (200, 201, 202)


class Firm:
    """Tries ways, as whoever they say."""

    def __init__(self, world: World) -> None:
        self._callers = {name: world.caller(FIRM, name) for name in ("firm", "owner")}
        self._callers["prober"] = world.caller("default", "prober")
        job = done(world.admin.get(f"/apis/batch/v1/namespaces/{FIRM}/jobs/{JOB}-1"))
        self._names = {
            "{pod}": world.pods_of(f"{JOB}-1")[0]["metadata"]["name"],
            "{gated}": world.pods_of(f"{GANG}-1")[0]["metadata"]["name"],
            "{own}": world.pods_of("own")[0]["metadata"]["name"],
            "{uid}": job["metadata"]["uid"],
        }

    def attempt(self, by: str, request: Request) -> tuple[int, str]:
        """Status and message of a trial."""
        path, body = request.path, json.dumps(request.body)
        for word, name in self._names.items():
            path, body = path.replace(word, name), body.replace(word, name)
        if request.method != "GET":
            path = f"{path.rstrip('?')}{'&' if '?' in path.rstrip('?') else '?'}dryRun=All"
        caller, content = self._callers[by], json.loads(body)
        if request.impersonate:
            status, reply = call_as(caller, request.impersonate, request.method, path, content)
        else:
            status, reply = caller.call(request.method, path, content, request.content)
        return status, str(reply.get("message", ""))


@pytest.fixture(scope="module")
def firm(world: World) -> Firm:
    return Firm(world)


def why_open(firm: Firm, way: Way) -> str:
    """Empty if the way is refused by whom it should be; else what happened."""
    status, message = firm.attempt(way.by, way.offends)
    is_closed = status in REFUSALS and any(by in message for by in way.refused_by)
    return "" if is_closed else f"{status}: {message}"


def test_there_are_many_ways_and_each_has_its_name() -> None:
    names = [way.name for way in WAYS]
    assert len(names) >= 40
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_way_is_closed(firm: Firm, way: Way) -> None:
    assert why_open(firm, way) == ""


HARMLESS = {
    (way.by, json.dumps([way.harmless.method, way.harmless.path, way.harmless.body])): way
    for way in WAYS
    if way.harmless is not None
}


@pytest.mark.parametrize("way", HARMLESS.values(), ids=lambda way: way.name)
def test_same_request_without_what_offends_is_accepted(firm: Firm, way: Way) -> None:
    assert way.harmless is not None
    status, message = firm.attempt(way.by, way.harmless)
    assert status in ACCEPTED, message


@pytest.mark.parametrize(
    "dropped", [POLICIES, *((policy,) for policy in GUARDS)], ids=lambda dropped: "+".join(dropped)
)
def test_check_finds_what_is_open_without_a_binding(
    world: World, firm: Firm, dropped: tuple[str, ...]
) -> None:
    guarded = [way for way in WAYS if way.refused_by <= set(dropped)]
    world.drop_bindings(*dropped)
    try:
        found = {way.name for way in guarded if why_open(firm, way)}
        tried = {way.name: firm.attempt(way.by, way.offends) for way in guarded}
    finally:
        world.set_policies()
    assert found == {way.name for way in guarded}
    assert found
    assert {name: said for name, said in tried.items() if said[0] not in ACCEPTED} == {}
