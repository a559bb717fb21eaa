"""Random ledgers that also transfer, correct and expire hours, against the same plain model, on both databases."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from quota.db import Tx
from quota.errors import InsufficientBalance
from quota.ledger import expiring, moving
from quota.ledger import service as ledger
from quota.ledger.moving import ChildCut
from quota.ledger.posting import TREASURY
from tests.property.ledger.test_ledger_machine import EXAMPLES, STEPS, Account, LedgerMachine, amounts

EXPIRED = "expired:ax"


class MovesMachine(LedgerMachine):
    """The rules of the plain machine, and granted hours that go between grants, to the treasury and to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.expiries: Counter[str] = Counter()
        self._write(lambda tx: ledger.open_account(tx, EXPIRED, "expired"))
        self.model[EXPIRED] = Account()

    @rule(
        giver=LedgerMachine.grants,
        taker=LedgerMachine.grants,
        amount=amounts,
        part=st.none() | st.floats(0, 1),
        with_child=st.booleans(),
    )
    def transfer(self, giver: str, taker: str, amount: int, part: float | None, with_child: bool) -> None:
        if giver == taker:
            return
        cuts = self._cut_of_a_child(giver, amount) if with_child else ()
        possible = self._possible(giver, sum(cut.amount_gpu_us for cut in cuts))
        if part is not None:
            amount = int(possible * part) or amount
        name = self._name("transfer")

        def work(tx: Tx) -> bool:
            return moving.transfer(tx, name, giver, taker, amount, actor="op", reason="r", children=cuts)

        if amount > possible:
            error = self._refused(work, InsufficientBalance)
            assert error.numbers["left_gpu_us"] == possible
            assert error.numbers["needed_gpu_us"] == amount
            return
        assert self._write(work) is True
        self._move(giver, taker, amount)
        for cut in cuts:
            self.model[cut.account_id].granted -= cut.amount_gpu_us
        assert self._write_unchanged(work) is False

    @rule(grant=LedgerMachine.grants, amount=amounts, more=st.booleans())
    def adjust(self, grant: str, amount: int, more: bool) -> None:
        self._adjust("program:ax", grant, amount, more)

    @rule(amount=amounts, more=st.booleans())
    def adjust_the_budget(self, amount: int, more: bool) -> None:
        self._adjust(TREASURY, "program:ax", amount, more)

    @rule(grant=LedgerMachine.grants)
    def expire(self, grant: str) -> None:
        number = self.expiries[grant] + 1
        free = self.model[grant].free

        def work(tx: Tx) -> int:
            return expiring.expire(tx, grant, grant, EXPIRED, number, actor="hub", reason="ended")

        if free == 0:
            assert self._write_unchanged(work) == 0
            return
        assert self._write(work) == free
        self.expiries[grant] = number
        self._move(grant, EXPIRED, free)
        for child in self.model.values():
            if child.parent == grant:
                child.granted -= child.free
        assert self._write_unchanged(work) == 0, "a remainder expires once"

    @rule(grant=LedgerMachine.grants, amount=amounts)
    def carry_over(self, grant: str, amount: int) -> None:
        name = self._name("carry-over")

        def work(tx: Tx) -> bool:
            return moving.transfer(tx, name, EXPIRED, grant, amount, actor="op", reason="r")

        if amount > self.model[EXPIRED].granted:
            self._refused(work, InsufficientBalance)
            return
        assert self._write(work) is True
        self._move(EXPIRED, grant, amount)

    @invariant()
    def budgets_are_conserved(self) -> None:
        whole = [name for name, account in self.model.items() if account.parent is None]
        assert sum(self.model[name].granted for name in whole) == 0

    def _adjust(self, giver: str, account: str, amount: int, more: bool) -> None:
        source, target = (giver, account) if more else (account, giver)
        possible = None if source == TREASURY else self._possible(source)
        name = self._name("adjust")

        def work(tx: Tx) -> bool:
            return moving.adjust(tx, name, source, target, amount, actor="op", reason="r", evidence="e")

        if possible is not None and amount > possible:
            error = self._refused(work, InsufficientBalance)
            assert error.numbers["left_gpu_us"] == possible
            return
        assert self._write(work) is True
        self._move(source, target, amount)
        assert self._write_unchanged(work) is False

    def _cut_of_a_child(self, grant: str, amount: int) -> tuple[ChildCut, ...]:
        children = [name for name, account in self.model.items() if account.parent == grant]
        free = self.model[children[0]].free if children else 0
        return (ChildCut(children[0], min(amount, free)),) if free > 0 else ()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_any_ledger_with_moves_agrees_with_a_plain_model_of_it(engine: str) -> None:
    examples = EXAMPLES if engine == "sqlite" else EXAMPLES // 2
    machine = type(f"Moves_{engine}", (MovesMachine,), {"engine": engine})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=STEPS, deadline=None)
    )
