"""Who read what: lists of tokens and of the trail leave a row with the query, the count, the address, the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from quota.audit.tables import audit
from quota.schemas.identity import NewToken, Role
from tests.builders import MINUTE_MS, START_MS, Api, a_problem, an_api

READ = "personal.read"


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def reads(api: Api) -> list[Any]:
    return api.hub.rows(audit, action=READ)


def test_a_list_of_tokens_leaves_a_row(api: Api) -> None:
    me = api.auditor.read_caller()
    found = api.auditor.list_tokens(role=Role.MEMBER, active=True)
    (row,) = reads(api)
    assert (row.actor, row.subject, row.address) == (me.token_id, "tokens", "127.0.0.1")
    assert json.loads(row.detail) == {
        "count": len(found.items),
        "query": {"role": "member", "active": True, "limit": 100},
    }


def test_a_read_of_the_trail_leaves_a_row(api: Api) -> None:
    found = api.operator.list_audit(3, 5, action="token.create", since=START_MS)
    (row,) = reads(api)
    assert (row.subject, row.reason) == ("audit", "")
    assert json.loads(row.detail) == {
        "count": len(found.items),
        "query": {"action": "token.create", "from": START_MS, "after": 3, "limit": 5},
    }


def test_an_export_needs_a_reason_which_is_kept(api: Api) -> None:
    for export in (api.auditor.list_tokens, api.auditor.list_audit):
        with a_problem("invalid_request", 422) as caught:
            export(limit=101)
        assert caught[0].problem.errors[0]["field"] == "reason"
        with a_problem("invalid_request", 422):
            export(limit=101, reason="  ")
    assert reads(api) == []
    api.auditor.list_tokens(limit=1000, reason="분기 점검")
    api.auditor.list_audit(limit=1000, reason="quarterly review")
    assert [row.reason for row in reads(api)] == ["분기 점검", "quarterly review"]


def test_a_hundred_rows_need_none(api: Api) -> None:
    api.auditor.list_tokens(limit=100)
    assert len(reads(api)) == 1


def test_members_read_nothing_personal(api: Api) -> None:
    alpha = api.firms["alpha"]
    for refused in (alpha.list_tokens, alpha.list_audit):
        with a_problem("forbidden", 403):
            refused()
    alpha.list_organizations()
    alpha.list_jobs()
    assert reads(api) == []


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_following_the_trail_to_its_end_ends(api: Api, limit: int) -> None:
    """Each page adds a row to what is being read."""
    total = len(api.hub.rows(audit))
    after, pages, seen = 0, 0, []
    while pages < 3 * total:
        page = api.auditor.list_audit(after, limit)
        pages += 1
        seen += [item.id for item in page.items]
        if page.next is None:
            break
        after = page.next
    assert page.next is None, "the reader's own reads are not chased for ever"
    assert len(seen) == len(set(seen))
    assert total <= len(seen) <= 2 * total + 1
    assert len(reads(api)) == pages


def test_another_readers_reads_are_not_left_out(api: Api) -> None:
    last = api.hub.rows(audit)[-1].id
    api.operator.list_tokens()
    api.operator.list_tokens()
    page = api.auditor.list_audit(last, 1)
    assert page.items[0].action == READ
    assert page.next == page.items[0].id


# --- filters -----------------------------------------------------------------------------------------


def test_the_trail_is_filtered(api: Api) -> None:
    api.hub.clock.advance(MINUTE_MS)
    me = api.operator.read_caller().token_id
    made = api.operator.create_token(NewToken(role=Role.AUDITOR))
    api.hub.clock.advance(MINUTE_MS)
    api.operator.revoke_token(made.id, "done")

    def found(**asked: Any) -> list[tuple[str, str]]:
        return [(row.action, row.subject) for row in api.auditor.list_audit(**asked).items]

    creation, revocation = ("token.create", made.id), ("token.revoke", made.id)
    assert found(subject=made.id) == [creation, revocation]
    assert found(subject=made.id, action="token.revoke") == [revocation]
    assert found(actor=me) == [creation, revocation]
    assert found(actor=me, since=START_MS + 2 * MINUTE_MS) == [revocation]
    assert found(actor=me, until=START_MS + 2 * MINUTE_MS) == [creation], "until is not included"
    assert found(actor="nobody") == []
    row = api.auditor.list_audit(subject=made.id, action="token.revoke").items[0]
    assert (row.before is not None, row.after is not None) == (True, True)
    assert row.address == "127.0.0.1"


def test_filtered_pages_are_whole(api: Api) -> None:
    every = [row.id for row in api.auditor.list_audit(action="token.create").items]
    assert len(every) == 7
    after, seen = 0, []
    for _ in range(len(every)):
        page = api.auditor.list_audit(after, 2, action="token.create")
        seen += [row.id for row in page.items]
        if page.next is None:
            break
        after = page.next
    assert seen == every
    assert page.next is None


def test_tokens_are_filtered_and_paged(api: Api) -> None:
    revoked = api.operator.create_token(NewToken(role=Role.MEMBER, organization_id="alpha"))
    api.operator.revoke_token(revoked.id)
    expired = api.operator.create_token(
        NewToken(role=Role.MEMBER, organization_id="alpha", expires_at=api.hub.now + 1)
    )
    api.hub.clock.advance(1)
    every = api.operator.list_tokens().items
    assert len(every) == 9
    ended = api.operator.list_tokens(active=False).items
    assert [item.id for item in ended] == [revoked.id, expired.id]
    assert [item.id for item in api.operator.list_tokens(active=True).items] == [
        item.id for item in every if item not in ended
    ]
    assert {item.organization_id for item in api.operator.list_tokens(organization_id="alpha").items} == {
        "alpha"
    }
    assert [item.role for item in api.operator.list_tokens(role=Role.AGENT).items] == [Role.AGENT]
    after, seen = None, []
    for _ in range(len(every)):
        page = api.operator.list_tokens(after, 2)
        seen += [item.id for item in page.items]
        after = page.next
        if after is None:
            break
    assert seen == [item.id for item in every]
