"""The year's checker finds what is planted: in the tables of a small year, and in its statements."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import databases
from tests.property.ledger import year_books as books
from tests.property.ledger.test_ledger_year import BOUNDS, Lived, live
from tests.property.ledger.year_life import Size

pytestmark = pytest.mark.long

TINY = Size(firms=10, consortia=4, universities=2, jobs_a_day=12, every_days=12)
TYPES = (
    "deposit",
    "hold",
    "extend",
    "settle",
    "release",
    "refund",
    "transfer",
    "pullback",
    "expire",
    "adjust",
)
REBALANCE = """
UPDATE accounts SET
  granted_gpu_us = (SELECT COALESCE(SUM(d_granted), 0) FROM transfer_legs WHERE account_id = accounts.id),
  held_gpu_us = (SELECT COALESCE(SUM(d_held), 0) FROM transfer_legs WHERE account_id = accounts.id),
  used_gpu_us = (SELECT COALESCE(SUM(d_used), 0) FROM transfer_legs WHERE account_id = accounts.id)"""
"""Whoever changes the books also changes the balances."""


@dataclass(frozen=True)
class Over:
    """A small year that is over, and its file."""

    lived: Lived
    file: Path


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Over:
    url = databases.new_sqlite(tmp_path_factory.mktemp("year"))
    lived = live(url, TINY)
    lived.year.hub.close()
    return Over(lived, Path(url.removeprefix("sqlite:///")))


@pytest.fixture
def copy(over: Over, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    target = tmp_path / "planted.db"
    shutil.copyfile(over.file, target)
    connection = sqlite3.connect(target)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for (guard,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {guard}")
    yield connection
    connection.close()


def rules(over: Over, copy: sqlite3.Connection) -> set[str]:
    """Which rules of the checker are broken in the copy."""
    copy.commit()
    name = copy.execute("PRAGMA database_list").fetchone()[2]
    found = books.faults(books.load(f"sqlite:///{name}"), over.lived.year.diary)
    return {line.partition(":")[0] for line in found}


def one(copy: sqlite3.Connection, query: str) -> str:
    """The first value of the first row."""
    row = copy.execute(query).fetchone()
    assert row is not None, f"the year has nothing for {query}"
    return str(row[0])


def test_nothing_is_found_where_nothing_was_planted(over: Over, copy: sqlite3.Connection) -> None:
    assert rules(over, copy) == set()


@pytest.mark.parametrize("kind", TYPES)
def test_a_lost_transfer_is_found_though_its_balances_were_made_to_fit(
    kind: str, over: Over, copy: sqlite3.Connection
) -> None:
    name = one(copy, a_transfer(kind))
    copy.execute("DELETE FROM transfer_legs WHERE transfer_id = ?", (name,))
    copy.execute("DELETE FROM slices WHERE id = ?", (name,))
    copy.execute("DELETE FROM transfers WHERE id = ?", (name,))
    copy.execute(REBALANCE)
    assert rules(over, copy)


@pytest.mark.parametrize("kind", TYPES)
def test_a_doubled_transfer_is_found_though_its_balances_were_made_to_fit(
    kind: str, over: Over, copy: sqlite3.Connection
) -> None:
    name = one(copy, a_transfer(kind))
    for table, column in (("transfers", "id"), ("transfer_legs", "transfer_id")):
        columns = [row[1] for row in copy.execute(f"PRAGMA table_info({table})")]
        told = ", ".join("'twice'" if each == column else each for each in columns)
        copy.execute(f"INSERT INTO {table} SELECT {told} FROM {table} WHERE {column} = ?", (name,))
    copy.execute(REBALANCE)
    assert rules(over, copy)


@pytest.mark.parametrize("kind", TYPES)
def test_a_transfer_of_one_unit_more_is_found_though_its_balances_were_made_to_fit(
    kind: str, over: Over, copy: sqlite3.Connection
) -> None:
    name = one(copy, a_transfer(kind))
    copy.execute("UPDATE transfers SET amount_gpu_us = amount_gpu_us + 1 WHERE id = ?", (name,))
    for column in ("d_granted", "d_held", "d_used"):
        more = f"{column} = {column} + CASE WHEN {column} > 0 THEN 1 WHEN {column} < 0 THEN -1 ELSE 0 END"
        copy.execute(f"UPDATE transfer_legs SET {more} WHERE transfer_id = ?", (name,))
    copy.execute(REBALANCE)
    assert rules(over, copy)


def a_transfer(kind: str) -> str:
    """Of transfers, one between grants: what moves between limit accounts creates no hours."""
    own = " AND id LIKE 'transfer-%'" if kind == "transfer" else ""
    return f"SELECT id FROM transfers WHERE type = '{kind}'{own} ORDER BY seq DESC, position LIMIT 1"


def a_slice(payer: str, *, last: bool = False) -> str:
    end = " AND ends_at_ms = (SELECT MAX(ends_at_ms) FROM slices o WHERE o.job_id = s.job_id AND o.attempt = s.attempt)"
    whole = " AND EXISTS (SELECT 1 FROM attempts a WHERE a.job_id = s.job_id AND a.attempt = s.attempt AND a.settled)"
    return (
        f"SELECT id FROM slices s WHERE payer = '{payer}'{end if last else ''}{whole} AND ends_at_ms % 3600000"
        " BETWEEN 1000 AND 3500000 ORDER BY id LIMIT 1"
    )


@pytest.mark.parametrize("payer", ["grant", "platform"])
def test_a_slice_moved_by_a_millisecond_is_found(payer: str, over: Over, copy: sqlite3.Connection) -> None:
    name = one(copy, a_slice(payer))
    for table in ("slices", "transfers"):
        moved = "starts_at_ms = starts_at_ms + 1, ends_at_ms = ends_at_ms + 1"
        copy.execute(f"UPDATE {table} SET {moved} WHERE id = ?", (name,))
    assert "slices" in rules(over, copy)


@pytest.mark.parametrize("payer", ["grant", "platform"])
def test_a_last_slice_of_a_millisecond_more_is_found_though_all_else_agrees(
    payer: str, over: Over, copy: sqlite3.Connection
) -> None:
    name = one(copy, a_slice(payer, last=True))
    more = int(one(copy, f"SELECT gpus * rate_thousandths FROM slices WHERE id = '{name}'"))
    for table in ("slices", "transfers"):
        longer = f"ends_at_ms = ends_at_ms + 1, amount_gpu_us = amount_gpu_us + {more}"
        copy.execute(f"UPDATE {table} SET {longer} WHERE id = ?", (name,))
    held = f", d_held = d_held - {more}" if payer == "grant" else ""
    copy.execute(f"UPDATE transfer_legs SET d_used = d_used + {more}{held} WHERE transfer_id = ?", (name,))
    copy.execute(REBALANCE)
    assert "occupied" in rules(over, copy)


def swap_payer(copy: sqlite3.Connection) -> str:
    """The platform pays for what the grant should: the sum of both stays."""
    name = one(copy, a_slice("grant", last=True))
    amount = int(one(copy, f"SELECT amount_gpu_us FROM slices WHERE id = '{name}'"))
    seq = one(copy, f"SELECT seq FROM transfers WHERE id = '{name}'")
    copy.execute("UPDATE slices SET payer = 'platform' WHERE id = ?", (name,))
    copy.execute("DELETE FROM transfer_legs WHERE transfer_id = ?", (name,))
    leg = "INSERT INTO transfer_legs (transfer_id, account_id, seq, d_granted, d_held, d_used)"
    copy.execute(f"{leg} VALUES (?, 'platform', ?, 0, 0, ?)", (name, seq, amount))
    return "occupied"


def wrong_grant(copy: sqlite3.Connection) -> str:
    """A charge stands on the account of another grant."""
    name = one(copy, a_slice("grant"))
    other = "(SELECT MAX(id) FROM accounts WHERE kind = 'grant' AND id <> account_id)"
    place = "transfer_id = ? AND account_id LIKE 'grant:%'"
    copy.execute(f"UPDATE transfer_legs SET account_id = {other} WHERE {place}", (name,))
    return "holds"


def wrong_award(copy: sqlite3.Connection) -> str:
    """Two grants of one programme got each other's hours."""
    award = "(SELECT id FROM transfers WHERE id LIKE 'grant:%:award' ORDER BY id LIMIT 1)"
    taker = (
        "(SELECT id FROM accounts a WHERE kind = 'grant' AND id <> account_id AND program_id ="
        " (SELECT program_id FROM accounts b WHERE b.id = account_id) LIMIT 1)"
    )
    place = f"transfer_id = {award} AND account_id LIKE 'grant:%'"
    copy.execute(f"UPDATE transfer_legs SET account_id = {taker} WHERE {place}")
    return "given"


def other_rate(copy: sqlite3.Connection) -> str:
    """A charge names another version of its class's rate."""
    name = one(copy, a_slice("grant"))
    other = "(SELECT MAX(id) FROM rates r WHERE r.id <> transfers.rate_id)"
    copy.execute(f"UPDATE transfers SET rate_id = {other} WHERE id = ?", (name,))
    return "slices"


def stored_sum(copy: sqlite3.Connection) -> str:
    """A stored balance is one unit off."""
    copy.execute("UPDATE accounts SET used_gpu_us = used_gpu_us + 1 WHERE id = 'platform'")
    return "sums"


def overdrawn_once(copy: sqlite3.Connection) -> str:
    """An account was overdrawn for one transaction: its first hours came after its first hold."""
    hold = "SELECT h.transfer_id FROM transfer_legs h JOIN transfers t ON t.id = h.transfer_id WHERE t.type = 'hold'"
    account = one(copy, f"SELECT account_id FROM transfer_legs WHERE transfer_id IN ({hold}) LIMIT 1")
    late = "(SELECT MAX(seq) + 1 FROM transfers)"
    place = "account_id = ? AND d_granted > 0"
    copy.execute(f"UPDATE transfer_legs SET seq = {late} WHERE {place}", (account,))
    return "never_over"


@pytest.mark.parametrize(
    "plant", [swap_payer, wrong_grant, wrong_award, other_rate, stored_sum, overdrawn_once]
)
def test_what_is_booked_wrong_is_found(
    plant: Callable[[sqlite3.Connection], str], over: Over, copy: sqlite3.Connection
) -> None:
    rule = plant(copy)
    if rule != "sums":
        copy.execute(REBALANCE)
    assert rule in rules(over, copy)


# --- statements -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(over: Over) -> tuple[books.Books, list[bytes]]:
    """The books, and a grant's monthly statements with the one that has a charge first."""
    months = next(
        statements
        for statements in over.lived.monthly.values()
        if any(line["krw"] for line in json.loads(statements[1].content)["lines"])
    )
    return books.load(f"sqlite:///{over.file}"), [month.content for month in months]


def forged(content: bytes, change: Callable[[dict[str, object], dict[str, object]], None]) -> bytes:
    """The statement with a change to it, or to its first line that costs something."""
    statement = json.loads(content)
    change(statement, next(line for line in statement["lines"] if line["krw"]))
    return json.dumps(statement).encode()


def add(document: dict[str, object], name: str) -> None:
    document[name] = type(document[name])(int(str(document[name])) + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda _whole, line: add(line, "krw"),
        lambda whole, line: (add(line, "krw"), add(whole, "total_krw")),
        lambda whole, _line: add(whole, "total_krw"),
        lambda whole, line: whole["lines"].remove(line),
        lambda _whole, line: add(line, "used_gpu_us"),
        lambda whole, _line: add(whole, "used_gpu_us"),
        lambda whole, _line: add(whole["opening"], "held_gpu_us"),
    ],
    ids=["won", "won and total", "total", "line", "used", "closing", "opening"],
)
def test_a_forged_statement_is_found(
    change: Callable[[dict[str, object], dict[str, object]], None], told: tuple[books.Books, list[bytes]]
) -> None:
    found, months = told
    assert books.statement_faults(found, months[1]) == []
    assert books.statement_faults(found, forged(months[1], change))


def test_months_that_do_not_make_the_year_are_found(
    over: Over, told: tuple[books.Books, list[bytes]]
) -> None:
    _found, months = told
    begin, parts = json.loads(months[0]), [json.loads(month) for month in months]
    lines = [line for part in parts for line in part["lines"]]
    whole = begin | {"lines": lines, "total_krw": sum(part["total_krw"] for part in parts)}
    assert books.period_faults(months, json.dumps(whole).encode()) == []
    assert books.period_faults(months, json.dumps(whole | {"lines": lines[1:]}).encode())
    assert books.period_faults(months, json.dumps(whole | {"total_krw": 1}).encode())
    assert books.period_faults([months[0], *months[2:]], json.dumps(whole).encode())


def test_won_is_rounded_half_up() -> None:
    hour = books.HOUR_MS
    assert [books.won(hour // 2, 1, price) for price in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert books.won(hour // 2 - 1, 1, 1) == 0
    assert books.won(10 * hour, 8, 4107) == 328_560


def test_usage_that_straddles_a_month_is_not_counted_twice(over: Over, copy: sqlite3.Connection) -> None:
    found = books.load(f"sqlite:///{over.file}")
    periods, total = books.usage_by_period(found, BOUNDS)
    assert sum(periods) == total
    row = next(row for row in found.tables["slices"])
    row["starts_at_ms"], row["ends_at_ms"] = BOUNDS[3] - 1, BOUNDS[3] + 1
    with pytest.raises(AssertionError, match="straddles"):
        books.usage_by_period(found, BOUNDS)
