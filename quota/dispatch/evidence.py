"""Evidence at the door: an agent speaks for its node, and only of attempts that were placed there."""

from __future__ import annotations

from sqlalchemy import bindparam, select, tuple_

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import Forbidden
from quota.identity.rules import speaks_for
from quota.idle import activity
from quota.jobs.tables import placements
from quota.schemas.identity import Caller
from quota.schemas.usage import EvidenceBatch, EvidenceReply
from quota.usage import service as usage

_PLACED = select(placements.c.job_id, placements.c.attempt, placements.c.node).where(
    # for the triples alone SQLite reads the whole table
    placements.c.job_id.in_(bindparam("jobs", expanding=True)),
    tuple_(placements.c.job_id, placements.c.attempt, placements.c.node).in_(
        bindparam("keys", expanding=True)
    ),
)


def deliver(tx: Tx, caller: Caller, batch: EvidenceBatch) -> EvidenceReply:
    """Store the newer rows. Rows of attempts that were not placed on that node are a finding, not usage.

    Raises Forbidden when the token speaks of a node that it is not bound to; one bound to none speaks of none.
    """
    strangers = sorted({row.node for row in batch.rows if not speaks_for(caller.node, row.node)})
    if strangers:
        raise Forbidden(
            "this token speaks for node {node}, not {stranger}",
            node=caller.node or "(none: make a new one)",
            stranger=strangers[0],
        )
    keys = sorted({(row.job_id, row.attempt, row.node) for row in batch.rows})
    placed: set[tuple[str, int, str]] = set()
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        found = tx.connection.execute(_PLACED, {"jobs": [key[0] for key in part], "keys": part})
        placed |= {(row.job_id, row.attempt, row.node) for row in found}
    for job_id, attempt, node in keys:
        if (job_id, attempt, node) not in placed:
            detail = f"from {node}, where it was never placed, by token {caller.token_id}"
            audit.find(tx, "evidence_of_unknown_attempt", f"{job_id}-{attempt}", detail)
    rows = [row for row in batch.rows if (row.job_id, row.attempt, row.node) in placed]
    gains = usage.store(tx, rows) if rows else []
    activity.add(tx, gains)
    return EvidenceReply(
        accepted=len(gains), unchanged=len(rows) - len(gains), unknown=len(batch.rows) - len(rows)
    )
