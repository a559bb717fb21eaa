"""Whether an organization may start anything: the row that a start relies on and that a freeze waits for."""

from __future__ import annotations

from sqlalchemy import bindparam, select, update

from quota.db import Tx
from quota.errors import NotFound, NotSchedulable
from quota.identity.tables import organizations
from quota.prepared import Prepared

_FROZEN = select(organizations.c.frozen).where(organizations.c.id == bindparam("organization"))
_THROW = _FROZEN.with_for_update()
# FOR KEY SHARE: the decayed usage on the same row may move meanwhile, the freeze may not
_RELY_ON = Prepared(_FROZEN.with_for_update(read=True, key_share=True))


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
    asked = {"organization": organization_id}
    if tx.once(("frozen", organization_id), lambda: _RELY_ON.one(tx.connection, asked).frozen):
        raise NotSchedulable("organization {organization_id} is frozen", organization_id=organization_id)
