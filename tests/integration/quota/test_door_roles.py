"""Who may do what: every operation, every role, and strangers; whatever the body holds."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.client import QuotaClient
from quota.identity.tables import auth_failures, tokens
from quota.schemas.identity import NewToken, Role
from tests import databases
from tests.builders import Api, an_api
from tests.integration.quota.door_world import (
    EVERYBODY,
    EVIDENCE,
    JSON,
    LIMIT,
    PUBLIC,
    READERS,
    STAFF,
    call,
    clients,
    operations,
)

ALLOWED: dict[str, set[str]] = {
    "read_caller": EVERYBODY,
    "submit_job": {"operator", "member"},
    "list_jobs": READERS,
    "read_job": READERS,
    "read_job_logs": {"operator", "member"},
    "cancel_job": {"operator", "member"},
    "create_program": {"operator"},
    "list_programs": STAFF,
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
    "list_nodes": STAFF,
    "report_gpus": {"agent"},
    "list_gpus": STAFF,
    "register_gpus": {"operator"},
    "read_gpu": STAFF,
    "change_gpu": {"operator"},
    "read_gpu_policy": STAFF,
    "put_gpu_policy": {"operator"},
    "create_booking": {"operator"},
    "list_bookings": READERS,
    "read_booking": READERS,
    "cancel_booking": {"operator"},
    "change_node": {"operator"},
    "freeze_organization": {"operator"},
    "list_placement": {"operator", "auditor"},
    "read_fair_share": {"operator", "auditor"},
    "put_fair_share": {"operator"},
    "read_caps": {"operator", "auditor"},
    "put_caps": {"operator"},
    "read_idle_policy": {"operator", "auditor"},
    "put_idle_policy": {"operator"},
    "list_idle_jobs": {"operator", "auditor"},
    "create_idle_exemption": {"operator"},
    "list_idle_exemptions": {"operator", "auditor"},
    "end_idle_exemption": {"operator"},
    "read_organization_caps": {"operator", "auditor", "member"},
    "put_organization_caps": {"operator"},
    "read_scheduler_state": {"operator", "auditor"},
    "ask_what_if": {"operator"},
    "pause_hub": {"operator"},
    "pause_cluster": {"operator"},
    "pause_gpu_class": {"operator"},
    "edit_grant": {"operator"},
    "requeue_job": {"operator"},
    "create_organization": {"operator"},
    "list_organizations": READERS,
    "create_token": {"operator"},
    "list_tokens": STAFF,
    "list_audit": STAFF,
    "list_findings": STAFF,
    "take_lease": {"scheduler"},
    "read_snapshot": {"scheduler"},
    "follow_feed": {"scheduler"},
    "send_decisions": {"scheduler"},
    "send_reports": {"scheduler"},
    "put_ranking": {"scheduler"},
    "put_forecast": {"scheduler"},
    "read_recent_jobs": {"scheduler"},
    "deliver_evidence": {"agent"},
    "extend_job": {"operator", "member"},
    "refund_job": {"operator"},
    "read_program": STAFF,
    "change_program": {"operator"},
    "adjust_program": {"operator"},
    "transfer_hours": {"operator"},
    "adjust_grant": {"operator"},
    "carry_over_hours": {"operator"},
    "list_transfers": READERS,
    "list_policies": STAFF,
    "read_policy": STAFF,
    "put_policy": {"operator"},
    "read_fund": STAFF,
    "put_fund": {"operator"},
    "read_program_caps": STAFF,
    "put_program_caps": {"operator"},
    "put_share": {"operator", "member"},
    "read_share": READERS,
    "move_share": {"operator", "member"},
    "open_tranches": {"operator"},
    "put_tranche": {"operator"},
    "release_tranche": {"operator"},
    "read_limits": READERS,
    "list_statements": READERS,
    "read_organization": READERS,
    "change_organization": {"operator"},
    "revoke_organization_tokens": {"operator"},
    "rotate_token": EVERYBODY,
    "revoke_token": {"operator"},
    "list_seals": STAFF,
    "export_ledger": STAFF,
    "list_reconciliations": STAFF,
    "reconcile_day": {"operator"},
    "list_tasks": STAFF,
}
MANY = 1_000_000
BAD_BODIES = [b"", b"{", b'{"unknown": 1}', b" " * (LIMIT + 1)]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("roles")
    limits = {"lockout_pair_failures": MANY, "lockout_address_failures": MANY, "member_requests_per_s": 0}
    with an_api(databases.new_sqlite(folder), body_limit_bytes=LIMIT, **limits) as made:
        made.hub.award("alpha", "10")
        yield made


def test_the_table_of_roles_names_every_operation(api: Api) -> None:
    assert set(operations(api)) == set(ALLOWED) | PUBLIC


def test_the_document_says_who_may(api: Api) -> None:
    assert {name: one.roles for name, one in operations(api).items()} == ALLOWED | {
        name: set() for name in PUBLIC
    }


@pytest.mark.parametrize("operation", sorted(ALLOWED))
def test_only_the_named_roles_may(api: Api, operation: str) -> None:
    for role, client in clients(api).items():
        status = call(api, client, operation).status_code
        if role in ALLOWED[operation]:
            assert status not in (401, 403), f"{role} may {operation}"
        else:
            assert status == 403, f"{role} may not {operation}"


@pytest.mark.parametrize("operation", sorted(ALLOWED))
def test_nobody_may_anything_without_a_token(api: Api, operation: str) -> None:
    for header in ("Bearer ghub_" + "x" * 43, "Basic b3BlcmF0b3I6eA==", "Bearer"):
        with QuotaClient(api.base_url, "x") as stranger:
            stranger._http.headers["Authorization"] = header
            answer = call(api, stranger, operation)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("body", BAD_BODIES, ids=["empty", "broken", "unknown field", "too large"])
def test_who_may_not_learns_so_whatever_the_body_holds(api: Api, body: bytes) -> None:
    """A stranger is answered 401 and a wrong role 403, on routes that read JSON themselves and on those that don't."""
    bodied = [one for one in operations(api).values() if one.takes_body]
    assert {"send_reports", "put_ranking", "submit_job", "award_grant"} <= {one.id for one in bodied}
    with QuotaClient(api.base_url, "ghub_nobody") as stranger:
        for operation in bodied:
            wrong = [client for role, client in clients(api).items() if role not in operation.roles]
            refused = [(stranger, "unauthenticated", 401)] + [(client, "forbidden", 403) for client in wrong]
            for client, code, status in refused:
                answer = call(api, client, operation.id, body)
                assert (answer.status_code, answer.json()["code"]) == (status, code), operation.id


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b"{"), b"no gzip", gzip.compress(b" " * (LIMIT + 1))],
    ids=["broken", "not packed", "too large"],
)
def test_who_may_not_learns_so_of_packed_bodies_too(api: Api, body: bytes) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    with QuotaClient(api.base_url, "ghub_nobody") as stranger:
        for client, status in ((stranger, 401), (api.firms["alpha"], 403)):
            answer = api.call(client, "PUT", "/v1/scheduler/ranking", content=body, headers=headers)
            assert answer.status_code == status


def test_roles_without_reach_change_nothing(sqlite_url: str) -> None:
    """An auditor and a firm call every operation; nothing in the database moves."""
    with an_api(sqlite_url) as fresh:
        before = fresh.hub.contents(tokens, auth_failures)
        for operation, roles in sorted(ALLOWED.items()):
            for role, client in (("auditor", fresh.auditor), ("member", fresh.firms["alpha"])):
                if role not in roles or operations(fresh)[operation].method == "GET":
                    call(fresh, client, operation)
        after = fresh.hub.contents(tokens, auth_failures)
    assert _without_reads(after) == _without_reads(before)


def _without_reads(contents: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Reading personal data is itself in the trail, which moves the feed's head."""
    return {name: rows for name, rows in contents.items() if name not in ("audit", "feed_head")}


def test_an_auditor_reads_everything(api: Api) -> None:
    auditor = api.auditor
    assert auditor.list_programs().items
    assert auditor.list_grants().items
    assert auditor.list_nodes().items
    assert auditor.list_tokens().items
    assert auditor.list_audit().items
    assert auditor.list_organizations().items
    assert auditor.read_statement(auditor.list_grants().items[0].id).lines


def test_an_agents_token_is_bound_to_its_node(api: Api) -> None:
    token = api.operator.create_token(NewToken(role=Role.AGENT, node="n1"))
    with QuotaClient(api.base_url, token.secret) as agent:
        problem = api.refused(agent, "POST", "/v1/usage/evidence", json={"rows": [EVIDENCE]})
    assert (problem["http_status"], problem["code"]) == (403, "forbidden")
