"""One day of the ledger against the clusters' reports and the agents' evidence; what differs is a finding.

Reading takes one snapshot and blocks nobody. Writing takes one short transaction, in which the day's row is either
new or replaced, so that two replicas, or a day compared again, leave one row and no finding twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, and_, cast, func, insert, or_, select, update

from quota.audit import service as audit
from quota.clock import HOUR_MS, Clock, day_start_ms
from quota.db import Database, Tx
from quota.errors import BadRequest
from quota.fleet.tables import clusters
from quota.jobs.tables import attempts
from quota.ledger.tables import accounts, holds, slices, transfer_legs, transfers
from quota.reports.tables import reconciliations
from quota.schemas.reconciliation import Reconciliation, ReconciliationPage
from quota.usage.tables import evidence

DAY_MS = 24 * HOUR_MS
GRACE_MS = 2 * HOUR_MS
"""How long after a day's end it is compared: agents deliver every minute, an hour's rest may come late."""
GRACE_WALL_MS = 10 * 60_000
"""And at least this much of the wall, which is what agents deliver by."""
TOLERANCE_THOUSANDTHS = 5
"""Of an attempt's GPU time within the day, how much agents may have seen more or less before it is a finding."""
TOLERANCE_GPU_MS = 60_000
"""And at least this much: they sample every few seconds and deliver every minute."""
LISTED = 100
"""Attempts that get a finding of their own per day, cluster and kind, the largest differences first."""
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that should agree and does not, in GPU milliseconds."""

    code: str
    subject: str
    expected: int
    found: int

    def detail(self, day: str) -> str:
        """One line for people."""
        return f"{day}: {self.found} GPU-ms found, {self.expected} expected"


@dataclass(slots=True)
class Day:
    """One day of one cluster, summed over its attempts, in GPU milliseconds."""

    cluster: str
    attempts: int = 0
    ledger_gpu_ms: int = 0
    cluster_gpu_ms: int = 0
    observed_gpu_ms: int = 0
    busy_gpu_ms: int = 0
    differences: list[Difference] = field(default_factory=list)

    def columns(self) -> dict[str, int | str]:
        """As the row keeps it."""
        return {
            "cluster": self.cluster,
            "attempts": self.attempts,
            "ledger_gpu_ms": self.ledger_gpu_ms,
            "cluster_gpu_ms": self.cluster_gpu_ms,
            "observed_gpu_ms": self.observed_gpu_ms,
            "busy_gpu_ms": self.busy_gpu_ms,
            "differences": len(self.differences),
        }


def reconcile(database: Database, day: str) -> tuple[Reconciliation, ...]:
    """Compare a day of Asia/Seoul that is over, and keep the result. Raises BadRequest for one that is not."""
    begins = day_start_ms(day)
    if begins + DAY_MS > database.clock.now_ms():
        raise BadRequest("{day} is not over yet", field="day", day=day)
    with database.read() as connection:
        found = _compare(connection, begins)
        books = _wrong_books(connection)
    return database.write(lambda tx: _keep(tx, day, found, books))


def grace_ms(clock: Clock) -> int:
    """How long after a day's end it is compared, in business milliseconds."""
    return max(GRACE_MS, GRACE_WALL_MS * clock.speed)


def days_done(connection: Connection) -> set[str]:
    """The days of which every cluster was compared."""
    known = select(func.count()).select_from(clusters).scalar_subquery()
    done = select(reconciliations.c.day).group_by(reconciliations.c.day).having(func.count() >= known)
    return set(connection.execute(done).scalars())


def first_day_ms(connection: Connection) -> int | None:
    """When the first attempt was claimed; None before that: there is nothing to compare."""
    first = connection.execute(select(func.min(attempts.c.claimed_at_ms))).scalar_one()
    return None if first is None else int(first)


def list_reconciliations(connection: Connection, before: str | None, limit: int) -> ReconciliationPage:
    """Days that were compared, newest first, each with all its clusters."""
    days = select(reconciliations.c.day).distinct().order_by(reconciliations.c.day.desc()).limit(limit + 1)
    if before is not None:
        days = days.where(reconciliations.c.day < before)
    found = list(connection.execute(days).scalars())
    wanted = found[:limit]
    rows = connection.execute(
        select(reconciliations)
        .where(reconciliations.c.day.in_(wanted))
        .order_by(reconciliations.c.day.desc(), reconciliations.c.cluster)
    )
    items = tuple(_of_row(row) for row in rows)
    return ReconciliationPage(items=items, next=wanted[-1] if len(found) > limit else None)


# --- reading --------------------------------------------------------------------------------------


def _compare(connection: Connection, begins: int) -> list[Day]:
    days = {row.id: Day(row.id) for row in connection.execute(select(clusters.c.id).order_by(clusters.c.id))}
    watermarks: dict[str, int] = {
        row.id: row.observed_through_ms or 0 for row in connection.execute(select(clusters))
    }
    for rows in _attempts(connection, begins):
        keys = {(row.job_id, row.attempt): row for row in rows}
        job_ids = sorted({row.job_id for row in rows})
        booked = _booked(connection, job_ids, keys, begins)
        seen = _seen(connection, job_ids, begins)
        for key, row in keys.items():
            until = row.ended_at_ms if row.ended_at_ms is not None else watermarks[row.cluster]
            ran = row.gpus * _overlap(row.first_started_at_ms, until, begins)
            observed, busy = seen.get(key, (0, 0))
            _add(days[row.cluster], row, ran, booked.get(key, 0), observed, busy, begins)
    return list(days.values())


def _attempts(connection: Connection, begins: int) -> Iterator[Sequence[Any]]:
    """Attempts that had a pod running within the day, in chunks."""
    after: tuple[str, int] = ("", 0)
    wanted = (
        select(
            attempts.c.job_id,
            attempts.c.attempt,
            attempts.c.cluster,
            attempts.c.first_started_at_ms,
            attempts.c.ended_at_ms,
            attempts.c.lost,
            attempts.c.settled,
            attempts.c.settled_through_ms,
            holds.c.gpus,
        )
        .join(holds, holds.c.id == attempts.c.hold_id)
        .where(
            attempts.c.first_started_at_ms < begins + DAY_MS,
            or_(attempts.c.ended_at_ms.is_(None), attempts.c.ended_at_ms > begins),
        )
        .order_by(attempts.c.job_id, attempts.c.attempt)
        .limit(_CHUNK)
    )
    while True:
        job_id, number = after
        later = or_(
            attempts.c.job_id > job_id, and_(attempts.c.job_id == job_id, attempts.c.attempt > number)
        )
        rows = connection.execute(wanted.where(later)).all()
        if rows:
            yield rows
        if len(rows) < _CHUNK:
            return
        after = (rows[-1].job_id, rows[-1].attempt)


def _booked(
    connection: Connection, job_ids: list[str], keys: dict[tuple[str, int], Row[Any]], begins: int
) -> dict[tuple[str, int], int]:
    """GPU ms within the day by the ledger: slices, less what corrections say was never occupied."""
    found: dict[tuple[str, int], int] = defaultdict(int)
    settled = select(slices).where(
        slices.c.job_id.in_(job_ids), slices.c.starts_at_ms < begins + DAY_MS, slices.c.ends_at_ms > begins
    )
    for part in connection.execute(settled):
        attempt = keys.get((part.job_id, part.attempt))
        if attempt is None:
            continue
        # found running after it was called lost: the platform pays, and the attempt keeps the end it was told
        late = attempt.lost and part.payer == "platform" and part.starts_at_ms >= attempt.ended_at_ms
        if not late:
            found[(part.job_id, part.attempt)] += part.gpus * _overlap(
                part.starts_at_ms, part.ends_at_ms, begins
            )
    corrected = select(transfers).where(
        transfers.c.job_id.in_(job_ids), transfers.c.type == "refund", transfers.c.refund_kind == "correction"
    )
    for row in connection.execute(corrected):
        found[(row.job_id, row.attempt)] -= row.gpus * _overlap(row.starts_at_ms, row.ends_at_ms, begins)
    return found


def _seen(connection: Connection, job_ids: list[str], begins: int) -> dict[tuple[str, int], tuple[int, int]]:
    """(observed, busy) GPU ms within the day by the agents' evidence; the epochs of an agent add up."""
    rows = connection.execute(
        select(
            evidence.c.job_id,
            evidence.c.attempt,
            cast(func.sum(evidence.c.observed_ms), BigInteger).label("observed"),
            cast(func.sum(evidence.c.busy_ms), BigInteger).label("busy"),
        )
        .where(
            evidence.c.job_id.in_(job_ids),
            evidence.c.hour_ms >= begins,
            evidence.c.hour_ms < begins + DAY_MS,
        )
        .group_by(evidence.c.job_id, evidence.c.attempt)
    )
    return {(row.job_id, row.attempt): (int(row.observed), int(row.busy)) for row in rows}


def _add(day: Day, row: Row[Any], ran: int, booked: int, observed: int, busy: int, begins: int) -> None:
    subject = f"{row.job_id}-{row.attempt}"
    day.attempts += 1
    day.ledger_gpu_ms += booked
    day.cluster_gpu_ms += ran
    day.observed_gpu_ms += observed
    day.busy_gpu_ms += busy
    settled = row.settled or (row.settled_through_ms or 0) >= begins + DAY_MS
    if not settled:
        day.differences.append(Difference("day_not_settled", subject, ran, booked))
    elif booked != ran:
        day.differences.append(Difference("ledger_differs_from_cluster", subject, ran, booked))
    tolerance = max(TOLERANCE_GPU_MS * row.gpus, ran * TOLERANCE_THOUSANDTHS // 1000)
    if observed > ran + tolerance:
        day.differences.append(Difference("evidence_beyond_run", subject, ran, observed))
    elif observed < ran - tolerance:
        day.differences.append(Difference("unobserved_time", subject, ran, observed))


def _wrong_books(connection: Connection) -> list[Difference]:
    """Accounts whose balance is not the sum of their legs (ledger invariant I1)."""
    legs = transfer_legs.c
    sums = (
        select(
            legs.account_id,
            cast(func.sum(legs.d_granted), BigInteger).label("granted"),
            cast(func.sum(legs.d_held), BigInteger).label("held"),
            cast(func.sum(legs.d_used), BigInteger).label("used"),
        )
        .group_by(legs.account_id)
        .subquery()
    )
    rows = connection.execute(
        select(accounts, sums.c.granted, sums.c.held, sums.c.used).outerjoin(
            sums, sums.c.account_id == accounts.c.id
        )
    )
    found = []
    for row in rows:
        for name in ("granted", "held", "used"):
            stored, summed = getattr(row, f"{name}_gpu_us"), int(getattr(row, name) or 0)
            if stored != summed:
                found.append(Difference("balance_differs_from_transfers", f"{row.id}:{name}", summed, stored))
    return found


def _overlap(starts: int, ends: int, begins: int) -> int:
    return max(0, min(ends, begins + DAY_MS) - max(starts, begins))


# --- keeping --------------------------------------------------------------------------------------


def _keep(tx: Tx, day: str, found: list[Day], books: list[Difference]) -> tuple[Reconciliation, ...]:
    for one in found:
        key = (reconciliations.c.day == day) & (reconciliations.c.cluster == one.cluster)
        values = one.columns() | {"done_at_ms": tx.now_ms}
        if tx.connection.execute(update(reconciliations).where(key).values(**values)).rowcount == 0:
            tx.connection.execute(insert(reconciliations), values | {"day": day})
        _tell(tx, day, one.differences)
    _tell(tx, day, books)
    rows = tx.connection.execute(
        select(reconciliations).where(reconciliations.c.day == day).order_by(reconciliations.c.cluster)
    )
    return tuple(_of_row(row) for row in rows)


def _tell(tx: Tx, day: str, differences: list[Difference]) -> None:
    """One finding per difference, the largest of each kind first, up to a limit that keeps the list readable."""
    by_code: dict[str, list[Difference]] = defaultdict(list)
    for one in differences:
        by_code[one.code].append(one)
    for code, group in sorted(by_code.items()):
        group.sort(key=lambda one: (-abs(one.found - one.expected), one.subject))
        for one in group[:LISTED]:
            numbers: dict[str, int | str] = {"day": day, "expected": one.expected, "found": one.found}
            audit.find(tx, code, one.subject, one.detail(day), numbers)
        if len(group) > LISTED:
            rest = len(group) - LISTED
            audit.find(tx, code, day, f"{day}: {rest} more attempts differ less", {"day": day, "more": rest})


def _of_row(row: Row[Any]) -> Reconciliation:
    return Reconciliation(
        day=row.day,
        cluster=row.cluster,
        done_at=row.done_at_ms,
        attempts=row.attempts,
        ledger_gpu_ms=row.ledger_gpu_ms,
        cluster_gpu_ms=row.cluster_gpu_ms,
        observed_gpu_ms=row.observed_gpu_ms,
        busy_gpu_ms=row.busy_gpu_ms,
        unobserved_gpu_ms=max(0, row.cluster_gpu_ms - row.observed_gpu_ms),
        differences=row.differences,
    )
