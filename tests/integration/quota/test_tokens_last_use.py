"""When a token was last used: shown to the minute, collected in memory, never written by a request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.exc import OperationalError

from quota.db import Database
from quota.errors import Unauthenticated
from quota.identity import doorkeeper
from quota.identity.doorkeeper import Doorkeeper
from quota.identity.tables import tokens as token_rows
from quota.schemas.identity import Role
from tests.builders import MINUTE_MS, START_MS, an_api
from tests.integration.quota.token_world import World, a_world, at_once


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


def last_used(world: World, token_id: str) -> int | None:
    (row,) = world.rows(token_rows, id=token_id)
    return None if row.last_used_at_ms is None else int(row.last_used_at_ms)


def test_a_use_is_written_by_the_next_tick_not_by_the_request(world: World) -> None:
    token, unused = world.token(), world.token()
    world.clock.advance(5000)
    world.enter(token.secret)
    assert last_used(world, token.id) is None
    assert world.door.write(world.database) == 1
    assert (last_used(world, token.id), last_used(world, unused.id)) == (START_MS + 5000, None)
    assert world.door.write(world.database) == 0, "nothing new"


def test_the_latest_use_of_a_minute_is_kept(world: World) -> None:
    token = world.token()
    for _ in range(3):
        world.clock.advance(10_000)
        world.enter(token.secret)
    world.door.write(world.database)
    assert last_used(world, token.id) == START_MS + 30_000


def test_replicas_write_a_token_once_a_minute_and_never_backwards(world: World) -> None:
    token, replica = world.token(), Doorkeeper(world.limits, world.wall)
    replica.authenticate(world.database, token.secret, "10.0.0.1")
    world.clock.advance(MINUTE_MS - 1)
    world.enter(token.secret)
    world.door.write(world.database)
    replica.write(world.database)
    assert last_used(world, token.id) == START_MS + MINUTE_MS - 1, "an older use does not undo a newer one"
    world.clock.advance(MINUTE_MS - 1)
    replica.authenticate(world.database, token.secret, "10.0.0.1")
    replica.write(world.database)
    assert last_used(world, token.id) == START_MS + MINUTE_MS - 1, "within the same minute nothing is written"
    world.clock.advance(1)
    replica.authenticate(world.database, token.secret, "10.0.0.1")
    replica.write(world.database)
    assert last_used(world, token.id) == START_MS + 2 * MINUTE_MS - 1


def test_a_refused_token_was_not_used(world: World) -> None:
    token = world.token(expires_at=START_MS + 1)
    world.clock.advance(1)
    with pytest.raises(Unauthenticated):
        world.enter(token.secret)
    assert world.door.write(world.database) == 0
    assert last_used(world, token.id) is None


def test_what_the_database_refused_is_written_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, other = world.token(), world.token()
    world.enter(token.secret)
    world.enter(other.secret)

    def fails(*_anything: object) -> None:
        world.clock.advance(1000)
        world.enter(other.secret)  # a request comes while the write is under way
        raise OperationalError("UPDATE", {}, Exception("gone"))

    with monkeypatch.context() as patched:
        patched.setattr(doorkeeper, "_store", fails)
        with pytest.raises(OperationalError):
            world.door.write(world.database)
    assert world.door.write(world.database) == 2
    assert (last_used(world, token.id), last_used(world, other.id)) == (START_MS, START_MS + 1000)


def test_uses_by_many_threads_are_all_noted(world: World) -> None:
    made = [world.token() for _ in range(8)]
    at_once(8, lambda number: [world.enter(made[number].secret) for _ in range(5)])
    assert world.door.write(world.database) == 8


def test_a_process_that_stops_writes_what_it_knows(database_url: str) -> None:
    with an_api(database_url) as api:
        api.auditor.read_caller()
        clock = api.hub.clock
    database = Database(database_url, clock)
    try:
        with database.read() as connection:
            rows = connection.execute(token_rows.select()).all()
    finally:
        database.close()
    used = {row.role: row.last_used_at_ms for row in rows if row.last_used_at_ms is not None}
    assert used == {"auditor": START_MS}


def test_last_use_is_shown(database_url: str) -> None:
    with an_api(database_url) as api:
        api.scheduler.read_caller()
        api.application.state.doorkeeper.write(api.hub.database)
        (token,) = api.operator.list_tokens(role=Role.SCHEDULER).items
        assert token.last_used_at == START_MS
