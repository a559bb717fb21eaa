"""A programme's caps on jobs as they are stored: beside its name. Where they bind: `quota.jobs.program_caps`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import NotFound
from quota.prepared import Prepared
from quota.programs.tables import programs
from quota.schemas.caps import ProgramCaps, ProgramCapsDocument, ProgramCapsPut
from quota.schemas.identity import Caller

NONE = ProgramCaps()
_ONE = select(programs.c.id, programs.c.caps).where(programs.c.id == bindparam("program"))
_SOME = Prepared(
    select(programs.c.id, programs.c.caps)
    .where(programs.c.id.in_(bindparam("programs", expanding=True)), programs.c.caps != "{}")
    .order_by(programs.c.id),
    lists=("programs",),
)


def read_caps(connection: Connection, program_id: str) -> ProgramCapsDocument:
    """A programme's caps. Raises NotFound."""
    return _document(connection.execute(_ONE, {"program": program_id}).one_or_none(), program_id)


def put_caps(
    tx: Tx, caller: Caller, program_id: str, body: ProgramCapsPut, if_match: str | None = None
) -> ProgramCapsDocument:
    """Change a programme's caps; they bind from the next submission on. The same again changes nothing.

    Raises NotFound, PreconditionFailed.
    """
    row = tx.connection.execute(_ONE.with_for_update(key_share=True), {"program": program_id}).one_or_none()
    before = _document(row, program_id)
    check_match(if_match, before.etag)
    if before.caps == body.caps:
        return before
    stored = body.caps.model_dump_json(exclude_none=True)
    tx.connection.execute(update(programs).where(programs.c.id == program_id).values(caps=stored))
    audit.record(
        tx,
        caller,
        "program.caps",
        program_id,
        reason=body.reason,
        before=before.caps.model_dump(mode="json"),
        after=body.caps.model_dump(mode="json"),
    )
    return read_caps(tx.connection, program_id)


def caps_of(connection: Connection, program_ids: Collection[str]) -> dict[str, ProgramCaps]:
    """The caps of those of these programmes that have any, in order of id."""
    if not program_ids:
        return {}
    rows = _SOME.all(connection, {"programs": sorted(program_ids)})
    return {row.id: ProgramCaps.model_validate_json(row.caps) for row in rows}


def _document(row: Any, program_id: str) -> ProgramCapsDocument:
    if row is None:
        raise NotFound("there is no programme {program_id}", program_id=program_id)
    found = ProgramCaps.model_validate_json(row.caps)
    return ProgramCapsDocument(
        program_id=program_id, caps=found, etag=etag("caps", program_id, found.model_dump(mode="json"))
    )
