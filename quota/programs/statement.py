"""The statement of a grant."""

from __future__ import annotations

from sqlalchemy import Connection

from quota.db import head
from quota.ledger import statement as ledger
from quota.programs.service import read_grant
from quota.schemas.identity import Caller
from quota.schemas.ledger import Statement


def read_statement(connection: Connection, caller: Caller, grant_id: str, now_ms: int) -> Statement:
    """Every transfer of a grant and the balance they add up to, derived from the lines alone."""
    grant = read_grant(connection, grant_id, now_ms, caller)
    lines = ledger.lines(connection, grant.account_id)
    granted = sum(line.granted_gpu_us for line in lines)
    held = sum(line.held_gpu_us for line in lines)
    used = sum(line.used_gpu_us for line in lines)
    stored = (grant.granted_gpu_us, grant.held_gpu_us, grant.used_gpu_us)
    assert (granted, held, used) == stored, f"account {grant.account_id} is not the sum of its transfers"
    available = granted - held - used
    return Statement(
        grant_id=grant.id,
        organization_id=grant.organization_id,
        program_id=grant.program_id,
        as_of=now_ms,
        seq=head(connection),
        lines=lines,
        granted_gpu_us=granted,
        held_gpu_us=held,
        used_gpu_us=used,
        available_gpu_us=available,
        granted_gpu_hours=granted,
        held_gpu_hours=held,
        used_gpu_hours=used,
        available_gpu_hours=available,
        total_krw=sum(line.krw for line in lines),
    )
