"""Caps as they are stored: the hub's in one document, an organization's own beside its name."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import NotFound
from quota.identity.tables import hub_caps, organizations
from quota.prepared import Prepared
from quota.schemas.caps import CapsDocument, CapsPut, HubCaps, OrganizationCaps, OrganizationCapsPut
from quota.schemas.identity import Caller

SUBJECT = "caps"
_HUB = select(hub_caps).where(hub_caps.c.id == 1)
_READ_HUB = Prepared(_HUB)
_OWN = select(organizations.c.caps).where(organizations.c.id == bindparam("organization"))
_READ_OWN = Prepared(_OWN)
# FOR NO KEY UPDATE: its submissions count one after the other; a start that relies on the row does not wait
_COUNT_WITH = Prepared(_OWN.with_for_update(key_share=True))


def read_caps(connection: Connection) -> CapsDocument:
    """The hub's caps now."""
    return _document(_READ_HUB.one(connection))


def put_caps(tx: Tx, caller: Caller, body: CapsPut, if_match: str | None = None) -> CapsDocument:
    """Change the hub's caps; they bind from the next start and submission on. The same again changes nothing.

    Raises PreconditionFailed.
    """
    before = _document(tx.connection.execute(_HUB.with_for_update(key_share=True)).one())
    check_match(if_match, before.etag)
    if before.caps == body.caps:
        return before
    version = before.version + 1
    values = {"version": version, "document": body.caps.model_dump_json(), "changed_at_ms": tx.now_ms}
    tx.connection.execute(update(hub_caps).where(hub_caps.c.id == 1).values(values))
    tx.touch("policy", "default")
    audit.record(
        tx,
        caller,
        "caps.put",
        SUBJECT,
        reason=body.reason,
        detail={"version": version},
        before=before.caps.model_dump(mode="json"),
        after=body.caps.model_dump(mode="json"),
    )
    return read_caps(tx.connection)


def hub_caps_of(tx: Tx) -> HubCaps:
    """The hub's caps, read once in a transaction."""
    return tx.once((SUBJECT,), lambda: read_caps(tx.connection).caps)


def own_caps(connection: Connection, organization_id: str) -> OrganizationCaps:
    """What an organization has of its own. Raises NotFound."""
    row = _READ_OWN.one_or_none(connection, {"organization": organization_id})
    return _own(row, organization_id)


def own_caps_counted(tx: Tx, organization_id: str) -> OrganizationCaps:
    """The same, once no other submission of the organization counts: until `tx` is committed. Raises NotFound."""
    row = _COUNT_WITH.one_or_none(tx.connection, {"organization": organization_id})
    return _own(row, organization_id)


def put_own_caps(
    tx: Tx, caller: Caller, organization_id: str, body: OrganizationCapsPut, if_match: str | None = None
) -> OrganizationCaps:
    """Change an organization's own caps; what runs is left alone. The same again changes nothing.

    Waits for the starts that relied on the caps before; those that come after see these. Raises NotFound,
    PreconditionFailed.
    """
    row = tx.connection.execute(_OWN.with_for_update(), {"organization": organization_id}).one_or_none()
    before = _own(row, organization_id)
    check_match(if_match, tag_of_own(organization_id, before))
    if before == body.caps:
        return before
    tx.connection.execute(
        update(organizations)
        .where(organizations.c.id == organization_id)
        .values(caps=body.caps.model_dump_json(exclude_none=True))
    )
    tx.touch("organization", organization_id)
    audit.record(
        tx,
        caller,
        "organization.caps",
        organization_id,
        reason=body.reason,
        before=before.model_dump(mode="json"),
        after=body.caps.model_dump(mode="json"),
    )
    return body.caps


def tag_of_own(organization_id: str, caps: OrganizationCaps) -> str:
    """The entity tag of an organization's own caps."""
    return etag(organization_id, caps.model_dump(mode="json"))


def stored_caps(document: str) -> OrganizationCaps:
    """An organization's own caps from their column; what it does not name is the hub's."""
    return _NONE if document == "{}" else OrganizationCaps.model_validate_json(document)


_NONE = OrganizationCaps()


def _own(row: Any, organization_id: str) -> OrganizationCaps:
    if row is None:
        raise NotFound("there is no organization {organization_id}", organization_id=organization_id)
    return stored_caps(row.caps)


def _document(row: Any) -> CapsDocument:
    found = HubCaps.model_validate_json(row.document)
    return CapsDocument(
        version=row.version,
        caps=found,
        changed_at=row.changed_at_ms,
        etag=etag(SUBJECT, row.version, found.model_dump(mode="json")),
    )
