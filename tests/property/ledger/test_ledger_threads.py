"""Eight threads on a few hot accounts, on both databases: never over, nothing doubled, sums exact."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError

import quota.db
from quota.db import Database, Tx, sqlstate
from quota.errors import InsufficientBalance
from quota.fleet.rules import Rate
from quota.ledger import extending, moving, refunds, settling
from quota.ledger import holds as holding
from quota.ledger import service as ledger
from quota.ledger.earmarks import earmark
from quota.ledger.posting import PLATFORM, TREASURY
from quota.ledger.rules import Slice
from quota.ledger.tables import accounts
from quota.schemas.ledger import RefundKind
from tests.builders import START_MS, HandClock
from tests.property.ledger.ledger_checks import rebuilt_balances, stored_balances, violations

THREADS = 8
TURNS = 120
RATE = Rate("h100@1", "h100", 1000, 4000)
GRANTS = ("grant:a", "grant:b")
PATHS = (("share:a", "tranche:a", "grant:a"), ("tranche:a", "grant:a"), ("grant:a",), ("grant:b",))
FIRST_GPU_US = 60_000_000
EARMARKS = {"tranche:a": FIRST_GPU_US // 2, "share:a": FIRST_GPU_US // 3}


class CountingDatabase(Database):
    """Counts what made a transaction run again."""

    def __init__(self, url: str) -> None:
        super().__init__(url, HandClock(), pool_size=THREADS)
        self.retried: Counter[str] = Counter()

    def _transact(self, connection, work):  # type: ignore[no-untyped-def]
        try:
            return super()._transact(connection, work)
        except DBAPIError as error:
            self.retried[sqlstate(error) or type(error).__name__] += 1
            raise


@dataclass
class Tally:
    """What one thread did with success: the sum over threads must be what is stored."""

    granted: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    done: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def database(database_url: str) -> Iterator[CountingDatabase]:
    made = CountingDatabase(database_url)

    def seed(tx: Tx) -> None:
        ledger.open_account(tx, "program:ax", "program")
        for name in GRANTS:
            ledger.open_account(tx, name, "grant")
        ledger.open_account(tx, "tranche:a", "tranche", parent_id="grant:a")
        ledger.open_account(tx, "share:a", "share", parent_id="tranche:a")
        for source, target, amount in _first_deposits():
            moving.deposit(tx, f"{target}:first", source, target, amount, actor="op", reason="r")
        earmark(tx, "earmarks", EARMARKS, actor="op", reason="r")

    made.write(seed)
    yield made
    made.close()


def test_eight_threads_leave_every_sum_exact(database: CountingDatabase) -> None:
    tallies = [Tally() for _ in range(THREADS)]
    barrier = threading.Barrier(THREADS)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        worker = _Worker(database, number, tallies[number])
        barrier.wait()
        try:
            for _ in range(TURNS):
                worker.turn()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.read() as connection:
        assert violations(connection) == []
        stored = stored_balances(connection)
        assert rebuilt_balances(connection) == stored
    done: Counter[str] = sum((tally.done for tally in tallies), Counter())
    steps = {"hold", "extend", "settle", "release", "refund", "top_up", "cut", "award", "repeat"}
    assert set(done) == steps, done
    assert sum(tally.refused for tally in tallies) > 0, "some must find the accounts too full"
    expected = _summed(tallies)
    assert {name: balance for name, balance in stored.items() if any(balance)} == {
        name: balance for name, balance in expected.items() if any(balance)
    }
    # a retry has been answered in the end; nothing but these may have been seen
    assert set(database.retried) <= {"40P01", "40001"}, database.retried


@pytest.mark.postgres
def test_a_deadlock_is_run_again_and_both_succeed(postgres_url: str) -> None:
    database = CountingDatabase(postgres_url)
    first_try = threading.Barrier(2)
    tried: Counter[str] = Counter()

    def lock(tx: Tx, mine: str, other: str) -> None:
        tried[mine] += 1
        _touch(tx, mine)
        if tried[mine] == 1:
            first_try.wait(30)
        _touch(tx, other)

    names = [(TREASURY, PLATFORM), (PLATFORM, TREASURY)]
    threads = [
        threading.Thread(target=database.write, args=(lambda tx, pair=pair: lock(tx, *pair),))
        for pair in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert stored_balances(connection) == {TREASURY: (0, 0, 2), PLATFORM: (0, 0, 2)}
    assert database.retried == {"40P01": 1}
    assert sum(tried.values()) == 3
    database.close()


@pytest.mark.postgres
def test_retries_end_with_the_error_itself(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota.db, "RETRY_LIMIT", 3)
    database = CountingDatabase(postgres_url)

    def always_there(tx: Tx) -> None:
        ledger.open_account(tx, PLATFORM, "platform")

    with pytest.raises(DBAPIError):
        database.write(always_there)
    assert database.retried == {"23505": 3}
    database.close()


def test_other_errors_are_not_run_again(database: CountingDatabase) -> None:
    tries = []

    def broken(tx: Tx) -> None:
        tries.append(1)
        tx.connection.execute(update(accounts).values(held_gpu_us=-1))

    with pytest.raises(DBAPIError):
        database.write(broken)
    assert len(tries) == 1


class _Worker:
    """One thread's random work; what it held, it settles, releases or refunds later."""

    def __init__(self, database: Database, number: int, tally: Tally) -> None:
        self.database = database
        self.number = number
        self.tally = tally
        self.rng = random.Random(number)
        self.open: list[tuple[str, tuple[str, ...], int, int]] = []
        self.charged: list[tuple[str, tuple[str, ...], Slice]] = []
        self.extended: Counter[str] = Counter()
        self.count = 0

    def turn(self) -> None:
        steps = (
            [self.hold] * 4
            + [self.settle] * 3
            + [self.extend, self.release, self.refund, self.top_up, self.cut, self.award]
        )
        try:
            self.rng.choice(steps)()
        except InsufficientBalance:
            self.tally.refused += 1

    def hold(self) -> None:
        self.count += 1
        job, path = f"job-{self.number}-{self.count}", self.rng.choice(PATHS)
        milliseconds = self.rng.randrange(1, 8000)
        for again in (False, True):
            self.database.write(lambda tx: _hold(tx, job, path, milliseconds))
            if again:
                self._did("repeat")
                continue
            self._did("hold")
            for name in path:
                self.tally.held[name] += milliseconds * 1000
            self.open.append((job, path, START_MS, milliseconds))
            if self.rng.random() < 0.7:
                break

    def extend(self) -> None:
        """The next extension of a hold, told twice; whoever settles it later finds the whole of it."""
        if not self.open:
            return
        place = self.rng.randrange(len(self.open))
        job, path, cursor, left = self.open[place]
        milliseconds = self.rng.randrange(1, 4000)
        self.extended[job] += 1
        number = self.extended[job]

        def work(tx: Tx) -> bool:
            held = holding.read_hold(tx, f"{job}:1:hold")
            return extending.extend(tx, held, number, milliseconds, actor="op", reason="r")

        try:
            assert self.database.write(work) is True
        except InsufficientBalance:
            self.extended[job] -= 1
            raise
        assert self.database.write(work) is False
        self._did("extend")
        for name in path:
            self.tally.held[name] += milliseconds * 1000
        self.open[place] = (job, path, cursor, left + milliseconds)

    def settle(self) -> None:
        if not self.open:
            return
        job, path, cursor, left = self.open.pop(self.rng.randrange(len(self.open)))
        milliseconds = self.rng.randrange(1, left + 1)
        parts = [
            Slice(cursor, cursor + milliseconds, "grant"),
            Slice(cursor + milliseconds, cursor + milliseconds + 3, "platform"),
        ]
        self.database.write(
            lambda tx: settling.settle(tx, holding.read_hold(tx, f"{job}:1:hold"), parts, actor="hub")
        )
        self._did("settle")
        for name in path:
            self.tally.held[name] -= milliseconds * 1000
            self.tally.used[name] += milliseconds * 1000
        self.tally.used[PLATFORM] += 3000
        self.charged.append((job, path, parts[0]))
        if left > milliseconds:
            self.open.append((job, path, cursor + milliseconds + 3, left - milliseconds))

    def release(self) -> None:
        if not self.open:
            return
        job, path, _, left = self.open.pop()

        def work(tx: Tx) -> None:
            held = holding.read_hold(tx, f"{job}:1:hold")
            settling.release(tx, held, held.settled_gpu_us, actor="hub", reason="r")

        self.database.write(work)
        self.database.write(work)
        self._did("release")
        for name in path:
            self.tally.held[name] -= left * 1000

    def refund(self) -> None:
        if not self.charged:
            return
        job, path, part = self.charged.pop(self.rng.randrange(len(self.charged)))
        kind = self.rng.choice(list(RefundKind))

        def work(tx: Tx) -> None:
            held = holding.read_hold(tx, f"{job}:1:hold")
            refunds.refund(tx, held, part, part.starts_at_ms, part.ends_at_ms, kind, actor="hub", reason="r")

        self.database.write(work)
        self.database.write(work)
        self._did("refund")
        amount = (part.ends_at_ms - part.starts_at_ms) * 1000
        for name in path:
            self.tally.used[name] -= amount
        if kind is not RefundKind.CORRECTION:
            self.tally.used[PLATFORM] += amount

    def top_up(self) -> None:
        self._move(
            "top_up", moving.deposit, "program:ax", self.rng.choice(GRANTS), self.rng.randrange(1, 4_000_000)
        )

    def cut(self) -> None:
        self._move(
            "cut", moving.pull_back, self.rng.choice(GRANTS), "program:ax", self.rng.randrange(1, 9_000_000)
        )

    def award(self) -> None:
        self.count += 1
        name = f"grant:{self.number}-{self.count}"
        self.database.write(lambda tx: ledger.open_account(tx, name, "grant"))
        self._move("award", moving.deposit, "program:ax", name, self.rng.randrange(1, 4_000_000))

    def _move(self, step, transfer, source: str, target: str, amount: int) -> None:  # type: ignore[no-untyped-def]
        self.count += 1
        name = f"{step}-{self.number}-{self.count}"
        for again in (False, True):
            done = self.database.write(
                lambda tx: transfer(tx, name, source, target, amount, actor="op", reason="r")
            )
            assert done is not again
        self._did(step)
        self.tally.granted[source] -= amount
        self.tally.granted[target] += amount

    def _did(self, step: str) -> None:
        self.tally.done[step] += 1


def _first_deposits() -> list[tuple[str, str, int]]:
    return [
        (TREASURY, "program:ax", 10 * FIRST_GPU_US),
        ("program:ax", "grant:a", FIRST_GPU_US),
        ("program:ax", "grant:b", FIRST_GPU_US),
    ]


def _summed(tallies: list[Tally]) -> dict[str, tuple[int, int, int]]:
    granted: Counter[str] = Counter(EARMARKS)
    held: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for source, target, amount in _first_deposits():
        granted[source] -= amount
        granted[target] += amount
    for tally in tallies:
        for total, part in ((granted, tally.granted), (held, tally.held), (used, tally.used)):
            for name, amount in part.items():
                total[name] += amount
    return {name: (granted[name], held[name], used[name]) for name in {*granted, *held, *used}}


def _hold(tx: Tx, job: str, path: tuple[str, ...], milliseconds: int) -> str:
    return holding.hold(tx, job, 1, "g", path, milliseconds * 1000, 1, RATE, actor="scheduler")


def _touch(tx: Tx, account: str) -> None:
    tx.connection.execute(
        update(accounts).where(accounts.c.id == account).values(used_gpu_us=accounts.c.used_gpu_us + 1)
    )
