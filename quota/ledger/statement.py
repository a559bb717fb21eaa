"""What a statement is made of: an account's opening balance and every transfer on it, with its arithmetic.

A busy grant has a hundred thousand lines, so they are written as JSON straight from the rows; whoever wants their
values (CSV, print) reads that JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring

from sqlalchemy import BigInteger, Connection, cast, func, select

from quota.fleet.tables import rates
from quota.ledger.rules import won
from quota.ledger.tables import transfer_legs, transfers


@dataclass(slots=True)
class Sums:
    """What an account comes to in GPU-us, and the won of the lines that led there."""

    granted: int = 0
    held: int = 0
    used: int = 0
    krw: int = 0

    @property
    def available(self) -> int:
        return self.granted - self.held - self.used


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


def balance(connection: Connection, account_id: str, through_seq: int) -> Sums:
    """Granted, held and used of an account: the sum of its legs up to a feed sequence."""
    legs = transfer_legs.c
    sums = (
        cast(func.coalesce(func.sum(column), 0), BigInteger)
        for column in (legs.d_granted, legs.d_held, legs.d_used)
    )
    row = connection.execute(
        select(*sums).where(legs.account_id == account_id, legs.seq <= through_seq)
    ).one()
    return Sums(int(row[0]), int(row[1]), int(row[2]))


def json_lines(
    connection: Connection, account_id: str, after_seq: int, through_seq: int, sums: Sums
) -> Iterator[str]:
    """Every transfer on this account with after_seq < seq <= through_seq, in the order of commits, each as the JSON
    of a `schemas.statements.StatementLine` without spaces. `sums` goes on from what the account opened with.
    """
    prices = {row.id: row for row in connection.execute(select(rates))}
    at, text = _Instants(), encode_basestring
    statement = _ROWS.where(
        transfer_legs.c.account_id == account_id,
        transfer_legs.c.seq > after_seq,
        transfer_legs.c.seq <= through_seq,
    )
    for (
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
    ) in connection.execute(statement):
        sums.granted += d_granted
        sums.held += d_held
        sums.used += d_used
        part, krw = "null", 0
        if starts_at_ms is not None:
            rate = prices[rate_id]
            milliseconds = ends_at_ms - starts_at_ms
            krw = won(milliseconds, gpus, rate.price_krw)
            if d_used < 0:
                krw = -krw
            sums.krw += krw
            part = (
                f'{{"starts_at":"{at[starts_at_ms]}","ends_at":"{at[ends_at_ms]}","milliseconds":{milliseconds}'
                f',"gpus":{gpus},"gpu_class":{text(rate.gpu_class)},"rate_id":{text(rate_id)}'
                f',"rate_thousandths":{rate.rate_thousandths},"price_krw":{rate.price_krw}}}'
            )
        yield (
            f'{{"transfer_id":{text(transfer_id)},"seq":{seq},"at":"{at[at_ms]}","type":"{kind}"'
            f',"actor":{text(actor)},"reason":{text(reason)}'
            f',"evidence":{"null" if evidence is None else text(evidence)}'
            f',"job_id":{"null" if job_id is None else text(job_id)}'
            f',"attempt":{"null" if attempt is None else attempt}'
            f',"granted_gpu_us":"{d_granted}","held_gpu_us":"{d_held}","used_gpu_us":"{d_used}"'
            f',"available_gpu_us":"{sums.granted - sums.held - sums.used}","krw":{krw},"slice":{part}'
            f',"slice_id":{"null" if slice_id is None else text(slice_id)}'
            f',"refund_of":{"null" if refund_of is None else text(refund_of)}'
            f',"refund_kind":{"null" if refund_kind is None else text(refund_kind)}}}'
        )


def instant(moment_ms: int) -> str:
    """One time as RFC 3339."""
    return _Instants()[moment_ms]


class _Instants(dict[int, str]):
    """RFC 3339 texts by milliseconds; most times of a statement are hour marks and come again."""

    def __init__(self) -> None:
        super().__init__()
        self._minutes: dict[int, str] = {}

    def __missing__(self, moment_ms: int) -> str:
        minute, rest_ms = divmod(moment_ms, 60_000)
        begun = self._minutes.get(minute)
        if begun is None:
            begun = self._minutes[minute] = f"{datetime.fromtimestamp(minute * 60, UTC):%Y-%m-%dT%H:%M:}"
        text = self[moment_ms] = f"{begun}{rest_ms // 1000:02d}.{rest_ms % 1000:03d}Z"
        return text
