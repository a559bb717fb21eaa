"""Who may do what to whose objects: every operation of the document, every kind of caller, and no word of others.

Nothing here lists the operations by hand but the table of what each one names: an operation or a parameter that is
missing in it fails a test, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.identity.rules import SCOPES
from quota.schemas.identity import Role, Scope
from tests import databases
from tests.integration.quota.door_world import Operation
from tests.integration.quota.limits_builders import path
from tests.integration.quota.tenant_world import (
    FIRMS,
    Unchanged,
    World,
    a_world,
    told,
    unknown_like,
)

STRANGERS = {"no token": None, "garbage": "ghub_" + "x" * 43, "expired": "expired", "revoked": "revoked"}

# what each operation that a member may call names of anybody's: place -> kind of object
NAMED: dict[str, dict[str, str]] = {
    "read_caller": {},
    "submit_job": {
        "body.organization_id": "organization",
        "body.grant_id": "grant",
        "body.program_id": "program",  # whose grants it has none of: test_opportunistic_jobs
    },
    "list_jobs": {"query.organization_id": "organization", "query.grant_id": "grant"},
    "read_job": {"path.job_id": "job"},
    "read_job_logs": {"path.job_id": "job"},
    "cancel_job": {"path.job_id": "job"},
    "extend_job": {"path.job_id": "job"},
    "list_grants": {"query.organization_id": "organization", "query.program_id": "program"},
    "read_grant": {"path.grant_id": "grant"},
    "read_limits": {"path.grant_id": "grant"},
    "read_statement": {"path.grant_id": "grant"},
    "list_statements": {"path.grant_id": "grant"},
    "put_share": {"path.grant_id": "grant", "path.organization_id": "organization"},
    "read_share": {"path.grant_id": "grant", "path.organization_id": "organization"},
    "move_share": {
        "path.grant_id": "grant",
        "body.from_organization_id": "organization",
        "body.to_organization_id": "organization",
    },
    "list_transfers": {"query.account_id": "account", "query.grant_id": "grant", "query.job_id": "charge"},
    "list_bookings": {"query.organization_id": "organization"},
    "read_booking": {"path.booking_id": "booking"},
    "list_clusters": {},
    "list_gpu_classes": {},
    "list_organizations": {},
    "read_organization": {"path.organization_id": "organization"},
    "read_organization_caps": {"path.organization_id": "organization"},
    "rotate_token": {"path.token_id": "token"},
}
# whom a firm may not know: everybody whom it shares no grant with, and the other parties of one that it does not lead
HIDDEN = {
    "alpha": {"beta"},
    "beta": {"alpha", "gamma", "delta"},
    "gamma": {"beta", "delta"},
    "delta": {"beta", "gamma"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("tenants")
    with a_world(databases.new_sqlite(folder)) as made:
        yield made


@pytest.fixture
def unchanged(world: World) -> Iterator[Unchanged]:
    made = Unchanged(world)
    yield made
    made.close()


def _checked(unchanged: Unchanged, answer: Any, expected: set[int], *about: object) -> None:
    assert answer.status_code in expected, (*about, answer.status_code, answer.text[:500])
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", about
    assert unchanged.after(answer.status_code) == [], about


def _documented(operation: Operation) -> set[int]:
    return {int(status) for status in operation.document["responses"]} - {401, 403}


def _expected(operation: Operation, caller: str) -> set[int]:
    """What whoever has the role and the scope may be answered."""
    if operation.id != "rotate_token" or caller == "operator":
        return _documented(operation)
    # the one operation whose right depends on the object: any token its own, a whole operator's all
    return {403} if caller.startswith("operator") else {404}


# --- who may at all ---------------------------------------------------------------------------------


def test_strangers_are_answered_401_everywhere(world: World, unchanged: Unchanged) -> None:
    for operation in world.operations().values():
        for name, secret in STRANGERS.items():
            expected = {401} if operation.roles else {200}
            _checked(unchanged, world.call(secret, operation), expected, operation.id, name)


def test_roles_are_answered_as_the_document_says(world: World, unchanged: Unchanged) -> None:
    for operation in world.operations().values():
        for role in Role if operation.roles else ():
            answer = world.call(role.value, operation)
            expected = _expected(operation, role.value) if role.value in operation.roles else {403}
            _checked(unchanged, answer, expected, operation.id, role)


def test_narrowed_tokens_need_the_scope_that_the_document_names(world: World, unchanged: Unchanged) -> None:
    tried = 0
    for operation in world.operations().values():
        scope = operation.document["x-scope"]
        for role in sorted(operation.roles):
            for caller, has_it in _narrowed(role, scope):
                expected = _expected(operation, caller) if has_it else {403}
                _checked(unchanged, world.call(caller, operation), expected, operation.id, caller)
                tried += 1
    assert tried > 200


def _narrowed(role: str, scope: str | None) -> Iterator[tuple[str, bool]]:
    """Tokens of a role with one scope, or with all but one; and whether they have the scope that is needed."""
    if scope is None:
        yield f"{role}+{min(SCOPES[Role(role)]).value}", True
        return
    assert Scope(scope) in SCOPES[Role(role)], f"no {role} can have {scope}, which is needed"
    yield f"{role}+{scope}", True
    others = sorted(SCOPES[Role(role)] - {Scope(scope)})
    if others:
        yield f"{role}-{scope}", False
        yield f"{role}+{others[0].value}", False


# --- whose objects ----------------------------------------------------------------------------------


def test_the_table_names_every_operation_of_members_and_every_parameter(world: World) -> None:
    document = world.application.openapi()
    members = {one.id: one for one in world.operations().values() if "member" in one.roles}
    assert set(NAMED) == set(members)
    for name, one in members.items():
        assert set(_ids(one, document)) == set(NAMED[name]), name


def _ids(operation: Operation, document: dict[str, Any]) -> Iterator[str]:
    """Where an operation names objects: all of its path, and what ends in `_id` elsewhere."""
    for item in operation.document.get("parameters", ()):
        if item["in"] == "path" or (item["in"] == "query" and item["name"].endswith("_id")):
            yield f"{item['in']}.{item['name']}"
    content = operation.document.get("requestBody", {}).get("content", {}).get("application/json", {})
    for name in _properties(content.get("schema", {}), document):
        if name.endswith("_id"):
            yield f"body.{name}"


def _properties(schema: dict[str, Any], document: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert schema.get("type", "object") == "object", schema
    return set(schema.get("properties", {}))


def _foreign(world: World, asker: str, kind: str) -> list[str]:
    """Ids of that kind that the asker may not know."""
    hidden = sorted(HIDDEN[asker])
    consortium = world.grants["consortium"]
    own = {"alpha": {"alpha", "consortium"}, "beta": {"beta"}}.get(asker, {"consortium"})
    grants = [grant for name, grant in sorted(world.grants.items()) if name not in own]
    others = [firm for firm in FIRMS if firm != asker]
    match kind:
        case "grant":
            return [grant.id for grant in grants]
        case "organization":
            return hidden
        case "job":
            return [
                world.jobs[f"{firm}{state}"].id for firm in others for state in ("", "/waiting", "/ended")
            ]
        case "booking":
            return [world.bookings[firm].id for firm in others]
        case "charge":  # who leads a consortium reads what its parties were charged
            return [world.jobs[firm].id for firm in others if asker != "alpha" or firm in hidden]
        case "token":
            return [world.tokens[firm] for firm in others] + [world.tokens["operator"]]
        case "account":
            shares = [path(consortium, firm)[0] for firm in hidden if firm != "beta"]
            accounts = [grant.account_id for grant in grants]
            lead = [] if asker == "alpha" else [consortium.account_id, path(consortium, None, 1)[0]]
            return [*shares, *accounts, *lead, "program:ax", "treasury"]
    assert kind == "program", kind
    return []  # a programme's name only filters what is the caller's anyway


def _request(world: World, asker: str, operation: Operation, place: str, named: str) -> dict[str, Any]:
    """A request that names one object, and is about the asker's own otherwise."""
    own = world.grants["beta" if asker == "beta" else "consortium"]
    ids = {
        "grant_id": own.id,
        "organization_id": asker,
        "job_id": world.jobs[asker].id,
        "token_id": world.tokens[asker],
        "booking_id": world.bookings[asker].id,
    }
    bodies: dict[str, Any] = {
        "submit_job": {"name": "a", "gpu_class": "h100", "walltime_s": 60},
        "put_share": {"gpu_hours": "1", "reason": "r"},
        "move_share": {
            "from_organization_id": asker,
            "to_organization_id": asker if place == "body.from_organization_id" else "omega",
            "gpu_hours": "1",
            "reason": "r",
        },
    }
    where, _, name = place.partition(".")
    body = bodies.get(operation.id, operation.body())
    params: dict[str, str] = {}
    if where == "body":
        body = body | {name: named}
    elif where == "query":
        params = {name: named}
    else:
        ids[name] = named
    more: dict[str, Any] = {"url": operation.url(**ids), "params": params}
    return more | ({} if body is None else {"body": body})


@pytest.mark.parametrize("asker", FIRMS)
def test_anothers_object_is_told_of_exactly_as_one_that_is_not_there(
    world: World, unchanged: Unchanged, asker: str
) -> None:
    compared = 0
    for name, places in NAMED.items():
        operation = world.operations()[name]
        for place, kind in places.items():
            for foreign in _foreign(world, asker, kind):
                unknown = unknown_like(foreign)
                answers = []
                for named in (foreign, unknown):
                    answer = world.call(asker, operation, **_request(world, asker, operation, place, named))
                    expected = {404} if answer.status_code != 200 or place.startswith("path") else {200}
                    if answer.status_code == 403 and asker in ("gamma", "delta"):
                        expected = {403}  # a party may not divide the grant that it knows, whoever is named
                    _checked(unchanged, answer, expected, name, place, named)
                    assert str(answer.status_code) in operation.document["responses"], (name, place)
                    if answer.status_code == 200:
                        assert answer.json()["items"] == [], (name, place, named)
                    answers.append(told(answer, named))
                assert answers[0] == answers[1], (name, place, foreign)
                compared += 1
    assert compared > 50


# --- no word of others --------------------------------------------------------------------------------


def _words_of(world: World, firm: str, viewer: str) -> set[str]:
    """What names a firm or something of its own."""
    words = {f'"{firm}"', f":{firm}", firm.title(), world.tokens[firm]}
    words |= {world.jobs[f"{firm}{state}"].id for state in ("", "/waiting", "/ended")}
    words |= {world.bookings[firm].id, f"{firm} teaches"}
    words |= {f"{firm} runs", f"{firm} waits", f"{firm} gave up"}
    if firm in world.grants:
        words.add(world.grants[firm].id)
    if viewer == "beta":
        words.add(world.grants["consortium"].id)
    return words


def _readings(world: World, firm: str) -> Iterator[tuple[str, Any]]:
    """Everything that a firm may read, of the hub and of what is its own."""
    for name, operation in world.operations().items():
        if operation.method != "GET" or "member" not in operation.roles:
            continue
        kinds = [part.strip("{}") for part in operation.path.split("/") if part.startswith("{")]
        for ids in _own_ids(world, firm, kinds):
            if name == "read_job_logs" and ids["job_id"] != world.jobs[firm].id:
                continue  # the others never ran
            yield f"{name} {ids}", world.call(firm, operation, url=operation.url(**ids))
    for form in ("csv", "html"):
        for grant in _own_grants(world, firm):
            url = f"/v1/grants/{grant}/statement"
            yield f"{form} {grant}", world.ask(firm, "GET", url, params={"format": form})
    body = {"name": "q", "gpu_class": "h100", "walltime_s": 3600}
    yield "quote", world.ask(firm, "POST", "/v1/jobs", params={"dry_run": "true"}, body=body)


def _own_grants(world: World, firm: str) -> list[str]:
    names = {"alpha": ("alpha", "consortium"), "beta": ("beta",)}.get(firm, ("consortium",))
    return [world.grants[name].id for name in names]


def _own_ids(world: World, firm: str, kinds: list[str]) -> list[dict[str, str]]:
    if kinds == ["job_id"]:
        return [{"job_id": world.jobs[f"{firm}{state}"].id} for state in ("", "/waiting", "/ended")]
    if kinds == ["grant_id"]:
        return [{"grant_id": grant} for grant in _own_grants(world, firm)]
    if kinds == ["booking_id"]:
        return [{"booking_id": world.bookings[firm].id}]
    known = {"grant_id": world.grants["consortium"].id, "organization_id": firm}
    if kinds == ["grant_id", "organization_id"] and firm == "beta":
        return []
    return [{kind: known[kind] for kind in kinds}]


@pytest.mark.parametrize("firm", FIRMS)
def test_nothing_that_a_firm_reads_names_another(world: World, firm: str) -> None:
    hidden = {word for other in HIDDEN[firm] for word in _words_of(world, other, firm)}
    if firm in ("gamma", "delta"):  # its lead's name stands on the grant; nothing else of the lead does
        hidden |= _words_of(world, "alpha", firm) - {'"alpha"', "Alpha", ":alpha"} | {":alpha"}
    read = dict(_readings(world, firm))
    assert len(read) >= 14
    for name, answer in read.items():
        assert answer.status_code == 200, (name, answer.text)
        assert [word for word in hidden if word in answer.text] == [], name


def test_words_of_others_would_be_found(world: World) -> None:
    """The same search over what operators read finds every firm: it can fail."""
    whole = "".join(
        world.ask("operator", "GET", url).text
        for url in ("/v1/jobs", "/v1/grants", "/v1/transfers", "/v1/tokens", "/v1/bookings")
    )
    for firm in FIRMS:
        found = {word for word in _words_of(world, firm, "beta") if word in whole}
        assert len(found) >= 6, (firm, found)


@pytest.mark.parametrize("firm", FIRMS)
def test_lists_show_all_that_is_a_firms_own(world: World, firm: str) -> None:
    """Empty lists would name nobody either."""
    with_rows = {"list_jobs": "/v1/jobs", "list_grants": "/v1/grants", "list_transfers": "/v1/transfers"}
    with_rows["list_bookings"] = "/v1/bookings"
    for name, url in with_rows.items():
        items = world.ask(firm, "GET", url).json()["items"]
        assert items, name
    shown = {job["id"] for job in world.ask(firm, "GET", "/v1/jobs").json()["items"]}
    assert shown >= {world.jobs[f"{firm}{state}"].id for state in ("", "/waiting", "/ended")}


def test_problems_never_hold_a_secret(world: World) -> None:
    for secret in (world.secrets["alpha"], world.secrets["operator"]):
        with_secret = world.ask(secret + "x", "GET", "/v1/caller")
        assert with_secret.status_code == 401
        assert secret not in with_secret.text
        assert not re.search(r"ghub_\w{20}", json.dumps(with_secret.json()))
