"""What a grant or a budget has is changed: top-ups, cuts, transfers between grants, corrections with evidence."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import BadRequest, GrantNotActive
from quota.ids import new_id
from quota.ledger import moving
from quota.ledger.posting import TREASURY
from quota.ledger.tables import accounts
from quota.programs import endings
from quota.programs.awards import check_budgets
from quota.programs.service import check_positive, grant_row, read_grant, read_program
from quota.programs.tranches import top_up_tranche
from quota.schemas.identity import Caller
from quota.schemas.programs import (
    Adjustment,
    Grant,
    GrantChange,
    GrantCut,
    GrantMove,
    GrantTransfer,
    LimitCut,
    Program,
    TopUp,
)


def top_up(tx: Tx, caller: Caller, grant_id: str, body: TopUp) -> Grant:
    """Add hours of the programme's budget to a grant that has not ended, and to a tranche if it has any."""
    row = _running(tx, grant_id)
    check_positive(body.gpu_hours, "gpu_hours")
    moving.deposit(
        tx,
        new_id("top-up"),
        f"program:{row.program_id}",
        row.account_id,
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
        evidence=body.evidence,
    )
    top_up_tranche(tx, caller, grant_id, body.gpu_hours, body.tranche, body.reason)
    return _changed(tx, caller, "grant.top_up", row, body)


def cut(tx: Tx, caller: Caller, grant_id: str, body: GrantCut) -> Grant:
    """Take free hours of a running grant back: at most what is neither used, held nor promised to its limit accounts.

    Raises InsufficientBalance with what is possible, GrantNotActive.
    """
    row = _running(tx, grant_id)
    check_positive(body.gpu_hours, "gpu_hours")
    moving.pull_back(
        tx,
        new_id("cut"),
        row.account_id,
        f"program:{row.program_id}",
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
        evidence=body.evidence,
        children=_cuts(body.children),
    )
    return _changed(tx, caller, "grant.cut", row, body)


def transfer(tx: Tx, caller: Caller, grant_id: str, body: GrantTransfer) -> GrantMove:
    """Move free hours of a running grant to another one of the same programme.

    Raises InsufficientBalance with what is possible, GrantNotActive, NotFound, BadRequest.
    """
    source, target = _running(tx, grant_id), _running(tx, body.to_grant_id, "to_grant_id")
    check_positive(body.gpu_hours, "gpu_hours")
    check_target(source, target)
    transfer_id = new_id("transfer")
    moving.transfer(
        tx,
        transfer_id,
        source.account_id,
        target.account_id,
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
        evidence=body.evidence,
        children=_cuts(body.children),
    )
    top_up_tranche(tx, caller, target.id, body.gpu_hours, body.tranche, body.reason)
    given = _changed(tx, caller, "grant.transfer", source, body, transfer_id=transfer_id, to=target.id)
    got = _changed(tx, caller, "grant.receive", target, body, transfer_id=transfer_id, of=source.id)
    return GrantMove(transfer_id=transfer_id, source=given, target=got)


def adjust_grant(tx: Tx, caller: Caller, grant_id: str, body: Adjustment) -> Grant:
    """Correct what a grant was given, against its programme's budget; less never below used + held + limit accounts.

    On a grant that has ended, what the correction leaves free expires in the same transaction.
    """
    row = grant_row(tx.connection, grant_id)
    _adjust(tx, caller, f"program:{row.program_id}", row.account_id, body)
    changed = _changed(tx, caller, "grant.adjust", row, body)
    if not endings.sweep(tx, [grant_id]):
        return changed
    return read_grant(tx.connection, grant_id, tx.now_ms)


def adjust_program(tx: Tx, caller: Caller, program_id: str, body: Adjustment) -> Program:
    """Correct a programme's budget, against the treasury; less never below what it awarded."""
    before = read_program(tx.connection, program_id)
    # the programme before the treasury, as moves lock them
    tx.connection.execute(select(accounts.c.id).where(accounts.c.id == before.account_id).with_for_update())
    before = read_program(tx.connection, program_id)
    if body.gpu_hours > 0:
        check_budgets(tx, body.gpu_hours)
    _adjust(tx, caller, TREASURY, before.account_id, body)
    after = read_program(tx.connection, program_id)
    audit.record(
        tx,
        caller,
        "program.adjust",
        program_id,
        reason=body.reason,
        detail={"amount_gpu_us": str(body.gpu_hours), "evidence": body.evidence},
        before={"budget_gpu_us": str(before.budget_gpu_us)},
        after={"budget_gpu_us": str(after.budget_gpu_us)},
    )
    return after


def check_target(source: Row[Any], target: Row[Any]) -> None:
    """Raise BadRequest unless these are two grants of one programme."""
    if source.id == target.id:
        raise BadRequest("a grant cannot give hours to itself", field="to_grant_id")
    if source.program_id != target.program_id:
        raise BadRequest("both grants must be of one programme", field="to_grant_id")


def _running(tx: Tx, grant_id: str, field: str = "") -> Row[Any]:
    row = grant_row(tx.connection, grant_id, field=field)
    if row.ends_at_ms <= tx.now_ms:
        raise GrantNotActive("grant {grant_id} has ended", field=field, grant_id=grant_id)
    return row


def _adjust(tx: Tx, caller: Caller, giver: str, account_id: str, body: Adjustment) -> None:
    if body.gpu_hours == 0:
        raise BadRequest("a correction of nothing is none", field="gpu_hours")
    source, target = (giver, account_id) if body.gpu_hours > 0 else (account_id, giver)
    moving.adjust(
        tx,
        new_id("adjust"),
        source,
        target,
        abs(body.gpu_hours),
        actor=caller.token_id,
        reason=body.reason,
        evidence=body.evidence,
    )


def _cuts(children: tuple[LimitCut, ...]) -> tuple[moving.ChildCut, ...]:
    for child in children:
        check_positive(child.gpu_hours, "children")
    return tuple(moving.ChildCut(child.account_id, child.gpu_hours) for child in children)


def _changed(
    tx: Tx, caller: Caller, action: str, row: Row[Any], body: GrantChange | Adjustment, **detail: object
) -> Grant:
    after = read_grant(tx.connection, row.id, tx.now_ms)
    tx.touch("grant", row.id)
    if isinstance(body, GrantCut) and body.children and action != "grant.receive":
        detail["children"] = {child.account_id: str(child.gpu_hours) for child in body.children}
    if isinstance(body, TopUp) and body.tranche is not None:
        detail["tranche"] = body.tranche
    audit.record(
        tx,
        caller,
        action,
        row.id,
        reason=body.reason,
        detail={"amount_gpu_us": str(body.gpu_hours), "evidence": body.evidence or ""} | detail,
        before={"granted_gpu_us": str(row.granted_gpu_us)},
        after={"granted_gpu_us": str(after.granted_gpu_us)},
    )
    return after
