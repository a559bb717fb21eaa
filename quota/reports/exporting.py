"""The whole ledger up to a seal as one file of JSON lines, for auditors who check it without us (docs/audit.md).

Sealed rows are exported as the very lines that the seals hash. What the database keeps as running sums (balances,
holds) is exported as it stood at the seal: the stored sum less what came later, so that an auditor can hold the sum
against the rows. Everything is read from one snapshot, a page at a time.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Table, case, cast, func, select

from quota.audit import reading, seals
from quota.audit.seals import Line, json_line
from quota.audit.tables import seals as seal_rows
from quota.db import Database
from quota.errors import NotFound
from quota.fleet.tables import rates
from quota.ledger.posting import PLATFORM
from quota.ledger.tables import accounts, hold_accounts, holds, slices, transfer_legs, transfers
from quota.programs.tables import grants, programs
from quota.schemas.audit import Seal
from quota.schemas.identity import Caller

FORMAT = "gpuhub-ledger/1"
"""Named in every file's first line; another layout gets another number."""

CHUNK_BYTES = 256 * 1024
PAGE = 500

_FIELDS: dict[Table, tuple[str, ...]] = {
    rates: ("id", "gpu_class", "rate_thousandths", "price_krw", "valid_from_ms"),
    programs: ("id", "name", "account_id", "policy_id", "created_at_ms"),
    grants: (
        "id",
        "program_id",
        "organization_id",
        "account_id",
        "starts_at_ms",
        "ends_at_ms",
        "created_at_ms",
        "expired_at_ms",
        "max_gpus",
        "policy",
    ),
    accounts: (
        "id",
        "kind",
        "parent_id",
        "program_id",
        "organization_id",
        "grant_id",
        "released",
        "label",
        "position",
        "overdraft_thousandths",
    ),
    holds: (
        "id",
        "job_id",
        "attempt",
        "grant_id",
        "gpu_class",
        "gpus",
        "rate_id",
        "rate_thousandths",
        "price_krw",
    ),
    slices: (
        "id",
        "seq",
        "job_id",
        "attempt",
        "starts_at_ms",
        "ends_at_ms",
        "payer",
        "gpus",
        "gpu_class",
        "rate_id",
        "rate_thousandths",
        "price_krw",
    ),
}


def begin_export(database: Database, caller: Caller, through_seal: int | None, reason: str) -> Seal:
    """The seal that the file will end with (the newest unless one is named), once the read is in the trail.

    Raises NotFound for a seal that there is not.
    """
    with database.read() as connection:
        last = seals.last_seal(connection)
        found = last if through_seal is None else seals.read_seal(connection, through_seal)
        if found is None and through_seal is None:
            raise NotFound("there is no audit seal yet; the first comes within a minute")
        if found is None:
            raise NotFound("there is no audit seal {seal}", field="through_seal", seal=str(through_seal))
        rows = select(func.coalesce(func.sum(seal_rows.c.audit_rows), 0)).where(
            seal_rows.c.number <= found.number
        )
        count = int(connection.execute(rows).scalar_one())
    query = {"through_seal": found.number, "sha256": found.sha256}
    reading.record_read(database, caller, "export.ledger", query, count, reason)
    return found


def write_ledger(database: Database, seal: Seal, *, packed: bool) -> Iterator[bytes]:
    """The file in chunks, gzipped if `packed`. One that was cut short lacks its last line, the footer."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31) if packed else None
    parts: list[bytes] = []
    size = 0
    for line in _with_footer(database, seal):
        parts.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield _packed(packer, parts)
            parts, size = [], 0
    yield _packed(packer, parts) + (packer.flush() if packer else b"")


def _packed(packer: Any, parts: list[bytes]) -> bytes:
    chunk = b"".join(parts)
    return packer.compress(chunk) if packer else chunk


def _with_footer(database: Database, seal: Seal) -> Iterator[bytes]:
    digest, counts = hashlib.sha256(), Counter[str]()
    with database.read() as connection:
        for kind, content in _all_lines(connection, seal, database.clock.now_ms()):
            digest.update(content)
            counts[kind] += 1
            yield content
    yield json_line({"kind": "footer", "counts": dict(counts), "sha256": digest.hexdigest()})


def _all_lines(connection: Connection, seal: Seal, now_ms: int) -> Iterator[tuple[str, bytes]]:
    header = {"format": FORMAT, "at_ms": now_ms, "seal": seal.number, "sha256": seal.sha256}
    yield _line("header", header | {"through_seq": seal.through_seq})
    for name, table in (("rate", rates), ("program", programs), ("grant", grants)):
        for row in _by_id(connection, table):
            yield _line(name, _fields(table, row))
    later = _later_legs(connection, seal.through_seq)
    for row in _by_id(connection, accounts):
        fields = {
            "account_kind" if name == "kind" else name: value
            for name, value in _fields(accounts, row).items()
        }
        yield _line("account", fields | _balance_then(row, later[row.id]))
    yield from _holds(connection, seal.through_seq)
    ahead = _seals_through(connection, seal)
    due: Seal | None = next(ahead)
    for row_line in _rows_in_feed_order(connection, seal.through_seq):
        while due is not None and row_line.seq > due.through_seq:
            yield _line("seal", _seal_fields(due))
            due = next(ahead, None)
        yield row_line.kind, row_line.content
    while due is not None:
        yield _line("seal", _seal_fields(due))
        due = next(ahead, None)


_PLACES = {"audit": 0, "transfer": 1, "slice": 2}
"""Within one transaction."""


def _line(kind: str, fields: dict[str, Any]) -> tuple[str, bytes]:
    return kind, json_line({"kind": kind} | fields)


def _fields(table: Table, row: Row[Any]) -> dict[str, Any]:
    return {name: row._mapping[name] for name in _FIELDS[table]}


def _by_id(connection: Connection, table: Table) -> Iterator[Row[Any]]:
    """A whole table, a page at a time by its primary key."""
    at: str | None = None
    while True:
        wanted = select(table).order_by(table.c.id).limit(PAGE)
        rows = connection.execute(wanted if at is None else wanted.where(table.c.id > at)).all()
        yield from rows
        if len(rows) < PAGE:
            return
        at = rows[-1].id


# --- running sums as they stood --------------------------------------------------------------------


def _later_legs(connection: Connection, through_seq: int) -> defaultdict[str, tuple[int, int, int]]:
    """By account: the sums (granted, held, used) of legs after the seal."""
    legs = transfer_legs.c
    sums = [cast(func.sum(amount), BigInteger) for amount in (legs.d_granted, legs.d_held, legs.d_used)]
    rows = connection.execute(
        select(legs.account_id, *sums)
        .join(transfers, transfers.c.id == legs.transfer_id)
        .where(transfers.c.seq > through_seq)
        .group_by(legs.account_id)
    )
    found: defaultdict[str, tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    found.update({row[0]: (row[1], row[2], row[3]) for row in rows})
    return found


def _balance_then(row: Row[Any], later: tuple[int, int, int]) -> dict[str, str]:
    stored = (row.granted_gpu_us, row.held_gpu_us, row.used_gpu_us)
    names = ("granted_gpu_us", "held_gpu_us", "used_gpu_us")
    return {name: str(sum_ - after) for name, sum_, after in zip(names, stored, later, strict=True)}


_SUMS = ("amount", "settled", "released", "refunded", "platform", "extensions")


def _holds(connection: Connection, through_seq: int) -> Iterator[tuple[str, bytes]]:
    """Every hold placed up to the seal, with its path and its sums at the seal."""
    for page in _batches(_by_id(connection, holds)):
        ids = [row.id for row in page]
        placed = select(transfers.c.id, transfers.c.seq).where(transfers.c.id.in_(ids))
        seqs = {row.id: row.seq for row in connection.execute(placed)}
        paths: dict[str, list[str]] = defaultdict(list)
        for part in connection.execute(select(hold_accounts).where(hold_accounts.c.hold_id.in_(ids))):
            paths[part.hold_id].append(part.account_id)
        later = _later_of_holds(connection, page, through_seq)
        for row in page:
            if seqs.get(row.id, 0) > through_seq:
                continue
            sums = {
                name: str(row._mapping[f"{name}_gpu_us"] - later[row.job_id, row.attempt][name])
                for name in _SUMS[:-1]
            }
            amounts: dict[str, Any] = {f"{name}_gpu_us": text for name, text in sums.items()}
            amounts["extensions"] = row.extensions - later[row.job_id, row.attempt]["extensions"]
            yield _line("hold", _fields(holds, row) | amounts | {"path": sorted(paths[row.id])})


def _later_of_holds(
    connection: Connection, page: list[Row[Any]], through_seq: int
) -> defaultdict[tuple[str, int], Counter[str]]:
    """By (job, attempt): what transfers after the seal added to the hold's sums."""
    platform = func.coalesce(func.sum(transfer_legs.c.d_used), 0)
    on_platform = (
        select(cast(platform, BigInteger))
        .where(transfer_legs.c.transfer_id == transfers.c.id, transfer_legs.c.account_id == PLATFORM)
        .scalar_subquery()
    )
    known = transfers.c
    rows = connection.execute(
        select(known.job_id, known.attempt, known.type, known.amount_gpu_us, on_platform.label("platform"))
        .add_columns(case((known.hold_id.is_(None), 0), else_=1).label("charged"))
        .where(known.job_id.in_(sorted({row.job_id for row in page})), known.seq > through_seq)
    )
    found: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for row in rows:
        sums = found[row.job_id, row.attempt]
        sums["platform"] += row.platform
        match row.type:
            case "extend":
                sums["amount"] += row.amount_gpu_us
                sums["extensions"] += 1
            case "settle" if row.charged:
                sums["settled"] += row.amount_gpu_us
            case "release":
                sums["released"] += row.amount_gpu_us
            case "refund" if row.platform >= 0:
                sums["refunded"] += row.amount_gpu_us
            case _:
                pass
    return found


# --- rows in feed order ---------------------------------------------------------------------------


def _rows_in_feed_order(connection: Connection, through_seq: int) -> Iterator[Line]:
    """Audit rows, transfers and slices by seq; the slices of a transaction after its transfers."""
    return merge(
        seals.lines(connection, 0, through_seq),
        _slice_lines(connection, through_seq),
        key=lambda line: (line.seq, _PLACES[line.kind]),
    )


def _slice_lines(connection: Connection, through_seq: int) -> Iterator[Line]:
    """One ordered pass, because slices have no index on seq; the database's cursor gives a page at a time."""
    wanted = select(slices).where(slices.c.seq <= through_seq).order_by(slices.c.seq, slices.c.id)
    for row in connection.execute(wanted.execution_options(yield_per=PAGE)):
        fields = _fields(slices, row) | {"amount_gpu_us": str(row.amount_gpu_us)}
        yield Line(row.seq, "slice", _line("slice", fields)[1])


def _seals_through(connection: Connection, last: Seal) -> Iterator[Seal]:
    after = 0
    while after < last.number:
        page = seals.list_seals(connection, after, PAGE)
        for each in page.items:
            if each.number > last.number:
                return
            yield each
            after = each.number
        if page.next is None:
            return


def _seal_fields(seal: Seal) -> dict[str, Any]:
    return {
        "number": seal.number,
        "at_ms": seal.at,
        "through_seq": seal.through_seq,
        "audit_rows": seal.audit_rows,
        "transfers": seal.transfers,
        "previous_sha256": seal.previous_sha256,
        "sha256": seal.sha256,
    }


def _batches(rows: Iterable[Row[Any]]) -> Iterator[list[Row[Any]]]:
    page: list[Row[Any]] = []
    for row in rows:
        page.append(row)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page
