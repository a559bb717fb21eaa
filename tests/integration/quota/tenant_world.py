"""A served hub in which every kind of object belongs to somebody, and callers of every kind ask for it.

alpha leads a consortium whose parties are gamma and delta, and has a grant of its own; beta is a stranger to all of
them. Requests go straight into the application, without a socket: thousands of them take seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from sqlalchemy import Table
from starlette.testclient import TestClient

from quota.app import create_app
from quota.audit import seals
from quota.bookings import service as bookings
from quota.clock import HOUR_MS
from quota.identity import tokens
from quota.identity.rules import SCOPES
from quota.identity.tables import auth_failures
from quota.programs import awards
from quota.reports import statements
from quota.schemas.bookings import Booking, NewBooking
from quota.schemas.identity import Caller, NewToken, Role, Scope, TokenRevocation
from quota.schemas.jobs import Job
from quota.schemas.limits import NewTranche
from quota.schemas.programs import Award, Grant
from quota.schemas.scheduling import RankingDocument
from quota.schemas.statements import StatementFormat, StatementLanguage
from quota.settings import Settings
from tests.builders import DAY_MS, OPERATOR, Hub, a_hub, a_member
from tests.integration.quota.door_world import Operation
from tests.integration.quota.limits_builders import give, path, run_on
from tests.integration.quota.log_leader import a_log_leader

FIRMS = ("alpha", "beta", "gamma", "delta")
MANY = 1_000_000
RECORDED = (auth_failures,)
"""What a refusal itself may write: who failed at the door."""


@dataclass
class World:
    """The hub, the application in front of it, the secrets of its callers, and whose is what."""

    hub: Hub
    application: Any
    http: TestClient
    secrets: dict[str, str] = field(default_factory=dict)
    """By caller: a role's name, a firm's name, `expired`, `revoked`, `<role>+<scope>`."""
    grants: dict[str, Grant] = field(default_factory=dict)
    """`alpha`, `beta`, and `consortium`."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """By owner, a running one; `<owner>/waiting` waits, `<owner>/ended` has ended."""
    bookings: dict[str, Booking] = field(default_factory=dict)
    """By owner, one that comes."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Ids of tokens by caller."""

    def operations(self) -> dict[str, Operation]:
        """Every operation of the document, by id."""
        return {
            document["operationId"]: Operation(method.upper(), path, document)
            for path, methods in self.application.openapi()["paths"].items()
            for method, document in methods.items()
        }

    def ask(self, caller: str | None, method: str, url: str, **request: Any) -> httpx2.Response:
        """A request with this caller's token, or with none."""
        headers = dict(request.pop("headers", {}))
        if caller is not None:
            headers["Authorization"] = f"Bearer {self.secrets.get(caller, caller)}"
        body = request.pop("body", None)
        if body is not None:
            request["content"] = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        return self.http.request(method, url, headers=headers, **request)

    def call(self, caller: str | None, operation: Operation, **more: Any) -> httpx2.Response:
        """A valid request to an operation, naming what is not there unless `more` names something."""
        query = operation.query() | more.pop("params", {})
        body = more.pop("body", operation.body())
        url = more.pop("url", operation.url())
        return self.ask(caller, operation.method, url, params=query, body=body, **more)

    def contents(self, *without: Table) -> dict[str, list[tuple[Any, ...]]]:
        """The database, but for what is meant to be recorded of a refusal."""
        return self.hub.contents(*RECORDED, *without)


class Unchanged:
    """Tells whether an answer left the database as it was; cheap where nothing was committed at all."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._connection = world.hub.database.engine.raw_connection()
        self._sqlite = world.hub.database.dialect == "sqlite"
        self._version = self._read_version()
        self._before = world.contents()

    def close(self) -> None:
        self._connection.close()

    def after(self, answer_status: int) -> list[str]:
        """The tables that a refusal changed: none. An answer that is no refusal may have changed anything."""
        version = self._read_version()
        if self._sqlite and version == self._version:
            return []
        before, self._version, self._before = self._before, version, self._world.contents()
        if answer_status < 400:
            return []
        return [name for name, rows in self._before.items() if rows != before[name]]

    def _read_version(self) -> int:
        """A number that moves when somebody else commits a change."""
        if not self._sqlite:
            return 0
        cursor = self._connection.cursor()
        cursor.execute("PRAGMA data_version")
        row = cursor.fetchone()
        cursor.close()
        assert row is not None
        return int(row[0])


@contextmanager
def a_world(url: str, **settings: Any) -> Iterator[World]:
    """The world, served; nobody is locked out or throttled in it."""
    hub = a_hub(url, firms=FIRMS)
    limits: dict[str, float] = {
        "lockout_pair_failures": MANY,
        "lockout_address_failures": MANY,
        "member_requests_per_s": 0,
    }
    limits |= {"staff_requests_per_s": 0, "feed_poll_s": 0.01}
    made = Settings(database=url, tasks=False, **(limits | settings))
    application = create_app(made, clock=hub.clock)
    # not entered: nothing of the service then runs but what the requests themselves do
    http = TestClient(application, raise_server_exceptions=False)
    world = World(hub, application, http)
    _fill(world)
    _make_tokens(world)
    try:
        with a_log_leader(hub):
            yield world
    finally:
        application.state.hub.database.close()
        http.close()
        hub.close()


# --- whose is what ----------------------------------------------------------------------------------


def _fill(world: World) -> None:
    hub = world.hub
    world.grants["alpha"] = hub.award("alpha", "1000")
    world.grants["beta"] = hub.award("beta", "7919")
    world.grants["consortium"] = consortium(hub)
    world.jobs["beta"] = _running(hub, "beta", world.grants["beta"], [world.grants["beta"].account_id])
    for party, gpus in (("alpha", 2), ("gamma", 1), ("delta", 3)):
        where = path(world.grants["consortium"], party, 1)
        world.jobs[party] = _running(hub, party, world.grants["consortium"], where, gpus)
    for owner in FIRMS:
        world.jobs[f"{owner}/ended"] = hub.submit(owner, name=f"{owner} gave up")
        hub.cancel(world.jobs[f"{owner}/ended"].id)
        world.jobs[f"{owner}/waiting"] = hub.submit(owner, name=f"{owner} waits")
        world.bookings[owner] = book(hub, owner)
    hub.clock.advance(HOUR_MS // 2)
    hub.report()
    issue_statements(world)
    hub.clock.advance(1)


def book(hub: Hub, owner: str) -> Booking:
    """A GPU for an hour tomorrow."""
    body = NewBooking(
        organization_id=owner,
        name=f"{owner} teaches",
        gpu_class="h100",
        gpus_per_pod=1,
        pods=1,
        starts_at=hub.now + DAY_MS,
        ends_at=hub.now + DAY_MS + HOUR_MS,
        reason="a test",
    )
    return hub.database.write(lambda tx: bookings.create_booking(tx, OPERATOR, body))


def consortium(hub: Hub) -> Grant:
    """100 hours in tranches of 40 and 60, led by alpha with 50; gamma has 20, delta 30."""
    body = Award(
        program_id="ax",
        organization_id="alpha",
        gpu_hours=100,
        ends_at=hub.now + 90 * DAY_MS,
        max_gpus=16,
        tranches=(NewTranche(gpu_hours=40, label="start"), NewTranche(gpu_hours=60, label="report")),
        reason="a consortium PoC",
    )
    grant = hub.database.write(lambda tx: awards.award(tx, OPERATOR, body))
    for party, hours in (("alpha", 50), ("gamma", 20), ("delta", 30)):
        give(hub, grant, party, hours)
    return grant


def _running(hub: Hub, owner: str, grant: Grant, where: list[str], gpus: int = 1) -> Job:
    job = hub.submit(owner, name=f"{owner} runs", gpus_per_pod=gpus)
    run_on(hub, job, grant, where, "n1")
    return job


def issue_statements(world: World) -> None:
    """Seal what there is, and issue a statement to every firm that may have one."""
    hub = world.hub
    assert seals.seal_due(hub.database) > 0
    for owner, grant in (
        ("alpha", "alpha"),
        ("beta", "beta"),
        ("gamma", "consortium"),
        ("delta", "consortium"),
    ):
        statements.read_statement(
            hub.database,
            a_member(owner),
            world.grants[grant].id,
            as_of_ms=hub.now,
            since_ms=None,
            form=StatementFormat.JSON,
            language=StatementLanguage.EN,
        )


def rank(world: World, reasons: dict[str, dict[str, Any]], cycle: int) -> None:
    """Say why jobs wait, as the scheduler does; in the order in which they are named."""
    document = {
        "epoch": world.hub.epoch,
        "cycle": cycle,
        "base_cycle": None,
        "at": "2026-11-22T01:00:00.000Z",
        "order": list(reasons),
        "reasons": reasons,
    }
    RankingDocument.model_validate(document)
    answer = world.ask("scheduler", "PUT", "/v1/scheduler/ranking", body=document)
    assert answer.status_code == 200, answer.text


# --- who asks ---------------------------------------------------------------------------------------


def _make_tokens(world: World) -> None:
    for role in Role:
        fields: dict[str, Any] = {}
        if role is Role.MEMBER:
            fields = {"organization_id": "alpha"}
        elif role is Role.AGENT:
            fields = {"node": "n*"}
        _make(world, role.value, role, **fields)
        for scope in SCOPES[role]:
            _make(world, f"{role.value}+{scope.value}", role, scopes=(scope,), **fields)
            rest = tuple(sorted(SCOPES[role] - {scope}))
            if rest:
                _make(world, f"{role.value}-{scope.value}", role, scopes=rest, **fields)
    for firm in FIRMS:
        _make(world, firm, Role.MEMBER, organization_id=firm)
    _make(world, "expired", Role.OPERATOR, expires_at=world.hub.now + 1)
    _make(world, "revoked", Role.OPERATOR)
    reason = TokenRevocation(reason="a test").reason
    world.hub.database.write(lambda tx: tokens.revoke_token(tx, OPERATOR, world.tokens["revoked"], reason))
    world.hub.clock.advance(2)


def _make(world: World, name: str, role: Role, **fields: Any) -> None:
    body = NewToken(role=role, label=f"{name} of the tests", **fields)
    made = world.hub.database.write(lambda tx: tokens.create_token(tx, OPERATOR, body))
    world.secrets[name], world.tokens[name] = made.secret, made.id


# --- comparing --------------------------------------------------------------------------------------


def told(answer: httpx2.Response, asked: str) -> tuple[int, dict[str, str], bytes]:
    """An answer with the id that was asked for taken out: what else it says must not depend on whose that is."""
    hidden = answer.content.replace(asked.encode(), b"?" * len(asked))
    return answer.status_code, dict(answer.headers), hidden


def unknown_like(known: str) -> str:
    """An id of the same form and length that is nobody's."""
    head, tail = known[: -len(known) // 2], known[-len(known) // 2 :]
    return head + re.sub("[0-9a-z]", lambda found: "q" if found[0] != "q" else "w", tail)


__all__ = [
    "FIRMS",
    "Caller",
    "Scope",
    "Unchanged",
    "World",
    "a_world",
    "consortium",
    "issue_statements",
    "rank",
    "told",
    "unknown_like",
]
