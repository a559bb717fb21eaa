"""The statement of an account: every transfer with its arithmetic, and what they add up to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from quota.fleet.tables import rates
from quota.ledger.rules import won
from quota.ledger.tables import transfer_legs, transfers
from quota.schemas.ledger import SliceArithmetic, StatementLine, TransferType


def lines(connection: Connection, account_id: str) -> tuple[StatementLine, ...]:
    """Every transfer with a leg on this account, in the order of commits."""
    rows = connection.execute(
        select(
            transfers,
            transfer_legs.c.d_granted,
            transfer_legs.c.d_held,
            transfer_legs.c.d_used,
            rates.c.gpu_class,
            rates.c.rate_thousandths,
            rates.c.price_krw,
        )
        .join(transfer_legs, transfer_legs.c.transfer_id == transfers.c.id)
        .outerjoin(rates, rates.c.id == transfers.c.rate_id)
        .where(transfer_legs.c.account_id == account_id)
        .order_by(transfers.c.seq, transfers.c.position)
    )
    return tuple(_line(row) for row in rows)


def _line(row: Row[Any]) -> StatementLine:
    part, krw = None, 0
    if row.starts_at_ms is not None:
        milliseconds = row.ends_at_ms - row.starts_at_ms
        sign = 1 if row.d_used >= 0 else -1
        krw = sign * won(milliseconds, row.gpus, row.price_krw)
        part = SliceArithmetic(
            starts_at=row.starts_at_ms,
            ends_at=row.ends_at_ms,
            milliseconds=milliseconds,
            gpus=row.gpus,
            gpu_class=row.gpu_class,
            rate_id=row.rate_id,
            rate_thousandths=row.rate_thousandths,
            price_krw=row.price_krw,
        )
    return StatementLine(
        transfer_id=row.id,
        seq=row.seq,
        at=row.at_ms,
        type=TransferType(row.type),
        actor=row.actor,
        reason=row.reason,
        job_id=row.job_id,
        attempt=row.attempt,
        granted_gpu_us=row.d_granted,
        held_gpu_us=row.d_held,
        used_gpu_us=row.d_used,
        krw=krw,
        slice=part,
    )
