"""What a token may be made for: scopes of its role, an end in the future, an agent's node, nothing past its maker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from quota.app import create_app
from quota.audit.tables import audit
from quota.client import QuotaClient
from quota.errors import BadRequest, Forbidden, HubError, NotFound, Unauthenticated
from quota.identity import tokens
from quota.identity.rules import SCOPES, speaks_for
from quota.identity.tables import tokens as token_rows
from quota.schemas.identity import Caller, NewToken, OrganizationChange, Role, Scope
from quota.settings import Settings
from tests.builders import Api, a_problem, an_api
from tests.integration.quota.token_world import World, a_world


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def refused(world: World, kind: type[HubError], role: Role, **fields: Any) -> HubError:
    before = len(world.rows(token_rows))
    with pytest.raises(kind) as caught:
        world.token(role, **fields)
    assert len(world.rows(token_rows)) == before
    return caught.value


def operations(url: str) -> list[tuple[str, list[str], str | None]]:
    """(operation, roles, scope) of every route."""
    application = create_app(Settings(database=url, tasks=False))
    application.state.hub.database.close()
    return [
        (operation["operationId"], operation["x-roles"], operation["x-scope"])
        for methods in application.openapi()["paths"].values()
        for operation in methods.values()
    ]


def test_every_role_has_the_scopes_of_its_routes_and_no_others(sqlite_url: str) -> None:
    """A scope that no route of the role asks for would be a promise without a door, the reverse a trap."""
    asked: dict[Role, set[Scope]] = {role: set() for role in Role}
    for _, roles, scope in operations(sqlite_url):
        for role in roles:
            asked[Role(role)] |= set() if scope is None else {Scope(scope)}
    assert asked == {role: set(scopes) for role, scopes in SCOPES.items()}


@pytest.mark.parametrize("role", list(Role))
def test_a_token_has_the_scopes_of_its_role_at_most(world: World, role: Role) -> None:
    made = world.token(role, scopes=tuple(SCOPES[role]))
    assert set(made.scopes) == SCOPES[role]
    assert set(world.enter(made.secret).scopes) == SCOPES[role]
    for scope in set(Scope) - SCOPES[role]:
        assert refused(world, BadRequest, role, scopes=(scope,)).field == "scopes"


def test_a_scope_said_twice_counts_once(world: World) -> None:
    made = world.token(scopes=(Scope.JOBS_WRITE, Scope.JOBS_READ, Scope.JOBS_WRITE))
    assert made.scopes == (Scope.JOBS_READ, Scope.JOBS_WRITE)


def test_a_token_ends_in_the_future(world: World) -> None:
    now = world.clock.now_ms()
    for moment in (now, now - 1, 0):
        assert refused(world, BadRequest, Role.MEMBER, expires_at=moment).field == "expires_at"
    made = world.token(expires_at=now + 1)
    assert world.enter(made.secret).token_id == made.id
    world.clock.advance(1)
    with pytest.raises(Unauthenticated):
        world.enter(made.secret)


@pytest.mark.parametrize(
    ("role", "fields", "field"),
    [
        (Role.AGENT, {"node": None}, "node"),
        (Role.OPERATOR, {"node": "n0"}, "node"),
        (Role.MEMBER, {"organization_id": None}, "organization_id"),
        (Role.AUDITOR, {"organization_id": "alpha"}, "organization_id"),
        (Role.AGENT, {"organization_id": "alpha"}, "organization_id"),
    ],
)
def test_a_token_is_bound_as_its_role_asks(
    world: World, role: Role, fields: dict[str, Any], field: str
) -> None:
    assert refused(world, BadRequest, role, **fields).field == field


def test_a_members_organization_must_be_known(world: World) -> None:
    refused(world, NotFound, Role.MEMBER, organization_id="nobody")


@pytest.mark.parametrize(
    ("binding", "node", "may"),
    [
        ("sim-1", "sim-1", True),
        ("sim-1", "sim-10", False),
        ("sim-1", "sim-2", False),
        ("sim-*", "sim-10", True),
        ("sim-*", "sim", False),
        ("sim-*", "h100-1", False),
        (None, "sim-1", False),
    ],
)
def test_an_agents_token_speaks_for_its_nodes_only(binding: str | None, node: str, may: bool) -> None:
    assert speaks_for(binding, node) is may


@pytest.mark.parametrize("node", ["*", "a*b", "Sim-1", "-a", "a/b", ""])
def test_a_binding_is_a_name_or_the_beginning_of_names(node: str) -> None:
    with pytest.raises(ValueError, match="node"):
        NewToken(role=Role.AGENT, node=node)


NARROW = Caller(
    token_id="registrar",
    role=Role.OPERATOR,
    organization_id=None,
    scopes=(Scope.IDENTITY_WRITE, Scope.JOBS_READ),
)


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        ((), False),
        ((Scope.IDENTITY_WRITE,), True),
        ((Scope.JOBS_READ, Scope.IDENTITY_WRITE), True),
        ((Scope.JOBS_READ, Scope.GRANTS_WRITE), False),
    ],
)
def test_a_narrowed_token_makes_none_wider_than_itself(
    world: World, scopes: tuple[Scope, ...], may: bool
) -> None:
    body = NewToken(role=Role.OPERATOR, scopes=scopes)
    if may:
        made = world.database.write(lambda tx: tokens.create_token(tx, NARROW, body))
        assert set(made.scopes) == set(scopes)
    else:
        with pytest.raises(Forbidden):
            world.database.write(lambda tx: tokens.create_token(tx, NARROW, body))


def test_creation_is_audited_without_the_secret(world: World) -> None:
    maker = Caller(token_id="tok-op", role=Role.OPERATOR, organization_id=None, address="10.0.0.1")
    body = NewToken(role=Role.MEMBER, organization_id="alpha", label="Kim", scopes=(Scope.JOBS_READ,))
    made = world.database.write(lambda tx: tokens.create_token(tx, maker, body))
    (row,) = world.rows(audit, action="token.create", subject=made.id)
    assert (row.actor, row.address, row.before) == ("tok-op", "10.0.0.1", None)
    after = json.loads(row.after)
    assert (after["label"], after["scopes"], after["organization_id"]) == ("Kim", ["jobs:read"], "alpha")
    assert made.secret not in row.after + row.detail
    (stored,) = world.rows(token_rows, id=made.id)
    assert made.secret not in str(tuple(stored))


# --- at the door -------------------------------------------------------------------------------------


def test_the_door_keeps_a_token_within_its_scopes(api: Api) -> None:
    body = NewToken(role=Role.OPERATOR, scopes=(Scope.JOBS_READ, Scope.IDENTITY_READ))
    with QuotaClient(api.base_url, api.operator.create_token(body).secret) as narrow:
        assert narrow.read_caller().scopes == body.scopes
        assert narrow.list_jobs().items == ()
        assert narrow.list_organizations().items
        with a_problem("forbidden", 403):
            narrow.list_grants()
        with a_problem("forbidden", 403):
            narrow.list_audit()
        with a_problem("forbidden", 403):
            narrow.change_organization("alpha", OrganizationChange(name="X", reason="r"))


def test_a_wrong_scope_names_the_field(api: Api) -> None:
    with a_problem("invalid_request", 422) as caught:
        api.operator.create_token(NewToken(role=Role.AUDITOR, scopes=(Scope.JOBS_WRITE,)))
    assert caught[0].problem.errors[0]["field"] == "scopes"
    answer = api.refused(api.operator, "POST", "/v1/tokens", json={"role": "auditor", "scopes": ["all"]})
    assert (answer["http_status"], answer["errors"][0]["field"]) == (422, "scopes.0")


def test_the_first_operator_is_made_without_the_service(world: World) -> None:
    """The command line's actor is no token, so nothing narrows it."""
    body = NewToken(role=Role.OPERATOR)
    made = world.database.write(lambda tx: tokens.create_token(tx, "command line", body))
    assert world.enter(made.secret).role is Role.OPERATOR
    assert [row.actor for row in world.rows(audit, action="token.create")] == ["command line"]
