"""Whether an organization may start anything: the row that a start relies on and that a freeze waits for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, select, update

from quota.db import Tx
from quota.errors import NotFound, NotSchedulable
from quota.identity.caps import stored_caps
from quota.identity.tables import organizations
from quota.prepared import Prepared
from quota.schemas.caps import OrganizationCaps

_THIS = organizations.c.id == bindparam("organization")
_THROW = select(organizations.c.frozen).where(_THIS).with_for_update()
# FOR KEY SHARE: the decayed usage on the same row may move meanwhile, the freeze and the caps may not
_RELY_ON = Prepared(
    select(organizations.c.frozen, organizations.c.caps)
    .where(_THIS)
    .with_for_update(read=True, key_share=True)
)


def set_frozen(tx: Tx, organization_id: str, frozen: bool) -> bool:
    """Freeze an organization or let it go on; False if it stands so already. Raises NotFound.

    Waits for the starts that passed `check_not_frozen`; those that come after see it.
    """
    before = tx.connection.execute(_THROW, {"organization": organization_id}).scalar_one_or_none()
    if before is None:
        raise NotFound("there is no organization {organization_id}", organization_id=organization_id)
    if before == frozen:
        return False
    tx.connection.execute(
        update(organizations).where(organizations.c.id == organization_id).values(frozen=frozen)
    )
    tx.touch("organization", organization_id)
    return True


def check_not_frozen(tx: Tx, organization_id: str) -> None:
    """Raise NotSchedulable if it is frozen; else it cannot be frozen until `tx` is committed."""
    if _relied_on(tx, organization_id).frozen:
        raise NotSchedulable("organization {organization_id} is frozen", organization_id=organization_id)


def caps_relied_on(tx: Tx, organization_id: str) -> OrganizationCaps:
    """An organization's own caps, which cannot be changed until `tx` is committed."""
    return stored_caps(_relied_on(tx, organization_id).caps)


def _relied_on(tx: Tx, organization_id: str) -> Any:
    asked = {"organization": organization_id}
    return tx.once(("relied on", organization_id), lambda: _RELY_ON.one(tx.connection, asked))
