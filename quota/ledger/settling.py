"""Settling: a hold turns into charges slice by slice, and what was not charged is released once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, update

from quota.db import Tx
from quota.ledger.posting import PLATFORM, change, post, queue
from quota.ledger.rules import Hold, Leg, Slice
from quota.ledger.tables import holds, slices
from quota.prepared import Prepared
from quota.schemas.ledger import TransferType

_SETTLE = Prepared(
    update(holds)
    .where(holds.c.id == bindparam("hold"))
    .values(
        settled_gpu_us=holds.c.settled_gpu_us + bindparam("charged"),
        platform_gpu_us=holds.c.platform_gpu_us + bindparam("booked"),
    )
)
_RESOLVE = Prepared(
    update(holds)
    .where(holds.c.id == bindparam("hold"), holds.c.resolved.is_(False))
    .values(resolved=True, released_gpu_us=holds.c.released_gpu_us + bindparam("rest"))
)


def settle(tx: Tx, held: Hold, parts: Sequence[Slice], *, actor: str, evidence: str | None = None) -> int:
    """Charge slices to the hold's path, or book them on the platform. Answers what the path was charged.

    Each slice is its own transfer and row, unique by (job, attempt, start); `evidence` names the report that let
    them close.
    """
    charged = booked = 0
    for part in parts:
        amount, slice_id = part.amount_gpu_us(held), part.id_of(held)
        if part.payer == "grant":
            charged += amount
        else:
            booked += amount
        queue(
            tx,
            slice_id,
            TransferType.SETTLE,
            amount,
            _slice_legs(held, part, amount),
            actor=actor,
            reason="occupied time" if part.payer == "grant" else "occupied time that the grant does not pay",
            evidence=evidence,
            job_id=held.job_id,
            attempt=held.attempt,
            hold_id=held.id if part.payer == "grant" else None,
            slice_id=slice_id,
            starts_at_ms=part.starts_at_ms,
            ends_at_ms=part.ends_at_ms,
            gpus=held.gpus,
            rate_id=held.rate.id,
        )
        tx.defer(slices, _slice_row(slice_id, held, part, amount))
    assert held.settled_gpu_us + charged <= held.amount_gpu_us, "a charge never passes its hold"
    legs = [Leg(account_id, d_held=-charged, d_used=charged) for account_id in held.path if charged]
    if booked:
        legs.append(Leg(PLATFORM, d_used=booked))
    for leg in sorted(legs, key=lambda leg: leg.account_id):
        change(tx, leg)
    if legs:
        _SETTLE.change(tx.connection, {"hold": held.id, "charged": charged, "booked": booked})
    return charged


def release(
    tx: Tx, held: Hold, settled_gpu_us: int, *, actor: str, reason: str, evidence: str | None = None
) -> None:
    """Resolve a hold: give back what was not charged. Once and for all; repeating it does nothing."""
    if held.resolved:
        return
    rest = held.amount_gpu_us - settled_gpu_us
    assert rest >= 0, "a charge never passes its hold"
    if rest:
        post(
            tx,
            f"{held.job_id}:{held.attempt}:release",
            TransferType.RELEASE,
            rest,
            tuple(Leg(account_id, d_held=-rest) for account_id in held.path),
            actor=actor,
            reason=reason,
            evidence=evidence,
            job_id=held.job_id,
            attempt=held.attempt,
            hold_id=held.id,
        )
    _RESOLVE.change(tx.connection, {"hold": held.id, "rest": rest})


def _slice_legs(held: Hold, part: Slice, amount: int) -> tuple[Leg, ...]:
    if part.payer == "platform":
        return (Leg(PLATFORM, d_used=amount),)
    return tuple(Leg(account_id, d_held=-amount, d_used=amount) for account_id in held.path)


def _slice_row(slice_id: str, held: Hold, part: Slice, amount: int) -> dict[str, Any]:
    return {
        "id": slice_id,
        "job_id": held.job_id,
        "attempt": held.attempt,
        "starts_at_ms": part.starts_at_ms,
        "ends_at_ms": part.ends_at_ms,
        "payer": part.payer,
        "gpus": held.gpus,
        "gpu_class": held.rate.gpu_class,
        "rate_id": held.rate.id,
        "rate_thousandths": held.rate.rate_thousandths,
        "price_krw": held.rate.price_krw,
        "amount_gpu_us": amount,
    }
