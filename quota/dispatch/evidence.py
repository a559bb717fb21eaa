"""Evidence at the door: an agent speaks for its node, and only of attempts that exist."""

from __future__ import annotations

from sqlalchemy import select, tuple_

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import Forbidden
from quota.jobs.tables import attempts
from quota.schemas.identity import Caller
from quota.schemas.usage import EvidenceBatch, EvidenceReply
from quota.usage import service as usage


def deliver(tx: Tx, caller: Caller, batch: EvidenceBatch) -> EvidenceReply:
    """Store the newer rows. Rows of attempts that nobody started are a finding, not usage.

    Raises Forbidden when a token that is bound to a node speaks of another node.
    """
    strangers = {row.node for row in batch.rows} - {caller.node}
    if caller.node is not None and strangers:
        raise Forbidden(f"this token speaks for node {caller.node}, not {sorted(strangers)[0]}")
    keys = sorted({(row.job_id, row.attempt) for row in batch.rows})
    known: set[tuple[str, int]] = set()
    for start in range(0, len(keys), 500):
        found = tx.connection.execute(
            select(attempts.c.job_id, attempts.c.attempt).where(
                tuple_(attempts.c.job_id, attempts.c.attempt).in_(keys[start : start + 500])
            )
        )
        known |= {(row.job_id, row.attempt) for row in found}
    for job_id, attempt in keys:
        if (job_id, attempt) not in known:
            audit.find(tx, "evidence_of_unknown_attempt", f"{job_id}-{attempt}", f"token {caller.token_id}")
    rows = [row for row in batch.rows if (row.job_id, row.attempt) in known]
    accepted = usage.store(tx, rows) if rows else 0
    return EvidenceReply(
        accepted=accepted, unchanged=len(rows) - accepted, unknown=len(batch.rows) - len(rows)
    )
