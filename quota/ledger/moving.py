"""Granted time moves between accounts: deposits, pull-backs, transfers between grants, corrections.

Every account of a move is locked in the order of ids before anything is judged, so that two moves never wait for
each other in a circle. What leaves a grant is at most what is neither used nor held there, and no more than its
limit accounts leave over, unless they are named and cut with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, or_, select

from quota.db import Tx
from quota.errors import BadRequest, InsufficientBalance, NotFound
from quota.ledger.posting import find, post
from quota.ledger.rules import Leg
from quota.ledger.tables import accounts
from quota.schemas.ledger import TransferType


@dataclass(frozen=True, slots=True)
class ChildCut:
    """A limit account that loses granted time together with its grant."""

    account_id: str
    amount_gpu_us: int


def deposit(
    tx: Tx,
    transfer_id: str,
    source: str,
    target: str,
    amount_gpu_us: int,
    *,
    actor: str,
    reason: str,
    evidence: str | None = None,
) -> bool:
    """Move granted time from `source` (treasury or programme) to `target`. False if it was done before.

    Raises InsufficientBalance when the source has less that is neither held nor used.
    """
    legs = _legs(source, target, amount_gpu_us)
    return post(
        tx,
        transfer_id,
        TransferType.DEPOSIT,
        amount_gpu_us,
        legs,
        actor=actor,
        reason=reason,
        evidence=evidence,
    )


def pull_back(
    tx: Tx,
    transfer_id: str,
    source: str,
    target: str,
    amount_gpu_us: int,
    *,
    actor: str,
    reason: str,
    evidence: str | None = None,
    children: Sequence[ChildCut] = (),
) -> bool:
    """Take free time of a grant back to its programme. False if it was done before.

    Raises InsufficientBalance with what is possible, NotFound and BadRequest for the children.
    """
    kind = TransferType.PULLBACK
    return _move(tx, kind, transfer_id, source, target, amount_gpu_us, actor, reason, evidence, children)


def transfer(
    tx: Tx,
    transfer_id: str,
    source: str,
    target: str,
    amount_gpu_us: int,
    *,
    actor: str,
    reason: str,
    evidence: str | None = None,
    children: Sequence[ChildCut] = (),
) -> bool:
    """Move free time of one grant, or expired time of a programme, to another grant. Raises as `pull_back`."""
    kind = TransferType.TRANSFER
    return _move(tx, kind, transfer_id, source, target, amount_gpu_us, actor, reason, evidence, children)


def adjust(
    tx: Tx,
    transfer_id: str,
    source: str,
    target: str,
    amount_gpu_us: int,
    *,
    actor: str,
    reason: str,
    evidence: str,
) -> bool:
    """Correct what `target` was granted, against `source`. Raises InsufficientBalance with what is possible."""
    kind = TransferType.ADJUST
    return _move(tx, kind, transfer_id, source, target, amount_gpu_us, actor, reason, evidence, ())


def _move(
    tx: Tx,
    kind: TransferType,
    transfer_id: str,
    source: str,
    target: str,
    amount_gpu_us: int,
    actor: str,
    reason: str,
    evidence: str | None,
    cuts: Sequence[ChildCut],
) -> bool:
    assert amount_gpu_us > 0, "a move has a direction by its accounts"
    found = {row.id: row for row in _locked(tx, source, target)}
    if find(tx, transfer_id) is None:
        children = {row.id: row for row in found.values() if row.parent_id == source}
        _check_cuts(children, cuts)
        _check_possible(found[source], children, cuts, amount_gpu_us)
    legs = _legs(source, target, amount_gpu_us)
    legs += tuple(Leg(cut.account_id, d_granted=-cut.amount_gpu_us) for cut in cuts)
    return post(tx, transfer_id, kind, amount_gpu_us, legs, actor=actor, reason=reason, evidence=evidence)


def _locked(tx: Tx, source: str, target: str) -> Sequence[Row[Any]]:
    """Both accounts and what limits the source, locked in the order of ids."""
    return tx.connection.execute(
        select(accounts)
        .where(or_(accounts.c.id.in_((source, target)), accounts.c.parent_id == source))
        .order_by(accounts.c.id)
        .with_for_update()
    ).all()


def _check_cuts(children: dict[str, Row[Any]], cuts: Sequence[ChildCut]) -> None:
    if len({cut.account_id for cut in cuts}) != len(cuts):
        raise BadRequest("an account stands among the children twice", field="children")
    for cut in cuts:
        child = children.get(cut.account_id)
        if child is None:
            raise NotFound(
                "there is no limit account {account} on this grant", field="children", account=cut.account_id
            )
        free = child.granted_gpu_us - child.used_gpu_us - child.held_gpu_us
        if cut.amount_gpu_us > free:
            raise InsufficientBalance(
                "at most {left_gpu_us} GPU-us can be taken from {account}, {needed_gpu_us} were asked for",
                field="children",
                account=cut.account_id,
                needed_gpu_us=cut.amount_gpu_us,
                left_gpu_us=free,
            )


def _check_possible(
    source: Row[Any], children: dict[str, Row[Any]], cuts: Sequence[ChildCut], amount_gpu_us: int
) -> None:
    """Free, and not promised to limit accounts. A treasury has no bottom: budgets are made from it."""
    if source.kind == "treasury":
        return
    taken = source.used_gpu_us + source.held_gpu_us
    promised: dict[str, int] = defaultdict(int)
    inside: dict[str, int] = defaultdict(int)
    for child in children.values():
        promised[child.kind] += child.granted_gpu_us
        inside[child.kind] += child.used_gpu_us + child.held_gpu_us
    for cut in cuts:
        promised[children[cut.account_id].kind] -= cut.amount_gpu_us
    for kind, amount in inside.items():  # what was taken before there were limits is gone for them
        promised[kind] += max(0, taken - amount)
    free = source.granted_gpu_us - taken
    possible = min([free, *(source.granted_gpu_us - amount for amount in promised.values())])
    if amount_gpu_us > possible:
        raise InsufficientBalance(
            "at most {left_gpu_us} GPU-us can be taken from {account}, {needed_gpu_us} were asked for",
            account=source.id,
            needed_gpu_us=amount_gpu_us,
            left_gpu_us=possible,
            free_gpu_us=free,
            promised_gpu_us=max(promised.values(), default=0),
        )


def _legs(source: str, target: str, amount_gpu_us: int) -> tuple[Leg, ...]:
    return (Leg(source, d_granted=-amount_gpu_us), Leg(target, d_granted=amount_gpu_us))
