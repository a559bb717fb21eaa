"""Whoever is refused has changed nothing: every refusal that an operation can end in, late ones too, on both databases.

The fuzz and the matrix look at the same after each of their answers; here are the refusals that only come deep inside
a transaction, when much is written already: keys used twice, stale tags, balances that fall short, wrong states.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.quota.door_world import Operation
from tests.integration.quota.tenant_requests import Valid, valid_requests
from tests.integration.quota.tenant_world import Unchanged, World, a_world

STALE = {"headers": {"If-Match": '"of another version"'}}
ONCE_ONLY = {"create_token", "rotate_token"}
"""Their secrets are shown once: the same key again is answered 409 with the token's id."""


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


@pytest.fixture
def unchanged(world: World) -> Iterator[Unchanged]:
    made = Unchanged(world)
    yield made
    made.close()


def _requests(world: World) -> Iterator[tuple[Operation, Valid]]:
    """Valid requests to all operations that change something, each made just before it is needed."""
    operations = world.operations()
    for name, made in valid_requests(world).items():
        if operations[name].method != "GET":
            yield operations[name], made()


def test_stale_tags_change_nothing(world: World) -> None:
    tried = []
    for operation, request in _requests(world):
        if operation.has_header("If-Match"):
            before = world.contents()
            answer = request.send(world, operation, **STALE)
            assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed"), operation.id
            assert world.contents() == before, operation.id
            tried.append(operation.id)
        request.send(world, operation)
    assert len(tried) >= 8


def test_dry_runs_change_nothing(world: World) -> None:
    tried = []
    for operation, request in _requests(world):
        if any(item["name"] == "dry_run" for item in operation.document.get("parameters", ())):
            before = world.contents()
            answer = request.send(world, operation, params={"dry_run": "true"})
            assert answer.status_code == 200, (operation.id, answer.text)
            assert world.contents() == before, operation.id
            tried.append(operation.id)
        assert request.send(world, operation).status_code in (200, 201), operation.id
    assert len(tried) >= 14


def test_a_key_used_again_changes_nothing(world: World) -> None:
    tried = []
    for operation, request in _requests(world):
        if not operation.has_header("Idempotency-Key"):
            request.send(world, operation)
            continue
        key = {"headers": {"Idempotency-Key": f"once {operation.id}"}}
        first = request.send(world, operation, **key)
        assert first.status_code == 201, (operation.id, first.text)
        before = world.contents()
        again = request.send(world, operation, **key)
        if operation.id in ONCE_ONLY:
            assert (again.status_code, again.json()["code"]) == (409, "secret_already_shown")
        else:
            assert (again.status_code, again.text) == (201, first.text), operation.id
        another = Valid(request.caller, request.ids, body=_another(operation, request)).send(
            world, operation, **key
        )
        assert (another.status_code, another.json()["code"]) == (422, "idempotency_key_reused"), operation.id
        assert world.contents() == before, operation.id
        tried.append(operation.id)
    assert len(tried) >= 16


def _another(operation: Operation, request: Valid) -> dict[str, Any]:
    """The body with something else in it."""
    body = dict(request.body or {})
    if operation.id == "rotate_token":
        return body | {"overlap_s": 1}
    name = next(name for name in ("reason", "label", "name", "id") if name in body)
    return body | {name: f"{body[name]}x"}


def test_making_what_is_there_changes_nothing(world: World, unchanged: Unchanged) -> None:
    made = {
        "/v1/organizations": {"id": "alpha", "name": "Alpha"},
        "/v1/clusters": {"id": "sim", "kind": "simulated"},
        "/v1/programs": {"id": "ax", "name": "AX", "budget_gpu_hours": "1"},
    }
    for url, body in made.items():
        answer = world.ask("operator", "POST", url, body=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "already_exists"), url
        assert unchanged.after(409) == []


def test_what_the_balance_forbids_changes_nothing(world: World, unchanged: Unchanged) -> None:
    own, consortium = world.grants["alpha"].id, world.grants["consortium"].id
    huge, why = {"gpu_hours": "1000000"}, {"reason": "r"}
    moved = {"from_organization_id": "alpha", "to_organization_id": "gamma"}
    job = {"name": "a", "gpu_class": "h100", "walltime_s": 2_000_000, "gpus_per_pod": 8}
    refused: list[tuple[str, str, str, dict[str, Any]]] = [
        ("operator", "POST", "/v1/grants", huge | why | _award()),
        ("operator", "POST", f"/v1/grants/{own}/top-ups", huge | why),
        ("operator", "POST", f"/v1/grants/{own}/cuts", huge | why),
        ("operator", "POST", f"/v1/grants/{consortium}/cuts", {"gpu_hours": "1"} | why),
        ("operator", "POST", f"/v1/grants/{own}/transfers", huge | why | {"to_grant_id": consortium}),
        (
            "operator",
            "POST",
            f"/v1/grants/{own}/adjustments",
            {"gpu_hours": "-999999", "evidence": "e"} | why,
        ),
        ("operator", "POST", "/v1/programs/ax/adjustments", {"gpu_hours": "-999999", "evidence": "e"} | why),
        ("operator", "POST", f"/v1/grants/{own}/tranches", {"tranches": [huge | {"label": "all"}]} | why),
        ("operator", "PUT", f"/v1/grants/{consortium}/tranches/2", huge | why),
        ("alpha", "PUT", f"/v1/grants/{consortium}/shares/gamma", huge | why),
        ("alpha", "POST", f"/v1/grants/{consortium}/share-moves", huge | why | moved),
        ("gamma", "POST", f"/v1/jobs/{world.jobs['gamma'].id}/extensions", {"walltime_s": 2_000_000} | why),
        ("gamma", "POST", "/v1/jobs", job),
    ]
    for caller, method, url, body in refused:
        answer = world.ask(caller, method, url, body=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "insufficient_balance"), (
            url,
            answer.text,
        )
        assert unchanged.after(409) == [], url


def _award() -> dict[str, str]:
    return {"program_id": "ax", "organization_id": "beta", "ends_at": "2099-01-01T00:00:00Z"}


def test_what_the_state_forbids_changes_nothing(world: World, unchanged: Unchanged) -> None:
    consortium, jobs = world.grants["consortium"].id, world.jobs
    why, extension = {"reason": "r"}, {"walltime_s": 60, "reason": "r"}
    stretch = {
        "attempt": 1,
        "starts_at": "2026-11-22T00:00:00Z",
        "ends_at": "2026-11-22T00:01:00Z",
        "kind": "fault",
        "reason": "r",
        "evidence": "finding:1",
    }
    tranches = {"tranches": [{"gpu_hours": "1", "label": "x"}]}
    refused: list[tuple[str, str, dict[str, Any], str]] = [
        ("POST", f"/v1/jobs/{jobs['alpha/waiting'].id}/extensions", extension, "wrong_state"),
        ("POST", f"/v1/jobs/{jobs['alpha/ended'].id}/extensions", extension, "wrong_state"),
        ("POST", f"/v1/jobs/{jobs['alpha/waiting'].id}/requeue", why, "wrong_state"),
        ("POST", f"/v1/jobs/{jobs['alpha/ended'].id}/requeue", why, "wrong_state"),
        ("POST", f"/v1/jobs/{jobs['alpha'].id}/refunds", stretch, "nothing_to_refund"),
        ("POST", f"/v1/grants/{consortium}/tranches", tranches | why, "already_exists"),
        (
            "POST",
            f"/v1/tokens/{world.tokens['revoked']}/rotate",
            {"overlap_s": 60, "reason": "r"},
            "token_ended",
        ),
    ]
    for method, url, body, code in refused:
        answer = world.ask("operator", method, url, body=body)
        assert (answer.status_code, answer.json()["code"]) == (409, code), (url, answer.text)
        assert unchanged.after(409) == [], url


def test_batches_that_come_out_of_turn_change_nothing(world: World, unchanged: Unchanged) -> None:
    hub = world.hub
    at = "2026-11-22T00:30:00.000Z"
    last = {
        "seq": hub.sequences["cluster:sim"],
        "stream": "cluster:sim",
        "cluster": "sim",
        "observed_through": at,
    }
    decisions = {"stream": "decisions", "items": []}
    ranking = {"epoch": hub.epoch, "cycle": 5, "base_cycle": 4, "at": at, "order": [], "reasons": {}}
    refused: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("POST", "decisions", decisions | {"epoch": hub.epoch + 1, "seq": 1}, 409, "stale_epoch"),
        ("POST", "decisions", decisions | {"epoch": hub.epoch, "seq": 99}, 409, "stale_sequence"),
        ("POST", "reports", last | {"epoch": hub.epoch + 1, "items": []}, 409, "stale_epoch"),
        ("POST", "reports", last | {"epoch": hub.epoch, "items": [_ended()]}, 409, "stale_sequence"),
        ("PUT", "ranking", ranking, 409, "ranking_base_unknown"),
        ("PUT", "lease", {"holder": "another", "instance": "instance-9", "epoch": None}, 409, "lease_held"),
    ]
    for method, name, body, status, code in refused:
        answer = world.ask("scheduler", method, f"/v1/scheduler/{name}", body=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (name, answer.text)
        assert unchanged.after(status) == [], name


def _ended() -> dict[str, Any]:
    return {
        "kind": "ended",
        "job_id": "job-1",
        "attempt": 1,
        "first_started_at": None,
        "last_started_at": None,
        "ended_at": "2026-11-22T00:10:00.000Z",
        "exit_code": 0,
        "reason": "completed",
    }


def test_evidence_that_is_refused_in_part_is_refused_whole(world: World, unchanged: Unchanged) -> None:
    """The first rows of a batch are good, the last one speaks of a node that is not the agent's."""
    good = world.operations()["deliver_evidence"].example()["rows"][0] | {"node": "n1"}
    rows = [good | {"job_id": world.jobs["beta"].id, "seq": 1}, good | {"node": "elsewhere", "seq": 2}]
    answer = world.ask("agent", "POST", "/v1/usage/evidence", body={"rows": rows})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert unchanged.after(403) == []


def test_the_comparison_sees_what_a_request_writes(world: World, unchanged: Unchanged) -> None:
    """It can fail: what was answered well is told as a change when it is taken for a refusal."""
    consortium = world.grants["consortium"]
    body = {"gpu_hours": "19", "reason": "r"}
    assert unchanged.after(409) == []
    answer = world.ask("alpha", "PUT", f"/v1/grants/{consortium.id}/shares/gamma", body=body)
    assert answer.status_code == 200
    assert {"accounts", "transfers", "audit"} <= set(unchanged.after(409))
