"""Prepared statements answer what SQLAlchemy would, on both engines: types, lists of any length, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, bindparam, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from quota.clock import Clock
from quota.db import Database, Tx
from quota.identity.tables import organizations
from quota.prepared import Prepared, listening

NAMES = [f"org-{number}" for number in range(7)]
NEW = Prepared.insert(organizations, organizations.c.keys())
ALL = select(organizations).order_by(organizations.c.id)
ONE = Prepared(select(organizations).where(organizations.c.id == bindparam("which")))
SOME = Prepared(
    select(organizations.c.id).where(organizations.c.id.in_(bindparam("ids", expanding=True))),
    lists=("ids",),
)
PAIRS = Prepared(
    select(organizations.c.id).where(
        tuple_(organizations.c.id, organizations.c.name).in_(bindparam("pairs", expanding=True))
    ),
    lists=("pairs",),
)
FREEZE = Prepared(
    update(organizations)
    .where(
        organizations.c.id == bindparam("which"),
        organizations.c.frozen.is_(False),
        or_(organizations.c.kind.in_(("firm", "university")), organizations.c.name == "never"),
    )
    .values(frozen=True, decayed_usage_gpu_us=organizations.c.decayed_usage_gpu_us + bindparam("more"))
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, Clock())
    database.write(lambda tx: NEW.change_all(tx.connection, [row(name) for name in NAMES]))
    yield database
    database.close()


def row(name: str) -> dict[str, object]:
    return {
        "id": name,
        "name": name.upper(),
        "kind": "firm",
        "frozen": False,
        "created_at_ms": 1,
        "decayed_usage_gpu_us": 0.5,
        "decayed_as_of_ms": 2,
        "opportunistic_usage_gpu_us": 0.25,
        "opportunistic_as_of_ms": 3,
        "caps": "{}",
    }


def test_rows_have_the_values_and_types_that_sqlalchemy_gives(database: Database) -> None:
    with database.read() as connection:
        expected = connection.execute(ALL).all()
        found = Prepared(ALL).all(connection)
    assert [tuple(each) for each in found] == [tuple(each) for each in expected]
    assert [list(map(type, each)) for each in found] == [list(map(type, each)) for each in expected]
    assert found[0].frozen is False
    assert found[0].id == NAMES[0]


@pytest.mark.parametrize("count", range(8))
def test_a_list_finds_its_members_whatever_its_length(database: Database, count: int) -> None:
    wanted = NAMES[:count]
    pairs = [(name, name.upper()) for name in wanted]
    with database.read() as connection:
        assert sorted(found.id for found in SOME.all(connection, {"ids": wanted})) == NAMES[:count]
        assert sorted(found.id for found in PAIRS.all(connection, {"pairs": pairs})) == NAMES[:count]


def test_a_change_says_how_many_rows_it_met(database: Database) -> None:
    def freeze(tx: Tx) -> list[int]:
        values = {"which": "org-3", "more": 0.25}
        return [FREEZE.change(tx.connection, values) for _ in range(2)]

    assert database.write(freeze) == [1, 0]
    with database.read() as connection:
        changed = ONE.one(connection, {"which": "org-3"})
        assert (changed.frozen, changed.decayed_usage_gpu_us) == (True, 0.75)
        assert ONE.one_or_none(connection, {"which": "unknown"}) is None
        with pytest.raises(AssertionError):
            ONE.one(connection, {"which": "unknown"})


def test_a_refused_row_raises_what_sqlalchemy_raises_and_its_savepoint_undoes_only_itself(
    database: Database,
) -> None:
    def work(tx: Tx) -> None:
        NEW.change(tx.connection, row("before"))
        for rows in ([row("inside"), row("org-1")], [row("org-1")]):
            with pytest.raises(IntegrityError), tx.savepoint():
                NEW.change_all(tx.connection, rows)
        with tx.savepoint():
            NEW.change(tx.connection, row("after"))
            with pytest.raises(IntegrityError), tx.savepoint():
                NEW.change(tx.connection, row("after"))

    database.write(work)
    with database.read() as connection:
        stored = {each.id for each in connection.execute(ALL)}
    assert stored == {*NAMES, "before", "after"}


def test_what_a_transaction_did_is_undone_with_it(database: Database) -> None:
    def work(tx: Tx) -> None:
        NEW.change(tx.connection, row("gone"))
        raise RuntimeError("undo")

    with pytest.raises(RuntimeError):
        database.write(work)
    with database.read() as connection:
        assert ONE.one_or_none(connection, {"which": "gone"}) is None


def test_outside_of_a_transaction_nothing_runs(database: Database) -> None:
    with database.engine.connect() as connection, pytest.raises(AssertionError):
        ONE.all(connection, {"which": "org-1"})


def test_who_listens_hears_every_statement(database: Database) -> None:
    heard: list[str] = []

    def told(read: Callable[[Connection], object]) -> list[str]:
        with database.read() as connection, listening(heard.append):
            read(connection)
        return heard

    assert len(told(lambda connection: ONE.all(connection, {"which": "org-1"}))) == 1
    assert "FROM organizations" in heard[0]
