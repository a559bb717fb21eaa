"""The idle rules as they are stored: one document, the hub's rules and those of programmes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import BadRequest
from quota.idle.tables import policy
from quota.programs.tables import programs
from quota.schemas.identity import Caller
from quota.schemas.idle import IdlePolicy, IdlePolicyDocument, IdlePolicyPut

SUBJECT = "idle-policy"
_ROW = select(policy).where(policy.c.id == 1)


def read_policy(connection: Connection) -> IdlePolicyDocument:
    """The rules now."""
    return _document(connection.execute(_ROW).one())


def put_policy(
    tx: Tx, caller: Caller, body: IdlePolicyPut, if_match: str | None = None
) -> IdlePolicyDocument:
    """Change the rules; the next judgement follows them, warnings that they would not have given are withdrawn.

    The same again changes nothing. Raises PreconditionFailed, and BadRequest for a programme that there is not.
    """
    named = sorted(body.policy.programs)
    if named:
        known = set(tx.connection.execute(select(programs.c.id).where(programs.c.id.in_(named))).scalars())
        for program_id in sorted(set(named) - known):
            raise BadRequest(
                "there is no programme {program_id}", field="policy.programs", program_id=program_id
            )
    before = _document(tx.connection.execute(_ROW.with_for_update(key_share=True)).one())
    check_match(if_match, before.etag)
    if before.policy == body.policy:
        return before
    version = before.version + 1
    values = {"version": version, "document": body.policy.model_dump_json(), "changed_at_ms": tx.now_ms}
    tx.connection.execute(update(policy).where(policy.c.id == 1).values(values))
    audit.record(
        tx,
        caller,
        "idle_policy.put",
        SUBJECT,
        reason=body.reason,
        detail={"version": version},
        before=before.policy.model_dump(mode="json"),
        after=body.policy.model_dump(mode="json"),
    )
    return read_policy(tx.connection)


def _document(row: Row[Any]) -> IdlePolicyDocument:
    found = IdlePolicy.model_validate_json(row.document)
    return IdlePolicyDocument(
        version=row.version,
        policy=found,
        changed_at=row.changed_at_ms,
        etag=etag(SUBJECT, row.version, found.model_dump(mode="json")),
    )
