"""The limit accounts of a grant as a tree, and its cap: what shares and tranches are changed and read with.

Whoever changes a limit locks the grant's account first. Its id sorts before its shares' and tranches', and every
hold, charge and refund that touches one of those touches the grant too: so the tree stands still under that lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Connection, Row, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import BadRequest, GrantNotActive, InsufficientBalance, NotFound, WrongState
from quota.identity import service as identity
from quota.ledger.tables import accounts
from quota.programs.tables import grants
from quota.schemas.identity import Caller
from quota.schemas.limits import GrantLimits, LimitBalance, Share, Tranche

SHARE, TRANCHE = "share", "tranche"


@dataclass(frozen=True, slots=True)
class Limit:
    """One account of a grant's tree; amounts in GPU-microseconds."""

    id: str
    kind: str
    organization_id: str | None
    position: int
    label: str
    released: bool
    granted_gpu_us: int
    held_gpu_us: int
    used_gpu_us: int

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """From a row of accounts."""
        return cls(
            row.id,
            row.kind,
            row.organization_id,
            row.position or 0,
            row.label or "",
            row.released,
            row.granted_gpu_us,
            row.held_gpu_us,
            row.used_gpu_us,
        )

    @property
    def taken_gpu_us(self) -> int:
        """Used or held: what a limit never falls below."""
        return self.used_gpu_us + self.held_gpu_us

    @property
    def free_gpu_us(self) -> int:
        """What can be taken away."""
        return max(0, self.granted_gpu_us - self.taken_gpu_us)


@dataclass(frozen=True, slots=True)
class Tree:
    """A grant with its account and the limit accounts below it, shares by organization, tranches by position."""

    grant_id: str
    program_id: str
    organization_id: str | None
    """None: it is its programme's own."""
    ends_at_ms: int
    max_gpus: int | None
    top: Limit
    shares: tuple[Limit, ...]
    tranches: tuple[Limit, ...]

    def share_of(self, organization_id: str | None) -> Limit | None:
        """A party's share, open or closed."""
        return next((share for share in self.shares if share.organization_id == organization_id), None)

    def tranche(self, position: int) -> Limit:
        """The tranche at a position. Raises NotFound."""
        for tranche in self.tranches:
            if tranche.position == position:
                return tranche
        raise NotFound(
            "grant {grant_id} has no tranche {position}", grant_id=self.grant_id, position=position
        )

    def left_for(self, children: Sequence[Limit]) -> int:
        """What can still be given to limits of one kind, so that every hour given can really be used.

        Hours that the grant used or holds outside of these limits, from before there were any, are gone for them.
        """
        outside = max(0, self.top.taken_gpu_us - sum(child.taken_gpu_us for child in children))
        divided = outside + sum(child.granted_gpu_us for child in children)
        return max(0, self.top.granted_gpu_us - divided)


def lock_tree(tx: Tx, grant_id: str) -> Tree:
    """A grant's tree, locked until the transaction ends. Raises NotFound."""
    account_id = tx.connection.execute(
        select(grants.c.account_id).where(grants.c.id == grant_id)
    ).scalar_one_or_none()
    if account_id is not None:
        tx.connection.execute(
            select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
        ).one()
    return read_tree(tx.connection, grant_id)


def read_tree(connection: Connection, grant_id: str) -> Tree:
    """A grant's tree. Raises NotFound."""
    grant = connection.execute(select(grants).where(grants.c.id == grant_id)).one_or_none()
    if grant is None:
        raise _unknown(grant_id)
    rows = connection.execute(select(accounts).where(accounts.c.grant_id == grant_id).order_by(accounts.c.id))
    limits = [Limit.of(row) for row in rows]
    tranches = (limit for limit in limits if limit.kind == TRANCHE)
    return Tree(
        grant.id,
        grant.program_id,
        grant.organization_id,
        grant.ends_at_ms,
        grant.max_gpus,
        top=next(limit for limit in limits if limit.id == grant.account_id),
        shares=tuple(limit for limit in limits if limit.kind == SHARE),
        tranches=tuple(sorted(tranches, key=lambda limit: limit.position)),
    )


def check_divisible(tree: Tree) -> None:
    """Raise WrongState for a programme's own grant: opportunistic jobs draw on it whole."""
    if tree.organization_id is None:
        raise WrongState("grant {grant_id} is a programme's own: it is not divided", grant_id=tree.grant_id)


def check_visible(caller: Caller, tree: Tree) -> None:
    """Raise NotFound unless the grant is the caller's, or its organization has a share of it."""
    if not identity.sees(caller, tree.organization_id) and tree.share_of(caller.organization_id) is None:
        raise _unknown(tree.grant_id)


def check_running(tx: Tx, tree: Tree) -> None:
    """Raise GrantNotActive once the grant has ended: nothing of it can be divided any more."""
    if tree.ends_at_ms <= tx.now_ms:
        raise GrantNotActive("grant {grant_id} has ended", grant_id=tree.grant_id)


def check_hours(gpu_us: int, field: str, *, least: int = 1) -> None:
    """Raise BadRequest for an amount below `least`."""
    if gpu_us < least:
        raise BadRequest("{name} must be at least {least} GPU-us", field=field, name=field, least=least)


def check_new_amount(tree: Tree, limit: Limit | None, gpu_us: int, children: Sequence[Limit]) -> None:
    """Raise InsufficientBalance, with what is possible, unless a limit may become `gpu_us`."""
    granted = 0 if limit is None else limit.granted_gpu_us
    most = granted + tree.left_for(children)
    if gpu_us > most:
        raise InsufficientBalance(
            "at most {left_gpu_us} GPU-us of grant {grant_id} are possible here, {needed_gpu_us} were asked for",
            field="gpu_hours",
            grant_id=tree.grant_id,
            needed_gpu_us=gpu_us,
            left_gpu_us=most,
        )
    if limit is not None and gpu_us < limit.taken_gpu_us:
        raise InsufficientBalance(
            "{account} has used and held {taken_gpu_us} GPU-us and can't be lowered to {asked_gpu_us}",
            field="gpu_hours",
            account=limit.id,
            taken_gpu_us=limit.taken_gpu_us,
            asked_gpu_us=gpu_us,
            needed_gpu_us=limit.granted_gpu_us - gpu_us,
            left_gpu_us=limit.free_gpu_us,
        )


def room_outside(connection: Connection, grant_id: str, path: Collection[str]) -> int | None:
    """What a hold that began before its grant was divided may still take of it; None if no limit was laid over it.

    More would take hours that shares or tranches were given. The caller has locked the grant's account.
    """
    tree = read_tree(connection, grant_id)
    laid = [
        kind for kind in (tree.shares, tree.tranches) if kind and not any(limit.id in path for limit in kind)
    ]
    return min((tree.left_for(kind) for kind in laid), default=None)


def change_cap(tx: Tx, caller: Caller, grant_id: str, max_gpus: int | None, reason: str) -> None:
    """Set how many GPUs attempts on a grant may keep at once; None lifts the cap. What runs is left alone.

    A start holds the grant's account until it is committed, so no start is checked against the old number after
    this. Raises NotFound.
    """
    tree = lock_tree(tx, grant_id)
    if max_gpus == tree.max_gpus:
        return
    tx.connection.execute(update(grants).where(grants.c.id == grant_id).values(max_gpus=max_gpus))
    tx.touch("grant", grant_id)
    audit.record(
        tx,
        caller,
        "grant.cap",
        grant_id,
        reason=reason,
        before={"max_gpus": tree.max_gpus},
        after={"max_gpus": max_gpus},
    )


# --- views ----------------------------------------------------------------------------------------


def read_limits(
    connection: Connection, caller: Caller, grant_id: str, gpus_in_use: int | None
) -> GrantLimits:
    """Every limit inside a grant; a party sees its own share, and of the tranches which are released."""
    tree = read_tree(connection, grant_id)
    check_visible(caller, tree)
    whole = identity.sees(caller, tree.organization_id)
    own = tree.share_of(caller.organization_id)
    shares = tree.shares if whole else (() if own is None else (own,))
    return GrantLimits(
        grant_id=grant_id,
        max_gpus=tree.max_gpus,
        gpus_in_use=gpus_in_use if whole else None,
        shares=share_views(grant_id, shares),
        left_for_shares_gpu_us=tree.left_for(tree.shares) if whole else None,
        tranches=tranche_views(grant_id, tree.tranches, whole=whole),
        left_for_tranches_gpu_us=tree.left_for(tree.tranches) if whole else None,
    )


def share_views(grant_id: str, shares: Iterable[Limit]) -> tuple[Share, ...]:
    """Shares as the API shows them."""
    return tuple(
        Share(
            grant_id=grant_id,
            organization_id=share.organization_id or "",
            account_id=share.id,
            open=share.released,
            balance=_balance(share),
        )
        for share in shares
    )


def tranche_views(grant_id: str, tranches: Iterable[Limit], *, whole: bool = True) -> tuple[Tranche, ...]:
    """Tranches as the API shows them."""
    return tuple(
        Tranche(
            grant_id=grant_id,
            position=tranche.position,
            label=tranche.label,
            released=tranche.released,
            account_id=tranche.id,
            balance=_balance(tranche) if whole else None,
        )
        for tranche in tranches
    )


def _balance(limit: Limit) -> LimitBalance:
    available = limit.granted_gpu_us - limit.taken_gpu_us
    return LimitBalance(
        granted_gpu_us=limit.granted_gpu_us,
        held_gpu_us=limit.held_gpu_us,
        used_gpu_us=limit.used_gpu_us,
        available_gpu_us=available,
        granted_gpu_hours=limit.granted_gpu_us,
        held_gpu_hours=limit.held_gpu_us,
        used_gpu_hours=limit.used_gpu_us,
        available_gpu_hours=available,
    )


def _unknown(grant_id: str) -> NotFound:
    return NotFound("there is no grant {grant_id}", grant_id=grant_id)
