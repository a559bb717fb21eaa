"""Random ledgers against a plain dict model, on both databases.

`GPUHUB_LEDGER_EXAMPLES` makes the runs longer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.exc import IntegrityError

import quota.db
from quota.db import Database, Tx
from quota.errors import InsufficientBalance, TransferMismatch
from quota.fleet.rules import Rate
from quota.ledger import extending, moving, refunds, settling
from quota.ledger import holds as holding
from quota.ledger import service as ledger
from quota.ledger.earmarks import earmark
from quota.ledger.posting import PLATFORM, TREASURY
from quota.ledger.rules import Slice
from quota.schemas.ledger import RefundKind
from tests import databases
from tests.builders import START_MS, HandClock
from tests.property.ledger.ledger_checks import rebuilt_balances, stored_balances, violations

EXAMPLES = int(os.environ.get("GPUHUB_LEDGER_EXAMPLES", "30"))
STEPS = 30
RATES = (
    Rate("h100@1", "h100", 1000, 4000),
    Rate("a100@3", "a100", 550, 2100),
    Rate("mig@1", "mig", 125, 333),
)

amounts = st.integers(1, 2_000_000_000)
milliseconds = st.integers(1, 200_000)


@dataclass
class Account:
    granted: int = 0
    held: int = 0
    used: int = 0
    parent: str | None = None
    limited: bool = True

    @property
    def free(self) -> int:
        return self.granted - self.held - self.used


@dataclass
class ModelHold:
    id: str
    job: str
    path: tuple[str, ...]
    amount: int
    gpus: int
    rate: Rate
    cursor: int = START_MS
    settled: int = 0
    resolved: bool = False
    slices: list[Slice] = field(default_factory=list)
    extensions: list[int] = field(default_factory=list)
    """Milliseconds of each, in order."""
    given_back: dict[tuple[int, str, int], int] = field(default_factory=dict)
    """(slice's start, kind, start) -> end."""

    @property
    def per_ms(self) -> int:
        return self.gpus * self.rate.rate_thousandths

    def payer_of(self, part: Slice, start: int, end: int) -> str | None:
        """Who pays for [start, end) of a slice now; None if nobody does, or not one alone."""
        spans = [
            (kind, begin, until)
            for (slice_start, kind, begin), until in self.given_back.items()
            if slice_start == part.starts_at_ms and begin < end and start < until
        ]
        if any(kind == "correction" for kind, _, _ in spans):
            return None
        if not spans:
            return part.payer
        whole = len(spans) == 1 and spans[0][1] <= start and end <= spans[0][2]
        return "platform" if whole else None


class LedgerMachine(RuleBasedStateMachine):
    """Each rule runs on the ledger and on the model; refusals must leave the ledger as it was."""

    engine: ClassVar[str] = "sqlite"

    deposits = Bundle("deposits")
    grants = Bundle("grants")
    open_holds = Bundle("open_holds")

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # thousands of commits, none of which must outlive the test
        self.folder = tempfile.TemporaryDirectory(
            prefix="hub-ledger-", dir=memory if os.access(memory, os.W_OK) else None
        )
        self.url = (
            _emptied_postgres() if self.engine == "postgres" else databases.new_sqlite(Path(self.folder.name))
        )
        self.database = Database(self.url, HandClock(), pool_size=2)
        self.model: dict[str, Account] = {TREASURY: Account(limited=False), PLATFORM: Account(limited=False)}
        self.holds: dict[str, ModelHold] = {}
        self.paths: list[tuple[str, ...]] = []
        self.count = 0

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    # --- rules: budgets ---------------------------------------------------------------------------

    @initialize(budget=st.integers(3_000_000_000, 20_000_000_000))
    def open_program(self, budget: int) -> None:
        self._open("program:ax", "program")
        self._deposit("program:ax:budget", TREASURY, "program:ax", budget)

    @rule(target=deposits, amount=amounts)
    def fund(self, amount: int) -> tuple[str, str, str, int]:
        return self._deposit(self._name("fund"), TREASURY, "program:ax", amount)

    @rule(target=grants, amount=amounts, depth=st.integers(1, 3), share=st.floats(0, 1))
    def award(self, amount: int, depth: int, share: float) -> Any:
        """A grant of 1 to 3 levels; children carry an earmarked part of their parent's hours."""
        if amount > self.model["program:ax"].free:
            self._refused(lambda tx: self._award(tx, self._name("grant:g"), amount), InsufficientBalance)
            return multiple()
        grant = self._name("grant:g")
        self._write(lambda tx: self._award(tx, grant, amount))
        self.model[grant] = Account()
        self._move("program:ax", grant, amount)
        path, parent, left = [grant], grant, amount
        for kind in ("tranche", "share")[: depth - 1]:
            child, left = f"{kind}:{grant}", max(1, int(left * share))
            self._open(child, kind, parent)
            changes = {child: left}
            assert self._write(
                lambda tx, changes=changes: earmark(
                    tx, f"{min(changes)}:earmark", changes, actor="op", reason="r"
                )
            )
            self.model[child].granted += left
            path.insert(0, child)
            parent = child
        self.paths += [tuple(path[start:]) for start in range(len(path))]
        return grant

    @rule(target=deposits, grant=grants, amount=amounts)
    def top_up(self, grant: str, amount: int) -> Any:
        name = self._name("top-up")
        if amount > self.model["program:ax"].free:
            self._refused(
                lambda tx: moving.deposit(tx, name, "program:ax", grant, amount, actor="op", reason="r"),
                InsufficientBalance,
            )
            return multiple()
        return self._deposit(name, "program:ax", grant, amount)

    @rule(grant=grants, amount=amounts, share=st.none() | st.floats(0, 1))
    def cut(self, grant: str, amount: int, share: float | None) -> None:
        possible = self._possible(grant)
        if share is not None:
            amount = int(possible * share) or amount
        name = self._name("cut")

        def work(tx: Tx) -> bool:
            return moving.pull_back(tx, name, grant, "program:ax", amount, actor="op", reason="r")

        if amount > possible:
            error = self._refused(work, InsufficientBalance)
            assert error.numbers["left_gpu_us"] == possible
            assert error.numbers["needed_gpu_us"] == amount
            return
        assert self._write(work) is True
        self._move(grant, "program:ax", amount)
        assert self._write_unchanged(work) is False

    @rule(deposit=deposits, other=amounts)
    def repeat_a_deposit(self, deposit: tuple[str, str, str, int], other: int) -> None:
        name, source, target, amount = deposit

        def again(tx: Tx, target: str = target, amount: int = amount) -> bool:
            return moving.deposit(tx, name, source, target, amount, actor="op", reason="r")

        assert self._write_unchanged(again) is False
        if other != amount:
            self._refused(lambda tx: again(tx, amount=other), TransferMismatch)
        self._refused(lambda tx: again(tx, target=PLATFORM), TransferMismatch)

    # --- rules: holds -----------------------------------------------------------------------------

    @precondition(lambda self: self.paths)
    @rule(
        target=open_holds,
        choice=st.integers(0, 1_000),
        duration=milliseconds,
        gpus=st.integers(1, 16),
        rate=st.sampled_from(RATES),
    )
    def hold(self, choice: int, duration: int, gpus: int, rate: Rate) -> Any:
        path = self.paths[choice % len(self.paths)]
        amount = duration * gpus * rate.rate_thousandths
        job = self._name("job")
        made = ModelHold(f"{job}:1:hold", job, path, amount, gpus, rate)
        short = [name for name in path if self.model[name].free < amount]
        if short:
            error = self._refused(lambda tx: self._hold(tx, made), InsufficientBalance)
            assert error.numbers["account"] in short
            assert error.numbers["needed_gpu_us"] == amount
            assert error.numbers["left_gpu_us"] == self.model[str(error.numbers["account"])].free
            return multiple()
        assert self._write(lambda tx: self._hold(tx, made)) == made.id
        for name in path:
            self.model[name].held += amount
        self.holds[made.id] = made
        return made.id

    @rule(hold_id=open_holds, other=milliseconds)
    def repeat_a_hold(self, hold_id: str, other: int) -> None:
        held = self.holds[hold_id]
        first = held.amount - sum(held.extensions) * held.per_ms
        assert self._write_unchanged(lambda tx: self._hold(tx, held, amount=first)) == hold_id
        self._refused(lambda tx: self._hold(tx, held, amount=first + other), TransferMismatch)
        for path in self.paths:
            if set(path) != set(held.path):
                self._refused(lambda tx, path=path: self._hold(tx, held, path=path), TransferMismatch)
                break

    @rule(hold_id=open_holds, extra=milliseconds)
    def extend(self, hold_id: str, extra: int) -> None:
        held = self.holds[hold_id]
        amount, number = extra * held.per_ms, len(held.extensions) + 1

        def work(tx: Tx) -> bool:
            stored = holding.read_hold(tx, hold_id)
            assert extending.room_gpu_us(tx, stored.path) == min(self.model[name].free for name in held.path)
            return extending.extend(tx, stored, number, extra, actor="op", reason="r")

        short = [name for name in held.path if self.model[name].free < amount]
        if short:
            error = self._refused(work, InsufficientBalance)
            assert error.numbers["account"] in short
            assert error.numbers["needed_gpu_us"] == amount
            return
        assert self._write(work) is True
        for name in held.path:
            self.model[name].held += amount
        held.amount += amount
        held.extensions.append(extra)

    @precondition(lambda self: any(held.extensions for held in self.holds.values()))
    @rule(choice=st.integers(0, 1_000), other=milliseconds)
    def repeat_an_extension(self, choice: int, other: int) -> None:
        """Any earlier one, also after its hold was resolved."""
        holds = [held for held in self.holds.values() if held.extensions]
        held = holds[choice % len(holds)]
        number = choice % len(held.extensions) + 1
        extra = held.extensions[number - 1]

        def again(tx: Tx, extra: int = extra, number: int = number) -> bool:
            stored = holding.read_hold(tx, held.id)
            return extending.extend(tx, stored, number, extra, actor="op", reason="r")

        assert self._write_unchanged(again) is False
        self._refused(lambda tx: again(tx, extra=extra + other), TransferMismatch)
        self._refused(lambda tx: again(tx, number=len(held.extensions) + 2), AssertionError)
        if held.resolved:
            self._refused(lambda tx: again(tx, number=len(held.extensions) + 1), AssertionError)

    @rule(
        hold_id=open_holds,
        parts=st.lists(
            st.tuples(milliseconds, st.integers(0, 3), st.sampled_from(["grant", "grant", "platform"])),
            min_size=1,
            max_size=4,
        ),
    )
    def settle(self, hold_id: str, parts: list[tuple[int, int, str]]) -> None:
        held = self.holds[hold_id]
        cut, cursor = [], held.cursor
        for duration, gap, payer in parts:
            cut.append(Slice(cursor + gap, cursor + gap + duration, payer))
            cursor += gap + duration
        charged = sum(_length(part) for part in cut if part.payer == "grant") * held.per_ms
        booked = sum(_length(part) for part in cut if part.payer != "grant") * held.per_ms

        def work(tx: Tx) -> int:
            return settling.settle(tx, holding.read_hold(tx, hold_id), cut, actor="hub")

        if held.resolved or held.settled + charged > held.amount:
            if charged:  # a resolved hold may still book time on the platform
                self._refused(work, (AssertionError, IntegrityError, InsufficientBalance))
            return
        assert self._write(work) == charged
        for name in held.path:
            self.model[name].held -= charged
            self.model[name].used += charged
        self.model[PLATFORM].used += booked
        held.settled += charged
        held.cursor = cursor
        held.slices += cut

    @precondition(lambda self: any(held.slices for held in self.holds.values()))
    @rule(choice=st.integers(0, 1_000))
    def repeat_a_slice(self, choice: int) -> None:
        settled = [held for held in self.holds.values() if held.slices]
        held = settled[choice % len(settled)]
        part = held.slices[choice % len(held.slices)]

        def again(tx: Tx) -> int:
            return settling.settle(tx, holding.read_hold(tx, held.id), [part], actor="hub")

        with _no_retries():
            self._refused(again, (IntegrityError, AssertionError, InsufficientBalance))

    @rule(hold_id=consumes(open_holds))
    def release(self, hold_id: str) -> None:
        held = self.holds[hold_id]
        rest = held.amount - held.settled

        def work(tx: Tx) -> None:
            stored = holding.read_hold(tx, hold_id)
            settling.release(tx, stored, stored.settled_gpu_us, actor="hub", reason="attempt ended")

        self._write(work)
        for name in held.path:
            self.model[name].held -= rest
        held.resolved = True
        self._write_unchanged(work)

    @precondition(lambda self: any(held.slices for held in self.holds.values()))
    @rule(
        choice=st.integers(0, 1_000),
        kind=st.sampled_from(list(RefundKind)),
        begin=st.floats(0, 1),
        length=st.floats(0, 1),
    )
    def refund(self, choice: int, kind: RefundKind, begin: float, length: float) -> None:
        settled = [held for held in self.holds.values() if held.slices]
        held = settled[choice % len(settled)]
        part = held.slices[choice % len(held.slices)]
        start = part.starts_at_ms + min(int(_length(part) * begin), _length(part) - 1)
        end = start + max(1, int((part.ends_at_ms - start) * length))
        amount = (end - start) * held.per_ms

        def work(tx: Tx) -> int:
            stored = holding.read_hold(tx, held.id)
            return refunds.refund(tx, stored, part, start, end, kind, actor="hub", reason="r")

        known = held.given_back.get((part.starts_at_ms, kind.value, start))
        payer = held.payer_of(part, start, end)
        if known is not None and known == end:
            assert self._write_unchanged(work) == 0
        elif (
            known is not None or payer is None or (payer == "platform" and kind is not RefundKind.CORRECTION)
        ):
            self._refused(work, (TransferMismatch, AssertionError))
        else:
            charged = payer == "grant"
            assert self._write(work) == (amount if charged else 0)
            held.given_back[(part.starts_at_ms, kind.value, start)] = end
            for name in held.path if charged else ():
                self.model[name].used -= amount
            if not charged:
                self.model[PLATFORM].used -= amount
            elif kind is not RefundKind.CORRECTION:
                self.model[PLATFORM].used += amount

    @precondition(lambda self: any(held.given_back for held in self.holds.values()))
    @rule(choice=st.integers(0, 1_000))
    def repeat_a_refund(self, choice: int) -> None:
        """Any earlier one, not only the latest of its slice."""
        holds = [held for held in self.holds.values() if held.given_back]
        held = holds[choice % len(holds)]
        (slice_start, kind, start), end = list(held.given_back.items())[choice % len(held.given_back)]
        part = next(part for part in held.slices if part.starts_at_ms == slice_start)

        def again(tx: Tx) -> int:
            stored = holding.read_hold(tx, held.id)
            return refunds.refund(tx, stored, part, start, end, RefundKind(kind), actor="hub", reason="r")

        assert self._write_unchanged(again) == 0

    # --- what must always hold --------------------------------------------------------------------

    @invariant()
    def stored_is_rebuilt_is_the_model(self) -> None:
        with self.database.read() as connection:
            stored, rebuilt = stored_balances(connection), rebuilt_balances(connection)
        expected = {
            name: (account.granted, account.held, account.used) for name, account in self.model.items()
        }
        assert stored == expected
        assert rebuilt == expected

    @invariant()
    def nothing_is_broken(self) -> None:
        with self.database.read() as connection:
            assert violations(connection) == []

    # --- both sides of one step -------------------------------------------------------------------

    def _write(self, work: Any) -> Any:
        return self.database.write(work)

    def _write_unchanged(self, work: Any) -> Any:
        before = self._everything()
        result = self.database.write(work)
        assert self._everything() == before, "a repeated request changed something"
        return result

    def _refused(self, work: Any, error: Any) -> Any:
        before = self._everything()
        with pytest.raises(error) as caught:
            self.database.write(work)
        assert self._everything() == before, "a refusal left a trace"
        return caught.value

    def _everything(self) -> list[Any]:
        with self.database.read() as connection:
            return [
                sorted(map(tuple, connection.exec_driver_sql(f"SELECT * FROM {table}").all()), key=repr)
                for table in (
                    "accounts",
                    "transfers",
                    "transfer_legs",
                    "holds",
                    "hold_accounts",
                    "slices",
                    "feed_head",
                )
            ]

    def _possible(self, grant: str, named: int = 0) -> int:
        """What can leave a grant, `named` of it from its limit accounts: free, and promised to none of them.

        What was taken outside of the limit accounts is gone for them.
        """
        account = self.model[grant]
        children = [child for child in self.model.values() if child.parent == grant]
        if not children:
            return account.free
        outside = max(0, account.held + account.used - sum(child.held + child.used for child in children))
        promised = sum(child.granted for child in children) - named
        return min(account.free, account.granted - promised - outside)

    def _open(self, name: str, kind: str, parent: str | None = None) -> None:
        self._write(lambda tx: ledger.open_account(tx, name, kind, parent_id=parent))
        self.model[name] = Account(parent=parent)

    def _award(self, tx: Tx, grant: str, amount: int) -> None:
        ledger.open_account(tx, grant, "grant")
        moving.deposit(tx, f"{grant}:award", "program:ax", grant, amount, actor="op", reason="r")

    def _deposit(self, name: str, source: str, target: str, amount: int) -> tuple[str, str, str, int]:
        assert self._write(
            lambda tx: moving.deposit(tx, name, source, target, amount, actor="op", reason="r")
        )
        self._move(source, target, amount)
        return name, source, target, amount

    def _move(self, source: str, target: str, amount: int) -> None:
        self.model[source].granted -= amount
        self.model[target].granted += amount

    def _hold(
        self, tx: Tx, held: ModelHold, amount: int | None = None, path: Sequence[str] | None = None
    ) -> str:
        return holding.hold(
            tx,
            held.job,
            1,
            "g",
            held.path if path is None else path,
            held.amount if amount is None else amount,
            held.gpus,
            held.rate,
            actor="scheduler",
        )

    def _name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"


@cache
def _postgres() -> str:
    return databases.new_postgres()


def _emptied_postgres() -> str:
    """One database for all examples: making one costs more than an example, emptying it does not."""
    url = _postgres()
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")  # past the triggers and the foreign keys
        for table in ("transfer_legs", "transfers", "slices", "hold_accounts", "holds"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("DELETE FROM accounts WHERE id NOT IN ('treasury', 'platform')")
        connection.execute("UPDATE accounts SET granted_gpu_us = 0, held_gpu_us = 0, used_gpu_us = 0")
    return url


def _length(part: Slice) -> int:
    return part.ends_at_ms - part.starts_at_ms


@contextmanager
def _no_retries() -> Iterator[None]:
    """A slice that exists stays in the way however often the write is run again: see it fail once."""
    limit = quota.db.RETRY_LIMIT
    quota.db.RETRY_LIMIT = 1
    try:
        yield
    finally:
        quota.db.RETRY_LIMIT = limit


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_any_ledger_agrees_with_a_plain_model_of_it(engine: str) -> None:
    examples = EXAMPLES if engine == "sqlite" else EXAMPLES // 2  # a commit costs more there
    machine = type(f"Ledger_{engine}", (LedgerMachine,), {"engine": engine})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=STEPS, deadline=None)
    )
