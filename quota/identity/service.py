"""Organizations: who they are, and who may know of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import AlreadyExists, BadRequest, NotFound
from quota.identity.tables import organizations
from quota.prepared import Prepared
from quota.schemas.identity import (
    Caller,
    NewOrganization,
    Organization,
    OrganizationChange,
    OrganizationKind,
    OrganizationList,
    Role,
)

_BY_ID = select(organizations).where(organizations.c.id == bindparam("organization"))
_ORGANIZATION = Prepared(_BY_ID)
_ORGANIZATION_LOCKED = Prepared(_BY_ID.with_for_update())


def create_organization(tx: Tx, caller: Caller, body: NewOrganization) -> Organization:
    """Register an organization; a known id is refused."""
    if tx.connection.execute(select(organizations.c.id).where(organizations.c.id == body.id)).first():
        raise AlreadyExists(
            "organization {organization_id} exists already", field="id", organization_id=body.id
        )
    tx.connection.execute(
        insert(organizations),
        {
            "id": body.id,
            "name": body.name,
            "kind": body.kind.value,
            "frozen": False,
            "created_at_ms": tx.now_ms,
            "decayed_usage_gpu_us": 0.0,
            "decayed_as_of_ms": tx.now_ms,
        },
    )
    tx.touch("organization", body.id)
    made = read_organization(tx.connection, body.id)
    after = made.model_dump(mode="json")
    audit.record(tx, caller, "organization.create", body.id, detail={"name": body.name}, after=after)
    return made


def change_organization(
    tx: Tx, caller: Caller, organization_id: str, if_match: str | None, body: OrganizationChange
) -> Organization:
    """Correct an organization's name or kind; nothing is written when it is so already.

    Raises NotFound, BadRequest when nothing is asked for, PreconditionFailed.
    """
    if body.name is None and body.kind is None:
        raise BadRequest("say what to change: name, kind", field="name")
    row = _ORGANIZATION_LOCKED.one_or_none(tx.connection, {"organization": organization_id})
    if row is None:
        raise _unknown(organization_id)
    before = _organization(row)
    check_match(if_match, organization_tag(before))
    wanted = {"name": body.name or before.name, "kind": body.kind or before.kind}
    after = before.model_copy(update=wanted)
    if after == before:
        return before
    tx.connection.execute(
        update(organizations)
        .where(organizations.c.id == organization_id)
        .values(name=after.name, kind=after.kind.value)
    )
    audit.record(
        tx,
        caller,
        "organization.change",
        organization_id,
        reason=body.reason,
        before=_editable(before),
        after=_editable(after),
    )
    return after


def organization_tag(organization: Organization) -> str:
    """The organization's ETag: it changes with what `change_organization` may change."""
    return etag(organization.id, organization.name, organization.kind.value)


def read_organization(connection: Connection, organization_id: str) -> Organization:
    """One organization. Raises NotFound."""
    row = _ORGANIZATION.one_or_none(connection, {"organization": organization_id})
    if row is None:
        raise _unknown(organization_id)
    return _organization(row)


def show_organization(connection: Connection, caller: Caller, organization_id: str) -> Organization:
    """One organization for this caller; another's is as unknown as one that never was. Raises NotFound."""
    if not sees(caller, organization_id):
        raise _unknown(organization_id)
    return read_organization(connection, organization_id)


def list_organizations(
    connection: Connection,
    caller: Caller,
    *,
    after: str = "",
    limit: int = 1000,
    kind: OrganizationKind | None = None,
    frozen: bool | None = None,
) -> OrganizationList:
    """Organizations with an id greater than `after`, in order of id; a member sees its own."""
    statement = select(organizations).where(organizations.c.id > after)
    if caller.role is Role.MEMBER:
        statement = statement.where(organizations.c.id == caller.organization_id)
    if kind is not None:
        statement = statement.where(organizations.c.kind == kind.value)
    if frozen is not None:
        statement = statement.where(organizations.c.frozen == frozen)
    rows = connection.execute(statement.order_by(organizations.c.id).limit(limit + 1)).all()
    items = tuple(_organization(row) for row in rows[:limit])
    return OrganizationList(items=items, next=items[-1].id if len(rows) > limit else None)


def sees(caller: Caller, organization_id: str | None) -> bool:
    """Whether the caller may know of this organization's objects; None: they are no organization's."""
    if caller.role in (Role.OPERATOR, Role.AUDITOR):
        return True
    return organization_id is not None and caller.organization_id == organization_id


def _unknown(organization_id: str) -> NotFound:
    return NotFound("there is no organization {organization_id}", organization_id=organization_id)


def _editable(organization: Organization) -> dict[str, object]:
    return {"name": organization.name, "kind": organization.kind.value}


def _organization(row: Row[Any]) -> Organization:
    return Organization(
        id=row.id,
        name=row.name,
        kind=OrganizationKind(row.kind),
        frozen=row.frozen,
        created_at=row.created_at_ms,
    )
