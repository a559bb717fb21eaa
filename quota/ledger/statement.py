"""What a statement is made of: an account's opening balance and every transfer on it, with its arithmetic.

Lines are made as the plain values that JSON carries, because a busy grant has a hundred thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Connection, cast, func, select

from quota.fleet.tables import rates
from quota.ledger.rules import won
from quota.ledger.tables import transfer_legs, transfers

Line: TypeAlias = dict[str, Any]
"""A `schemas.statements.StatementLine` as JSON carries it."""

_ROWS = (
    select(
        transfers.c.id,
        transfers.c.seq,
        transfers.c.at_ms,
        transfers.c.type,
        transfers.c.actor,
        transfers.c.reason,
        transfers.c.evidence,
        transfers.c.job_id,
        transfers.c.attempt,
        transfers.c.slice_id,
        transfers.c.refund_of,
        transfers.c.refund_kind,
        transfers.c.starts_at_ms,
        transfers.c.ends_at_ms,
        transfers.c.gpus,
        transfers.c.rate_id,
        transfer_legs.c.d_granted,
        transfer_legs.c.d_held,
        transfer_legs.c.d_used,
    )
    .join(transfer_legs, transfer_legs.c.transfer_id == transfers.c.id)
    .order_by(transfers.c.seq, transfers.c.position)
)


def balance(connection: Connection, account_id: str, through_seq: int) -> tuple[int, int, int]:
    """(granted, held, used) of an account in GPU-us: the sum of its legs up to a feed sequence."""
    legs = transfer_legs.c
    sums = (
        cast(func.coalesce(func.sum(column), 0), BigInteger)
        for column in (legs.d_granted, legs.d_held, legs.d_used)
    )
    row = connection.execute(
        select(*sums).where(legs.account_id == account_id, legs.seq <= through_seq)
    ).one()
    return int(row[0]), int(row[1]), int(row[2])


def lines(
    connection: Connection, account_id: str, after_seq: int, through_seq: int, available_gpu_us: int
) -> Iterator[Line]:
    """Every transfer on this account with after_seq < seq <= through_seq, in the order of commits.

    `available_gpu_us` is what the account had left before them; each line tells what it left.
    """
    prices = {row.id: row for row in connection.execute(select(rates))}
    written = _Instants()
    statement = _ROWS.where(
        transfer_legs.c.account_id == account_id,
        transfer_legs.c.seq > after_seq,
        transfer_legs.c.seq <= through_seq,
    )
    for row in connection.execute(statement):
        (
            transfer_id,
            seq,
            at_ms,
            kind,
            actor,
            reason,
            evidence,
            job_id,
            attempt,
            slice_id,
            refund_of,
            refund_kind,
            starts_at_ms,
            ends_at_ms,
            gpus,
            rate_id,
            d_granted,
            d_held,
            d_used,
        ) = row
        available_gpu_us += d_granted - d_held - d_used
        part, krw = None, 0
        if starts_at_ms is not None:
            rate = prices[rate_id]
            milliseconds = ends_at_ms - starts_at_ms
            krw = won(milliseconds, gpus, rate.price_krw)
            if d_used < 0:
                krw = -krw
            part = {
                "starts_at": written(starts_at_ms),
                "ends_at": written(ends_at_ms),
                "milliseconds": milliseconds,
                "gpus": gpus,
                "gpu_class": rate.gpu_class,
                "rate_id": rate_id,
                "rate_thousandths": rate.rate_thousandths,
                "price_krw": rate.price_krw,
            }
        yield {
            "transfer_id": transfer_id,
            "seq": seq,
            "at": written(at_ms),
            "type": kind,
            "actor": actor,
            "reason": reason,
            "evidence": evidence,
            "job_id": job_id,
            "attempt": attempt,
            "granted_gpu_us": str(d_granted),
            "held_gpu_us": str(d_held),
            "used_gpu_us": str(d_used),
            "available_gpu_us": str(available_gpu_us),
            "krw": krw,
            "slice": part,
            "slice_id": slice_id,
            "refund_of": refund_of,
            "refund_kind": refund_kind,
        }


def instant(moment_ms: int) -> str:
    """One time as RFC 3339."""
    return _Instants()(moment_ms)


class _Instants(dict[int, str]):
    """RFC 3339 texts of milliseconds; formatting a minute once is most of the work of a long statement."""

    def __call__(self, moment_ms: int) -> str:
        minute, rest_ms = divmod(moment_ms, 60_000)
        seconds, milliseconds = divmod(rest_ms, 1000)
        return f"{self[minute]}{seconds:02d}.{milliseconds:03d}Z"

    def __missing__(self, minute: int) -> str:
        text = self[minute] = f"{datetime.fromtimestamp(minute * 60, UTC):%Y-%m-%dT%H:%M:}"
        return text
