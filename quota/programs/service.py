"""Programmes and grants: awards, top-ups and cuts, each a transfer with a reason."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import AlreadyExists, BadRequest, GrantNotActive, InsufficientBalance, NotFound
from quota.identity import service as identity
from quota.identity.tables import organizations
from quota.ids import new_id
from quota.ledger import service as ledger
from quota.ledger.posting import TREASURY
from quota.ledger.tables import accounts
from quota.programs.tables import grants, programs
from quota.schemas.identity import Caller, Role
from quota.schemas.programs import (
    Award,
    Grant,
    GrantChange,
    GrantList,
    GrantState,
    NewProgram,
    Program,
    ProgramList,
)
from quota.schemas.scheduling import Pace
from quota.schemas.values import BIGGEST_GPU_US

PAGE = 200

_WITH_BALANCE = select(
    grants,
    accounts.c.granted_gpu_us,
    accounts.c.held_gpu_us,
    accounts.c.used_gpu_us,
    accounts.c.overdraft_gpu_us,
).join(accounts, accounts.c.id == grants.c.account_id)
_PAYABLE = _WITH_BALANCE.where(
    grants.c.organization_id == bindparam("organization"), grants.c.ends_at_ms > bindparam("now")
).order_by(grants.c.ends_at_ms, grants.c.id)


def create_program(tx: Tx, caller: Caller, body: NewProgram) -> Program:
    """Open a programme: an account, and its budget deposited from the treasury."""
    if tx.connection.execute(select(programs.c.id).where(programs.c.id == body.id)).first():
        raise AlreadyExists(f"programme {body.id} exists already", field="id")
    _positive(body.budget_gpu_hours, "budget_gpu_hours")
    _check_budgets(tx, body.budget_gpu_hours)
    account_id = f"program:{body.id}"
    ledger.open_account(tx, account_id, "program", program_id=body.id)
    tx.connection.execute(
        insert(programs),
        {"id": body.id, "name": body.name, "account_id": account_id, "created_at_ms": tx.now_ms},
    )
    ledger.deposit(
        tx,
        f"{account_id}:budget",
        TREASURY,
        account_id,
        body.budget_gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
    )
    detail = {"name": body.name, "budget_gpu_us": str(body.budget_gpu_hours)}
    audit.record(tx, caller.token_id, "program.create", body.id, reason=body.reason, detail=detail)
    return next(item for item in list_programs(tx.connection).items if item.id == body.id)


def _check_budgets(tx: Tx, budget_gpu_us: int) -> None:
    """All budgets together must stay within the 64 bits of the treasury's account."""
    treasury = select(accounts.c.granted_gpu_us).where(accounts.c.id == TREASURY).with_for_update()
    left = BIGGEST_GPU_US + int(tx.connection.execute(treasury).scalar_one())
    if budget_gpu_us > left:
        raise InsufficientBalance(
            f"all budgets together may come to {BIGGEST_GPU_US} GPU-us, {left} are left",
            field="budget_gpu_hours",
            needed_gpu_us=budget_gpu_us,
            left_gpu_us=left,
        )


def list_programs(connection: Connection) -> ProgramList:
    """All programmes: budget = awarded + remaining."""
    awarded = {
        row.program_id: int(row.awarded)
        for row in connection.execute(
            select(accounts.c.program_id, func.sum(accounts.c.granted_gpu_us).label("awarded"))
            .where(accounts.c.kind == "grant")
            .group_by(accounts.c.program_id)
        )
    }
    rows = connection.execute(
        select(programs, accounts.c.granted_gpu_us)
        .join(accounts, accounts.c.id == programs.c.account_id)
        .order_by(programs.c.id)
    )
    return ProgramList(items=tuple(_program(row, awarded.get(row.id, 0)) for row in rows))


def award(tx: Tx, caller: Caller, body: Award) -> Grant:
    """Award a grant from a programme's budget. Raises InsufficientBalance, NotFound."""
    _positive(body.gpu_hours, "gpu_hours")
    starts_at = tx.now_ms if body.starts_at is None else body.starts_at
    if body.ends_at <= max(starts_at, tx.now_ms):
        raise BadRequest("ends_at must lie after the start and in the future", field="ends_at")
    if tx.connection.execute(select(programs.c.id).where(programs.c.id == body.program_id)).first() is None:
        raise NotFound(f"there is no programme {body.program_id}", field="program_id")
    identity.read_organization(tx.connection, body.organization_id)
    grant_id = new_id("grant")
    account_id = f"grant:{grant_id}"
    ledger.open_account(
        tx,
        account_id,
        "grant",
        program_id=body.program_id,
        organization_id=body.organization_id,
        grant_id=grant_id,
    )
    row = {
        "id": grant_id,
        "program_id": body.program_id,
        "organization_id": body.organization_id,
        "account_id": account_id,
        "starts_at_ms": starts_at,
        "ends_at_ms": body.ends_at,
        "created_at_ms": tx.now_ms,
        "pace_lag_ms": None,
        "pace_as_of_ms": None,
        "pace_spent_gpu_us": None,
    }
    tx.connection.execute(insert(grants), row)
    source = f"program:{body.program_id}"
    ledger.deposit(
        tx,
        f"{account_id}:award",
        source,
        account_id,
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
    )
    tx.touch("grant", grant_id)
    detail = {"organization_id": body.organization_id, "amount_gpu_us": str(body.gpu_hours)}
    audit.record(tx, caller.token_id, "grant.award", grant_id, reason=body.reason, detail=detail)
    return read_grant(tx.connection, grant_id, tx.now_ms)


def top_up(tx: Tx, caller: Caller, grant_id: str, body: GrantChange) -> Grant:
    """Add hours of the programme's budget to a grant that has not ended."""
    row = _grant_row(tx.connection, grant_id)
    _positive(body.gpu_hours, "gpu_hours")
    if row.ends_at_ms <= tx.now_ms:
        raise GrantNotActive(f"grant {grant_id} has ended; award a new one")
    ledger.deposit(
        tx,
        new_id("top-up"),
        f"program:{row.program_id}",
        row.account_id,
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
    )
    return _changed(tx, caller, grant_id, "grant.top_up", body)


def cut(tx: Tx, caller: Caller, grant_id: str, body: GrantChange) -> Grant:
    """Take free hours of a grant back: at most what is neither used nor held. Raises InsufficientBalance."""
    row = _grant_row(tx.connection, grant_id)
    _positive(body.gpu_hours, "gpu_hours")
    ledger.pull_back(
        tx,
        new_id("cut"),
        row.account_id,
        f"program:{row.program_id}",
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
    )
    return _changed(tx, caller, grant_id, "grant.cut", body)


def read_grant(connection: Connection, grant_id: str, now_ms: int, caller: Caller | None = None) -> Grant:
    """One grant with its balance. Another organization's grant is as unknown as one that is not there."""
    row = _grant_row(connection, grant_id)
    if caller is not None and not identity.sees(caller, row.organization_id):
        raise NotFound(f"there is no grant {grant_id}")
    return _grant(row, now_ms)


def list_grants(
    connection: Connection, caller: Caller, now_ms: int, organization_id: str | None, after: str | None
) -> GrantList:
    """Grants in order of id; a member sees its organization's."""
    statement = _WITH_BALANCE.order_by(grants.c.id).limit(PAGE + 1)
    if caller.role is Role.MEMBER:
        statement = statement.where(grants.c.organization_id == caller.organization_id)
    if organization_id is not None:
        statement = statement.where(grants.c.organization_id == organization_id)
    if after is not None:
        statement = statement.where(grants.c.id > after)
    rows = connection.execute(statement).all()
    items = tuple(_grant(row, now_ms) for row in rows[:PAGE])
    return GrantList(items=items, next=items[-1].id if len(rows) > PAGE else None)


def payable_grants(connection: Connection, organization_id: str, now_ms: int) -> list[Row[Any]]:
    """The organization's grants that have not ended, earliest end first, with their balances."""
    return list(connection.execute(_PAYABLE, {"organization": organization_id, "now": now_ms}))


def is_frozen(connection: Connection, organization_id: str) -> bool:
    """Whether the organization may start nothing now."""
    return bool(
        connection.execute(
            select(organizations.c.frozen).where(organizations.c.id == organization_id)
        ).scalar_one()
    )


def _changed(tx: Tx, caller: Caller, grant_id: str, action: str, body: GrantChange) -> Grant:
    tx.touch("grant", grant_id)
    detail = {"amount_gpu_us": str(body.gpu_hours)}
    audit.record(tx, caller.token_id, action, grant_id, reason=body.reason, detail=detail)
    return read_grant(tx.connection, grant_id, tx.now_ms)


def _grant_row(connection: Connection, grant_id: str) -> Row[Any]:
    row: Row[Any] | None = connection.execute(_WITH_BALANCE.where(grants.c.id == grant_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no grant {grant_id}")
    return row


def _positive(amount_gpu_us: int, field: str) -> None:
    if amount_gpu_us <= 0:
        raise BadRequest(f"{field} must be more than 0", field=field)


def _program(row: Row[Any], awarded: int) -> Program:
    return Program(
        id=row.id,
        name=row.name,
        account_id=row.account_id,
        budget_gpu_us=row.granted_gpu_us + awarded,
        budget_gpu_hours=row.granted_gpu_us + awarded,
        awarded_gpu_us=awarded,
        remaining_gpu_us=row.granted_gpu_us,
        remaining_gpu_hours=row.granted_gpu_us,
        created_at=row.created_at_ms,
    )


def pace_of(row: Row[Any]) -> Pace | None:
    """A grant's pace as its row keeps it; None before the first ranking."""
    if row.pace_lag_ms is None:
        return None
    return Pace(lag_ms=row.pace_lag_ms, as_of=row.pace_as_of_ms, spent_gpu_us=row.pace_spent_gpu_us)


def _grant(row: Row[Any], now_ms: int) -> Grant:
    available = row.granted_gpu_us - row.held_gpu_us - row.used_gpu_us
    state = GrantState.ACTIVE
    if now_ms < row.starts_at_ms:
        state = GrantState.COMING
    elif now_ms >= row.ends_at_ms:
        state = GrantState.ENDED
    return Grant(
        id=row.id,
        program_id=row.program_id,
        organization_id=row.organization_id,
        account_id=row.account_id,
        state=state,
        starts_at=row.starts_at_ms,
        ends_at=row.ends_at_ms,
        granted_gpu_us=row.granted_gpu_us,
        held_gpu_us=row.held_gpu_us,
        used_gpu_us=row.used_gpu_us,
        available_gpu_us=available,
        granted_gpu_hours=row.granted_gpu_us,
        held_gpu_hours=row.held_gpu_us,
        used_gpu_hours=row.used_gpu_us,
        available_gpu_hours=available,
        pace=pace_of(row),
        created_at=row.created_at_ms,
    )
