"""The paths of limit accounts that holds may take through a grant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from quota.ledger.tables import accounts
from quota.prepared import Prepared
from quota.programs.tables import grants, opportunistic_funds
from quota.schemas.scheduling import AccountBalance, AccountPath
from quota.schemas.values import built

_TREES = Prepared(
    select(
        accounts,
        grants.c.program_id.label("of_program"),
        grants.c.organization_id.label("of_organization"),
        grants.c.starts_at_ms,
        grants.c.ends_at_ms,
        grants.c.max_gpus,
        grants.c.pace_lag_ms,
        grants.c.pace_as_of_ms,
        grants.c.pace_spent_gpu_us,
        opportunistic_funds.c.pays,
    )
    .join(grants, grants.c.id == accounts.c.grant_id)
    .outerjoin(opportunistic_funds, opportunistic_funds.c.grant_id == grants.c.id)
    .where(grants.c.id.in_(bindparam("grants", expanding=True)))
    .order_by(accounts.c.id),
    lists=("grants",),
)


def read_trees(connection: Connection, grant_ids: Collection[str]) -> dict[str, list[Row[Any]]]:
    """The accounts of grants in the order of their ids, by grant.

    Each row carries its grant as well: term, cap, pace, `of_program` and `of_organization` (None for a programme's
    own), and of that whether it `pays`.
    """
    trees: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in _TREES.all(connection, {"grants": grant_ids}):
        trees[row.grant_id].append(row)
    return trees


def account_paths(organization_id: str, rows: list[Row[Any]]) -> tuple[AccountPath, ...]:
    """The paths that holds may take through a grant's accounts: share of a party, released tranche, grant.

    A grant without shares is its own organization's; one without tranches is released as a whole. Parties stand in
    order of id, a party's tranches in the order in which they are drawn on. A closed share and a locked tranche are
    on no path; a grant that was divided stays divided when its last share is closed.
    """
    grant = [row for row in rows if row.kind == "grant"]
    divided = sorted((row for row in rows if row.kind == "share"), key=lambda row: row.organization_id)
    shares = [(row.organization_id, [row]) for row in divided if row.released]
    tranches = sorted((row for row in rows if row.kind == "tranche"), key=lambda row: (row.position, row.id))
    released = [[row] for row in tranches if row.released] if tranches else [[]]
    parties = shares if divided else [(organization_id, [])]
    return tuple(
        built(
            AccountPath,
            accounts=tuple(_balance(row) for row in (*share, *tranche, *grant)),
            organization_id=party,
        )
        for party, share in parties
        for tranche in released
    )


def _balance(row: Row[Any]) -> AccountBalance:
    return built(
        AccountBalance,
        id=row.id,
        granted_gpu_us=row.granted_gpu_us,
        held_gpu_us=row.held_gpu_us,
        used_gpu_us=row.used_gpu_us,
        overdraft_gpu_us=row.overdraft_gpu_us,
    )
