"""A database with two organizations and their tokens, and replicas of the service over it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table

from quota.app import create_app
from quota.cli import server_config
from quota.client import QuotaClient
from quota.clock import Clock
from quota.db import Database
from quota.identity import service, tokens
from quota.identity.doorkeeper import Doorkeeper
from quota.identity.lockout import Limits
from quota.schemas.identity import Caller, NewOrganization, NewToken, Role, TokenRotation, TokenWithSecret
from quota.settings import Settings
from tests.builders import OPERATOR, HandClock, table_rows
from tests.served import served

HERE = "10.1.2.3"
WRONG = "ghub_" + "x" * 43


@dataclass
class HandWall:
    """Wall time that moves only when a test says so."""

    now_ms: int = 1_790_000_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        self.now_ms += milliseconds


@dataclass
class World:
    """One database, one doorkeeper, and time by hand."""

    database: Database
    clock: HandClock
    wall: HandWall = field(default_factory=HandWall)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.door = Doorkeeper(self.limits, self.wall)

    def token(self, role: Role = Role.MEMBER, **fields: Any) -> TokenWithSecret:
        """A token made by an operator; a member's belongs to alpha, an agent's to n0."""
        defaults: dict[Role, dict[str, Any]] = {
            Role.MEMBER: {"organization_id": "alpha"},
            Role.AGENT: {"node": "n0"},
        }
        body = NewToken(role=role, **(defaults.get(role, {}) | fields))
        return self.database.write(lambda tx: tokens.create_token(tx, OPERATOR, body))

    def rotate(self, token_id: str, caller: Caller = OPERATOR, **fields: Any) -> TokenWithSecret:
        body = TokenRotation.model_validate({"overlap_s": 3600, "reason": "a test"} | fields)
        return self.database.write(lambda tx: tokens.rotate_token(tx, caller, token_id, body))

    def enter(self, secret: str, address: str = HERE) -> Caller:
        return self.door.authenticate(self.database, secret, address)

    def rows(self, table: Table, **equal: object) -> list[Any]:
        with self.database.read() as connection:
            return table_rows(connection, table, **equal)


@contextmanager
def a_world(url: str, limits: Limits | None = None) -> Iterator[World]:
    """A world whose organizations are alpha and beta."""
    clock = HandClock()
    database = Database(url, clock)
    for name in ("alpha", "beta"):
        body = NewOrganization(id=name, name=name.title())
        database.write(lambda tx, body=body: service.create_organization(tx, OPERATOR, body))
    try:
        yield World(database, clock, limits=limits or Limits())
    finally:
        database.close()


@contextmanager
def a_replica(url: str, clock: Clock, **settings: Any) -> Iterator[str]:
    """One more process' worth of the service, in a thread; answers its address."""
    made = Settings(database=url, tasks=False, **settings)
    application = create_app(made, clock=clock)
    with served(server_config(application, made)) as url:
        yield url


def at_once(count: int, work: Any) -> list[Any]:
    """`work(number)` in so many threads that begin together; what each answered or raised."""
    start = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = work(number)
        except Exception as error:  # the test looks at it
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    return results


def a_client(url: str, secret: str) -> QuotaClient:
    return QuotaClient(url, secret, timeout_s=30.0)
