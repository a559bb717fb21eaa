"""Two replicas of the service on one PostgreSQL, eight threads on both: no limit is passed, nothing is doubled."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError

from quota.app import create_app
from quota.client import QuotaClient
from quota.clock import Clock
from quota.db import Database, Tx, sqlstate
from quota.errors import HubError, InsufficientBalance
from quota.identity.idempotency import once
from quota.jobs.tables import attempts
from quota.ledger.tables import accounts, holds, transfers
from quota.programs import awards, changes, shares
from quota.programs.tables import grants
from quota.schemas.limits import ShareChange, ShareMove
from quota.schemas.programs import Award, Grant, GrantCut, GrantTransfer, TopUp
from quota.settings import Settings
from tests.builders import (
    DAY_MS,
    GPU_HOUR_US,
    OPERATOR,
    Hub,
    a_hub,
    a_submission,
    an_api,
    ended,
    node_reports,
)
from tests.integration.quota.grants_builders import balance, check_conserved
from tests.integration.quota.limits_builders import divide, give, path
from tests.property.ledger.ledger_checks import rebuilt_balances, stored_balances
from tests.served import quiet, served

pytestmark = pytest.mark.postgres

THREADS = 8


class Replica(Database):
    """One process's door to the database; counts what made a transaction run again."""

    def __init__(self, url: str, clock: Clock) -> None:
        super().__init__(url, clock, pool_size=THREADS)
        self.retried: Counter[str] = Counter()

    def _transact(self, connection, work):  # type: ignore[no-untyped-def]
        try:
            return super()._transact(connection, work)
        except DBAPIError as error:
            self.retried[sqlstate(error) or type(error).__name__] += 1
            raise


@pytest.fixture
def hub(postgres_url: str) -> Iterator[Hub]:
    """A hub whose books must be right when the test is over."""
    made = a_hub(postgres_url, budget_hours="40")
    yield made
    check_conserved(made)
    with made.database.read() as connection:
        assert rebuilt_balances(connection) == stored_balances(connection)
    made.close()


@pytest.fixture
def replicas(hub: Hub) -> Iterator[tuple[Replica, Replica]]:
    pair = (Replica(hub.database.url, hub.clock), Replica(hub.database.url, hub.clock))
    yield pair
    for replica in pair:
        assert set(replica.retried) <= {"40P01", "40001", "23505"}, replica.retried
        replica.close()


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """What eight threads get that do `work(number)` at the same moment: answers and refusals."""
    barrier, answers = threading.Barrier(THREADS), [None] * THREADS

    def run(number: int) -> None:
        barrier.wait()
        try:
            answers[number] = work(number)
        except BaseException as refusal:
            answers[number] = refusal

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = [one for one in answers if isinstance(one, BaseException) and not isinstance(one, HubError)]
    assert broken == []
    return answers


def an_award(hub: Hub, hours: str = "1") -> Award:
    return Award(
        program_id="ax", organization_id="alpha", gpu_hours=hours, ends_at=hub.now + 90 * DAY_MS, reason="r"
    )


def test_awards_on_both_replicas_never_pass_the_budget(hub: Hub, replicas: tuple[Replica, Replica]) -> None:
    def work(number: int) -> tuple[int, int]:
        done = refused = 0
        for _ in range(10):
            try:
                replicas[number % 2].write(lambda tx: awards.award(tx, OPERATOR, an_award(hub)))
                done += 1
            except InsufficientBalance:
                refused += 1
        return done, refused

    answers = at_once(work)
    assert (sum(done for done, _ in answers), sum(refused for _, refused in answers)) == (40, 40)
    assert balance(hub, "program:ax") == (0, 0, 0)
    assert len(hub.rows(grants)) == 40


def test_one_key_on_both_replicas_is_one_award(hub: Hub, replicas: tuple[Replica, Replica]) -> None:
    for turn in range(5):
        body = an_award(hub)

        def work(tx: Tx, body: Award = body, key: str = f"key-{turn}") -> Grant:
            return once(tx, OPERATOR, key, "award", body, Grant, lambda: awards.award(tx, OPERATOR, body))

        answers = at_once(lambda number, work=work: replicas[number % 2].write(work))
        assert len({answer.model_dump_json() for answer in answers}) == 1
        assert len(hub.rows(grants)) == turn + 1
    assert balance(hub, "program:ax")[0] == 35 * GPU_HOUR_US


def test_deadlocks_between_replicas_are_run_again(hub: Hub, replicas: tuple[Replica, Replica]) -> None:
    first, second = (hub.award("alpha", "1").account_id for _ in range(2))
    turns = 6
    for _ in range(turns):
        both, tried = threading.Barrier(2), Counter[int]()

        def lock(tx: Tx, number: int, both: threading.Barrier = both, tried: Counter[int] = tried) -> None:
            tried[number] += 1
            names = (first, second) if number else (second, first)
            _count(tx, names[0])
            if tried[number] == 1:
                both.wait(30)  # each has one now, and wants the other's
            _count(tx, names[1])

        threads = [
            threading.Thread(target=replicas[number].write, args=(lambda tx, n=number, f=lock: f(tx, n),))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seen = replicas[0].retried + replicas[1].retried
    # the one that was ended may meet the other a second time
    assert seen["40P01"] >= turns, "PostgreSQL ended one of two, each time"
    for name in (first, second):
        row = hub.row(accounts, id=name)
        assert row.position == 2 * turns, "both did it, each once"
        hub.database.write(
            lambda tx, name=name: tx.connection.execute(
                update(accounts).where(accounts.c.id == name).values(position=None)
            )
        )


def _count(tx: Tx, account_id: str) -> None:
    tx.connection.execute(
        text("UPDATE accounts SET position = COALESCE(position, 0) + 1 WHERE id = :id"), {"id": account_id}
    )


# --- everything at once -----------------------------------------------------------------------------


CAP = 6


def test_eight_threads_on_two_replicas_pass_no_limit_of_any_kind(
    hub: Hub, replicas: tuple[Replica, Replica]
) -> None:
    hub.report(nodes=node_reports({"n0": {"h100": 1000}}))
    shared = _consortium(hub)
    plain = hub.award("alpha", "8")
    workers = [_Worker(hub, replicas[number % 2], number, shared, plain) for number in range(THREADS)]
    at_once(lambda number: workers[number].work(25))
    done = sum((worker.done for worker in workers), Counter[str]())
    # a move between shares may find no room in every try: which worker comes first is the machine's choice
    assert {"start", "end", "top up", "cut", "transfer", "share", "refused"} <= set(done), done
    most = _most_gpus(hub, shared.id)
    assert 0 < most <= CAP, f"{most} GPUs at once under a cap of {CAP}"
    children = [row for row in hub.rows(accounts, grant_id=shared.id) if row.kind != "grant"]
    granted = balance(hub, shared.account_id)[0]
    for kind in ("share", "tranche"):
        parts = [row.granted_gpu_us for row in children if row.kind == kind]
        assert sum(parts) <= granted, f"the {kind}s are more than their grant"
    started = [row for row in hub.rows(transfers, type="hold")]
    assert len(started) == len(hub.rows(holds)) == len(hub.rows(attempts)) == done["start"]


def _consortium(hub: Hub) -> Grant:
    body = an_award(hub, "12").model_copy(update={"max_gpus": CAP})
    grant = hub.database.write(lambda tx: awards.award(tx, OPERATOR, body))
    give(hub, grant, "alpha", 5)
    give(hub, grant, "beta", 5)
    divide(hub, grant, 6, 6)
    return grant


class _Worker:
    """One thread with decisions of its own stream; everything it wants is refused sometimes."""

    cluster_turn = threading.Lock()

    def __init__(self, hub: Hub, replica: Replica, number: int, shared: Grant, plain: Grant) -> None:
        self.hub = Hub(replica, hub.clock, epoch=hub.epoch)
        self.sequences = hub.sequences
        self.replica, self.number, self.shared, self.plain = replica, number, shared, plain
        self.rng = random.Random(number)
        self.done: Counter[str] = Counter()
        self.running: list[tuple[Any, int]] = []

    def work(self, turns: int) -> None:
        acts = (self._start, self._start, self._start, self._end, self._end, self._move, self._change)
        for _ in range(turns):
            try:
                self.rng.choice(acts)()
            except HubError:
                self.done["refused"] += 1
        while self.running:
            self._end()

    def _start(self) -> None:
        firm = self.rng.choice(("alpha", "beta"))
        grant, where = self.shared, path(self.shared, firm, 1)
        if firm == "alpha" and self.rng.random() < 0.3:
            grant, where = self.plain, path(self.plain)
        job = self.hub.submit(
            firm, walltime_s=self.rng.choice((600, 1800)), gpus_per_pod=self.rng.choice((1, 2))
        )
        item = self.hub.start_item(job, grant, path=where, attempt=1)
        result = self.hub.decide(item, stream=f"decisions-{self.number}").results[0]
        if result.outcome != "accepted":
            assert result.code in ("insufficient_balance", "grant_cap", "not_found"), result
            self.done["refused"] += 1
            return
        self.done["start"] += 1
        self.running.append((job, self.hub.now))

    def _end(self) -> None:
        if not self.running:
            return
        job, began = self.running.pop(self.rng.randrange(len(self.running)))
        last = began - 1900  # the clock stands still; a cluster's may go before it by 2 s
        with self.cluster_turn:  # a cluster has one stream of reports
            stream = "cluster:sim"
            self.hub.sequences[stream] = self.sequences[stream]
            self.hub.report(ended(job, last + self.rng.randrange(1, 1800), first=last, last=last))
            self.sequences[stream] = self.hub.sequences[stream]
        self.done["end"] += 1

    def _move(self) -> None:
        hours = self.rng.choice(("0.25", "1", "9"))
        source, target = self.rng.sample((self.shared, self.plain), 2)
        body = GrantTransfer(gpu_hours=hours, to_grant_id=target.id, reason="r")
        self.replica.write(lambda tx: changes.transfer(tx, OPERATOR, source.id, body))
        self.done["transfer"] += 1

    def _change(self) -> None:
        hours, firm = self.rng.choice(("0.5", "2", "7")), self.rng.choice(("alpha", "beta"))
        grant = self.rng.choice((self.shared, self.plain))
        other = "beta" if firm == "alpha" else "alpha"
        kind = self.rng.choice(("top up", "cut", "share", "move"))

        def change(tx: Tx) -> object:
            if kind == "top up":
                return changes.top_up(tx, OPERATOR, grant.id, TopUp(gpu_hours=hours, reason="r"))
            if kind == "cut":
                return changes.cut(tx, OPERATOR, grant.id, GrantCut(gpu_hours=hours, reason="r"))
            if kind == "share":
                body = ShareChange(gpu_hours=hours, reason="r")
                return shares.put_share(tx, OPERATOR, self.shared.id, firm, body, None)
            move = ShareMove(from_organization_id=firm, to_organization_id=other, gpu_hours=hours, reason="r")
            return shares.move_share(tx, OPERATOR, self.shared.id, move)

        self.replica.write(change)
        self.done[kind] += 1


def _most_gpus(hub: Hub, grant_id: str) -> int:
    """The most GPUs that attempts on a grant kept at once, by the order of commits."""
    mine = {row.id: row.gpus for row in hub.rows(holds, grant_id=grant_id)}
    begins, ends = {}, Counter[str]()
    for row in hub.rows(transfers):
        if row.type == "hold":
            begins[row.id] = row.seq
        elif row.job_id is not None:
            hold_id = f"{row.job_id}:{row.attempt}:hold"
            ends[hold_id] = max(ends[hold_id], row.seq)
    steps = [(begins[name], gpus) for name, gpus in mine.items()]
    steps += [(ends[name], -gpus) for name, gpus in mine.items()]
    most = now = 0
    for _, gpus in sorted(steps):
        now += gpus
        most = max(most, now)
    assert now == 0
    return most


# --- over HTTP ------------------------------------------------------------------------------------------


@contextmanager
def another_replica(url: str, clock: Clock) -> Iterator[str]:
    """A second service of the same database; answers its address."""
    with served(quiet(create_app(Settings(database=url, tasks=False), clock=clock))) as address:
        yield address


def test_a_key_raced_over_http_on_two_services_is_done_once(postgres_url: str) -> None:
    with an_api(postgres_url) as api, another_replica(postgres_url, api.hub.clock) as second:
        api.hub.award("alpha", "100")
        token = api.firms["alpha"]._http.headers["Authorization"].removeprefix("Bearer ")
        doors = [QuotaClient(base_url, token) for base_url in (api.base_url, second)]
        for turn in range(4):
            answers = at_once(
                lambda number, key=f"key-{turn}": doors[number % 2].submit_job(a_submission(), key)
            )
            assert len({answer.model_dump_json() for answer in answers}) == 1
            for door in doors:
                assert len(door.list_jobs().items) == turn + 1
        for door in doors:
            door.close()
