"""Transfers with their legs, filtered, in the order in which they were committed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, or_, select

from quota.door import page
from quota.errors import BadRequest, NotFound
from quota.fleet.tables import rates
from quota.ledger.tables import accounts, transfer_legs, transfers
from quota.schemas.identity import Caller, Role
from quota.schemas.ledger import RefundKind, SliceArithmetic, TransferType
from quota.schemas.transfers import Transfer, TransferLeg, TransferPage

_ROWS = select(transfers, rates.c.gpu_class, rates.c.rate_thousandths, rates.c.price_krw).outerjoin(
    rates, rates.c.id == transfers.c.rate_id
)
_TOKEN = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class TransferFilter:
    """Which transfers: everything that is given must hold. Times in business ms, half open."""

    account_id: str | None = None
    grant_id: str | None = None
    job_id: str | None = None
    type: TransferType | None = None
    from_ms: int | None = None
    until_ms: int | None = None


def list_transfers(
    connection: Connection, caller: Caller, wanted: TransferFilter, after: str | None, limit: int
) -> TransferPage:
    """Transfers oldest first; `after` is the place of the last one seen. Raises BadRequest, NotFound.

    A member sees what touched its organization's accounts, and of that only these accounts' legs.
    """
    place = _place(after)
    statement = _matching(_ROWS, wanted)
    if place is not None:
        statement = statement.where(
            or_(
                transfers.c.seq > place[0],
                and_(transfers.c.seq == place[0], transfers.c.position > place[1]),
            )
        )
    visible = _visible(caller)
    legs = _legs_of(connection, wanted, visible)
    if legs is not None:
        legs = legs if place is None else legs.where(transfer_legs.c.seq >= place[0])
        statement = statement.where(transfers.c.id.in_(legs))
    ordered = statement.order_by(transfers.c.seq, transfers.c.position).limit(limit + 1)
    rows, following = page(connection.execute(ordered).all(), limit, lambda row: f"{row.seq}.{row.position}")
    shown = _legs(connection, rows, visible)
    items = tuple(_transfer(row, shown[row.id], whole=visible is None) for row in rows)
    return TransferPage(items=items, next=following)


def _place(after: str | None) -> tuple[int, int] | None:
    if after is None:
        return None
    match = _TOKEN.fullmatch(after)
    if match is None:
        raise BadRequest("this page token was not made by this service", field="after")
    return int(match[1]), int(match[2])


def _matching(statement: Select[Any], wanted: TransferFilter) -> Select[Any]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.job_id is not None:
        conditions.append(transfers.c.job_id == wanted.job_id)
    if wanted.type is not None:
        conditions.append(transfers.c.type == wanted.type.value)
    if wanted.from_ms is not None:
        conditions.append(transfers.c.at_ms >= wanted.from_ms)
    if wanted.until_ms is not None:
        conditions.append(transfers.c.at_ms < wanted.until_ms)
    return statement.where(*conditions)


def _visible(caller: Caller) -> Select[Any] | None:
    """The accounts that the caller may see; None for all: a member's shares, its grants and what limits them."""
    if caller.role is not Role.MEMBER:
        return None
    own = (
        select(accounts.c.grant_id)
        .where(accounts.c.kind == "grant", accounts.c.organization_id == caller.organization_id)
        .scalar_subquery()
    )
    share = and_(accounts.c.kind == "share", accounts.c.organization_id == caller.organization_id)
    return select(accounts.c.id).where(or_(accounts.c.grant_id.in_(own), share))


def _legs_of(
    connection: Connection, wanted: TransferFilter, visible: Select[Any] | None
) -> Select[Any] | None:
    """The transfers that have a leg on what was asked for; None if nothing limits them. Raises NotFound."""
    if wanted.account_id is None and wanted.grant_id is None:
        if visible is None:
            return None
        chosen = visible
    else:
        chosen = select(accounts.c.id) if visible is None else visible
        if wanted.account_id is not None:
            chosen = chosen.where(accounts.c.id == wanted.account_id)
        if wanted.grant_id is not None:
            chosen = chosen.where(accounts.c.grant_id == wanted.grant_id)
        if connection.execute(chosen.limit(1)).first() is None:
            raise NotFound("there is no such account or grant")
    return select(transfer_legs.c.transfer_id).where(transfer_legs.c.account_id.in_(chosen))


def _legs(
    connection: Connection, rows: Sequence[Row[Any]], visible: Select[Any] | None
) -> dict[str, list[TransferLeg]]:
    found: dict[str, list[TransferLeg]] = defaultdict(list)
    statement = select(transfer_legs).order_by(transfer_legs.c.transfer_id, transfer_legs.c.account_id)
    if visible is not None:
        statement = statement.where(transfer_legs.c.account_id.in_(visible))
    ids = [row.id for row in rows]
    for start in range(0, len(ids), 500):
        part = statement.where(transfer_legs.c.transfer_id.in_(ids[start : start + 500]))
        for leg in connection.execute(part):
            found[leg.transfer_id].append(
                TransferLeg(
                    account_id=leg.account_id,
                    granted_gpu_us=leg.d_granted,
                    held_gpu_us=leg.d_held,
                    used_gpu_us=leg.d_used,
                )
            )
    return found


def _transfer(row: Row[Any], legs: Sequence[TransferLeg], *, whole: bool) -> Transfer:
    amount = row.amount_gpu_us if whole else _told_gpu_us(row.amount_gpu_us, legs)
    return Transfer(
        id=row.id,
        seq=row.seq,
        position=row.position,
        at=row.at_ms,
        type=TransferType(row.type),
        actor=row.actor,
        reason=row.reason,
        evidence=row.evidence,
        amount_gpu_us=amount,
        amount_gpu_hours=amount,
        job_id=row.job_id,
        attempt=row.attempt,
        hold_id=row.hold_id,
        slice_id=row.slice_id,
        refund_of=row.refund_of,
        refund_kind=None if row.refund_kind is None else RefundKind(row.refund_kind),
        slice=None if row.starts_at_ms is None else _arithmetic(row),
        legs=tuple(legs),
    )


def _told_gpu_us(amount_gpu_us: int, legs: Sequence[TransferLeg]) -> int:
    """A party of a consortium learns what moved on its share, not what the grant lost or expired as a whole."""
    if any(not leg.account_id.startswith("share:") for leg in legs):
        return amount_gpu_us
    changes = (amount for leg in legs for amount in (leg.granted_gpu_us, leg.held_gpu_us, leg.used_gpu_us))
    return max(map(abs, changes), default=0)


def _arithmetic(row: Row[Any]) -> SliceArithmetic:
    return SliceArithmetic(
        starts_at=row.starts_at_ms,
        ends_at=row.ends_at_ms,
        milliseconds=row.ends_at_ms - row.starts_at_ms,
        gpus=row.gpus,
        gpu_class=row.gpu_class,
        rate_id=row.rate_id,
        rate_thousandths=row.rate_thousandths,
        price_krw=row.price_krw,
    )
