"""Seals: every audit row and every transfer in a chain of hashes, so that nobody can change one without a trace.

A sealed row is one line of JSON (`docs/audit.md` defines its bytes). A seal's hash covers the lines since the
seal before it and that seal's own hash. Rows are sealed in feed order: a transaction takes its sequence last and
holds the feed's head until it commits, so a row that commits later always has a greater sequence, and nothing can
slip in below a seal.

The lines name their columns here, apart from the rooms' tables: a column added there later changes no hash.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import count
from typing import Any

from sqlalchemy import Connection, Row, TableClause, and_, column, insert, or_, select, table

from quota.audit.tables import audit
from quota.audit.tables import seals as seal_rows
from quota.db import Database, Tx, head
from quota.schemas.audit import Seal, SealPage

GENESIS = "0" * 64
"""What the first seal names as the hash before it."""

ROWS_PER_SEAL = 100_000
"""A seal ends with the first whole transaction past this many rows, so that a first seal over a long history is
made in steps, each kept when it is done."""

PAGE = 1000
"""Rows read at once."""

_TRANSFER = (
    "id",
    "seq",
    "position",
    "type",
    "at_ms",
    "actor",
    "reason",
    "evidence",
    "amount_gpu_us",
    "job_id",
    "attempt",
    "hold_id",
    "slice_id",
    "refund_of",
    "refund_kind",
    "starts_at_ms",
    "ends_at_ms",
    "gpus",
    "rate_id",
)
_AUDIT = (
    "id",
    "seq",
    "at_ms",
    "actor",
    "action",
    "subject",
    "reason",
    "detail",
    "before",
    "after",
    "address",
)
_RATE = ("id", "gpu_class", "rate_thousandths", "price_krw")


def _named(name: str, *columns: str) -> TableClause:
    return table(name, *(column(each) for each in columns))


_transfers = _named("transfers", *_TRANSFER)
_legs = _named("transfer_legs", "transfer_id", "account_id", "d_granted", "d_held", "d_used")
_rates = _named("rates", *_RATE)

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Line:
    """A sealed row: where it stands in the feed, what it is, and its bytes with the line feed at their end."""

    seq: int
    kind: str
    content: bytes


# --- making them ----------------------------------------------------------------------------------


def seal_due(database: Database) -> int:
    """Seal what was committed since the last seal; answers how many seals that took, 0 if nothing was new.

    Any number of replicas may do this at once, and any may die: a seal is one row, made whole or not at all.
    """
    for made in count():
        if seal(database) is None:
            return made
    raise AssertionError("unreachable")


def seal(database: Database) -> Seal | None:
    """Make the next seal. None if nothing is new, or if another replica was faster.

    The hashing reads a snapshot and blocks nobody; only the seal's own row is written under a lock.
    """
    with database.read() as connection:
        # the clock before the head: a row under the seal may be later than the seal's time, never the reverse
        now_ms = database.clock.now_ms()
        last = last_seal(connection)
        made = _next_seal(connection, last, now_ms)
    if made is None:
        return None
    return database.write(lambda tx: _keep(tx, made))


def _next_seal(connection: Connection, last: Seal | None, now_ms: int) -> Seal | None:
    after_seq = 0 if last is None else last.through_seq
    digest, counts, through_seq = hashlib.sha256(), {"audit": 0, "transfer": 0}, after_seq
    for line in lines(connection, after_seq, head(connection)):
        if sum(counts.values()) >= ROWS_PER_SEAL and line.seq > through_seq:
            break
        digest.update(line.content)
        counts[line.kind] += 1
        through_seq = line.seq
    if through_seq == after_seq:
        return None
    stamp: dict[str, Any] = {
        "number": 1 if last is None else last.number + 1,
        # the hub's clock may be set back between two seals; their times still stand in order
        "at_ms": now_ms if last is None else max(now_ms, last.at),
        "through_seq": through_seq,
        "audit_rows": counts["audit"],
        "transfers": counts["transfer"],
        "previous_sha256": GENESIS if last is None else last.sha256,
    }
    digest.update(json_line({"kind": "seal"} | stamp))
    return _seal(**stamp, sha256=digest.hexdigest())


def _keep(tx: Tx, made: Seal) -> Seal | None:
    """Write a seal unless somebody else has written its number; two at once meet at the primary key."""
    last = last_seal(tx.connection)
    if (1 if last is None else last.number + 1) != made.number:
        return None
    assert (GENESIS if last is None else last.sha256) == made.previous_sha256, "the chain's end was changed"
    tx.connection.execute(
        insert(seal_rows),
        {
            "number": made.number,
            "at_ms": made.at,
            "through_seq": made.through_seq,
            "audit_rows": made.audit_rows,
            "transfers": made.transfers,
            "previous_sha256": made.previous_sha256,
            "sha256": made.sha256,
        },
    )
    return made


# --- reading them ---------------------------------------------------------------------------------


def last_seal(connection: Connection) -> Seal | None:
    """The newest seal, the head of the chain; None before the first."""
    newest = select(seal_rows).order_by(seal_rows.c.number.desc()).limit(1)
    return _found(connection.execute(newest).one_or_none())


def last_seal_at_or_before(connection: Connection, at_ms: int) -> Seal | None:
    """The newest seal that was made at this business time or before it."""
    wanted = select(seal_rows).where(seal_rows.c.at_ms <= at_ms).order_by(seal_rows.c.number.desc()).limit(1)
    return _found(connection.execute(wanted).one_or_none())


def read_seal(connection: Connection, number: int) -> Seal | None:
    """The seal of this number."""
    return _found(connection.execute(select(seal_rows).where(seal_rows.c.number == number)).one_or_none())


def list_seals(connection: Connection, after: int, limit: int) -> SealPage:
    """Seals with a number greater than `after`, oldest first."""
    wanted = select(seal_rows).where(seal_rows.c.number > after).order_by(seal_rows.c.number).limit(limit + 1)
    rows = connection.execute(wanted).all()
    items = tuple(_of_row(row) for row in rows[:limit])
    return SealPage(items=items, next=items[-1].number if len(rows) > limit else None)


def _found(row: Row[Any] | None) -> Seal | None:
    return None if row is None else _of_row(row)


def _of_row(row: Row[Any]) -> Seal:
    return _seal(**row._mapping)


def _seal(*, at_ms: int, **columns: Any) -> Seal:
    return Seal(at=at_ms, **columns)


# --- what they cover ------------------------------------------------------------------------------


def lines(connection: Connection, after_seq: int, through_seq: int) -> Iterator[Line]:
    """Every sealed row with after_seq < seq <= through_seq: by seq, then audit rows by id, transfers by position.

    Reads a page at a time. The connection must see one moment.
    """
    return merge(
        _audit_lines(connection, after_seq, through_seq),
        _transfer_lines(connection, after_seq, through_seq),
        key=lambda line: (line.seq, line.kind),
    )


def json_line(fields: dict[str, Any]) -> bytes:
    """An object as its one canonical line: keys in order, no spaces, UTF-8, a line feed."""
    return (_JSON.encode(fields) + "\n").encode()


def _audit_lines(connection: Connection, after_seq: int, through_seq: int) -> Iterator[Line]:
    columns = [audit.c[name] for name in _AUDIT]
    for row in _paged(connection, columns, audit.c.seq, audit.c.id, after_seq, through_seq):
        yield Line(row.seq, "audit", json_line({"kind": "audit"} | dict(zip(_AUDIT, row, strict=True))))


def _transfer_lines(connection: Connection, after_seq: int, through_seq: int) -> Iterator[Line]:
    rates = {row.id: dict(zip(_RATE, row, strict=True)) for row in connection.execute(select(_rates))}
    columns = [_transfers.c[name] for name in _TRANSFER]
    rows = _paged(connection, columns, _transfers.c.seq, _transfers.c.position, after_seq, through_seq)
    for page in _batches(rows):
        legs = _read_legs(connection, [row.id for row in page])
        for row in page:
            fields = dict(zip(_TRANSFER, row, strict=True))
            fields["amount_gpu_us"] = str(row.amount_gpu_us)
            fields["rate"] = rates.get(fields.pop("rate_id"))
            yield Line(row.seq, "transfer", json_line({"kind": "transfer", "legs": legs[row.id]} | fields))


def _read_legs(connection: Connection, transfer_ids: list[str]) -> dict[str, list[dict[str, str]]]:
    """Legs by transfer, in the order of their accounts' ids: of code points, whatever the database's collation."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for transfer_id, account_id, d_granted, d_held, d_used in connection.execute(
        select(_legs).where(_legs.c.transfer_id.in_(transfer_ids))
    ):
        leg = {"account_id": account_id, "d_granted": str(d_granted), "d_held": str(d_held)}
        found[transfer_id].append(leg | {"d_used": str(d_used)})
    for legs in found.values():
        legs.sort(key=lambda leg: leg["account_id"])
    return found


def _paged(
    connection: Connection, columns: list[Any], seq: Any, place: Any, after_seq: int, through_seq: int
) -> Iterator[Row[Any]]:
    """Rows in the order (seq, place), a page at a time by the index on seq."""
    at_seq, at_place = after_seq, None
    while True:
        further = (
            seq > at_seq if at_place is None else or_(seq > at_seq, and_(seq == at_seq, place > at_place))
        )
        wanted = select(*columns).where(seq >= at_seq, seq <= through_seq, further)
        rows = connection.execute(wanted.order_by(seq, place).limit(PAGE)).all()
        yield from rows
        if len(rows) < PAGE:
            return
        at_seq, at_place = rows[-1]._mapping[seq.name], rows[-1]._mapping[place.name]


def _batches(rows: Iterator[Row[Any]]) -> Iterator[list[Row[Any]]]:
    page: list[Row[Any]] = []
    for row in rows:
        page.append(row)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page
