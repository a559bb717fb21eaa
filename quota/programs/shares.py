"""A consortium's shares: how many hours of a grant each party may use in all.

The first share divides the grant: from then on only parties with an open share may start on it, its own organization
with a share of its own too. What was held before goes on, on the grant alone, until it resolves.
"""

from __future__ import annotations

from sqlalchemy import update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import BadRequest, Forbidden, InsufficientBalance, NotFound
from quota.identity import service as identity
from quota.ids import new_id
from quota.ledger import service as ledger
from quota.ledger.earmarks import earmark
from quota.ledger.tables import accounts
from quota.programs.limits import (
    SHARE,
    Limit,
    Tree,
    check_divisible,
    check_hours,
    check_new_amount,
    check_running,
    check_visible,
    lock_tree,
    read_tree,
    share_views,
)
from quota.schemas.identity import Caller, Role
from quota.schemas.limits import Share, ShareChange, ShareList, ShareMove


def put_share(
    tx: Tx,
    caller: Caller,
    grant_id: str,
    organization_id: str,
    body: ShareChange,
    if_match: str | None,
) -> Share:
    """Set what a party may use in all; 0 lowers it to what it used and holds, and closes it for new starts.

    Operators bring parties in; the grant's own organization opens its own share and changes the others'.
    Raises NotFound, Forbidden, PreconditionFailed, GrantNotActive, BadRequest, InsufficientBalance.
    """
    check_hours(body.gpu_hours, "gpu_hours", least=0)
    tree = lock_tree(tx, grant_id)
    check_divisible(tree)
    _check_divides(caller, tree)
    share = tree.share_of(organization_id)
    check_match(if_match, share_tag(tree, share))
    check_running(tx, tree)
    if share is None:
        _check_may_join(tx, caller, tree, organization_id, body)
    opened = body.gpu_hours > 0
    gpu_us = body.gpu_hours if opened or share is None else share.taken_gpu_us
    check_new_amount(tree, share, gpu_us, tree.shares)
    if share is None:
        share = _open(tx, tree, organization_id)
    before, change = _told(share), gpu_us - share.granted_gpu_us
    if not change and share.released == opened:
        return _view(tx, tree, organization_id)
    if change:
        earmark(tx, new_id("share"), {share.id: change}, actor=caller.token_id, reason=body.reason)
    _set_open(tx, share, opened)
    tx.touch("grant", grant_id)
    view = _view(tx, tree, organization_id)
    after = {
        "account": share.id,
        "granted_gpu_us": str(view.balance.granted_gpu_us),
        "open": view.open,
    }
    audit.record(tx, caller, "grant.share", grant_id, reason=body.reason, before=before, after=after)
    return view


def move_share(tx: Tx, caller: Caller, grant_id: str, body: ShareMove) -> ShareList:
    """Move hours from one party to another: one transfer, one leg on each share. A closed receiver opens.

    Raises NotFound, Forbidden, GrantNotActive, BadRequest, InsufficientBalance with what can be moved.
    """
    check_hours(body.gpu_hours, "gpu_hours")
    giver, taker = body.from_organization_id, body.to_organization_id
    if giver == taker:
        raise BadRequest("the two organizations must differ", field="to_organization_id")
    tree = lock_tree(tx, grant_id)
    _check_divides(caller, tree)
    check_running(tx, tree)
    source = _known(tree, giver, "from_organization_id")
    target = _known(tree, taker, "to_organization_id")
    if body.gpu_hours > source.free_gpu_us:
        raise InsufficientBalance(
            "at most {left_gpu_us} GPU-us can be taken from {account}, {needed_gpu_us} were asked for",
            field="gpu_hours",
            account=source.id,
            needed_gpu_us=body.gpu_hours,
            left_gpu_us=source.free_gpu_us,
        )
    changes = {source.id: -body.gpu_hours, target.id: body.gpu_hours}
    earmark(tx, new_id("share-move"), changes, actor=caller.token_id, reason=body.reason)
    _set_open(tx, target, True)
    tx.touch("grant", grant_id)
    tree_after = read_tree(tx.connection, grant_id)
    moved = tuple(_known(tree_after, party, "") for party in sorted((giver, taker)))
    audit.record(
        tx,
        caller,
        "grant.share_move",
        grant_id,
        reason=body.reason,
        detail={"from": giver, "to": taker, "amount_gpu_us": str(body.gpu_hours)},
        before={party.organization_id or "": _told(party) for party in (source, target)},
        after={party.organization_id or "": _told(party) for party in moved},
    )
    return ShareList(items=share_views(grant_id, moved))


def read_share(tree: Tree, caller: Caller, organization_id: str) -> tuple[Share, str]:
    """A party's share with its entity tag; a party sees its own. Raises NotFound."""
    check_visible(caller, tree)
    share = tree.share_of(organization_id)
    seen = identity.sees(caller, tree.organization_id) or organization_id == caller.organization_id
    if share is None or not seen:
        raise _no_share(tree, organization_id)
    return share_views(tree.grant_id, [share])[0], share_tag(tree, share)


def share_tag(tree: Tree, share: Limit | None) -> str:
    """The entity tag of a share, or of there being none yet."""
    if share is None:
        return etag(tree.grant_id, None)
    return etag(share.id, share.granted_gpu_us, share.released)


def _check_divides(caller: Caller, tree: Tree) -> None:
    """The grant's own organization and operators divide it; its parties know it and may not, others don't know it."""
    check_visible(caller, tree)
    if caller.role is not Role.OPERATOR and caller.organization_id != tree.organization_id:
        raise Forbidden("only the grant's own organization divides it", grant_id=tree.grant_id)


def _check_may_join(tx: Tx, caller: Caller, tree: Tree, organization_id: str, body: ShareChange) -> None:
    """A firm can't learn which organizations there are by naming them: operators bring in the parties."""
    if body.gpu_hours == 0 or not (caller.role is Role.OPERATOR or organization_id == caller.organization_id):
        raise _no_share(tree, organization_id)
    identity.read_organization(tx.connection, organization_id)


def _open(tx: Tx, tree: Tree, organization_id: str) -> Limit:
    account_id = f"share:{tree.grant_id}:{organization_id}"
    ledger.open_account(
        tx,
        account_id,
        SHARE,
        parent_id=tree.top.id,
        program_id=tree.program_id,
        organization_id=organization_id,
        grant_id=tree.grant_id,
        released=False,
    )
    return Limit(account_id, SHARE, organization_id, 0, "", False, 0, 0, 0)


def _set_open(tx: Tx, share: Limit, opened: bool) -> None:
    if share.released != opened:
        tx.connection.execute(update(accounts).where(accounts.c.id == share.id).values(released=opened))


def _view(tx: Tx, tree: Tree, organization_id: str) -> Share:
    share = read_tree(tx.connection, tree.grant_id).share_of(organization_id)
    assert share is not None, "it was opened above"
    return share_views(tree.grant_id, [share])[0]


def _known(tree: Tree, organization_id: str, field: str) -> Limit:
    share = tree.share_of(organization_id)
    if share is None:
        raise _no_share(tree, organization_id, field)
    return share


def _no_share(tree: Tree, organization_id: str, field: str = "") -> NotFound:
    return NotFound(
        "{organization_id} has no share of grant {grant_id}",
        field=field,
        organization_id=organization_id,
        grant_id=tree.grant_id,
    )


def _told(share: Limit) -> dict[str, object]:
    return {"account": share.id, "granted_gpu_us": str(share.granted_gpu_us), "open": share.released}
