"""Eight threads divide one grant and hold on it at once, on PostgreSQL through two services: no limit is passed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import select

from quota.db import Database, Tx
from quota.errors import InsufficientBalance
from quota.fleet.rules import Rate
from quota.ledger import holds, settling
from quota.ledger.tables import accounts, transfers
from quota.programs.limits import read_tree
from quota.schemas.programs import Grant
from tests.builders import FIRMS, GPU_HOUR_US, Hub, a_hub
from tests.integration.quota.limits_builders import balance, divide, give, move, path, release
from tests.property.ledger.ledger_checks import violations

THREADS = 8
TURNS = 25
RATE = Rate("h100@1", "h100", 1000, 4000)


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


@pytest.fixture
def services(hub: Hub) -> Iterator[list[Database]]:
    """Two services on PostgreSQL; SQLite has one process, whose writers queue inside it."""
    second = [] if hub.database.dialect == "sqlite" else [Database(hub.database.url, hub.clock)]
    yield [hub.database, *second]
    for database in second:
        database.close()


def test_shares_never_come_to_more_than_the_grant(hub: Hub, services: list[Database]) -> None:
    grant = hub.award("alpha", "30")
    outcomes: Counter[str] = Counter()
    for firm in FIRMS:
        give(hub, grant, firm, 1)

    def work(number: int, database: Database) -> None:
        rng = random.Random(number)
        for turn in range(TURNS):
            firm, other = rng.sample(FIRMS, 2)
            step = rng.choice(("give", "give", "move", "hold"))
            try:
                if step == "give":
                    give(hub, grant, firm, rng.randint(0, 25), database=database)
                elif step == "move":
                    move(hub, grant, firm, other, rng.randint(1, 8), database=database)
                else:
                    _hold_and_release(database, grant, firm, f"job-{number}-{turn}", rng.randint(1, 6))
                outcomes[step] += 1
            except InsufficientBalance:
                outcomes[f"{step} refused"] += 1
            _check_sums(database, grant)

    _at_once(work, services)
    assert set(outcomes) == {"give", "move", "hold", "give refused", "move refused", "hold refused"}
    with hub.database.read() as connection:
        assert violations(connection) == []


def test_a_full_grant_goes_to_the_first_who_ask_and_to_no_more(hub: Hub, services: list[Database]) -> None:
    grant = hub.award("alpha", "10")
    taken: list[str] = []
    possible: list[tuple[int, int]] = []

    def work(number: int, database: Database) -> None:
        firm = FIRMS[number % len(FIRMS)]
        for hours in (6, 7, 8):
            try:
                give(hub, grant, firm, hours, database=database)
                taken.append(firm)
            except InsufficientBalance as refused:
                possible.append((int(refused.numbers["left_gpu_us"]), hours * GPU_HOUR_US))

    _at_once(work, services)
    assert all(left < needed for left, needed in possible), "each refusal tells what is possible"
    assert len(set(taken)) == 1, "two shares of 6 hours do not fit into 10"
    _check_sums(hub.database, grant)


def test_a_tranche_is_released_once_however_many_ask(hub: Hub, services: list[Database]) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 40, 60)

    def work(number: int, database: Database) -> None:
        if number % 2:
            release(hub, grant, 2, database=database)
            return
        where = path(grant, None, 1)
        for turn in range(TURNS):
            job = f"job-{number}-{turn}"
            try:
                database.write(lambda tx, job=job: _hold(tx, grant, where, job, 3))
            except InsufficientBalance:
                return

    _at_once(work, services)
    assert len(hub.rows(transfers, id=f"{path(grant, None, 2)[0]}:release")) == 1
    first, second = (balance(hub, path(grant, None, part)[0]) for part in (1, 2))
    assert first[0] + second[0] == 100
    assert first[0] == first[1], "what was not held at that moment moved"
    with hub.database.read() as connection:
        assert violations(connection) == []


def _check_sums(database: Database, grant: Grant) -> None:
    with database.read() as connection:
        tree = read_tree(connection, grant.id)
        rows = connection.execute(select(accounts).where(accounts.c.kind == "share")).all()
    shared = sum(row.granted_gpu_us for row in rows)
    assert shared <= tree.top.granted_gpu_us, f"{shared} of {tree.top.granted_gpu_us} are shared"
    assert sum(row.held_gpu_us for row in rows) == tree.top.held_gpu_us


def _hold_and_release(database: Database, grant: Grant, firm: str, job: str, hours: int) -> None:
    where = path(grant, firm)
    database.write(lambda tx: _hold(tx, grant, where, job, hours))

    def let_go(tx: Tx) -> None:
        held = holds.read_hold(tx, f"{job}:1:hold")
        settling.release(tx, held, 0, actor="hub", reason="a test")

    database.write(let_go)


def _hold(tx: Tx, grant: Grant, where: list[str], job: str, hours: int) -> None:
    holds.hold(tx, job, 1, grant.id, where, hours * GPU_HOUR_US, 1, RATE, actor="scheduler")


def _at_once(work: Callable[[int, Database], None], services: list[Database]) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number, services[number % len(services)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
