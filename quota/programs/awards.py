"""Programmes are opened, and grants are awarded from them under the programme's policy."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match
from quota.errors import AlreadyExists, BadRequest, InsufficientBalance, NotFound
from quota.identity import service as identity
from quota.ids import new_id
from quota.ledger import moving
from quota.ledger import service as ledger
from quota.ledger.expiring import expired_account
from quota.ledger.posting import TREASURY
from quota.ledger.tables import accounts
from quota.programs.policies import read_policy
from quota.programs.service import check_positive, read_grant, read_program, tag_of_program
from quota.programs.tables import grants, programs
from quota.programs.tranches import open_tranches
from quota.schemas.identity import Caller
from quota.schemas.limits import NewTranches
from quota.schemas.policies import GrantPolicy
from quota.schemas.programs import Award, Grant, NewProgram, Program, ProgramChange
from quota.schemas.values import BIGGEST_GPU_US

MOST_BUDGETS_GPU_US = BIGGEST_GPU_US // 2
"""All budgets together: with an overdraft of as much again, sums still fit 64 bits."""


def create_program(tx: Tx, caller: Caller, body: NewProgram) -> Program:
    """Open a programme: its accounts, and its budget deposited from the treasury."""
    if tx.connection.execute(select(programs.c.id).where(programs.c.id == body.id)).first():
        raise AlreadyExists("programme {program_id} exists already", field="id", program_id=body.id)
    check_positive(body.budget_gpu_hours, "budget_gpu_hours")
    read_policy(tx.connection, body.policy_id, field="policy_id")
    check_budgets(tx, body.budget_gpu_hours)
    account_id = f"program:{body.id}"
    ledger.open_account(tx, account_id, "program", program_id=body.id)
    ledger.open_account(tx, expired_account(body.id), "expired", program_id=body.id)
    tx.connection.execute(
        insert(programs),
        {
            "id": body.id,
            "name": body.name,
            "account_id": account_id,
            "created_at_ms": tx.now_ms,
            "policy_id": body.policy_id,
        },
    )
    moving.deposit(
        tx,
        f"{account_id}:budget",
        TREASURY,
        account_id,
        body.budget_gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
    )
    detail = {
        "name": body.name,
        "budget_gpu_us": str(body.budget_gpu_hours),
        "policy_id": body.policy_id,
    }
    audit.record(tx, caller, "program.create", body.id, reason=body.reason, detail=detail)
    return read_program(tx.connection, body.id)


def change_program(
    tx: Tx, caller: Caller, program_id: str, body: ProgramChange, if_match: str | None = None
) -> Program:
    """Rename a programme or give it another policy, which only its later grants take. The same again does nothing.

    Raises NotFound, PreconditionFailed.
    """
    locked = select(programs.c.id).where(programs.c.id == program_id).with_for_update()
    tx.connection.execute(locked)
    before = read_program(tx.connection, program_id)
    check_match(if_match, tag_of_program(before))
    if body.policy_id is not None:
        read_policy(tx.connection, body.policy_id, field="policy_id")
    asked = {"name": body.name, "policy_id": body.policy_id}
    old = {"name": before.name, "policy_id": before.policy_id}
    new = old | {name: value for name, value in asked.items() if value is not None}
    if new == old:
        return before
    tx.connection.execute(update(programs).where(programs.c.id == program_id).values(new))
    audit.record(tx, caller, "program.change", program_id, reason=body.reason, before=old, after=new)
    return read_program(tx.connection, program_id)


def check_budgets(tx: Tx, budget_gpu_us: int) -> None:
    """All budgets together must stay within the 64 bits of the treasury's account. Locks the treasury."""
    treasury = select(accounts.c.granted_gpu_us).where(accounts.c.id == TREASURY).with_for_update()
    left = MOST_BUDGETS_GPU_US + int(tx.connection.execute(treasury).scalar_one())
    if budget_gpu_us > left:
        raise InsufficientBalance(
            "all budgets together may come to {most_gpu_us} GPU-us, {left_gpu_us} are left",
            field="budget_gpu_hours",
            needed_gpu_us=budget_gpu_us,
            left_gpu_us=left,
            most_gpu_us=MOST_BUDGETS_GPU_US,
        )


def award(tx: Tx, caller: Caller, body: Award) -> Grant:
    """Award a grant from a programme's budget. Raises InsufficientBalance, NotFound."""
    check_positive(body.gpu_hours, "gpu_hours")
    starts_at = tx.now_ms if body.starts_at is None else body.starts_at
    if body.ends_at <= max(starts_at, tx.now_ms):
        raise BadRequest("ends_at must lie after the start and in the future", field="ends_at")
    identity.read_organization(tx.connection, body.organization_id)
    policy = policy_of_program(tx, body.program_id)
    grant_id = new_id("grant")
    account_id = f"grant:{grant_id}"
    ledger.open_account(
        tx,
        account_id,
        "grant",
        program_id=body.program_id,
        organization_id=body.organization_id,
        grant_id=grant_id,
        overdraft_thousandths=policy.overdraft_thousandths,
    )
    tx.connection.execute(insert(grants), _grant_row(tx, grant_id, body, starts_at, policy))
    moving.deposit(
        tx,
        f"{account_id}:award",
        f"program:{body.program_id}",
        account_id,
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
    )
    if body.tranches:
        parts = NewTranches(
            tranches=body.tranches, first_released=body.first_tranche_released, reason=body.reason
        )
        open_tranches(tx, caller, grant_id, parts, whole=True)
    tx.touch("grant", grant_id)
    detail = {
        "organization_id": body.organization_id,
        "amount_gpu_us": str(body.gpu_hours),
        "policy": policy.model_dump(mode="json"),
    }
    audit.record(tx, caller, "grant.award", grant_id, reason=body.reason, detail=detail)
    return read_grant(tx.connection, grant_id, tx.now_ms)


def policy_of_program(tx: Tx, program_id: str) -> GrantPolicy:
    """The policy that its new grants take a copy of. Raises NotFound."""
    policy_id = tx.connection.execute(
        select(programs.c.policy_id).where(programs.c.id == program_id)
    ).scalar_one_or_none()
    if policy_id is None:
        raise NotFound("there is no programme {program_id}", field="program_id", program_id=program_id)
    return read_policy(tx.connection, policy_id).policy


def _grant_row(tx: Tx, grant_id: str, body: Award, starts_at: int, policy: GrantPolicy) -> dict[str, Any]:
    return {
        "id": grant_id,
        "program_id": body.program_id,
        "organization_id": body.organization_id,
        "account_id": f"grant:{grant_id}",
        "starts_at_ms": starts_at,
        "ends_at_ms": body.ends_at,
        "created_at_ms": tx.now_ms,
        "pace_lag_ms": None,
        "pace_as_of_ms": None,
        "pace_spent_gpu_us": None,
        "policy": policy.model_dump_json(),
        "max_gpus": body.max_gpus,
    }
