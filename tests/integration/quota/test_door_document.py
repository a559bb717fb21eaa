"""The API's document: examples that hold, and the problems that are answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from quota.client import QuotaClient
from quota.openapi import known_problems
from tests import databases
from tests.builders import Api, an_api
from tests.integration.quota.door_world import JSON, Operation, call, clients, operations

LIMIT = 100_000
MANY = 1_000_000


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("document")
    limits = {"lockout_pair_failures": MANY, "lockout_address_failures": MANY, "member_requests_per_s": 0}
    with an_api(databases.new_sqlite(folder), body_limit_bytes=LIMIT, **limits) as made:
        yield made


@pytest.fixture
def own_api(tmp_path: Path) -> Iterator[Api]:
    """For a test whose requests are carried out, so that no other test meets what they made."""
    with an_api(databases.new_sqlite(tmp_path)) as made:
        yield made


def _contents(operation: Operation) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What an operation takes and answers: where, media type, content."""
    for media_type, content in operation.document.get("requestBody", {}).get("content", {}).items():
        yield "request", media_type, content
    for status, reply in operation.document["responses"].items():
        for media_type, content in reply.get("content", {}).items():
            yield status, media_type, content


def test_every_body_has_an_example(api: Api) -> None:
    bare = [
        (one.id, where, media_type)
        for one in operations(api).values()
        for where, media_type, content in _contents(one)
        if "example" not in content and "examples" not in content
    ]
    assert bare == []


def test_every_example_is_valid_for_its_schema(api: Api) -> None:
    document = api.application.openapi()
    checked = 0
    for one in operations(api).values():
        for where, media_type, content in _contents(one):
            if media_type != "application/json":
                continue
            schema = content["schema"] | {"components": document["components"]}
            found = [
                (one.id, where, list(error.instance_path), error.message)
                for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(content["example"])
            ]
            assert found == []
            checked += 1
    assert checked > 60


def test_examples_of_problems_are_problems(api: Api) -> None:
    components = api.application.openapi()["components"]
    schema = {"$ref": "#/components/schemas/Problem", "components": components}
    validator = jsonschema_rs.Draft202012Validator(schema)
    assert set(components["examples"]) == set(known_problems())
    for code, example in components["examples"].items():
        validator.validate(example["value"])
        assert example["value"]["code"] == code


def test_every_example_of_a_request_is_one_that_the_operation_takes(own_api: Api) -> None:
    """Valid beyond its schema, too: whoever tries it out is refused for the state at most, never for the form."""
    for one in operations(own_api).values():
        if one.takes_body:
            role = "member" if "member" in one.roles else sorted(one.roles)[0]
            answer = call(own_api, clients(own_api)[role], one.id, json.dumps(one.example()))
            assert answer.status_code != 422 or answer.json()["code"] != "invalid_request", (
                one.id,
                answer.text,
            )


def test_an_example_that_does_not_hold_is_found(api: Api) -> None:
    components = api.application.openapi()["components"]
    schema = {"$ref": "#/components/schemas/JobSubmission", "components": components}
    validator = jsonschema_rs.Draft202012Validator(schema)
    example = operations(api)["submit_job"].example()
    for wrong in ({"walltime_s": "1"}, {"gpus": 1}, {"name": ""}):
        assert list(validator.iter_errors(example | wrong))


def test_who_may_and_the_scope_stand_in_the_document(api: Api) -> None:
    for one in operations(api).values():
        assert "x-roles" in one.document
        assert "x-scope" in one.document


def test_every_problem_that_an_operation_names_is_known(api: Api) -> None:
    known = known_problems()
    for one in operations(api).values():
        for status, codes in one.problems().items():
            assert {known[code].status for code in codes} == {status}, (one.id, codes)


def test_references_lead_somewhere(api: Api) -> None:
    document = api.application.openapi()
    text = json.dumps(document)
    for kind in ("schemas", "examples"):
        named = {part.split('"')[0] for part in text.split(f'"#/components/{kind}/')[1:]}
        assert named <= set(document["components"][kind])


def test_raw_bodies_stand_in_the_document(api: Api) -> None:
    for operation, model in (
        ("send_decisions", "DecisionBatch"),
        ("send_reports", "ReportBatch"),
        ("put_ranking", "RankingDocument"),
        ("put_forecast", "ForecastDocument"),
        ("deliver_evidence", "EvidenceBatch"),
        ("report_gpus", "GpuReport"),
    ):
        content = operations(api)[operation].document["requestBody"]["content"]
        assert content["application/json"]["schema"]["$ref"].endswith(f"/{model}")


# --- what is documented is what is answered --------------------------------------------------------------


def _provoked(api: Api, one: Operation) -> Iterator[tuple[str, Any]]:
    """Requests that must fail in every way that follows from what the operation takes."""
    allowed = clients(api)[sorted(one.roles)[0]]
    url, query = one.url(), one.query()
    with QuotaClient(api.base_url, "ghub_nobody") as stranger:
        yield "unauthenticated", call(api, stranger, one.id)
    others = [client for role, client in clients(api).items() if role not in one.roles]
    if others:
        yield "forbidden", call(api, others[0], one.id)
    yield "invalid_request", api.call(allowed, one.method, url, params=query | {"surprise": "1"})
    if one.method in ("POST", "PUT", "PATCH"):
        large = b" " * (LIMIT + 1)
        yield "body_too_large", api.call(allowed, one.method, url, params=query, content=large, headers=JSON)
    if one.takes_body:
        yield "invalid_request", api.call(allowed, one.method, url, params=query, content=b"{", headers=JSON)


def test_what_follows_from_the_door_is_answered_and_documented(api: Api) -> None:
    for one in operations(api).values():
        for code, answer in _provoked(api, one) if one.roles else ():
            assert answer.json()["code"] == code, (one.id, answer.text)
            assert code in one.problems().get(answer.status_code, ()), (one.id, answer.text)


def test_what_is_not_there_is_answered_and_documented(api: Api) -> None:
    answered = set()
    for one in operations(api).values():
        if "not_found" in one.problems().get(404, ()) and "{" in one.path:
            role = "operator" if "operator" in one.roles else sorted(one.roles)[0]
            answer = call(api, clients(api)[role], one.id, cluster="nobody", class_id="nobody")
            assert (answer.status_code, answer.json().get("code")) == (404, "not_found"), (
                one.id,
                answer.text,
            )
            answered.add(one.id)
    assert {"read_job", "read_grant", "change_node", "revoke_token"} <= answered


def test_another_version_is_answered_and_documented(api: Api) -> None:
    known = operations(api)
    for one in known.values():
        assert one.has_header("If-Match") == ("precondition_failed" in one.problems().get(412, ())), one.id
        assert one.has_header("Idempotency-Key") == ("idempotency_key_reused" in one.problems()[422]), one.id
