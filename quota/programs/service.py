"""Programmes and grants as others read them: with their balances, and which of them can pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
)

from quota.door import etag, page
from quota.errors import BadRequest, NotFound
from quota.identity import service as identity
from quota.ledger.tables import accounts
from quota.prepared import Prepared
from quota.programs.policies import read_document
from quota.programs.tables import grants, programs
from quota.schemas.identity import Caller, Role
from quota.schemas.programs import Grant, GrantList, GrantState, Program, ProgramList
from quota.schemas.scheduling import Pace

PAGE = 200

_PROGRAMS = select(programs, accounts.c.granted_gpu_us).join(accounts, accounts.c.id == programs.c.account_id)
_WITH_BALANCE = select(
    grants,
    accounts.c.granted_gpu_us,
    accounts.c.held_gpu_us,
    accounts.c.used_gpu_us,
    accounts.c.overdraft_gpu_us,
).join(accounts, accounts.c.id == grants.c.account_id)
# what an organization draws on: its share of a grant, or its own grant while that has no shares
_OWN = accounts.alias("own")
_SHARES = accounts.alias("shares")
_DIVIDED = exists().where(_SHARES.c.grant_id == grants.c.id, _SHARES.c.kind == "share")
_LEFT = accounts.c.granted_gpu_us + accounts.c.overdraft_gpu_us - accounts.c.used_gpu_us
_OWN_LEFT = _OWN.c.granted_gpu_us + _OWN.c.overdraft_gpu_us - _OWN.c.used_gpu_us
_PAYABLE = Prepared(
    _WITH_BALANCE.add_columns(case((_OWN_LEFT < _LEFT, _OWN_LEFT), else_=_LEFT).label("left_gpu_us"))
    .join(_OWN, _OWN.c.grant_id == grants.c.id)
    .where(
        _OWN.c.organization_id == bindparam("organization"),
        or_(and_(_OWN.c.kind == "share", _OWN.c.released), and_(_OWN.c.kind == "grant", ~_DIVIDED)),
        grants.c.ends_at_ms > bindparam("now"),
    )
    .order_by(grants.c.ends_at_ms, grants.c.id)
)


def list_programs(connection: Connection, after: str | None = None, limit: int = PAGE) -> ProgramList:
    """Programmes in order of id: budget = awarded + remaining + expired."""
    statement = _PROGRAMS.order_by(programs.c.id).limit(limit + 1)
    if after is not None:
        statement = statement.where(programs.c.id > after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    return ProgramList(items=_with_sums(connection, rows), next=following)


def read_program(connection: Connection, program_id: str) -> Program:
    """One programme. Raises NotFound."""
    rows = connection.execute(_PROGRAMS.where(programs.c.id == program_id)).all()
    if not rows:
        raise NotFound("there is no programme {program_id}", program_id=program_id)
    return _with_sums(connection, rows)[0]


def tag_of_program(program: Program) -> str:
    """The entity tag of a programme."""
    return etag(program.id, program.name, program.policy_id)


def tag_of_grant(grant: Grant) -> str:
    """The entity tag of a grant: of what operators edit of it, whatever is used or held meanwhile."""
    return etag(grant.id, grant.ends_at, grant.max_gpus)


def read_grant(connection: Connection, grant_id: str, now_ms: int, caller: Caller | None = None) -> Grant:
    """One grant with its balance; a party of a consortium sees its share's.

    Another organization's grant is as unknown as one that is not there.
    """
    row = grant_row(connection, grant_id)
    if caller is None or identity.sees(caller, row.organization_id):
        return _grant(row, now_ms)
    share = _shares(connection, caller, [grant_id]).get(grant_id)
    if share is None:
        raise NotFound("there is no grant {grant_id}", grant_id=grant_id)
    return _grant(row, now_ms, share)


def list_grants(
    connection: Connection,
    caller: Caller,
    now_ms: int,
    organization_id: str | None = None,
    after: str | None = None,
    *,
    program_id: str | None = None,
    state: GrantState | None = None,
    limit: int = PAGE,
) -> GrantList:
    """Grants in order of id; a member sees its organization's."""
    statement = _WITH_BALANCE.order_by(grants.c.id).limit(limit + 1)
    if caller.role is Role.MEMBER:
        party = select(accounts.c.grant_id).where(
            accounts.c.organization_id == caller.organization_id, accounts.c.kind == "share"
        )
        own = grants.c.organization_id == caller.organization_id
        statement = statement.where(or_(own, grants.c.id.in_(party)))
    if organization_id is not None:
        statement = statement.where(grants.c.organization_id == organization_id)
    if program_id is not None:
        statement = statement.where(grants.c.program_id == program_id)
    if state is not None:
        statement = statement.where(_in_state(state, now_ms))
    if after is not None:
        statement = statement.where(grants.c.id > after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    foreign = [row.id for row in rows if not identity.sees(caller, row.organization_id)]
    shares = _shares(connection, caller, foreign)
    return GrantList(items=tuple(_grant(row, now_ms, shares.get(row.id)) for row in rows), next=following)


def _in_state(state: GrantState, now_ms: int) -> ColumnElement[bool]:
    match state:
        case GrantState.COMING:
            return grants.c.starts_at_ms > now_ms
        case GrantState.ACTIVE:
            return and_(grants.c.starts_at_ms <= now_ms, grants.c.ends_at_ms > now_ms)
        case GrantState.ENDED:
            return grants.c.ends_at_ms <= now_ms
    assert_never(state)


def payable_grants(connection: Connection, organization_id: str, now_ms: int) -> list[Row[Any]]:
    """The grants that an organization may draw on and that have not ended, earliest end first, with their balances.

    `left_gpu_us` is what it has not used of its part: its share of a consortium's grant, else the grant.
    """
    return _PAYABLE.all(connection, {"organization": organization_id, "now": now_ms})


def grant_row(connection: Connection, grant_id: str, *, field: str = "") -> Row[Any]:
    """A grant's row with its balance. Raises NotFound."""
    row: Row[Any] | None = connection.execute(_WITH_BALANCE.where(grants.c.id == grant_id)).one_or_none()
    if row is None:
        raise NotFound("there is no grant {grant_id}", field=field, grant_id=grant_id)
    return row


def check_positive(amount_gpu_us: int, field: str) -> None:
    """Raise BadRequest for an amount of nothing or less."""
    if amount_gpu_us <= 0:
        raise BadRequest("{name} must be more than 0", field=field, name=field)


def _shares(connection: Connection, caller: Caller, grant_ids: list[str]) -> dict[str, Row[Any]]:
    """The caller's shares of other organizations' grants, by grant."""
    if not grant_ids or caller.organization_id is None:
        return {}
    rows = connection.execute(
        select(accounts).where(
            accounts.c.grant_id.in_(grant_ids),
            accounts.c.kind == "share",
            accounts.c.organization_id == caller.organization_id,
        )
    )
    return {row.grant_id: row for row in rows}


def _with_sums(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[Program, ...]:
    sums = (
        select(accounts.c.program_id, accounts.c.kind, func.sum(accounts.c.granted_gpu_us).label("granted"))
        .where(accounts.c.kind.in_(("grant", "expired")), accounts.c.program_id.in_([row.id for row in rows]))
        .group_by(accounts.c.program_id, accounts.c.kind)
    )
    granted = {(row.program_id, row.kind): int(row.granted) for row in connection.execute(sums)}
    return tuple(
        _program(row, granted.get((row.id, "grant"), 0), granted.get((row.id, "expired"), 0)) for row in rows
    )


def _program(row: Row[Any], awarded: int, expired: int) -> Program:
    budget = row.granted_gpu_us + awarded + expired
    return Program(
        id=row.id,
        name=row.name,
        account_id=row.account_id,
        policy_id=row.policy_id,
        budget_gpu_us=budget,
        budget_gpu_hours=budget,
        awarded_gpu_us=awarded,
        remaining_gpu_us=row.granted_gpu_us,
        remaining_gpu_hours=row.granted_gpu_us,
        expired_gpu_us=expired,
        expired_gpu_hours=expired,
        created_at=row.created_at_ms,
    )


def pace_of(row: Row[Any]) -> Pace | None:
    """A grant's pace as its row keeps it; None before the first ranking."""
    if row.pace_lag_ms is None:
        return None
    return Pace(lag_ms=row.pace_lag_ms, as_of=row.pace_as_of_ms, spent_gpu_us=row.pace_spent_gpu_us)


def _grant(row: Row[Any], now_ms: int, share: Row[Any] | None = None) -> Grant:
    seen = row if share is None else share
    available = seen.granted_gpu_us - seen.held_gpu_us - seen.used_gpu_us
    state = GrantState.ACTIVE
    if now_ms < row.starts_at_ms:
        state = GrantState.COMING
    elif now_ms >= row.ends_at_ms:
        state = GrantState.ENDED
    return Grant(
        id=row.id,
        program_id=row.program_id,
        organization_id=row.organization_id,
        account_id=row.account_id if share is None else share.id,
        state=state,
        starts_at=row.starts_at_ms,
        ends_at=row.ends_at_ms,
        granted_gpu_us=seen.granted_gpu_us,
        held_gpu_us=seen.held_gpu_us,
        used_gpu_us=seen.used_gpu_us,
        available_gpu_us=available,
        granted_gpu_hours=seen.granted_gpu_us,
        held_gpu_hours=seen.held_gpu_us,
        used_gpu_hours=seen.used_gpu_us,
        available_gpu_hours=available,
        pace=pace_of(row) if share is None else None,
        max_gpus=row.max_gpus,
        overdraft_gpu_us=seen.overdraft_gpu_us,
        policy=read_document(row.policy),
        expired_at=row.expired_at_ms,
        created_at=row.created_at_ms,
    )
