"""How the hub shares GPUs that several want: one document, read by the scheduler as part of its policy."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Column, Connection, Row, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.dispatch.tables import fair_share
from quota.door import check_match, etag
from quota.errors import BadRequest
from quota.identity.tables import organizations
from quota.programs.tables import programs
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

    Raises PreconditionFailed, and BadRequest for a programme or an organization that there is not.
    """
    _check_known(tx.connection, body.fair_share)
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


def _check_known(connection: Connection, share: FairShare) -> None:
    """A name that is mistyped would weigh nothing."""
    for program_id in _unknown(connection, programs.c.id, share.programs):
        raise BadRequest(
            "there is no programme {program_id}", field="fair_share.programs", program_id=program_id
        )
    for organization_id in _unknown(connection, organizations.c.id, share.organization_weights):
        raise BadRequest(
            "there is no organization {organization_id}",
            field="fair_share.organization_weights",
            organization_id=organization_id,
        )


def _unknown(connection: Connection, column: Column[str], names: Collection[str]) -> list[str]:
    if not names:
        return []
    known = connection.execute(select(column).where(column.in_(list(names)))).scalars()
    return sorted(set(names) - set(known))


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
