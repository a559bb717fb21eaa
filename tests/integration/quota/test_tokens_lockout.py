"""Who presents wrong tokens again and again is locked out: exactly, for a while, and at a bounded cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event

from quota.audit.tables import audit, findings
from quota.clock import instant_text
from quota.errors import LockedOut, Unauthenticated
from quota.identity import lockout
from quota.identity.doorkeeper import Doorkeeper
from quota.identity.lockout import Limits
from quota.identity.tables import auth_failures
from quota.prepared import listening
from quota.schemas.identity import Role
from tests.builders import OPERATOR
from tests.integration.quota.token_world import HERE, WRONG, World, a_world, at_once

ELSEWHERE = "10.9.9.9"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


def fail(world: World, times: int, secret: str = WRONG, address: str = HERE) -> None:
    for _ in range(times):
        with pytest.raises(Unauthenticated):
            world.enter(secret, address)


def guesses(count: int) -> list[str]:
    """Secrets with different first characters."""
    return [f"ghub_{number:07d}" + "y" * 36 for number in range(count)]


def lookalike(secret: str) -> str:
    """Another secret with the same first characters."""
    return secret[:12] + "z" * (len(secret) - 12)


def statements_of(world: World, work: Callable[[], object]) -> list[str]:
    """What the database is told while `work` runs."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    event.listen(world.database.engine, "before_cursor_execute", note)
    try:
        with listening(seen.append):
            work()
    finally:
        event.remove(world.database.engine, "before_cursor_execute", note)
    return seen


def test_ten_failures_lock_the_pair_even_for_the_right_secret(world: World) -> None:
    token = world.token()
    fail(world, 10, lookalike(token.secret))
    with pytest.raises(LockedOut) as refused:
        world.enter(token.secret)
    assert refused.value.numbers["retry_after_s"] == 900
    assert (refused.value.status, refused.value.code) == (429, "locked_out")


def test_nine_failures_lock_nothing(world: World) -> None:
    token = world.token()
    fail(world, 9, lookalike(token.secret))
    assert world.enter(token.secret).token_id == token.id


def test_other_addresses_and_other_tokens_go_on(world: World) -> None:
    token, other = world.token(), world.token()
    fail(world, 10, lookalike(token.secret))
    assert world.enter(token.secret, ELSEWHERE).token_id == token.id
    assert world.enter(other.secret).token_id == other.id


def test_a_lock_ends_after_its_time(world: World) -> None:
    token = world.token()
    fail(world, 10, lookalike(token.secret))
    world.wall.advance(899_001)
    with pytest.raises(LockedOut) as refused:
        world.enter(token.secret)
    assert refused.value.numbers["retry_after_s"] == 1, "whole seconds, rounded up"
    world.wall.advance(999)
    assert world.enter(token.secret).token_id == token.id
    fail(world, 9, lookalike(token.secret))
    assert world.enter(token.secret).token_id == token.id, "counting began anew"


def test_failures_outside_the_window_are_forgotten(world: World) -> None:
    token = world.token()
    fail(world, 9, lookalike(token.secret))
    world.wall.advance(300_000)
    fail(world, 9, lookalike(token.secret))
    assert world.enter(token.secret).token_id == token.id


def test_a_hundred_guesses_lock_the_address(world: World) -> None:
    token = world.token()
    for guess in guesses(100):
        fail(world, 1, guess)
    with pytest.raises(LockedOut):
        world.enter(token.secret)
    assert world.enter(token.secret, ELSEWHERE).token_id == token.id


def test_an_ipv6_machine_cannot_walk_through_its_network(world: World) -> None:
    token = world.token()
    for number, guess in enumerate(guesses(100)):
        fail(world, 1, guess, f"2001:db8:1:2::{number:x}")
    with pytest.raises(LockedOut):
        world.enter(token.secret, "2001:db8:1:2:ffff::1")
    assert world.enter(token.secret, "2001:db8:1:3::1").token_id == token.id
    fail(world, 10, lookalike(token.secret), "::ffff:10.0.0.1")
    with pytest.raises(LockedOut):
        world.enter(token.secret, "10.0.0.1")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "", "a name"])
def test_no_address_is_exempt(world: World, address: str) -> None:
    fail(world, 10, address=address)
    with pytest.raises(LockedOut):
        world.enter(WRONG, address)


def test_ended_tokens_lock_their_pair_but_never_the_address(world: World) -> None:
    """They prove that the real secret was known: nobody guesses, and neighbours must not suffer."""
    good = world.token()
    ended = [world.token(expires_at=world.clock.now_ms() + 1000) for _ in range(12)]
    world.clock.advance(1000)
    for token in ended:
        fail(world, 10, token.secret)
        with pytest.raises(LockedOut):
            world.enter(token.secret)
    assert world.enter(good.secret).token_id == good.id
    assert len(world.rows(findings, code="lockout")) == 12, "operators learn who still uses them"


def test_eight_threads_failing_at_once_count_exactly(world: World) -> None:
    results = at_once(8, lambda _number: _try(world))
    assert results == ["unauthenticated"] * 8
    assert sorted(row.failures for row in world.rows(auth_failures)) == [8, 8]
    results = at_once(8, lambda _number: _try(world))
    assert set(results) <= {"unauthenticated", "locked_out"}
    place, pair = sorted(world.rows(auth_failures), key=lambda row: len(row.source))
    assert pair.failures == 10, "no failure is counted after the lock began"
    assert pair.locked_until_wall_ms == world.wall.now_ms + 900_000
    assert place.locked_until_wall_ms is None
    assert len(world.rows(audit, action="lockout.begin")) == 1


def _try(world: World) -> str:
    try:
        world.enter(WRONG)
    except (Unauthenticated, LockedOut) as error:
        return error.code
    return "entered"


def test_a_flood_against_a_lock_writes_nothing(world: World) -> None:
    fail(world, 10)

    def flood() -> None:
        for _ in range(200):
            with pytest.raises(LockedOut):
                world.enter(WRONG)

    said = statements_of(world, flood)
    assert len(said) == 400, "two reads a guess"
    assert all(statement.startswith("SELECT") for statement in said)


def test_a_flood_of_different_guesses_is_bounded(world: World) -> None:
    for guess in guesses(150):
        with pytest.raises((Unauthenticated, LockedOut)):
            world.enter(guess)
    assert len(world.rows(auth_failures)) == 101, "a row per guess until the address is locked, and its own"


def test_a_good_token_costs_one_read(world: World) -> None:
    token = world.token()
    said = statements_of(world, lambda: world.enter(token.secret))
    assert [statement[:6] for statement in said] == ["SELECT"]


def test_a_lock_is_in_the_trail_and_a_finding(world: World) -> None:
    token = world.token()
    fail(world, 10, lookalike(token.secret))
    (row,) = world.rows(audit, action="lockout.begin")
    assert (row.actor, row.subject) == (lockout.DOOR, f"token {token.prefix}")
    detail = json.loads(row.detail)
    assert (detail["failures"], detail["address"]) == (10, HERE)
    assert detail["locked_until"] == instant_text(world.wall.now_ms + 900_000)
    (found,) = world.rows(findings, code="lockout")
    assert found.subject == f"token {token.prefix}"
    assert HERE not in found.detail, "an address is personal; it stands in the trail only"


def test_what_was_typed_by_mistake_is_not_kept(world: World) -> None:
    fail(world, 10, "hunter2-correct-horse")
    begun = world.rows(audit, action="lockout.begin")
    kept = [*world.rows(auth_failures), *begun, *world.rows(findings)]
    assert len(kept) == 4, "two counters, a lock and its finding"
    assert not any("hunter2" in str(tuple(row)) for row in kept)


def test_old_counts_are_forgotten_and_locks_stay(world: World) -> None:
    fail(world, 10)
    fail(world, 1, "ghub_other-one" + "y" * 30, ELSEWHERE)
    world.wall.advance(300_001)
    world.door.write(world.database)
    left = {row.source for row in world.rows(auth_failures)}
    assert left == {lockout.sources(HERE, WRONG).pair}
    world.wall.advance(600_000)
    world.door.write(world.database)
    assert world.rows(auth_failures) == []
    said = statements_of(world, lambda: world.door.write(world.database))
    assert [statement[:6] for statement in said] == ["SELECT"], "nothing to forget, nothing written"


def test_two_doorkeepers_share_their_counts(world: World) -> None:
    other = Doorkeeper(world.limits, world.wall)
    fail(world, 5)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            other.authenticate(world.database, WRONG, HERE)
    with pytest.raises(LockedOut):
        world.enter(WRONG)


def test_limits_are_settings(database_url: str) -> None:
    with a_world(database_url, Limits(pair_failures=1, address_failures=2, locked_ms=5_000)) as world:
        token = world.token(Role.AUDITOR)
        fail(world, 1)
        with pytest.raises(LockedOut):
            world.enter(WRONG)
        fail(world, 1, guesses(1)[0])
        with pytest.raises(LockedOut):
            world.enter(token.secret)
        world.wall.advance(5_000)
        assert world.enter(token.secret).role is Role.AUDITOR


def test_an_operators_own_calls_are_not_counted(world: World) -> None:
    token = world.token(Role.OPERATOR)
    for _ in range(20):
        assert world.enter(token.secret).role is OPERATOR.role
    assert world.rows(auth_failures) == []
