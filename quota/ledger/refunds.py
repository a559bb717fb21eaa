"""Refunds: what a slice cost comes back, in part or whole, to who paid it, once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from sqlalchemy import bindparam, select, update

from quota.db import Tx
from quota.ledger.posting import PLATFORM, post
from quota.ledger.rules import Hold, Leg, Slice, amount_gpu_us
from quota.ledger.tables import holds, transfer_legs, transfers
from quota.prepared import Prepared
from quota.schemas.ledger import RefundKind, TransferType

_REFUND = Prepared(
    update(holds)
    .where(holds.c.id == bindparam("hold"))
    .values(
        refunded_gpu_us=holds.c.refunded_gpu_us + bindparam("to_grant"),
        platform_gpu_us=holds.c.platform_gpu_us + bindparam("to_platform"),
    )
)
_FROM_PLATFORM = (
    select(transfer_legs.c.transfer_id)
    .where(
        transfer_legs.c.transfer_id == transfers.c.id,
        transfer_legs.c.account_id == PLATFORM,
        transfer_legs.c.d_used < 0,
    )
    .correlate(transfers)
    .exists()
)
_REFUNDS = Prepared(
    select(
        transfers.c.id,
        transfers.c.refund_of,
        transfers.c.refund_kind,
        transfers.c.starts_at_ms,
        transfers.c.ends_at_ms,
        _FROM_PLATFORM.label("from_platform"),
    )
    .where(
        transfers.c.job_id == bindparam("job"),
        transfers.c.attempt == bindparam("number"),
        transfers.c.refund_of.is_not(None),
    )
    .order_by(transfers.c.seq, transfers.c.position)
)


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A stretch of one slice that was refunded, and who got it back."""

    transfer_id: str
    slice_id: str
    starts_at_ms: int
    ends_at_ms: int
    kind: RefundKind
    payer: str


def given_back(tx: Tx, held: Hold, part: Slice) -> tuple[GivenBack, ...]:
    """Every refund of a slice in order, those of this transaction included."""
    return tuple(entry for entry in _of_attempt(tx, held) if entry.slice_id == part.id_of(held))


def refundable(
    tx: Tx, held: Hold, part: Slice, starts_at_ms: int, ends_at_ms: int, kind: RefundKind
) -> list[tuple[int, int]]:
    """The stretches of a slice in [starts, ends) that `kind` can still give back, cut where their payer changes.

    A correction takes back whatever somebody still pays, the other kinds only what the grant still pays.
    """
    begin, end = max(part.starts_at_ms, starts_at_ms), min(part.ends_at_ms, ends_at_ms)
    if begin >= end:
        return []
    known = list(given_back(tx, held, part))
    bounds = {bound for entry in known for bound in (entry.starts_at_ms, entry.ends_at_ms)}
    cuts = sorted({begin, end} | {bound for bound in bounds if begin < bound < end})
    payers = {"grant", "platform"} if kind is RefundKind.CORRECTION else {"grant"}
    return [
        (left, right)
        for left, right in itertools.pairwise(cuts)
        if _payer_of_piece(part, known, left, right) in payers
    ]


def refund(
    tx: Tx,
    held: Hold,
    part: Slice,
    starts_at_ms: int,
    ends_at_ms: int,
    kind: RefundKind,
    *,
    actor: str,
    reason: str,
    evidence: str | None = None,
) -> int:
    """Give back the part [starts, ends) of one slice. Answers the amount that its payer got.

    A `correction` says that the time was never occupied; `fault` and `preempted` book it on the platform. Time
    that the platform pays, from the start or since such a refund, can only be corrected.
    """
    assert part.starts_at_ms <= starts_at_ms < ends_at_ms <= part.ends_at_ms
    slice_id = part.id_of(held)
    known = list(given_back(tx, held, part))
    for place, entry in enumerate(known):
        if (entry.kind, entry.starts_at_ms) == (kind, starts_at_ms):
            known = known[:place]  # asked again: judged, and named, as it was the first time
            break
    payer = _payer_now(part, known, starts_at_ms, ends_at_ms)
    amount = amount_gpu_us(ends_at_ms - starts_at_ms, held.gpus, held.rate.rate_thousandths)
    if payer == "grant":
        legs = [Leg(account_id, d_used=-amount) for account_id in held.path]
        if kind is not RefundKind.CORRECTION:
            legs.append(Leg(PLATFORM, d_used=amount))
    else:
        assert kind is RefundKind.CORRECTION, "the platform cannot owe itself"
        legs = [Leg(PLATFORM, d_used=-amount)]
    first = not any(entry.kind is kind for entry in known)
    transfer_id = f"{slice_id}:{kind.value}" if first else f"{slice_id}:{kind.value}:{starts_at_ms}"
    done = post(
        tx,
        transfer_id,
        TransferType.REFUND,
        amount,
        tuple(legs),
        actor=actor,
        reason=reason,
        evidence=evidence,
        job_id=held.job_id,
        attempt=held.attempt,
        slice_id=slice_id,
        refund_of=slice_id,
        refund_kind=kind.value,
        starts_at_ms=starts_at_ms,
        ends_at_ms=ends_at_ms,
        gpus=held.gpus,
        rate_id=held.rate.id,
    )
    if not done:
        return 0
    entry = GivenBack(transfer_id, slice_id, starts_at_ms, ends_at_ms, kind, payer)
    tx.memo[("given back", held.id)] = (*_of_attempt(tx, held), entry)
    to_platform = -amount if payer == "platform" else (amount if kind is not RefundKind.CORRECTION else 0)
    to_grant = amount if payer == "grant" else 0
    _REFUND.change(tx.connection, {"hold": held.id, "to_grant": to_grant, "to_platform": to_platform})
    return to_grant


def _payer_of_piece(part: Slice, known: list[GivenBack], starts_at_ms: int, ends_at_ms: int) -> str | None:
    """Who pays a stretch that no earlier refund cuts; None once it was corrected: it never was."""
    kinds = {
        entry.kind for entry in known if entry.starts_at_ms <= starts_at_ms and ends_at_ms <= entry.ends_at_ms
    }
    if RefundKind.CORRECTION in kinds:
        return None
    return "platform" if kinds else part.payer


def _payer_now(part: Slice, known: list[GivenBack], starts_at_ms: int, ends_at_ms: int) -> str:
    """Who pays a stretch of a slice after its earlier refunds."""
    payer = part.payer
    for entry in known:
        within = entry.starts_at_ms <= starts_at_ms and ends_at_ms <= entry.ends_at_ms
        if within and entry.kind is not RefundKind.CORRECTION:
            payer = "platform"
    for entry in known:
        apart = ends_at_ms <= entry.starts_at_ms or entry.ends_at_ms <= starts_at_ms
        assert apart or entry.payer != payer, "nothing is given back twice"
    return payer


def _of_attempt(tx: Tx, held: Hold) -> tuple[GivenBack, ...]:
    return tx.once(("given back", held.id), lambda: _stored_refunds(tx, held))


def _stored_refunds(tx: Tx, held: Hold) -> tuple[GivenBack, ...]:
    rows = _REFUNDS.all(tx.connection, {"job": held.job_id, "number": held.attempt})
    found: list[GivenBack] = []
    for row in rows:
        kind = RefundKind(row.refund_kind)
        payer = "platform" if row.from_platform else "grant"
        found.append(GivenBack(row.id, row.refund_of, row.starts_at_ms, row.ends_at_ms, kind, payer))
    return tuple(found)
