"""Rotation and revocation: one successor at a time, an overlap that never lengthens a life, ends that hold at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from quota.audit.tables import audit
from quota.client import QuotaClient
from quota.errors import (
    AlreadyRotated,
    BadRequest,
    Forbidden,
    HubError,
    NotFound,
    TokenEnded,
    Unauthenticated,
)
from quota.identity import tokens
from quota.identity.tables import idempotency
from quota.identity.tables import tokens as token_rows
from quota.schemas.identity import Caller, NewToken, RevokedTokens, Role, Scope, TokenRotation
from tests.builders import DAY_MS, OPERATOR, Api, a_problem, an_api
from tests.integration.quota.token_world import World, a_world, at_once

HOUR_MS = 3_600_000


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def revoke(world: World, token_id: str) -> None:
    world.database.write(lambda tx: tokens.revoke_token(tx, OPERATOR, token_id, "a test"))


def revoke_all(world: World, organization: str = "alpha") -> RevokedTokens:
    return world.database.write(
        lambda tx: tokens.revoke_organization_tokens(tx, OPERATOR, organization, "a leak")
    )


def refused(world: World, kind: type[HubError], token_id: str, **fields: Any) -> HubError:
    before = len(world.rows(token_rows))
    with pytest.raises(kind) as caught:
        world.rotate(token_id, **fields)
    assert len(world.rows(token_rows)) == before
    return caught.value


def works(world: World, secret: str) -> bool:
    try:
        world.enter(secret)
    except Unauthenticated:
        return False
    return True


# --- rotation ----------------------------------------------------------------------------------------


def test_a_successor_has_the_same_rights(world: World) -> None:
    ends = world.clock.now_ms() + 90 * DAY_MS
    old = world.token(label="Kim", scopes=(Scope.JOBS_READ,), expires_at=ends)
    new = world.rotate(old.id)
    same = {"role", "organization_id", "node", "label", "scopes", "expires_at"}
    assert new.model_dump(include=same) == old.model_dump(include=same)
    assert new.replaces == old.id
    assert (new.id, new.secret) != (old.id, old.secret)
    agent = world.token(Role.AGENT)
    assert world.rotate(agent.id).node == "n0"


def test_both_secrets_are_good_until_the_overlap_is_over(world: World) -> None:
    old = world.token()
    new = world.rotate(old.id, overlap_s=3600)
    world.clock.advance(HOUR_MS - 1)
    assert (works(world, old.secret), works(world, new.secret)) == (True, True)
    world.clock.advance(1)
    assert (works(world, old.secret), works(world, new.secret)) == (False, True)


def test_no_overlap_ends_the_old_secret_at_once(world: World) -> None:
    old = world.token()
    new = world.rotate(old.id, overlap_s=0)
    assert (works(world, old.secret), works(world, new.secret)) == (False, True)


def test_an_overlap_never_lengthens_a_life(world: World) -> None:
    old = world.token(expires_at=world.clock.now_ms() + 1000)
    world.rotate(old.id, overlap_s=30 * 86_400)
    (row,) = world.rows(token_rows, id=old.id)
    assert row.expires_at_ms == old.expires_at


@pytest.mark.parametrize("overlap_s", [-1, 30 * 86_400 + 1, 0.5])
def test_an_overlap_lasts_thirty_days_at_most(overlap_s: float) -> None:
    with pytest.raises(ValueError, match="overlap_s"):
        TokenRotation.model_validate({"overlap_s": overlap_s, "reason": "r"})


def test_a_second_rotation_is_refused_while_the_successor_is_good(world: World) -> None:
    old = world.token()
    new = world.rotate(old.id)
    assert refused(world, AlreadyRotated, old.id).numbers["successor"] == new.id
    assert world.rotate(new.id).replaces == new.id, "the successor itself may be rotated"
    revoke(world, new.id)
    assert world.rotate(old.id).replaces == old.id, (
        "a successor whose secret was lost is revoked, then tried again"
    )


def test_an_ended_token_is_not_rotated(world: World) -> None:
    revoked, expired = world.token(), world.token(expires_at=world.clock.now_ms() + 5)
    revoke(world, revoked.id)
    world.clock.advance(5)
    refused(world, TokenEnded, revoked.id)
    refused(world, TokenEnded, expired.id)
    refused(world, NotFound, "tok-nobody")


def test_a_token_rotates_itself_and_no_other(world: World) -> None:
    for role in Role:
        mine, other = world.token(role), world.token(role)
        me = world.enter(mine.secret)
        if role is not Role.OPERATOR:
            refused(world, NotFound, other.id, caller=me)
        assert world.rotate(mine.id, me).role is role


def test_a_holder_does_not_lengthen_its_own_token(world: World) -> None:
    later = world.clock.now_ms() + DAY_MS
    mine = world.token(expires_at=later)
    refused(world, Forbidden, mine.id, caller=world.enter(mine.secret), expires_at=later + DAY_MS)
    refused(world, BadRequest, mine.id, expires_at=world.clock.now_ms())
    assert world.rotate(mine.id, expires_at=later + DAY_MS).expires_at == later + DAY_MS


def test_a_narrowed_operator_gets_no_wider_secret_by_rotation(world: World) -> None:
    wide, registrar, reader = (
        world.token(Role.OPERATOR),
        world.token(Role.OPERATOR, scopes=(Scope.IDENTITY_WRITE,)),
        world.token(Role.OPERATOR, scopes=(Scope.JOBS_READ,)),
    )
    refused(world, Forbidden, wide.id, caller=world.enter(registrar.secret))
    refused(world, Forbidden, registrar.id, caller=world.enter(reader.secret))
    assert world.rotate(reader.id, world.enter(reader.secret)).scopes == (Scope.JOBS_READ,)
    twin = world.token(Role.OPERATOR, scopes=(Scope.IDENTITY_WRITE,))
    assert world.rotate(twin.id, world.enter(registrar.secret)).replaces == twin.id


def test_of_many_rotations_at_once_one_wins(world: World) -> None:
    for _ in range(4):
        old = world.token()
        results = at_once(6, lambda _number, old=old: world.rotate(old.id))
        won = [result for result in results if not isinstance(result, Exception)]
        lost = [result for result in results if isinstance(result, AlreadyRotated)]
        assert (len(won), len(lost)) == (1, 5)
        assert {error.numbers["successor"] for error in lost} == {won[0].id}


def test_rotation_is_audited_before_and_after(world: World) -> None:
    old = world.token()
    caller = Caller(token_id="op", role=Role.OPERATOR, organization_id=None, address="10.0.0.9")
    new = world.rotate(old.id, caller, reason="yearly")
    (row,) = world.rows(audit, action="token.rotate", subject=old.id)
    assert (row.actor, row.address, row.reason) == ("op", "10.0.0.9", "yearly")
    assert json.loads(row.before)["expires_at"] is None
    assert json.loads(row.after)["expires_at"] == "2026-11-22T01:00:00.000Z"
    assert json.loads(row.detail) == {"successor": new.id, "overlap_s": 3600}
    (made,) = world.rows(audit, action="token.create", subject=new.id)
    assert json.loads(made.after)["replaces"] == old.id
    assert new.secret not in row.after + row.detail + made.after + made.detail


# --- revocation --------------------------------------------------------------------------------------


def test_revoking_is_audited_before_and_after_and_once(world: World) -> None:
    token = world.token()
    revoke(world, token.id)
    world.clock.advance(1000)
    revoke(world, token.id)
    (row,) = world.rows(audit, action="token.revoke")
    assert json.loads(row.before)["revoked_at"] is None
    assert json.loads(row.after)["revoked_at"] == "2026-11-22T00:00:00.000Z"
    assert row.reason == "a test"


def test_all_tokens_of_an_organization_end_in_one_call(world: World) -> None:
    mine = [world.token() for _ in range(3)]
    theirs, operators = world.token(organization_id="beta"), world.token(Role.OPERATOR)
    revoke(world, mine[0].id)
    ended = revoke_all(world)
    assert [item.id for item in ended.items] == [mine[1].id, mine[2].id]
    assert not any(works(world, token.secret) for token in mine)
    assert works(world, theirs.secret)
    assert works(world, operators.secret)
    rows = world.rows(audit, action="token.revoke")
    assert [(row.subject, row.reason) for row in rows[1:]] == [(t.id, "a leak") for t in mine[1:]]
    (row,) = world.rows(audit, action="organization.revoke_tokens")
    assert json.loads(row.detail) == {"tokens": [mine[1].id, mine[2].id]}
    assert revoke_all(world).items == ()
    with pytest.raises(NotFound):
        revoke_all(world, "nobody")


def test_no_token_slips_through_a_revocation_of_all(world: World) -> None:
    """Holders rotate at the very moment: after the call no token works that was rotated from before it."""
    for _ in range(4):
        _rotate_while_all_are_revoked(world)


def _rotate_while_all_are_revoked(world: World) -> None:
    old = [world.token() for _ in range(5)]
    callers = [world.enter(token.secret) for token in old]

    def work(number: int) -> Any:
        return revoke_all(world) if number == 5 else world.rotate(old[number].id, callers[number])

    results = at_once(6, work)
    assert all(not isinstance(result, Exception) or isinstance(result, TokenEnded) for result in results), (
        results
    )
    secrets = [token.secret for token in old]
    secrets += [result.secret for result in results[:5] if not isinstance(result, Exception)]
    assert [works(world, secret) for secret in secrets] == [False] * len(secrets)


# --- over HTTP: a lost reply -------------------------------------------------------------------------


def test_a_repeated_creation_names_the_token_whose_secret_was_lost(api: Api) -> None:
    body = NewToken(role=Role.AUDITOR, label="lost")
    made = api.operator.create_token(body, "key-1")
    with a_problem("secret_already_shown", 409) as caught:
        api.operator.create_token(body, "key-1")
    assert caught[0].problem.numbers == {"token_id": made.id}
    with a_problem("idempotency_key_reused", 422):
        api.operator.create_token(NewToken(role=Role.AUDITOR, label="other"), "key-1")
    assert len([row for row in api.hub.rows(token_rows) if row.label == "lost"]) == 1
    assert not [row for row in api.hub.rows(idempotency) if made.secret in row.body], "no secret is stored"


def test_a_lost_rotation_is_revoked_and_done_again(api: Api) -> None:
    member = api.operator.create_token(NewToken(role=Role.MEMBER, organization_id="alpha"))
    body = TokenRotation(overlap_s=600, reason="yearly")
    with QuotaClient(api.base_url, member.secret) as holder:
        lost = holder.rotate_token(member.id, body, "rotate-1")
        with a_problem("secret_already_shown", 409) as caught:
            holder.rotate_token(member.id, body, "rotate-1")
        assert caught[0].problem.numbers == {"token_id": lost.id}
        with a_problem("already_rotated", 409):
            holder.rotate_token(member.id, body, "rotate-2")
        api.operator.revoke_token(lost.id, "its secret was lost with the reply")
        again = holder.rotate_token(member.id, body, "rotate-3")
    with QuotaClient(api.base_url, again.secret) as holder:
        assert holder.read_caller().organization_id == "alpha"


def test_a_narrowed_token_rotates_itself_over_http(api: Api) -> None:
    narrow = api.operator.create_token(NewToken(role=Role.AUDITOR, scopes=(Scope.GRANTS_READ,)))
    with QuotaClient(api.base_url, narrow.secret) as holder:
        new = holder.rotate_token(narrow.id, TokenRotation(overlap_s=0, reason="r"))
        with a_problem("unauthenticated", 401):
            holder.read_caller()
    assert new.scopes == (Scope.GRANTS_READ,)


def test_all_tokens_of_an_organization_end_over_http(api: Api) -> None:
    ended = api.operator.revoke_organization_tokens("alpha", "a leak")
    assert [item.organization_id for item in ended.items] == ["alpha"]
    with a_problem("unauthenticated", 401):
        api.firms["alpha"].read_caller()
    assert api.firms["beta"].read_caller().organization_id == "beta"
