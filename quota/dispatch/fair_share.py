"""How the hub shares GPUs that several want: one document, read by the scheduler as part of its policy."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.dispatch.tables import fair_share
from quota.door import check_match, etag
from quota.schemas.fair_share import FairShare, FairShareDocument, FairSharePut
from quota.schemas.identity import Caller

SUBJECT = "fair-share"
_ROW = select(fair_share).where(fair_share.c.id == 1)


def read_fair_share(connection: Connection) -> FairShareDocument:
    """How the hub shares now."""
    return _document(connection.execute(_ROW).one())


def put_fair_share(
    tx: Tx, caller: Caller, body: FairSharePut, if_match: str | None = None
) -> FairShareDocument:
    """Change how the hub shares; the scheduler follows it from its next cycle on. The same again changes nothing.

    Raises PreconditionFailed.
    """
    # not FOR UPDATE: whoever only reads does not wait
    before = _document(tx.connection.execute(_ROW.with_for_update(key_share=True)).one())
    check_match(if_match, before.etag)
    if before.fair_share == body.fair_share:
        return before
    values = {
        "version": before.version + 1,
        "document": body.fair_share.model_dump_json(),
        "changed_at_ms": tx.now_ms,
    }
    tx.connection.execute(update(fair_share).where(fair_share.c.id == 1).values(values))
    tx.touch("policy", "default")
    audit.record(
        tx,
        caller,
        "fair_share.put",
        SUBJECT,
        reason=body.reason,
        detail={"version": before.version + 1},
        before=before.fair_share.model_dump(mode="json"),
        after=body.fair_share.model_dump(mode="json"),
    )
    return read_fair_share(tx.connection)


def checkpoint_ms(tx: Tx) -> int | None:
    """How often a job that does not say so itself is taken to save its work; None while nothing is preempted."""
    preemption = tx.once((SUBJECT,), lambda: read_fair_share(tx.connection).fair_share.preemption)
    return None if preemption is None else preemption.checkpoint_ms


def _document(row: Row[Any]) -> FairShareDocument:
    found = FairShare.model_validate_json(row.document)
    return FairShareDocument(
        version=row.version,
        fair_share=found,
        changed_at=row.changed_at_ms,
        etag=etag(row.version, found.model_dump(mode="json")),
    )
