"""Tranches: parts of a grant's hours that are released one after the other, each on evidence.

A hold is on one tranche as a whole. So a release moves what the earlier tranches have left into the new one: one
tranche then has all that can be drawn on, but for what comes free on an older one later, which stays drawable there.
"""

from __future__ import annotations

from sqlalchemy import update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import AlreadyExists, BadRequest, Conflict
from quota.ids import new_id
from quota.ledger import service as ledger
from quota.ledger.earmarks import earmark
from quota.ledger.tables import accounts
from quota.programs.limits import (
    TRANCHE,
    Limit,
    Tree,
    check_divisible,
    check_hours,
    check_new_amount,
    check_running,
    lock_tree,
    read_tree,
    tranche_views,
)
from quota.schemas.identity import Caller
from quota.schemas.limits import NewTranches, Tranche, TrancheChange, TrancheList, TrancheRelease


class TrancheOrder(Conflict):
    """Tranches are released in their order."""

    code = "tranche_order"


def open_tranches(
    tx: Tx, caller: Caller, grant_id: str, body: NewTranches, *, whole: bool = False
) -> TrancheList:
    """Divide a grant into tranches, once; with `whole` they must come to all of its hours.

    Together they come to at most what the grant has not used or held yet; what stands in no tranche can't be drawn
    on until one is raised. Raises NotFound, AlreadyExists, GrantNotActive, BadRequest, InsufficientBalance.
    """
    tree = lock_tree(tx, grant_id)
    check_divisible(tree)
    check_running(tx, tree)
    if tree.tranches:
        raise AlreadyExists("grant {grant_id} has tranches already", grant_id=grant_id)
    for tranche in body.tranches:
        check_hours(tranche.gpu_hours, "tranches")
    total = sum(tranche.gpu_hours for tranche in body.tranches)
    if whole and total != tree.top.granted_gpu_us:
        raise BadRequest(
            "the tranches come to {total_gpu_us} GPU-us, the award is {granted_gpu_us}",
            field="tranches",
            total_gpu_us=total,
            granted_gpu_us=tree.top.granted_gpu_us,
        )
    check_new_amount(tree, None, total, tree.tranches)
    changes = {}
    for position, tranche in enumerate(body.tranches, start=1):
        account_id = f"tranche:{grant_id}:{position}"
        ledger.open_account(
            tx,
            account_id,
            TRANCHE,
            parent_id=tree.top.id,
            program_id=tree.program_id,
            organization_id=tree.organization_id,
            grant_id=grant_id,
            released=position == 1 and body.first_released,
            label=tranche.label,
            position=position,
        )
        changes[account_id] = tranche.gpu_hours
    earmark(tx, f"{tree.top.id}:tranches", changes, actor=caller.token_id, reason=body.reason)
    return _changed(tx, caller, tree, "grant.tranches", body.reason)


def put_tranche(
    tx: Tx, caller: Caller, grant_id: str, position: int, body: TrancheChange, if_match: str | None
) -> Tranche:
    """Set what a tranche has in all: at least what it used and holds, at most what stands in no other.

    Raises NotFound, PreconditionFailed, GrantNotActive, BadRequest, InsufficientBalance.
    """
    check_hours(body.gpu_hours, "gpu_hours", least=0)
    tree = lock_tree(tx, grant_id)
    tranche = tree.tranche(position)
    check_match(if_match, tranche_tag(tranche))
    check_running(tx, tree)
    check_new_amount(tree, tranche, body.gpu_hours, tree.tranches)
    change = body.gpu_hours - tranche.granted_gpu_us
    if not change:
        return tranche_views(grant_id, [tranche])[0]
    earmark(tx, new_id("tranche"), {tranche.id: change}, actor=caller.token_id, reason=body.reason)
    return _changed(tx, caller, tree, "grant.tranche", body.reason).items[position - 1]


def release_tranche(
    tx: Tx, caller: Caller, grant_id: str, position: int, body: TrancheRelease
) -> TrancheList:
    """Release the next tranche and move what the earlier ones have left into it. Asking twice is asking once.

    Raises NotFound, TrancheOrder, GrantNotActive.
    """
    tree = lock_tree(tx, grant_id)
    tranche = tree.tranche(position)
    if tranche.released:
        return TrancheList(items=tranche_views(grant_id, tree.tranches))
    check_running(tx, tree)
    earlier = [known for known in tree.tranches if known.position < position]
    locked = next((known for known in earlier if not known.released), None)
    if locked is not None:
        raise TrancheOrder(
            "tranche {position} of grant {grant_id} is not released yet, {asked} comes after it",
            grant_id=grant_id,
            position=locked.position,
            asked=position,
        )
    tx.connection.execute(update(accounts).where(accounts.c.id == tranche.id).values(released=True))
    rest = sum(known.free_gpu_us for known in earlier)
    if rest:
        changes = {known.id: -known.free_gpu_us for known in earlier} | {tranche.id: rest}
        transfer_id = f"{tranche.id}:release"
        who, why = caller.token_id, body.reason
        earmark(tx, transfer_id, changes, actor=who, reason=why, evidence=body.evidence)
    return _changed(tx, caller, tree, "grant.release", body.reason, evidence=body.evidence, position=position)


def top_up_tranche(
    tx: Tx, caller: Caller, grant_id: str, gpu_us: int, position: int | None, reason: str
) -> None:
    """Put hours that the grant was just topped up by into a tranche, so that they can be drawn on.

    The tranche named, else the last one released, else the first. Does nothing for a grant without tranches.
    Raises NotFound for a tranche that is not there.
    """
    tree = lock_tree(tx, grant_id)
    if position is not None:
        tranche = tree.tranche(position)
    elif tree.tranches:
        released = [known for known in tree.tranches if known.released]
        tranche = released[-1] if released else tree.tranches[0]
    else:
        return
    earmark(tx, new_id("tranche-top-up"), {tranche.id: gpu_us}, actor=caller.token_id, reason=reason)


def tranche_tag(tranche: Limit) -> str:
    """The entity tag of a tranche."""
    return etag(tranche.id, tranche.granted_gpu_us, tranche.released)


def _changed(tx: Tx, caller: Caller, tree: Tree, action: str, reason: str, **detail: object) -> TrancheList:
    """Tell feed and audit trail, with all tranches before and after."""
    tx.touch("grant", tree.grant_id)
    after = read_tree(tx.connection, tree.grant_id)
    audit.record(
        tx,
        caller,
        action,
        tree.grant_id,
        reason=reason,
        detail=detail,
        before=_told(tree),
        after=_told(after),
    )
    return TrancheList(items=tranche_views(tree.grant_id, after.tranches))


def _told(tree: Tree) -> dict[str, object]:
    return {
        tranche.id: {"granted_gpu_us": str(tranche.granted_gpu_us), "released": tranche.released}
        for tranche in tree.tranches
    }
