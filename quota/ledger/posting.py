"""One transfer, one account: how anything enters the ledger. Called by the ledger's own files only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Row, bindparam, or_, select, update

from quota.db import Tx
from quota.errors import InsufficientBalance, TransferMismatch
from quota.ledger.rules import Leg
from quota.ledger.tables import accounts, transfer_legs, transfers
from quota.prepared import Prepared
from quota.schemas.ledger import TransferType

TREASURY = "treasury"
PLATFORM = "platform"

_ADD = {
    "granted_gpu_us": accounts.c.granted_gpu_us + bindparam("d_granted"),
    "held_gpu_us": accounts.c.held_gpu_us + bindparam("d_held"),
    "used_gpu_us": accounts.c.used_gpu_us + bindparam("d_used"),
}
_GIVE = update(accounts).where(accounts.c.id == bindparam("account")).values(_ADD)
_GRANTED = accounts.c.granted_gpu_us + bindparam("d_granted")
_THOUSANDTHS = accounts.c.overdraft_thousandths
# granted x thousandths / 1000 without the product of both, which 64 bits do not hold
_OVERDRAFT = _GRANTED // 1000 * _THOUSANDTHS + (_GRANTED - _GRANTED // 1000 * 1000) * _THOUSANDTHS // 1000
_ROOM = (
    accounts.c.granted_gpu_us
    + accounts.c.overdraft_gpu_us
    - accounts.c.held_gpu_us
    - accounts.c.used_gpu_us
    - bindparam("needed", type_=BigInteger)
)
_HAS_ROOM = or_(_ROOM >= 0, accounts.c.kind.in_((TREASURY, PLATFORM)))
_GRANT = _GIVE.values(overdraft_gpu_us=_OVERDRAFT)
_CHANGES = {
    # (takes room, changes what is granted)
    (False, False): Prepared(_GIVE),
    (True, False): Prepared(_GIVE.where(_HAS_ROOM)),
    (False, True): Prepared(_GRANT),
    (True, True): Prepared(_GRANT.where(_HAS_ROOM)),
}
_KNOWN = Prepared(select(transfers).where(transfers.c.id == bindparam("transfer")))
_KNOWN_LEGS = Prepared(select(transfer_legs).where(transfer_legs.c.transfer_id == bindparam("transfer")))
_ACCOUNT = Prepared(select(accounts).where(accounts.c.id == bindparam("account")))
_EMPTY = dict.fromkeys(
    ("job_id", "attempt", "hold_id", "slice_id", "refund_of", "refund_kind", "starts_at_ms", "ends_at_ms")
) | {"gpus": None, "rate_id": None}
"""A transfer of nobody's attempt."""


def post(
    tx: Tx,
    transfer_id: str,
    kind: TransferType,
    amount_gpu_us: int,
    legs: Sequence[Leg],
    *,
    actor: str,
    reason: str,
    evidence: str | None = None,
    **columns: Any,
) -> bool:
    """Do a transfer once: change its accounts in the order of their ids. False if it was done before.

    `evidence` names what it rests on, such as `report:<cluster>:<number>`; like actor and reason it belongs to
    the telling, not to the transfer: another one under a known id is no other transfer.

    Raises InsufficientBalance, and TransferMismatch for another content under a known id.
    """
    known = find(tx, transfer_id)
    if known is not None:
        _check_same(tx, known, kind, amount_gpu_us, legs, columns)
        return False
    for leg in sorted(legs, key=lambda leg: leg.account_id):
        change(tx, leg)
    queue(
        tx, transfer_id, kind, amount_gpu_us, legs, actor=actor, reason=reason, evidence=evidence, **columns
    )
    return True


def find(tx: Tx, transfer_id: str) -> Row[Any] | None:
    """A stored transfer, or None."""
    row: Row[Any] | None = _KNOWN.one_or_none(tx.connection, {"transfer": transfer_id})
    return row


def _check_same(
    tx: Tx,
    known: Row[Any],
    kind: TransferType,
    amount_gpu_us: int,
    legs: Sequence[Leg],
    columns: dict[str, Any],
) -> None:
    """Raise TransferMismatch unless the stored transfer is the one asked for: amount, accounts, time, rate."""
    stored = {
        Leg(row.account_id, row.d_granted, row.d_held, row.d_used)
        for row in _KNOWN_LEGS.all(tx.connection, {"transfer": known.id})
    }
    differs = [name for name, value in columns.items() if getattr(known, name) != value]
    if (known.type, known.amount_gpu_us, stored) == (kind.value, amount_gpu_us, set(legs)) and not differs:
        return
    raise TransferMismatch(
        "transfer {transfer} exists as {known_type} of {known_gpu_us} GPU-us on {known_accounts}; "
        "{asked_type} of {asked_gpu_us} on {asked_accounts} is another one",
        transfer=known.id,
        known_type=known.type,
        known_gpu_us=known.amount_gpu_us,
        known_accounts=", ".join(sorted(leg.account_id for leg in stored)),
        asked_type=kind.value,
        asked_gpu_us=amount_gpu_us,
        asked_accounts=", ".join(sorted(leg.account_id for leg in legs)),
    )


def queue(
    tx: Tx,
    transfer_id: str,
    kind: TransferType,
    amount_gpu_us: int,
    legs: Sequence[Leg],
    *,
    actor: str,
    reason: str,
    evidence: str | None = None,
    **columns: Any,
) -> None:
    """Write a transfer and its legs when the transaction is published; the caller has changed the accounts."""
    row = {
        **_EMPTY,
        "id": transfer_id,
        "type": kind.value,
        "at_ms": tx.now_ms,
        "actor": actor,
        "reason": reason,
        "evidence": evidence,
        "amount_gpu_us": amount_gpu_us,
        **columns,
    }
    tx.defer(transfers, row)
    for leg in legs:
        tx.defer(
            transfer_legs,
            {
                "transfer_id": transfer_id,
                "account_id": leg.account_id,
                "d_granted": leg.d_granted,
                "d_held": leg.d_held,
                "d_used": leg.d_used,
            },
        )


def change(tx: Tx, leg: Leg) -> None:
    """One conditional UPDATE; more held or used, or less granted, needs room on a limit account."""
    needed = leg.d_held + leg.d_used - leg.d_granted
    values: dict[str, Any] = {
        "account": leg.account_id,
        "d_granted": leg.d_granted,
        "d_held": leg.d_held,
        "d_used": leg.d_used,
    }
    takes = leg.d_held + leg.d_used > 0 or leg.d_granted < 0
    if takes:
        values["needed"] = needed
    if _CHANGES[takes, leg.d_granted != 0].change(tx.connection, values) != 1:
        row = _account(tx, leg.account_id)
        left = row.granted_gpu_us + row.overdraft_gpu_us - row.held_gpu_us - row.used_gpu_us
        raise InsufficientBalance(
            "{account} has {left_gpu_us} GPU-us left, {needed_gpu_us} are needed",
            account=leg.account_id,
            needed_gpu_us=needed,
            left_gpu_us=left,
        )


def _account(tx: Tx, account_id: str) -> Row[Any]:
    row: Row[Any] = _ACCOUNT.one(tx.connection, {"account": account_id})
    return row
