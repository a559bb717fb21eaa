"""Eight threads award, hold, settle, cut, transfer, carry over and expire at once: never past a limit, conserved."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import DBAPIError

from quota.clock import Clock
from quota.db import Database, sqlstate
from quota.errors import GrantNotActive, InsufficientBalance
from quota.fleet.rules import Rate
from quota.ledger import holds, refunds, settling
from quota.ledger.rules import Slice
from quota.ledger.tables import accounts
from quota.programs import awards, changes, endings
from quota.programs.tables import grants
from quota.schemas.ledger import RefundKind
from quota.schemas.programs import Award, CarryOver, Grant, GrantCut, GrantTransfer, TopUp
from tests.builders import OPERATOR, START_MS, Hub, a_hub
from tests.integration.quota.grants_builders import HOURS, check_conserved, expired, put_policy

THREADS = 8
TURNS = 60
RATE = Rate("h100@1", "h100", 1000, 4000)
TERM_MS = 600_000


class CountingDatabase(Database):
    """Counts what made a transaction run again."""

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
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    plain, made.database = made.database, CountingDatabase(database_url, made.clock)
    plain.close()
    yield made
    made.close()


def test_eight_threads_never_pass_a_limit_and_conserve_every_hour(hub: Hub) -> None:
    put_policy(hub, overdraft_thousandths=100, carry_over_thousandths=500)
    shared = [hub.award(hours="40", ends_at=hub.now + TERM_MS * (number + 1)) for number in range(4)]
    barrier, failures = threading.Barrier(THREADS), []
    workers = [_Worker(hub, number, shared) for number in range(THREADS)]

    def run(worker: _Worker) -> None:
        barrier.wait()
        try:
            for _ in range(TURNS):
                worker.turn()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check_conserved(hub)
    done = sum((worker.done for worker in workers), Counter())
    assert {"award", "hold", "release", "cut", "transfer", "carry_over", "refused"} <= set(done), done
    hub.clock.advance(100 * TERM_MS)
    endings.expire_due(hub.database)
    for worker in workers:
        worker.resolve_all()
    assert endings.expire_due(hub.database) == 0, "what was freed late expired with what freed it"
    check_conserved(hub)
    for row in hub.rows(accounts, kind="grant"):
        assert row.held_gpu_us == 0
        assert row.granted_gpu_us <= row.used_gpu_us, f"{row.id} ended and has something left"
        assert row.overdraft_gpu_us == row.granted_gpu_us * 100 // 1000
    numbers = {row.id: row.expiries for row in hub.rows(grants)}
    assert sum(numbers.values()) > len(shared)
    assert expired(hub) > 0
    database = hub.database
    assert isinstance(database, CountingDatabase)
    assert set(database.retried) <= {"40P01", "40001"}, database.retried


class _Worker:
    """One thread's random work; refusals are part of it."""

    def __init__(self, hub: Hub, number: int, shared: list[Grant]) -> None:
        self.hub = hub
        self.number = number
        self.rng = random.Random(number)
        self.grants = list(shared)
        self.open: list[tuple[str, Grant]] = []
        self.done: Counter[str] = Counter()
        self.count = 0

    def turn(self) -> None:
        steps = [self.hold] * 4 + [self.release, self.settle] * 2
        steps += [
            self.cut,
            self.top_up,
            self.transfer,
            self.transfer,
            self.carry_over,
            self.expire,
            self.award,
        ]
        step = self.rng.choice(steps)
        try:
            if step() is not False:
                self.done[step.__name__] += 1
        except (InsufficientBalance, GrantNotActive):
            self.done["refused"] += 1

    def award(self) -> None:
        ends_at = self.hub.now + self.rng.randrange(1, 5) * TERM_MS
        body = Award(program_id="ax", organization_id="alpha", gpu_hours=10, ends_at=ends_at, reason="a test")
        self.grants.append(self.hub.database.write(lambda tx: awards.award(tx, OPERATOR, body)))

    def hold(self) -> None:
        grant = self.rng.choice(self.grants)
        self.count += 1
        job, hours = f"job-{self.number}-{self.count}", self.rng.randrange(1, 12)
        if self.hub.grant(grant.id).ends_at <= self.hub.now:
            raise GrantNotActive("ended")
        self.hub.database.write(
            lambda tx: holds.hold(
                tx, job, 1, grant.id, (grant.account_id,), hours * HOURS, 1, RATE, actor="scheduler"
            )
        )
        self.open.append((job, grant))

    def settle(self) -> bool | None:
        """A first part is charged and given back as a fault of the platform."""
        if not self.open:
            return False
        job, grant = self.open.pop(self.rng.randrange(len(self.open)))
        part = Slice(START_MS, START_MS + self.rng.randrange(1, 3_600_000), "grant")
        kind = self.rng.choice(list(RefundKind))

        def work(tx):  # type: ignore[no-untyped-def]
            held = holds.read_hold(tx, f"{job}:1:hold")
            charged = settling.settle(tx, held, [part], actor="hub")
            settling.release(tx, held, charged, actor="hub", reason="ended")
            endings.sweep(tx, [grant.id])

        def give_back(tx):  # type: ignore[no-untyped-def]
            held = holds.read_hold(tx, f"{job}:1:hold")
            middle = (part.starts_at_ms + part.ends_at_ms + 1) // 2
            refunds.refund(tx, held, part, part.starts_at_ms, middle, kind, actor="hub", reason="r")
            endings.sweep(tx, [grant.id])

        self.hub.database.write(work)
        self.hub.database.write(give_back)
        return None

    def release(self) -> bool | None:
        if not self.open:
            return False
        self._release(*self.open.pop(self.rng.randrange(len(self.open))))
        return None

    def resolve_all(self) -> None:
        for job, grant in self.open:
            self._release(job, grant)

    def _release(self, job: str, grant: Grant) -> None:
        def work(tx):  # type: ignore[no-untyped-def]
            held = holds.read_hold(tx, f"{job}:1:hold")
            settling.release(tx, held, held.settled_gpu_us, actor="hub", reason="ended")
            endings.sweep(tx, [grant.id])

        self.hub.database.write(work)

    def cut(self) -> None:
        grant, body = self.rng.choice(self.grants), GrantCut(gpu_hours=self.rng.randrange(1, 9), reason="r")
        self.hub.database.write(lambda tx: changes.cut(tx, OPERATOR, grant.id, body))

    def top_up(self) -> None:
        grant, body = self.rng.choice(self.grants), TopUp(gpu_hours=self.rng.randrange(1, 9), reason="r")
        self.hub.database.write(lambda tx: changes.top_up(tx, OPERATOR, grant.id, body))

    def transfer(self) -> None:
        source, target = self.rng.sample(self.grants, 2)
        body = GrantTransfer(to_grant_id=target.id, gpu_hours=self.rng.randrange(1, 9), reason="r")
        self.hub.database.write(lambda tx: changes.transfer(tx, OPERATOR, source.id, body))

    def carry_over(self) -> None:
        source, target = self.rng.sample(self.grants, 2)
        body = CarryOver(to_grant_id=target.id, gpu_hours=self.rng.randrange(1, 4), reason="r")
        self.hub.database.write(lambda tx: endings.carry_over(tx, OPERATOR, source.id, body))

    def expire(self) -> None:
        if self.number == 0:
            self.hub.clock.advance(TERM_MS // 4)
        endings.expire_due(self.hub.database)
