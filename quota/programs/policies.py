"""Policies: named documents that programmes point to and grants keep a copy of."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag, page
from quota.errors import NotFound, PreconditionFailed
from quota.programs.tables import grants, policies
from quota.schemas.identity import Caller
from quota.schemas.policies import GrantPolicy, PolicyDocument, PolicyList, PolicyPut

DEFAULT = "default"


def policy_of(connection: Connection, grant_id: str) -> GrantPolicy:
    """The rules that a grant was awarded under. Raises NotFound."""
    document = connection.execute(select(grants.c.policy).where(grants.c.id == grant_id)).scalar_one_or_none()
    if document is None:
        raise NotFound("there is no grant {grant_id}", grant_id=grant_id)
    return read_document(document)


def read_document(document: str) -> GrantPolicy:
    """A stored policy; what it does not name is the default."""
    return GrantPolicy.model_validate_json(document)


def read_policy(connection: Connection, policy_id: str, *, field: str = "") -> PolicyDocument:
    """One policy. Raises NotFound."""
    row = _row(connection, policy_id)
    if row is None:
        raise NotFound("there is no policy {policy_id}", field=field, policy_id=policy_id)
    return _policy(row)


def list_policies(connection: Connection, after: str | None = None, limit: int = 200) -> PolicyList:
    """Policies in order of id."""
    statement = select(policies).order_by(policies.c.id).limit(limit + 1)
    if after is not None:
        statement = statement.where(policies.c.id > after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    return PolicyList(items=tuple(_policy(row) for row in rows), next=following)


def put_policy(
    tx: Tx, caller: Caller, policy_id: str, body: PolicyPut, if_match: str | None = None
) -> PolicyDocument:
    """Make a policy or change it. Grants that were awarded keep what they have; the same again changes nothing.

    Raises PreconditionFailed.
    """
    row = _row(tx.connection, policy_id, lock=True)
    before = None if row is None else _policy(row)
    if before is not None:
        check_match(if_match, tag_of(before))
    elif if_match is not None:
        raise PreconditionFailed("there is no policy {policy_id}", policy_id=policy_id)
    if before is not None and before.policy == body.policy:
        return before
    version = 1 if before is None else before.version + 1
    values = {
        "version": version,
        "document": body.policy.model_dump_json(),
        "changed_at_ms": tx.now_ms,
    }
    if before is None:
        tx.connection.execute(insert(policies), values | {"id": policy_id})
    else:
        tx.connection.execute(update(policies).where(policies.c.id == policy_id).values(values))
    audit.record(
        tx,
        caller,
        "policy.put",
        policy_id,
        reason=body.reason,
        detail={"version": version},
        before=None if before is None else before.policy.model_dump(mode="json"),
        after=body.policy.model_dump(mode="json"),
    )
    return read_policy(tx.connection, policy_id)


def tag_of(policy: PolicyDocument) -> str:
    """The entity tag of a policy."""
    return etag(policy.id, policy.version, policy.policy.model_dump(mode="json"))


def _row(connection: Connection, policy_id: str, *, lock: bool = False) -> Row[Any] | None:
    statement = select(policies).where(policies.c.id == policy_id)
    return connection.execute(statement.with_for_update() if lock else statement).one_or_none()


def _policy(row: Row[Any]) -> PolicyDocument:
    return PolicyDocument(
        id=row.id, version=row.version, policy=read_document(row.document), changed_at=row.changed_at_ms
    )
