"""What a programme pays opportunistic jobs from: a grant of no organization, with what it lets a job ask for.

It is given, cut, held on, charged, stated and expired like any other grant; only opportunistic jobs may draw on it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import BadRequest, NotFound, PreconditionFailed
from quota.ids import new_id
from quota.ledger import moving
from quota.ledger import service as ledger
from quota.ledger.tables import accounts
from quota.prepared import Prepared
from quota.programs import endings
from quota.programs.awards import policy_of_program
from quota.programs.service import check_positive, read_program
from quota.programs.tables import grants, opportunistic_funds, programs
from quota.schemas.funds import Fund, FundPut
from quota.schemas.identity import Caller

_FUND = Prepared(
    select(
        opportunistic_funds,
        grants.c.account_id,
        grants.c.starts_at_ms,
        grants.c.ends_at_ms,
        grants.c.max_gpus,
        accounts.c.granted_gpu_us,
        accounts.c.held_gpu_us,
        accounts.c.used_gpu_us,
    )
    .join(grants, grants.c.id == opportunistic_funds.c.grant_id)
    .join(accounts, accounts.c.id == grants.c.account_id)
    .where(opportunistic_funds.c.program_id.in_(bindparam("programs", expanding=True)))
    .order_by(opportunistic_funds.c.program_id),
    lists=("programs",),
)
_PROGRAM = select(programs.c.id).where(programs.c.id == bindparam("program")).with_for_update()


def fund_rows(connection: Connection, program_ids: list[str]) -> list[Row[Any]]:
    """The funds of these programmes with their terms and balances, in order of programmes."""
    return _FUND.all(connection, {"programs": program_ids}) if program_ids else []


def read_fund(connection: Connection, program_id: str) -> Fund:
    """A programme's fund. Raises NotFound for a programme that never had one, as for none."""
    rows = fund_rows(connection, [program_id])
    if not rows:
        raise NotFound("programme {program_id} has no opportunistic account", program_id=program_id)
    return _fund(rows[0])


def put_fund(tx: Tx, caller: Caller, program_id: str, body: FundPut, if_match: str | None = None) -> Fund:
    """Open a programme's fund, change it, or open the next one after it has ended. The same again does nothing.

    Dying before the commit leaves everything as it was. Raises NotFound, BadRequest, PreconditionFailed, and
    InsufficientBalance where the programme has less left, or the fund has more in use.
    """
    if tx.connection.execute(_PROGRAM, {"program": program_id}).first() is None:
        raise NotFound("there is no programme {program_id}", program_id=program_id)
    found = fund_rows(tx.connection, [program_id])
    before = _fund(found[0]) if found else None
    if before is not None:
        check_match(if_match, before.etag)
    elif if_match is not None:
        raise PreconditionFailed("programme {program_id} has no opportunistic account", program_id=program_id)
    if body.gpu_hours < 0:
        raise BadRequest("{name} must not be less than 0", field="gpu_hours", name="gpu_hours")
    if before is not None and _asked(body) == _kept(before):
        return before
    if before is None or before.ends_at <= tx.now_ms:
        grant_id = _open(tx, caller, program_id, body)
    else:
        grant_id = before.grant_id
        _change(tx, caller, before, body)
    settings = {
        "grant_id": grant_id,
        "pays": body.pays,
        "job_walltime_ms": body.job_walltime_s * 1000,
        "job_grace_ms": body.job_grace_s * 1000,
        "changed_at_ms": tx.now_ms,
    }
    if before is None:
        row = settings | {"program_id": program_id, "version": 1}
        tx.connection.execute(insert(opportunistic_funds), row)
    else:
        this = opportunistic_funds.c.program_id == program_id
        tx.connection.execute(
            update(opportunistic_funds).where(this).values(settings | {"version": before.version + 1})
        )
    tx.touch("grant", grant_id)
    after = read_fund(tx.connection, program_id)
    audit.record(
        tx,
        caller,
        "fund.put",
        program_id,
        reason=body.reason,
        before=None if before is None else _told(before),
        after=_told(after),
    )
    return after


def _open(tx: Tx, caller: Caller, program_id: str, body: FundPut) -> str:
    """A grant of no organization, awarded from the programme's budget."""
    check_positive(body.gpu_hours, "gpu_hours")
    if body.ends_at <= tx.now_ms:
        raise BadRequest("ends_at must lie after the start and in the future", field="ends_at")
    policy = policy_of_program(tx, program_id).model_copy(update={"overdraft_thousandths": 0})
    grant_id = new_id("grant")
    account_id = f"grant:{grant_id}"
    ledger.open_account(tx, account_id, "grant", program_id=program_id, grant_id=grant_id)
    tx.connection.execute(
        insert(grants),
        {
            "id": grant_id,
            "program_id": program_id,
            "organization_id": None,
            "account_id": account_id,
            "starts_at_ms": tx.now_ms,
            "ends_at_ms": body.ends_at,
            "created_at_ms": tx.now_ms,
            "policy": policy.model_dump_json(),
            "max_gpus": body.max_gpus,
        },
    )
    moving.deposit(
        tx,
        f"{account_id}:award",
        read_program(tx.connection, program_id).account_id,
        account_id,
        body.gpu_hours,
        actor=caller.token_id,
        reason=body.reason,
    )
    detail = {
        "organization_id": None,
        "opportunistic": True,
        "amount_gpu_us": str(body.gpu_hours),
        "policy": policy.model_dump(mode="json"),
    }
    audit.record(tx, caller, "grant.award", grant_id, reason=body.reason, detail=detail)
    return grant_id


def _change(tx: Tx, caller: Caller, before: Fund, body: FundPut) -> None:
    """More or less hours, another end, another cap for the grant that there is."""
    program = f"program:{before.program_id}"
    more = body.gpu_hours - before.granted_gpu_us
    if more > 0:
        moving.deposit(
            tx, new_id("top-up"), program, before.account_id, more, actor=caller.token_id, reason=body.reason
        )
    elif more < 0:
        moving.pull_back(
            tx, new_id("cut"), before.account_id, program, -more, actor=caller.token_id, reason=body.reason
        )
    if body.max_gpus != before.max_gpus:
        this = grants.c.id == before.grant_id
        tx.connection.execute(update(grants).where(this).values(max_gpus=body.max_gpus))
    if body.ends_at != before.ends_at:
        endings.change_end(tx, caller, before.grant_id, body.ends_at, body.reason)


def _asked(body: FundPut) -> tuple[object, ...]:
    return (
        *(body.gpu_hours, body.ends_at, body.pays, body.max_gpus),
        *(body.job_walltime_s, body.job_grace_s),
    )


def _kept(fund: Fund) -> tuple[object, ...]:
    return (
        *(fund.granted_gpu_us, fund.ends_at, fund.pays, fund.max_gpus),
        *(fund.job_walltime_s, fund.job_grace_s),
    )


def _told(fund: Fund) -> dict[str, object]:
    names = {"grant_id", "pays", "ends_at", "max_gpus", "job_walltime_s", "job_grace_s"}
    return fund.model_dump(mode="json", include=names | {"granted_gpu_us"})


def _fund(row: Row[Any]) -> Fund:
    available = row.granted_gpu_us - row.held_gpu_us - row.used_gpu_us
    return Fund(
        program_id=row.program_id,
        grant_id=row.grant_id,
        account_id=row.account_id,
        pays=row.pays,
        starts_at=row.starts_at_ms,
        ends_at=row.ends_at_ms,
        granted_gpu_us=row.granted_gpu_us,
        granted_gpu_hours=row.granted_gpu_us,
        held_gpu_us=row.held_gpu_us,
        held_gpu_hours=row.held_gpu_us,
        used_gpu_us=row.used_gpu_us,
        used_gpu_hours=row.used_gpu_us,
        available_gpu_us=available,
        available_gpu_hours=available,
        max_gpus=row.max_gpus,
        job_walltime_s=row.job_walltime_ms // 1000,
        job_grace_s=row.job_grace_ms // 1000,
        version=row.version,
        changed_at=row.changed_at_ms,
        etag=etag(row.program_id, row.version, row.granted_gpu_us, row.ends_at_ms, row.max_gpus),
    )
