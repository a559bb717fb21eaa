"""Whether a programme would pay for an opportunistic job: at the door, and when it starts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from quota.db import Tx
from quota.errors import (
    BadRequest,
    GrantCapReached,
    GrantNotActive,
    InsufficientBalance,
    NoGrant,
    NotFound,
    OpportunisticOff,
    WalltimeTooLong,
)
from quota.programs import service as programs
from quota.programs.funds import fund_rows
from quota.schemas.jobs import JobSubmission


def fund_of(connection: Connection, organization_id: str, body: JobSubmission, now_ms: int) -> Row[Any]:
    """The fund that would pay for a job of this organization: of the programme that it names, else of those that it
    has a running grant of the one with the most left, by id.

    Raises NotFound for a programme that the organization has no running grant of, NoGrant where it has none at all,
    OpportunisticOff where none of them pays now.
    """
    held = programs.payable_grants(connection, organization_id, now_ms)
    mine = {row.program_id for row in held if row.starts_at_ms <= now_ms}
    if body.program_id is not None and body.program_id not in mine:
        raise NotFound("there is no programme {program_id}", field="program_id", program_id=body.program_id)
    if not mine:
        raise NoGrant("the organization has no running grant", field="opportunistic")
    wanted = sorted(mine) if body.program_id is None else [body.program_id]
    paying = [row for row in fund_rows(connection, wanted) if row.pays and row.ends_at_ms > now_ms]
    if not paying:
        raise OpportunisticOff(
            "{program_id} pays for no opportunistic jobs now",
            field="opportunistic",
            program_id=", ".join(wanted),
        )
    return min(paying, key=lambda row: (row.used_gpu_us - row.granted_gpu_us, row.program_id))


def check_could_pay(fund: Row[Any], body: JobSubmission, cost_gpu_us: int, now_ms: int) -> None:
    """Refuse what the fund would never pay for. What is held is not counted: it comes back.

    Raises WalltimeTooLong, BadRequest, GrantNotActive, GrantCapReached, InsufficientBalance.
    """
    program_id, gpus = fund.program_id, body.pods * body.gpus_per_pod
    if body.walltime_s * 1000 > fund.job_walltime_ms:
        raise WalltimeTooLong(
            "the job asks for {walltime_s} s, {program_id} pays an opportunistic job for at most {max_walltime_s} s",
            field="walltime_s",
            walltime_s=body.walltime_s,
            program_id=program_id,
            max_walltime_s=fund.job_walltime_ms // 1000,
        )
    if body.grace_s * 1000 > fund.job_grace_ms:
        raise BadRequest(
            "an opportunistic job of {program_id} leaves within {max_grace_s} s when it is asked, not {grace_s} s",
            field="grace_s",
            program_id=program_id,
            max_grace_s=fund.job_grace_ms // 1000,
            grace_s=body.grace_s,
        )
    if now_ms + body.walltime_s * 1000 > fund.ends_at_ms:
        raise GrantNotActive(
            "what {program_id} pays opportunistic jobs from ends before the job would; {fitting_walltime_s} s fit",
            field="walltime_s",
            program_id=program_id,
            fitting_walltime_s=(fund.ends_at_ms - now_ms) // 1000,
        )
    if fund.max_gpus is not None and gpus > fund.max_gpus:
        raise GrantCapReached(
            "the job takes {needed_gpus} GPUs, the opportunistic jobs of {program_id} may have {max_gpus} at once",
            field="gpus_per_pod",
            needed_gpus=gpus,
            program_id=program_id,
            max_gpus=fund.max_gpus,
        )
    left = fund.granted_gpu_us - fund.used_gpu_us
    if cost_gpu_us > left:
        raise InsufficientBalance(
            "the job may cost {needed_gpu_us} GPU-us at its limit, {program_id} has {left_gpu_us} left for"
            " opportunistic jobs",
            field="opportunistic",
            needed_gpu_us=cost_gpu_us,
            program_id=program_id,
            left_gpu_us=left,
        )


def check_start(tx: Tx, job: Row[Any], grant_id: str, grant: Row[Any]) -> None:
    """A start draws on the present fund of its job's programme, and on nothing else, while that pays.

    `grant` is the row of the grant's tree. Raises NotFound, OpportunisticOff.
    """
    of_nobody = grant.of_organization is None
    if job.program_id is None and not of_nobody:
        return
    if job.program_id is None or not of_nobody or grant.of_program != job.program_id:
        raise NotFound("job {job_id} may not draw on grant {grant_id}", job_id=job.id, grant_id=grant_id)
    funds = fund_rows(tx.connection, [job.program_id])
    if not funds or funds[0].grant_id != grant_id or not funds[0].pays:
        raise OpportunisticOff("{program_id} pays for no opportunistic jobs now", program_id=job.program_id)
