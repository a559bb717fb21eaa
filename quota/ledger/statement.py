"""What a statement is made of: an account's opening balance and every transfer on it, with its arithmetic.

A busy grant has a hundred thousand lines, so they are written as JSON straight from the rows; whoever wants their
values (CSV, print) reads that JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring

from sqlalchemy import BigInteger, Connection, bindparam, cast, func, select

from quota.fleet.tables import rates
from quota.ledger.rules import won
from quota.ledger.tables import transfer_legs, transfers
from quota.prepared import Prepared


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


_NO_REFUND = '"refund_of":null,"refund_kind":null'
_ROWS = Prepared(
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
    .where(
        transfer_legs.c.account_id == bindparam("account"),
        transfer_legs.c.seq > bindparam("after"),
        transfer_legs.c.seq <= bindparam("through"),
    )
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
    of a `schemas.statements.StatementLine` without spaces. `sums` is what the account opened with, and after the
    last line what it comes to.
    """
    at, text, charges, kinds = _Instants(), encode_basestring, _Charges(connection), _Kinds()
    granted, held, used, total_krw = sums.granted, sums.held, sums.used, sums.krw
    wanted = {"account": account_id, "after": after_seq, "through": through_seq}
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
    ) in _ROWS.cells(connection, wanted):
        granted += d_granted
        held += d_held
        used += d_used
        part, krw = "null", 0
        if starts_at_ms is not None:
            arithmetic, krw = charges[ends_at_ms - starts_at_ms, gpus, rate_id]
            if d_used < 0:
                krw = -krw
            total_krw += krw
            part = f'{{"starts_at":"{at[starts_at_ms]}","ends_at":"{at[ends_at_ms]}",{arithmetic}'
        refund = _NO_REFUND
        if refund_of is not None:
            refund = f'"refund_of":{text(refund_of)},"refund_kind":{text(refund_kind)}'
        yield (
            f'{{"transfer_id":{text(transfer_id)},"seq":{seq},"at":"{at[at_ms]}",{kinds[kind, actor, reason]}'
            f',"evidence":{"null" if evidence is None else text(evidence)}'
            f',"job_id":{"null" if job_id is None else text(job_id)}'
            f',"attempt":{"null" if attempt is None else attempt}'
            f',"granted_gpu_us":"{d_granted}","held_gpu_us":"{d_held}","used_gpu_us":"{d_used}"'
            f',"available_gpu_us":"{granted - held - used}","krw":{krw},"slice":{part}'
            f',"slice_id":{"null" if slice_id is None else text(slice_id)},{refund}}}'
        )
    sums.granted, sums.held, sums.used, sums.krw = granted, held, used, total_krw


class _Kinds(dict[tuple[str, str, str], str]):
    """The part of a line that says what was done by whom and why; a grant has few different ones."""

    def __missing__(self, key: tuple[str, str, str]) -> str:
        kind, actor, reason = key
        line = f'"type":"{kind}","actor":{encode_basestring(actor)},"reason":{encode_basestring(reason)}'
        self[key] = line
        return line


class _Charges(dict[tuple[int, int, str], tuple[str, int]]):
    """A slice's arithmetic after its times, and its won, by milliseconds, GPUs and rate: most are whole hours."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._rates = {row.id: row for row in connection.execute(select(rates))}

    def __missing__(self, key: tuple[int, int, str]) -> tuple[str, int]:
        milliseconds, gpus, rate_id = key
        rate = self._rates[rate_id]
        arithmetic = (
            f'"milliseconds":{milliseconds},"gpus":{gpus},"gpu_class":{encode_basestring(rate.gpu_class)}'
            f',"rate_id":{encode_basestring(rate_id)},"rate_thousandths":{rate.rate_thousandths}'
            f',"price_krw":{rate.price_krw}}}'
        )
        self[key] = charge = (arithmetic, won(milliseconds, gpus, rate.price_krw))
        return charge


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
