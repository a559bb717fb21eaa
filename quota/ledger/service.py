"""The ledger's accounts. Balances are written by `moving`, `expiring`, `earmarks`, `holds`, `settling` and `refunds`.

Every function of these runs inside the caller's transaction. A transfer is identified by its own id: asking twice
for the same transfer answers without doing it again, asking for another content under the same id is an
error. Accounts are changed by one conditional UPDATE each, in the order of their ids, so that two
transactions never wait for each other in a circle; what one account refuses undoes all (the caller's
transaction or savepoint rolls back).
"""

from __future__ import annotations

from sqlalchemy import insert

from quota.db import Tx
from quota.ledger.tables import accounts


def open_account(
    tx: Tx,
    account_id: str,
    kind: str,
    *,
    parent_id: str | None = None,
    program_id: str | None = None,
    organization_id: str | None = None,
    grant_id: str | None = None,
    released: bool = True,
    label: str | None = None,
    position: int | None = None,
    overdraft_thousandths: int = 0,
) -> None:
    """Make an empty account. Nothing can be held on one that is not `released`."""
    tx.connection.execute(
        insert(accounts),
        {
            "id": account_id,
            "kind": kind,
            "parent_id": parent_id,
            "program_id": program_id,
            "organization_id": organization_id,
            "grant_id": grant_id,
            "released": released,
            "label": label,
            "position": position,
            "granted_gpu_us": 0,
            "held_gpu_us": 0,
            "used_gpu_us": 0,
            "overdraft_gpu_us": 0,
            "overdraft_thousandths": overdraft_thousandths,
        },
    )
