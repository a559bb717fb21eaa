"""Snapshot and feed: everything once, then what changes, in the order of commits."""

from __future__ import annotations

from sqlalchemy import Integer, bindparam, delete, select, update

from quota.db import Database, Tx, feed_head, feed_rows, head
from quota.dispatch import objects
from quota.dispatch.ranking import read_booked, read_reservations
from quota.errors import BadRequest, CursorExpired
from quota.prepared import Prepared
from quota.schemas.scheduling import FeedItem, FeedKind, FeedPage, SnapshotPage

KEPT_TRANSACTIONS = 200_000

_HEAD = Prepared(select(feed_head).where(feed_head.c.id == 1))
_CHANGED = Prepared(
    select(feed_rows)
    .where(feed_rows.c.seq > bindparam("after"))
    .order_by(feed_rows.c.seq, feed_rows.c.kind, feed_rows.c.id)
    .limit(bindparam("most", type_=Integer))
)


def read_snapshot(database: Database, after: str | None, limit: int) -> SnapshotPage:
    """One page; the cursor read before the first page travels in the page token."""
    with database.read() as connection:
        seq = head(connection)
        cursor, kind, last = _position(after, seq)
        reservations = read_reservations(connection) if after is None else ()
        booked = read_booked(connection) if after is None else ()
        items: list[FeedItem] = []
        index = objects.KINDS.index(kind)
        while index < len(objects.KINDS) and len(items) < limit:
            found = objects.page(
                connection, objects.KINDS[index], last, limit - len(items), seq, database.clock.now_ms()
            )
            items.extend(found)
            if len(items) < limit:
                index, last = index + 1, ""
            elif found:
                last = found[-1].id
    following = None if index == len(objects.KINDS) else f"{cursor}|{objects.KINDS[index]}|{last}"
    return SnapshotPage.model_construct(
        cursor=cursor, items=tuple(items), next=following, reservations=reservations, booked=booked
    )


def read_feed(database: Database, after: int, limit: int) -> FeedPage:
    """What changed after a cursor, as whole objects of one moment. Raises CursorExpired."""
    with database.read() as connection:
        row = _HEAD.one(connection)
        if after > row.seq or after < row.oldest:
            raise CursorExpired(
                "the cursor is outside {oldest}..{head}", oldest=int(row.oldest), head=int(row.seq)
            )
        if after == row.seq:
            return FeedPage(cursor=after, items=())
        changed = _CHANGED.all(connection, {"after": after, "most": limit + 1})
        cursor = int(row.seq)
        if len(changed) > limit:
            # cut between transactions: the last one of this page may be incomplete
            last = changed[-1].seq
            whole = [entry for entry in changed if entry.seq < last]
            if not whole:
                whole = list(connection.execute(select(feed_rows).where(feed_rows.c.seq == last)).all())
                cursor = last
            else:
                cursor = whole[-1].seq
            changed = whole
        wanted = dict.fromkeys((entry.kind, entry.id) for entry in changed)
        items = objects.load(connection, wanted, int(row.seq), database.clock.now_ms())
    return FeedPage.model_construct(cursor=cursor, items=items)


def trim(tx: Tx, kept: int = KEPT_TRANSACTIONS) -> int:
    """Forget feed rows older than the last `kept` transactions. Answers the oldest cursor still served."""
    row = tx.connection.execute(select(feed_head).where(feed_head.c.id == 1).with_for_update()).one()
    oldest = max(int(row.oldest), int(row.seq) - kept)
    tx.connection.execute(delete(feed_rows).where(feed_rows.c.seq <= oldest))
    tx.connection.execute(update(feed_head).where(feed_head.c.id == 1).values(oldest=oldest))
    return oldest


def _position(after: str | None, seq: int) -> tuple[int, FeedKind, str]:
    if after is None:
        return seq, objects.KINDS[0], ""
    cursor, _, rest = after.partition("|")
    kind, _, last = rest.partition("|")
    for known in objects.KINDS:
        numbered = known != "attempt" or not last or last.rpartition("-")[2].isdecimal()
        if known == kind and cursor.isdecimal() and numbered:
            return int(cursor), known, last
    raise BadRequest("this page token was not made by this service", field="after")
