"""Why a job waits, in the language that is asked for, without a word about others. Both databases."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from quota.schemas.scheduling import WaitReason
from quota.wording.waits import WAITS
from tests.builders import GPU_HOUR_US, ended
from tests.integration.quota.limits_builders import path
from tests.integration.quota.tenant_world import FIRMS, World, a_world, rank

HANGUL = re.compile(r"[가-힣]")
OTHERS = [firm for firm in FIRMS if firm != "alpha"]


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


@pytest.fixture(scope="module", name="waiting")
def _waiting(shared_database_url: str) -> Iterator[World]:
    """A world in which gamma only waits; every test says anew why, and none changes anything else."""
    with a_world(shared_database_url) as made:
        made.hub.finish(made.jobs["gamma"])
        yield made


_cycles = itertools.count(1)


def _read(world: World, caller: str, job_id: str, language: str = "en") -> dict[str, Any]:
    answer = world.ask(caller, "GET", f"/v1/jobs/{job_id}", headers={"Accept-Language": language})
    assert answer.status_code == 200
    assert answer.headers["Content-Language"] == language
    assert "Accept-Language" in answer.headers["Vary"]
    found: dict[str, Any] = answer.json()
    listed = world.ask(caller, "GET", "/v1/jobs", headers={"Accept-Language": language})
    assert listed.headers["Content-Language"] == language
    (same,) = [item for item in listed.json()["items"] if item["id"] == job_id]
    assert {key: found[key] for key in same} == same
    return found


def _others_numbers(world: World, code: WaitReason) -> dict[str, int | str]:
    """Every number that this reason may have; whatever names somebody names beta, its grant or its job."""
    consortium = world.grants["consortium"]
    named: dict[str, int | str] = {
        "organization": "beta",
        "job": world.jobs["beta"].id,
        "ending_job": world.jobs["gamma"].id,
        "grant": consortium.id,
        "account": path(consortium, "gamma", 1)[0],
        "gpu_class": "h100",
        "what": "cluster",
        "name": "sim",
        "cluster": "sim",
        "code": "capacity_taken",
        "needed_gpu_us": 7 * GPU_HOUR_US,
        "left_gpu_us": 5 * GPU_HOUR_US + 1234,
        "lag_thousandths": 314,
        "in_use": 13,
    }
    sent = {
        name: named.get(name, world.hub.now + 7_200_000 if name.endswith("_ms") else 2)
        for name in WAITS[code].numbers
    }
    return {name: str(value) if name.endswith("_gpu_us") else value for name, value in sent.items()}


@pytest.mark.parametrize("code", WaitReason)
def test_no_reason_tells_a_tenant_of_others(waiting: World, code: WaitReason) -> None:
    """gamma asks: a party of alpha's grant, so even the grant's sums are not its own."""
    world, job = waiting, waiting.jobs["gamma/waiting"].id
    numbers = _others_numbers(world, code)
    numbers |= {"ending_job": world.jobs["delta"].id} if "ending_job" in numbers else {}
    if "account" in numbers:
        numbers["account"] = path(world.grants["consortium"], "delta", 1)[0]
    rank(
        world,
        {world.jobs["beta/waiting"].id: {"code": "new"}, job: {"code": code.value, "numbers": numbers}},
        next(_cycles),
    )
    secrets = {
        *("beta", "Beta", "delta", "Delta", "31.4", "5.000001", "5.00", " 13 "),
        *(found.id for name, found in world.jobs.items() if not name.startswith("gamma")),
        world.grants["beta"].id,
    }
    for language in ("en", "ko"):
        told = _read(world, "gamma", job, language)
        assert told["waiting"]["code"] == code.value, "it is told what was said for this test"
        text = json.dumps(told, ensure_ascii=False)
        assert told["waiting_text"]
        assert bool(HANGUL.search(told["waiting_text"])) is (language == "ko")
        for secret in secrets:
            assert secret not in text, f"{code} tells {secret}: {told['waiting_text']}"


def test_an_operator_is_told_names_for_all_of_it(world: World) -> None:
    job = world.jobs["gamma/waiting"].id
    behind = _others_numbers(world, WaitReason.BEHIND_IN_ORDER)
    del behind["waiting"], behind["other_classes"]
    rank(world, {job: {"code": "behind_in_order", "numbers": behind}}, 1)
    told = _read(world, "operator", job)["waiting_text"]
    name = world.ask("operator", "GET", "/v1/organizations/beta").json()["name"]
    assert told == (
        f"{world.jobs['beta'].id} of {name} went first and took the room, as the 2nd start of that cycle; "
        f"{name} is 31.4 % of its grant's term behind pace"
    )
    korean = _read(world, "operator", job, "ko")["waiting_text"]
    assert "31.4%만큼" in korean
    assert name in korean


def test_a_tenant_is_told_of_its_own_jobs_and_its_own_pace(world: World) -> None:
    own, job = world.jobs["alpha"].id, world.jobs["alpha/waiting"].id
    room = {"needed": 8, "free": 3, "gpu_class": "h100", "room_at_ms": world.hub.now + 1, "ending_job": own}
    rank(world, {job: {"code": "no_free_gpu", "numbers": room}}, 1)
    assert own in _read(world, "alpha", job)["waiting_text"]
    rank(world, {job: {"code": "room_reserved", "numbers": {"job": own}}}, 2)
    assert own in _read(world, "alpha", job)["waiting_text"]
    behind = {"position": 1, "organization": "alpha", "job": own, "lag_thousandths": -20}
    rank(world, {job: {"code": "behind_in_order", "numbers": behind}}, 3)
    assert "is 2 % of its grant's term ahead of pace" in _read(world, "alpha", job)["waiting_text"]


def test_names_stand_for_ids(world: World) -> None:
    job, consortium = world.jobs["alpha/waiting"].id, world.grants["consortium"]
    short = {"grant": consortium.id, "account": consortium.account_id}
    short |= {"needed_gpu_us": str(2 * GPU_HOUR_US), "left_gpu_us": str(GPU_HOUR_US)}
    rank(world, {job: {"code": "grant_exhausted", "numbers": short}}, 1)
    program = world.ask("operator", "GET", f"/v1/programs/{consortium.program_id}").json()["name"]
    told = _read(world, "alpha", job)["waiting_text"]
    assert told == f"needs 2 GPU hours; the grant of {program} has 1 left"
    assert _read(world, "operator", job)["waiting_text"] == f"{told} on the whole grant"


def test_places_are_told_in_the_hub_and_in_the_organization(world: World) -> None:
    first = world.jobs["alpha/waiting"].id
    second = world.hub.submit("alpha", name="later").id
    order = [world.jobs["beta/waiting"].id, first, world.jobs["gamma/waiting"].id, second]
    rank(world, {job_id: {"code": "new"} for job_id in order}, 1)
    found = _read(world, "alpha", second)
    places = [found[name] for name in ("position", "queue_length", "own_position", "own_queue_length")]
    assert places == [4, 4, 2, 2]
    assert found["place_text"] == "4th of 4 in the hub, 2nd of 2 of its organization"
    assert (
        _read(world, "alpha", second, "ko")["place_text"] == "허브 전체 4개 중 4번째, 소속 기관 2개 중 2번째"
    )
    rank(world, {second: {"code": "new"}, first: {"code": "new"}}, 2)
    found = _read(world, "alpha", second)
    assert (found["position"], found["own_position"], found["own_queue_length"]) == (1, 1, 2)


def test_a_job_that_does_not_wait_has_no_such_sentence(world: World) -> None:
    for name in ("alpha", "alpha/ended"):
        found = _read(world, "alpha", world.jobs[name].id)
        texts = [found[key] for key in ("waiting", "waiting_text", "position", "queue_length", "place_text")]
        assert texts == [None] * 5


def test_ends_and_stops_are_told(world: World) -> None:
    hub = world.hub
    assert _read(world, "alpha", world.jobs["alpha/ended"].id, "ko")["end_text"] == "취소되었습니다"
    running = world.jobs["alpha"]
    hub.cancel(running.id)
    hub.stop(running)
    (attempt,) = _read(world, "alpha", running.id)["attempts"]
    assert re.fullmatch(r"is stopped at \d\d:\d\d KST because it was cancelled", attempt["stop_text"])
    hub.report(ended(running, hub.now, exit_code=143, reason="stopped"))
    done = _read(world, "alpha", running.id)
    assert done["end_text"] == done["attempts"][0]["end_text"] == "it was cancelled"
    assert done["attempts"][0]["stop_text"] is None


def test_a_repeated_submission_is_told_in_the_language_of_the_repetition(world: World) -> None:
    body = {"name": "again", "gpu_class": "h100", "walltime_s": 60}
    told = []
    for language in ("en", "ko"):
        headers = {"Idempotency-Key": "k-1", "Accept-Language": language}
        answer = world.ask("alpha", "POST", "/v1/jobs", body=body, headers=headers)
        assert (answer.status_code, answer.headers["Content-Language"]) == (201, language)
        told.append(answer.json())
    assert told[0]["id"] == told[1]["id"]
    assert not HANGUL.search(told[0]["waiting_text"])
    assert HANGUL.search(told[1]["waiting_text"])


def test_a_quote_says_why_a_job_would_wait(world: World) -> None:
    body = {"name": "wide", "gpu_class": "h100", "gpus_per_pod": 8, "pods": 2, "walltime_s": 60}
    headers = {"Accept-Language": "ko"}
    answer = world.ask("alpha", "POST", "/v1/jobs?dry_run=true", body=body, headers=headers)
    assert answer.status_code == 200, answer.text
    estimate = answer.json()["estimate"]
    assert estimate["waiting"]["code"] == "no_free_gpu"
    assert HANGUL.search(estimate["waiting_text"])
    assert "16개" in estimate["waiting_text"]


def test_without_a_language_english_is_told(world: World) -> None:
    answer = world.ask("alpha", "GET", f"/v1/jobs/{world.jobs['alpha/waiting'].id}")
    assert answer.headers["Content-Language"] == "en"
    assert not HANGUL.search(answer.json()["waiting_text"])
