"""The door itself: roles, bad inputs, repeated and stale requests, limits, failures, and the typed client."""

from __future__ import annotations

import gzip
import inspect
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event
from structlog.testing import capture_logs

from quota.client import QuotaClient, ServiceUnavailable
from quota.dispatch import routes as dispatch
from quota.schemas.identity import NewToken, Role
from quota.schemas.scheduling import DecisionBatch, RankingDocument
from tests import databases
from tests.builders import START_MS, Api, a_problem, a_submission, an_api

JSON = {"Content-Type": "application/json"}
LIMIT = 100_000


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One hub whose tests change nothing that another test could see."""
    folder: Path = tmp_path_factory.mktemp("door")
    with an_api(databases.new_sqlite(folder), body_limit_bytes=LIMIT) as made:
        made.hub.award("alpha", "10")
        yield made


@pytest.fixture
def fresh(sqlite_url: str) -> Iterator[Api]:
    with an_api(sqlite_url) as made:
        yield made


# --- who may do what -----------------------------------------------------------------------------------

EVERYBODY = {"operator", "auditor", "member", "scheduler", "agent"}
READERS = {"operator", "auditor", "member"}
ALLOWED: dict[str, set[str]] = {
    "read_caller": EVERYBODY,
    "submit_job": {"operator", "member"},
    "list_jobs": READERS,
    "read_job": READERS,
    "cancel_job": {"operator", "member"},
    "create_program": {"operator"},
    "list_programs": {"operator", "auditor"},
    "award_grant": {"operator"},
    "top_up_grant": {"operator"},
    "cut_grant": {"operator"},
    "list_grants": READERS,
    "read_grant": READERS,
    "read_statement": READERS,
    "create_cluster": {"operator"},
    "list_clusters": READERS,
    "put_gpu_class": {"operator"},
    "list_gpu_classes": READERS,
    "list_nodes": {"operator", "auditor"},
    "change_node": {"operator"},
    "create_organization": {"operator"},
    "list_organizations": READERS,
    "create_token": {"operator"},
    "list_tokens": {"operator", "auditor"},
    "revoke_token": {"operator"},
    "list_audit": {"operator", "auditor"},
    "list_findings": {"operator", "auditor"},
    "take_lease": {"scheduler"},
    "read_snapshot": {"scheduler"},
    "follow_feed": {"scheduler"},
    "send_decisions": {"scheduler"},
    "send_reports": {"scheduler"},
    "put_ranking": {"scheduler"},
    "deliver_evidence": {"agent"},
}
PUBLIC = {"read_clock", "read_health", "read_readiness"}
EVIDENCE = {
    "job_id": "job-1",
    "attempt": 1,
    "gpu_uuid": "GPU-1",
    "gpu_class": "h100",
    "node": "n0",
    "hour": "2026-11-22T00:00:00Z",
    "agent_epoch": "epoch-01",
    "seq": 1,
    "busy_ms": 1,
    "observed_ms": 1,
}
# each is valid and names something that is not there, so that whoever may call is answered but changes nothing
BODIES: dict[str, Any] = {
    "submit_job": {"name": "a", "gpu_class": "v100", "walltime_s": 1},
    "create_program": {"id": "ax", "name": "AX", "budget_gpu_hours": "1"},
    "award_grant": {
        "program_id": "nobody",
        "organization_id": "alpha",
        "gpu_hours": "1",
        "ends_at": "2099-01-01T00:00:00Z",
        "reason": "r",
    },
    "top_up_grant": {"gpu_hours": "1", "reason": "r"},
    "cut_grant": {"gpu_hours": "1", "reason": "r"},
    "create_cluster": {"id": "sim", "kind": "simulated"},
    "put_gpu_class": {"id": "h100", "name": "H100", "rate_thousandths": 1000, "price_krw": 4000},
    "change_node": {"cordoned": False, "reason": "r"},
    "create_organization": {"id": "alpha", "name": "A"},
    "create_token": {"role": "member"},
    "take_lease": {"holder": "nobody", "instance": "instance-x", "epoch": 999},
    "send_decisions": {"epoch": 999, "stream": "decisions", "seq": 1, "items": []},
    "send_reports": {
        "epoch": 999,
        "stream": "cluster:sim",
        "seq": 1,
        "cluster": "sim",
        "items": [],
        "observed_through": "2026-11-22T00:00:00Z",
    },
    "put_ranking": {"epoch": 999, "cycle": 1, "at": "2026-11-22T00:00:00Z", "order": [], "reasons": {}},
    "deliver_evidence": {"rows": [EVIDENCE | {"node": "n9"}]},
}
PATHS = {"class_id": "h100", "cluster": "sim", "node": "nobody"}


def _operations(api: Api) -> dict[str, tuple[str, str]]:
    found = {}
    for path, methods in api.application.openapi()["paths"].items():
        for method, operation in methods.items():
            found[operation["operationId"]] = (method.upper(), path)
    return found


def _call(api: Api, client: QuotaClient, operation: str) -> Any:
    method, path = _operations(api)[operation]
    for part in path.split("/"):
        if part.startswith("{"):
            path = path.replace(part, PATHS.get(part.strip("{}"), "nobody"))
    query = {"after": "0", "wait": "0"} if operation == "follow_feed" else {}
    body = BODIES.get(operation)
    content = None if body is None else json.dumps(body)
    return api.call(client, method, path, content=content, params=query, headers=JSON if content else {})


def _clients(api: Api) -> dict[str, QuotaClient]:
    return {
        "operator": api.operator,
        "auditor": api.auditor,
        "member": api.firms["alpha"],
        "scheduler": api.scheduler,
        "agent": api.agent,
    }


def test_the_table_of_roles_names_every_operation(api: Api) -> None:
    assert set(_operations(api)) == set(ALLOWED) | PUBLIC


@pytest.mark.parametrize("operation", sorted(ALLOWED))
def test_only_the_named_roles_may(api: Api, operation: str) -> None:
    for role, client in _clients(api).items():
        status = _call(api, client, operation).status_code
        if role in ALLOWED[operation]:
            assert status not in (401, 403), f"{role} may {operation}"
        else:
            assert status == 403, f"{role} may not {operation}"


@pytest.mark.parametrize("operation", sorted(ALLOWED))
def test_nobody_may_anything_without_a_token(api: Api, operation: str) -> None:
    for header in ("Bearer ghub_" + "x" * 43, "Basic b3BlcmF0b3I6eA==", "Bearer"):
        with QuotaClient(api.base_url, "x") as stranger:
            stranger._http.headers["Authorization"] = header
            answer = _call(api, stranger, operation)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_roles_without_reach_change_nothing(fresh: Api) -> None:
    """An auditor and a firm call every operation; nothing in the database moves."""
    before = fresh.hub.contents()
    for operation in sorted(ALLOWED):
        _call(fresh, fresh.auditor, operation)
        if operation != "submit_job":
            _call(fresh, fresh.firms["alpha"], operation)
    assert fresh.hub.contents() == before


def test_an_auditor_reads_everything(api: Api) -> None:
    auditor = api.auditor
    assert auditor.list_programs().items
    assert auditor.list_grants().items
    assert auditor.list_nodes().items
    assert auditor.list_tokens().items
    assert auditor.list_audit().items
    assert auditor.list_organizations().items
    assert auditor.read_statement(auditor.list_grants().items[0].id).lines


def test_an_agents_token_is_bound_to_its_node(fresh: Api) -> None:
    token = fresh.operator.create_token(NewToken(role=Role.AGENT, node="n1"))
    with QuotaClient(fresh.base_url, token.secret) as agent:
        problem = fresh.refused(agent, "POST", "/v1/usage/evidence", json={"rows": [EVIDENCE]})
    assert (problem["http_status"], problem["code"]) == (403, "forbidden")


# --- bad inputs ------------------------------------------------------------------------------------------

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
    method, path = _operations(api)[operation]
    client = api.agent if operation == "deliver_evidence" else api.scheduler
    content = json.dumps(BODIES[operation] | fields)
    problem = api.refused(client, method, path, content=content, headers=JSON)
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


# --- repeated, stale, too large ------------------------------------------------------------------------


def test_the_same_key_with_another_body_is_refused(fresh: Api) -> None:
    fresh.hub.award("alpha", "10")
    client = fresh.firms["alpha"]
    job = client.submit_job(a_submission(), key="k")
    with a_problem("idempotency_key_reused", 422) as caught:
        client.submit_job(a_submission(walltime_s=7), key="k")
    assert caught[0].problem.errors[0]["field"] == "Idempotency-Key"
    assert [item.id for item in client.list_jobs().items] == [job.id]


def test_a_key_may_be_sent_wherever_something_is_made(fresh: Api) -> None:
    for operation, body in (
        ("create_program", {"id": "px", "name": "P", "budget_gpu_hours": "5"}),
        ("create_organization", {"id": "delta", "name": "D"}),
    ):
        method, path = _operations(fresh)[operation]
        headers = {"Idempotency-Key": operation}
        first = fresh.call(fresh.operator, method, path, json=body, headers=headers)
        again = fresh.call(fresh.operator, method, path, json=body, headers=headers)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.text == again.text
        assert fresh.refused(fresh.operator, method, path, json=body)["code"] == "already_exists"


def test_stale_epochs_and_sequences_are_conflicts(api: Api) -> None:
    hub = api.hub
    before = hub.contents()
    for epoch, seq, code in ((hub.epoch + 1, 1, "stale_epoch"), (hub.epoch, 2, "stale_sequence")):
        batch = DecisionBatch(epoch=epoch, stream="never", seq=seq, items=())
        with a_problem(code, 409):
            api.scheduler.send_decisions(batch.model_dump_json().encode())
    with a_problem("stale_epoch", 409):
        api.scheduler.put_ranking(_ranking(999))
    assert hub.contents() == before


def _ranking(epoch: int) -> Any:
    return RankingDocument.model_validate(BODIES["put_ranking"] | {"epoch": epoch})


def test_a_cursor_outside_the_feed_is_gone(api: Api) -> None:
    with a_problem("cursor_expired", 410) as caught:
        api.scheduler.follow_feed(10**9, wait_s=0.1)
    assert set(caught[0].problem.numbers) == {"oldest", "head"}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/scheduler/reports"])
def test_a_body_beyond_the_limit_is_refused(api: Api, path: str) -> None:
    client = api.scheduler if "scheduler" in path else api.firms["alpha"]
    large = b" " * (LIMIT + 1)
    declared = api.call(client, "POST", path, content=large, headers=JSON)
    assert declared.status_code == 413
    chunked = api.call(client, "POST", path, content=iter([large[:50_000]] * 3), headers=JSON)
    assert chunked.status_code == 413


def test_a_packed_body_may_not_unfold_past_the_limit(api: Api) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    bomb = gzip.compress(b" " * 10 * LIMIT)
    assert len(bomb) < LIMIT
    for content in (bomb, b"no gzip", gzip.compress(b"{}")[:-5]):
        problem = api.refused(api.scheduler, "PUT", "/v1/scheduler/ranking", content=content, headers=headers)
        assert (problem["http_status"], problem["errors"][0]["field"]) == (422, "body")


def test_a_packed_document_is_read(fresh: Api) -> None:
    body = BODIES["put_ranking"] | {"epoch": fresh.hub.epoch}
    content = gzip.compress(json.dumps(body).encode())
    headers = JSON | {"Content-Encoding": "gzip"}
    answer = fresh.call(fresh.scheduler, "PUT", "/v1/scheduler/ranking", content=content, headers=headers)
    assert (answer.status_code, answer.json()["cycle"]) == (200, 1)


# --- the long poll -----------------------------------------------------------------------------------------


def test_a_long_poll_is_answered_by_the_change_it_waits_for(fresh: Api) -> None:
    head = fresh.hub.snapshot()[0]
    pages: list[Any] = []
    thread = threading.Thread(target=lambda: pages.append(fresh.scheduler.follow_feed(head, wait_s=20)))
    thread.start()
    grant = fresh.hub.award("alpha", "1")
    thread.join(15)
    assert not thread.is_alive(), "answered long before its wait was over"
    assert [item.id for item in pages[0].items] == [grant.id]


def test_a_long_poll_without_news_ends_with_an_empty_page(fresh: Api) -> None:
    head = fresh.hub.snapshot()[0]
    page = fresh.scheduler.follow_feed(head, wait_s=0.1)
    assert (page.cursor, page.items) == (head, ())


def test_a_long_poll_rests_after_changes_that_show_nothing(
    fresh: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new token moves the head and changes no object: the poll goes on from there instead of spinning."""
    head = fresh.hub.snapshot()[0]
    fresh.operator.create_token(NewToken(role=Role.AUDITOR))
    reads = []
    read_feed = dispatch.feed.read_feed

    def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        return read_feed(*arguments)

    monkeypatch.setattr(dispatch.feed, "read_feed", counted)
    page = fresh.scheduler.follow_feed(head, wait_s=0.4)
    assert (page.cursor, page.items) == (head + 1, ())
    assert len(reads) <= 3


# --- failures ------------------------------------------------------------------------------------------------


def test_an_unexpected_error_hides_its_inside(fresh: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("SELECT secret FROM tokens WHERE password='hunter2'")

    monkeypatch.setattr(dispatch.feed, "read_snapshot", broken)
    with capture_logs() as logs:
        problem = fresh.refused(fresh.scheduler, "GET", "/v1/scheduler/snapshot")
    assert [(entry["event"], entry["path"]) for entry in logs] == [("unexpected", "/v1/scheduler/snapshot")]
    assert (problem["http_status"], problem["code"]) == (500, "internal_error")
    assert "hunter2" not in json.dumps(problem)
    assert "RuntimeError" not in json.dumps(problem)
    with capture_logs(), pytest.raises(ServiceUnavailable):
        fresh.scheduler.read_snapshot()


def test_a_commit_that_fails_answers_500_and_leaves_nothing(fresh: Api) -> None:
    fresh.hub.award("alpha", "10")
    engine = fresh.application.state.hub.database.engine
    before = fresh.hub.contents()

    def lose_the_disk(connection: Any) -> None:
        if connection.get_execution_options().get("hub_writes"):
            raise OSError("disk full")

    event.listen(engine, "commit", lose_the_disk)
    with capture_logs():
        problem = fresh.refused(
            fresh.firms["alpha"], "POST", "/v1/jobs", json=JOB, headers={"Idempotency-Key": "k"}
        )
    event.remove(engine, "commit", lose_the_disk)
    assert (problem["http_status"], problem["code"]) == (500, "internal_error")
    assert fresh.hub.contents() == before
    request = {"json": JOB, "headers": {"Idempotency-Key": "k"}}
    try:
        again = fresh.call(fresh.firms["alpha"], "POST", "/v1/jobs", **request)
    except (
        httpx2.ReadError
    ):  # the server closes a connection after a 500; the same key makes asking again safe
        again = fresh.call(fresh.firms["alpha"], "POST", "/v1/jobs", **request)
    assert again.status_code == 201
    assert len(fresh.firms["alpha"].list_jobs().items) == 1


def test_a_service_that_is_gone_is_unavailable(sqlite_url: str) -> None:
    with QuotaClient("http://127.0.0.1:1", "x", timeout_s=2.0) as client, pytest.raises(ServiceUnavailable):
        client.read_clock()


# --- the typed client, and what the service says of itself ---------------------------------------------------


def _methods() -> set[str]:
    return {
        name
        for name, value in inspect.getmembers(QuotaClient, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    }


def test_the_client_has_one_method_per_operation(api: Api) -> None:
    """Probes are for machines that keep processes alive; they need no client."""
    operations = _operations(api)
    probes = {name for name, (_, path) in operations.items() if path.startswith("/-/")}
    assert _methods() == set(operations) - probes
    assert probes == {"read_health", "read_readiness"}


def test_every_path_of_the_client_is_in_the_document(api: Api) -> None:
    paths = {path for _, path in _operations(api).values()}
    source = inspect.getsource(QuotaClient)
    used = {
        "/".join("{}" if part.startswith("{") else part for part in literal.split("?")[0].split("/"))
        for literal in _literals(source)
    }
    known = {"/".join("{}" if part.startswith("{") else part for part in path.split("/")) for path in paths}
    assert len(used) > 20
    assert used <= known


def _literals(source: str) -> list[str]:
    return [part.split('"')[0] for part in source.split('"') if part.startswith("/v1/")]


def test_raw_bodies_stand_in_the_document(api: Api) -> None:
    document = api.application.openapi()
    schemas = document["components"]["schemas"]
    for operation, model in (
        ("send_decisions", "DecisionBatch"),
        ("send_reports", "ReportBatch"),
        ("put_ranking", "RankingDocument"),
        ("deliver_evidence", "EvidenceBatch"),
    ):
        method, path = _operations(api)[operation]
        content = document["paths"][path][method.lower()]["requestBody"]["content"]
        assert content["application/json"]["schema"]["$ref"].endswith(f"/{model}")
        assert model in schemas
    references = json.dumps(document).split('"#/components/schemas/')[1:]
    assert {reference.split('"')[0] for reference in references} <= set(schemas)


def test_probes_and_clock_need_no_token(api: Api) -> None:
    with QuotaClient(api.base_url, "nobody") as nobody:
        assert api.call(nobody, "GET", "/-/healthy").json()["status"] == "ok"
        ready = api.call(nobody, "GET", "/-/ready").json()
        clock = nobody.read_clock()
    assert ready == {"status": "ok", "checks": {"database": "ok", "schema": "ok"}}
    assert (clock.now, clock.business_at, clock.speed) == (START_MS, START_MS, 1)


def test_metrics_are_prometheus_text_without_secrets(api: Api) -> None:
    text = api.call(api.operator, "GET", "/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    granted = families["hub_quota_grant_limit_gpu_seconds"].samples
    assert [sample.value for sample in granted] == [36_000.0]
    assert "ghub_" not in text


def test_a_token_is_stored_as_its_digest_only(fresh: Api) -> None:
    made = fresh.operator.create_token(NewToken(role=Role.AUDITOR, label="x"))
    everything = repr(fresh.hub.contents())
    assert made.secret not in everything
    assert made.prefix == made.secret[:12]
    assert made.secret not in fresh.call(fresh.operator, "GET", "/v1/tokens").text
    assert made.secret not in fresh.call(fresh.operator, "GET", "/v1/audit").text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "member"}, "organization_id"),
        ({"role": "auditor", "organization_id": "alpha"}, "organization_id"),
        ({"role": "operator", "node": "n0"}, "node"),
        ({"role": "king"}, "role"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(api: Api, body: dict[str, str], field: str) -> None:
    problem = api.refused(api.operator, "POST", "/v1/tokens", json=body)
    assert (problem["http_status"], problem["errors"][0]["field"]) == (422, field)


@pytest.mark.postgres
def test_texts_no_database_holds_are_no_server_errors(postgres_url: str) -> None:
    with an_api(postgres_url) as api:
        api.hub.award("alpha", "1")
        for path in ("/v1/jobs/a%00b", "/v1/grants/%00", "/v1/jobs?before=%00", "/v1/grants?after=%00"):
            answer = api.call(api.firms["alpha"], "GET", path)
            assert answer.status_code < 500, (path, answer.text)
