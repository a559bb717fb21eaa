"""What is wrong in a request: each field is named, nothing is coerced, nothing that was sent is repeated."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota import examples
from tests import databases
from tests.builders import Api, an_api
from tests.integration.quota.door_world import (
    BODIES,
    EVIDENCE,
    JSON,
    LIMIT,
    call,
    clients,
    operations,
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One hub whose tests change nothing that another test could see."""
    folder: Path = tmp_path_factory.mktemp("inputs")
    with an_api(databases.new_sqlite(folder), body_limit_bytes=LIMIT, member_requests_per_s=0) as made:
        made.hub.award("alpha", "10")
        yield made


JOB = {"name": "a", "gpu_class": "h100", "walltime_s": 60}
BAD_JOBS: list[tuple[str, dict[str, Any], str, str]] = [
    ("a class the hub lacks", {"gpu_class": "v100"}, "unknown_gpu_class", "gpu_class"),
    ("more GPUs than a node has", {"gpus_per_pod": 9}, "never_fits", "gpus_per_pod"),
    ("a gang too large for the cluster", {"gpus_per_pod": 8, "pods": 3}, "never_fits", "pods"),
    ("zero walltime", {"walltime_s": 0}, "invalid_request", "walltime_s"),
    ("negative walltime", {"walltime_s": -60}, "invalid_request", "walltime_s"),
    ("huge walltime", {"walltime_s": 10**18}, "invalid_request", "walltime_s"),
    ("a huge number", {"walltime_s": 10**400}, "invalid_request", "walltime_s"),
    ("NaN", {"walltime_s": float("nan")}, "invalid_request", "walltime_s"),
    ("infinity", {"gpus_per_pod": float("inf")}, "invalid_request", "gpus_per_pod"),
    ("a fraction", {"pods": 1.5}, "invalid_request", "pods"),
    ("a text for a number", {"pods": "1"}, "invalid_request", "pods"),
    ("a boolean for a number", {"gpus_per_pod": True}, "invalid_request", "gpus_per_pod"),
    ("a number for a boolean", {"restartable": 1}, "invalid_request", "restartable"),
    ("an unknown field", {"gpu_count": 4}, "invalid_request", "gpu_count"),
    ("an empty name", {"name": ""}, "invalid_request", "name"),
    ("a name no database holds", {"name": "a\x00b"}, "invalid_request", "name"),
    ("half a character", {"name": "\ud800"}, "invalid_request", "name"),
    ("a null", {"gpu_class": None}, "invalid_request", "gpu_class"),
    ("a nested mistake", {"environment": {"A": 5}}, "invalid_request", "environment.A"),
]


@pytest.mark.parametrize(
    ("fields", "code", "field"), [row[1:] for row in BAD_JOBS], ids=[row[0] for row in BAD_JOBS]
)
def test_a_bad_submission_names_the_field(api: Api, fields: dict[str, Any], code: str, field: str) -> None:
    before = api.hub.contents()
    problem = api.refused(
        api.firms["alpha"], "POST", "/v1/jobs", content=json.dumps(JOB | fields), headers=JSON
    )
    assert (problem["http_status"], problem["status"], problem["code"]) == (422, 422, code)
    assert field in [error["field"] for error in problem["errors"]], problem
    assert problem["type"] == f"urn:gpuhub:problem:{code}"
    assert api.hub.contents() == before


def test_a_submission_that_lacks_fields_names_them_all(api: Api) -> None:
    problem = api.refused(api.firms["alpha"], "POST", "/v1/jobs", json={})
    assert {error["field"] for error in problem["errors"]} == {"name", "gpu_class", "walltime_s"}


def test_a_submission_beyond_the_grant_says_what_was_needed_and_what_is_left(api: Api) -> None:
    body = JOB | {"walltime_s": 11 * 3600}
    problem = api.refused(api.firms["alpha"], "POST", "/v1/jobs", json=body)
    assert (problem["http_status"], problem["code"]) == (409, "insufficient_balance")
    numbers = {key: int(value) for key, value in problem["numbers"].items()}
    assert numbers == {"needed_gpu_us": 11 * 3_600_000_000, "left_gpu_us": 10 * 3_600_000_000}


BAD_AWARDS: list[tuple[dict[str, Any], str]] = [
    ({"gpu_hours": 1.5}, "gpu_hours"),
    ({"gpu_hours": True}, "gpu_hours"),
    ({"gpu_hours": "NaN"}, "gpu_hours"),
    ({"gpu_hours": "1e999999"}, "gpu_hours"),
    ({"gpu_hours": "0"}, "gpu_hours"),
    ({"gpu_hours": "-5"}, "gpu_hours"),
    ({"gpu_hours": "99999999999"}, "gpu_hours"),
    ({"ends_at": "2026-11-22"}, "ends_at"),
    ({"ends_at": True}, "ends_at"),
    ({"ends_at": 10**30}, "ends_at"),
    ({"ends_at": "2020-01-01T00:00:00Z"}, "ends_at"),
    ({"ends_at": "9999-12-31T23:59:59-09:00"}, "ends_at"),
    ({"starts_at": -1}, "starts_at"),
    ({"reason": ""}, "reason"),
    ({"reason": "a\x00"}, "reason"),
    ({"program_id": "AX"}, "program_id"),
]


@pytest.mark.parametrize(("fields", "field"), BAD_AWARDS, ids=str)
def test_a_bad_award_names_the_field(api: Api, fields: dict[str, Any], field: str) -> None:
    before = api.hub.contents()
    body = BODIES["award_grant"] | {"program_id": "ax"} | fields
    problem = api.refused(api.operator, "POST", "/v1/grants", json=body)
    assert problem["http_status"] == 422
    assert [error["field"] for error in problem["errors"]] == [field]
    assert api.hub.contents() == before


@pytest.mark.parametrize(
    ("operation", "fields", "field"),
    [
        ("send_decisions", {"seq": True}, "seq"),
        ("send_decisions", {"seq": 0}, "seq"),
        ("send_decisions", {"extra": 1}, "extra"),
        ("send_decisions", {"items": [{"kind": "start"}]}, "items.0.start.job_id"),
        ("send_decisions", {"items": [{"kind": "jump"}]}, "items.0"),
        ("send_reports", {"observed_through": float("nan")}, "observed_through"),
        ("send_reports", {"stream": "decisions"}, "stream"),
        ("put_ranking", {"cycle": 1.0}, "cycle"),
        ("deliver_evidence", {"rows": []}, "rows"),
        ("deliver_evidence", {"rows": [EVIDENCE | {"busy_ms": 5}]}, "rows.0"),
        ("deliver_evidence", {"rows": [EVIDENCE | {"hour": "2026-11-22T00:00:01Z"}]}, "rows.0"),
    ],
)
def test_the_programs_own_documents_are_checked_alike(
    api: Api, operation: str, fields: dict[str, Any], field: str
) -> None:
    one = operations(api)[operation]
    client = api.agent if operation == "deliver_evidence" else api.scheduler
    content = json.dumps(BODIES[operation] | fields)
    problem = api.refused(client, one.method, one.path, content=content, headers=JSON)
    assert (problem["http_status"], problem["code"]) == (422, "invalid_request")
    assert field in [error["field"] for error in problem["errors"]], problem["errors"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'"x"', b"1" * 5000])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/scheduler/decisions"])
def test_what_is_no_document_is_refused(api: Api, content: bytes, path: str) -> None:
    client = api.scheduler if "scheduler" in path else api.firms["alpha"]
    answer = api.call(client, "POST", path, content=content[: LIMIT - 1], headers=JSON)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["code"]


def test_errors_never_repeat_what_was_sent(api: Api) -> None:
    body = json.dumps(JOB | {"walltime_s": "hunter2-secret", "environment": {"KEY": ["hunter2-secret"]}})
    answer = api.call(api.firms["alpha"], "POST", "/v1/jobs", content=body, headers=JSON)
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "state=flying", "limit=NaN"])
def test_a_bad_query_names_the_parameter(api: Api, query: str) -> None:
    problem = api.refused(api.firms["alpha"], "GET", f"/v1/jobs?{query}")
    assert problem["http_status"] == 422
    assert problem["errors"][0]["field"] == query.partition("=")[0]


def test_unknown_paths_and_methods_are_problems_too(api: Api) -> None:
    assert api.refused(api.operator, "GET", "/v1/nothing")["code"] == "not_found"
    assert api.refused(api.operator, "DELETE", "/v1/jobs")["code"] == "method_not_allowed"


# --- nothing is coerced ----------------------------------------------------------------------------------


def _wrong_kinds(body: Any) -> Iterator[tuple[str, Any]]:
    """The body with one number as text, as a boolean or as a fraction, or one boolean as a number or text."""
    for path, value in _leaves(body, ()):
        wrong: list[Any] = []
        if isinstance(value, bool):
            wrong = [int(value), str(value).lower()]
        elif isinstance(value, int):
            wrong = [str(value), True, value + 0.5]
        elif isinstance(value, str):
            wrong = [True, [value]]
        for other in wrong:
            changed = copy.deepcopy(body)
            target = changed
            for step in path[:-1]:
                target = target[step]
            target[path[-1]] = other
            yield ".".join(str(step) for step in path), changed


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves(part, (*path, index))
    else:
        yield path, value


def _full(schema: Any, schemas: dict[str, Any], name: str = "") -> Any:
    """A body with every field that there is, so that none escapes the test."""
    return examples.of_schema(schema, schemas, name=name)


def _bodies(api: Api) -> dict[str, Any]:
    schemas = api.application.openapi()["components"]["schemas"]
    return {
        one.id: _full(one.document["requestBody"]["content"]["application/json"]["schema"], schemas)
        for one in operations(api).values()
        if one.takes_body
    }


def _refuses(api: Api, operation: str, body: Any) -> set[str]:
    """The fields that an operation names in a body that it must refuse."""
    one = operations(api)[operation]
    client = next(client for role, client in clients(api).items() if role in one.roles)
    answer = call(api, client, operation, json.dumps(body))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), (
        operation,
        body,
        answer.text,
    )
    return {error["field"] for error in answer.json()["errors"]}


_REASON = "reasons.job-01jd8x2m9q4t6v8w0y2z4b.numbers"
FREE_VALUES = {"put_ranking": {f"{_REASON}.needed", f"{_REASON}.free"}}
"""Fields that take more than one kind: numbers beside a reason are ints or texts."""


def test_no_field_takes_a_value_of_another_kind(api: Api) -> None:
    tried = 0
    for operation, body in _bodies(api).items():
        free = FREE_VALUES.get(operation, set())
        for field, changed in _wrong_kinds(body):
            if field not in free:
                _refuses(api, operation, changed)
                tried += 1
    assert tried > 200


def test_no_body_takes_an_unknown_field(api: Api) -> None:
    for operation, body in _bodies(api).items():
        assert "surprise" in _refuses(api, operation, body | {"surprise": 1}), operation


def test_no_operation_takes_an_unknown_query_parameter(api: Api) -> None:
    for one in operations(api).values():
        role = next(iter(sorted(one.roles)), "member")
        path = one.url()
        problem = api.refused(clients(api)[role], one.method, path, params=one.query() | {"surprise": "1"})
        assert (problem["http_status"], problem["errors"][0]["field"]) == (422, "surprise"), one.id


@pytest.mark.postgres
def test_texts_no_database_holds_are_no_server_errors(postgres_url: str) -> None:
    with an_api(postgres_url) as api:
        api.hub.award("alpha", "1")
        for path in ("/v1/jobs/a%00b", "/v1/grants/%00", "/v1/jobs?after=%00", "/v1/grants?after=%00"):
            answer = api.call(api.firms["alpha"], "GET", path)
            assert answer.status_code == 422, (path, answer.text)
