"""When the GPUs of running attempts worked, in bins of five minutes, kept beside the evidence that says so.

Evidence is cumulative per hour, so only what a row gained since the delivery before tells when it was. What each new
row gained is added in the transaction that stores the row, and comes from the statement that replaces the row before:
a delivery that is lost, doubled, late or overtaken adds its gain once or not at all. When the process dies, neither
the row nor its gain is there.

A gain lies between the delivery before, or the beginning of its hour, and now, or the end of its hour. Where that is
longer than a bin its busy time is taken to be as late as it can have been, so that nobody is stopped for what was
done before an agent's silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from quota.clock import HOUR_MS
from quota.db import Tx
from quota.idle.rules import Bin
from quota.idle.tables import activity
from quota.usage.service import Gain

BIN_MS = 300_000
_PART = 500
_KEY = ("job_id", "attempt", "gpu_uuid", "from_ms")

Attempt = tuple[str, int]


def add(tx: Tx, gains: Iterable[Gain]) -> None:
    """Add what rows gained to the bins that it lies in."""
    sums: dict[tuple[str, int, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for gain in gains:
        for from_ms, busy_ms, observed_ms in spread(gain, tx.now_ms):
            cell = sums[(gain.job_id, gain.attempt, gain.gpu_uuid, from_ms)]
            cell[0] += busy_ms
            cell[1] += observed_ms
    # in key order, so that two deliveries never wait for each other in a circle
    rows = [
        dict(zip(_KEY, key, strict=True)) | {"busy_ms": sums[key][0], "observed_ms": sums[key][1]}
        for key in sorted(sums)
    ]
    make = sqlite.insert if tx.dialect == "sqlite" else postgresql.insert
    statement = make(activity)
    adds = {name: activity.c[name] + getattr(statement.excluded, name) for name in ("busy_ms", "observed_ms")}
    upsert = statement.on_conflict_do_update(index_elements=list(_KEY), set_=adds)
    for start in range(0, len(rows), _PART):
        tx.connection.execute(upsert.values(rows[start : start + _PART]))


def spread(gain: Gain, now_ms: int) -> Iterator[tuple[int, int, int]]:
    """(bin, busy, observed) of one gain: measured evenly, busy as late as possible. The sums are exact."""
    until_ms = min(gain.hour_ms + HOUR_MS, max(now_ms, gain.hour_ms + 1))
    from_ms = max(gain.hour_ms, min(gain.since_ms, until_ms - 1))
    left_busy, left_observed, left_ms = gain.busy_ms, gain.observed_ms, until_ms - from_ms
    end_ms = until_ms
    while left_ms:
        begin_ms = max(from_ms, (end_ms - 1) // BIN_MS * BIN_MS)
        observed_ms = left_observed * (end_ms - begin_ms) // left_ms
        busy_ms = min(left_busy, observed_ms) if begin_ms > from_ms else left_busy
        if observed_ms or busy_ms:
            yield begin_ms // BIN_MS * BIN_MS, busy_ms, observed_ms
        left_busy, left_observed = left_busy - busy_ms, left_observed - observed_ms
        left_ms, end_ms = begin_ms - from_ms, begin_ms


def read(
    connection: Connection, wanted: Sequence[Attempt], since_ms: int, now_ms: int
) -> dict[Attempt, dict[str, list[Bin]]]:
    """The bins of these attempts by GPU, in order of time; the last one ends now."""
    bins: dict[Attempt, dict[str, list[Bin]]] = {each: {} for each in wanted}
    for start in range(0, len(wanted), _PART):
        part = wanted[start : start + _PART]
        rows = connection.execute(
            select(activity)
            .where(
                # for the pairs alone SQLite reads the whole table
                activity.c.job_id.in_({job_id for job_id, _ in part}),
                tuple_(activity.c.job_id, activity.c.attempt).in_(part),
                activity.c.from_ms > since_ms - BIN_MS,
            )
            .order_by(activity.c.from_ms)
        )
        for row in rows:
            until_ms = max(row.from_ms + 1, min(row.from_ms + BIN_MS, now_ms))
            of_gpu = bins[(row.job_id, row.attempt)].setdefault(row.gpu_uuid, [])
            of_gpu.append(Bin(row.from_ms, until_ms, row.busy_ms, row.observed_ms))
    return bins


def prune(tx: Tx, before_ms: int, running: Iterable[Attempt], limit: int = 5000) -> int:
    """Forget bins of attempts that do not run, and those from before; at most so many. Answers how many."""
    kept = {job_id for job_id, _ in running}
    known = set(tx.connection.execute(select(activity.c.job_id).distinct()).scalars())
    gone = sorted(known - kept)[:_PART]
    old = activity.c.from_ms < before_ms
    where = old | activity.c.job_id.in_(gone) if gone else old
    keys = select(*(activity.c[name] for name in _KEY)).where(where).limit(limit)
    found = [tuple(row) for row in tx.connection.execute(keys)]
    for start in range(0, len(found), _PART):
        part = found[start : start + _PART]
        tx.connection.execute(delete(activity).where(tuple_(*(activity.c[name] for name in _KEY)).in_(part)))
    return len(found)
