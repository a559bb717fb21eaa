"""Transfers, ends, carry-overs and policies of grants, and what must add up, for the tests of grants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text

from quota.ledger.tables import accounts, transfers
from quota.programs import awards, changes, endings, policies
from quota.schemas.policies import GrantPolicy, PolicyDocument, PolicyPut
from quota.schemas.programs import (
    Adjustment,
    CarryOver,
    Grant,
    GrantCut,
    GrantMove,
    GrantTransfer,
    LimitCut,
    ProgramChange,
)
from tests.builders import GPU_HOUR_US, OPERATOR, Hub, a_hub
from tests.property.ledger.ledger_checks import violations

HOURS = GPU_HOUR_US


@contextmanager
def a_judged_hub(url: str) -> Iterator[Hub]:
    """A hub whose ledger must break no invariant, and conserve its budgets, when the test is over."""
    hub = a_hub(url)
    yield hub
    check_conserved(hub)
    hub.close()


def check_conserved(hub: Hub) -> None:
    """I9: treasury, programmes, grants and expired hours add up to nothing; budgets to what was deposited."""
    with hub.database.read() as connection:
        assert violations(connection) == []
        rows = connection.execute(
            text("SELECT kind, program_id, granted_gpu_us, held_gpu_us, used_gpu_us FROM accounts")
        ).all()
    whole = [row for row in rows if row.kind in ("treasury", "program", "grant", "expired", "platform")]
    assert sum(row.granted_gpu_us for row in whole) == 0
    budgets = {row.program_id for row in rows if row.kind == "program"}
    treasury = next(row.granted_gpu_us for row in rows if row.kind == "treasury")
    assert -treasury == sum(row.granted_gpu_us for row in whole if row.program_id in budgets)
    assert all((row.held_gpu_us, row.used_gpu_us) == (0, 0) for row in rows if row.kind == "expired")


def cut(hub: Hub, grant: Grant, hours: str, **children: str) -> Grant:
    """Take hours back, with limit accounts named by their ids' last part."""
    body = GrantCut(gpu_hours=hours, reason="a cut", children=_children(hub, grant, children))
    return hub.database.write(lambda tx: changes.cut(tx, OPERATOR, grant.id, body))


def transfer(hub: Hub, grant: Grant, to: Grant, hours: str, **children: str) -> GrantMove:
    """Move hours between grants."""
    body = GrantTransfer(
        to_grant_id=to.id, gpu_hours=hours, reason="moved", children=_children(hub, grant, children)
    )
    return hub.database.write(lambda tx: changes.transfer(tx, OPERATOR, grant.id, body))


def adjust(hub: Hub, grant: Grant, hours: str) -> Grant:
    """Correct a grant."""
    body = Adjustment(gpu_hours=hours, reason="a wrong award", evidence="decision 12")
    return hub.database.write(lambda tx: changes.adjust_grant(tx, OPERATOR, grant.id, body))


def carry_over(hub: Hub, grant: Grant, to: Grant, hours: str) -> GrantMove:
    """Carry expired hours over."""
    body = CarryOver(to_grant_id=to.id, gpu_hours=hours, reason="goes on")
    return hub.database.write(lambda tx: endings.carry_over(tx, OPERATOR, grant.id, body))


def change_end(hub: Hub, grant: Grant, ends_at: int) -> Grant:
    """Move a grant's end."""
    return hub.database.write(lambda tx: endings.change_end(tx, OPERATOR, grant.id, ends_at, "agreed"))


def put_policy(hub: Hub, policy_id: str = "default", **fields: Any) -> PolicyDocument:
    """Set a policy."""
    body = PolicyPut(policy=GrantPolicy(**fields), reason="the call")
    return hub.database.write(lambda tx: policies.put_policy(tx, OPERATOR, policy_id, body))


def use_policy(hub: Hub, policy_id: str, program: str = "ax") -> None:
    """Give a programme another policy."""
    body = ProgramChange(policy_id=policy_id, reason="the call")
    hub.database.write(lambda tx: awards.change_program(tx, OPERATOR, program, body))


def balance(hub: Hub, account_id: str) -> tuple[int, int, int]:
    """(granted, held, used) of an account."""
    row = hub.row(accounts, id=account_id)
    return row.granted_gpu_us, row.held_gpu_us, row.used_gpu_us


def expired(hub: Hub, program: str = "ax") -> int:
    """What expired in a programme and was not carried over."""
    return balance(hub, f"expired:{program}")[0]


def of_type(hub: Hub, kind: str) -> list[Any]:
    """Transfers of one type in order."""
    return sorted(hub.rows(transfers, type=kind), key=lambda row: (row.seq, row.position))


def _children(hub: Hub, grant: Grant, cuts: dict[str, str]) -> tuple[LimitCut, ...]:
    rows = hub.rows(accounts, parent_id=grant.account_id)
    names = {row.id.rpartition(":")[2]: row.id for row in rows}
    return tuple(
        LimitCut(account_id=names[name.removeprefix("tranche_")], gpu_hours=hours)
        for name, hours in cuts.items()
    )
