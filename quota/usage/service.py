"""Evidence of what the GPUs did: cumulative rows, the newest per agent epoch counts, epochs add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.dialects import postgresql, sqlite

from quota.db import Tx
from quota.schemas.jobs import MeasuredGpu
from quota.schemas.usage import EvidenceRow
from quota.usage.tables import evidence

_KEY = ("job_id", "attempt", "gpu_uuid", "hour_ms", "agent_epoch")


@dataclass(frozen=True, slots=True)
class Gain:
    """What a stored row has more than the one that it replaced, and since when."""

    job_id: str
    attempt: int
    gpu_uuid: str
    hour_ms: int
    since_ms: int
    """When the row before came; the beginning of the hour if it is the first."""
    busy_ms: int
    observed_ms: int


def store(tx: Tx, rows: Sequence[EvidenceRow]) -> list[Gain]:
    """Store rows newer than what is known; replaying any of them changes nothing. Answers what each new one gained."""
    newest: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in rows:
        values = {
            "job_id": row.job_id,
            "attempt": row.attempt,
            "gpu_uuid": row.gpu_uuid,
            "hour_ms": row.hour,
            "agent_epoch": row.agent_epoch,
            "node": row.node,
            "gpu_class": row.gpu_class,
            "seq": row.seq,
            "busy_ms": row.busy_ms,
            "observed_ms": row.observed_ms,
            "received_at_ms": tx.now_ms,
        }
        key = tuple(values[name] for name in _KEY)
        if key not in newest or newest[key]["seq"] < row.seq:
            newest[key] = values
    # in key order, so that two deliveries never wait for each other in a circle
    ordered = [newest[key] for key in sorted(newest, key=repr)]
    make = sqlite.insert if tx.dialect == "sqlite" else postgresql.insert
    statement = make(evidence)
    changes = {name: statement.excluded[name] for name in ("seq", "busy_ms", "observed_ms")} | {
        "received_at_ms": statement.excluded["received_at_ms"],
        # by the statement itself: of two deliveries at once the later one gains on what the other stored
        "before_busy_ms": evidence.c.busy_ms,
        "before_observed_ms": evidence.c.observed_ms,
        "before_received_at_ms": evidence.c.received_at_ms,
    }
    upsert = statement.on_conflict_do_update(
        index_elements=list(_KEY), set_=changes, where=evidence.c.seq < statement.excluded.seq
    ).returning(evidence)
    return [
        _gain(row)
        for start in range(0, len(ordered), 500)
        for row in tx.connection.execute(upsert.values(ordered[start : start + 500]))
    ]


def _gain(row: Row[Any]) -> Gain:
    """An agent whose row became smaller has gained nothing."""
    return Gain(
        job_id=row.job_id,
        attempt=row.attempt,
        gpu_uuid=row.gpu_uuid,
        hour_ms=row.hour_ms,
        since_ms=row.hour_ms if row.before_received_at_ms is None else row.before_received_at_ms,
        busy_ms=max(0, row.busy_ms - row.before_busy_ms),
        observed_ms=max(0, row.observed_ms - row.before_observed_ms),
    )


def measured(connection: Connection, job_id: str) -> tuple[MeasuredGpu, ...]:
    """Busy and observed milliseconds per attempt and GPU: the sum over hours and agent epochs."""
    rows = connection.execute(
        select(
            evidence.c.attempt,
            evidence.c.node,
            evidence.c.gpu_uuid,
            func.sum(evidence.c.busy_ms).label("busy"),
            func.sum(evidence.c.observed_ms).label("observed"),
        )
        .where(evidence.c.job_id == job_id)
        .group_by(evidence.c.attempt, evidence.c.node, evidence.c.gpu_uuid)
        .order_by(evidence.c.attempt, evidence.c.gpu_uuid)
    )
    return tuple(
        MeasuredGpu(
            attempt=row.attempt,
            node=row.node,
            gpu_uuid=row.gpu_uuid,
            busy_ms=int(row.busy),
            observed_ms=int(row.observed),
        )
        for row in rows
    )
