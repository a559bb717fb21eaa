"""A programme's caps where they bind: at submission and for extensions; of these and the hub's the tighter one.

A job that names a grant is its programme's, an opportunistic one that programme's that pays for it. Any other may be
paid from any grant that its organization may draw on: it keeps to the caps of all their programmes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, literal_column, or_, select

from quota.errors import JobTooLarge, QueueFull, WalltimeTooLong
from quota.jobs.tables import jobs
from quota.prepared import Prepared
from quota.programs import caps
from quota.programs import service as programs
from quota.programs.tables import grants
from quota.schemas.caps import ProgramBound, ProgramCaps
from quota.schemas.jobs import JobSubmission

Bounds = Mapping[str, ProgramCaps]
"""By programme."""

_ITS_GRANTS = select(grants.c.id).where(grants.c.program_id == bindparam("program"))
_QUEUED = Prepared(
    select(func.count().label("jobs"))
    .select_from(jobs)
    .where(
        jobs.c.organization_id == bindparam("organization"),
        # the state as a literal: the index of waiting jobs is used for no other
        jobs.c.state == literal_column("'queued'"),
        or_(
            jobs.c.program_id == bindparam("program"),
            and_(
                jobs.c.program_id.is_(None),
                or_(jobs.c.grant_id.is_(None), jobs.c.grant_id.in_(_ITS_GRANTS)),
            ),
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Tightest:
    """A cap, and the programme that sets it; None: the hub or the organization does."""

    cap: int
    program_id: str | None = None


def bounds_of(
    connection: Connection, payable: Iterable[Row[Any]], body: JobSubmission, program_id: str | None
) -> Bounds:
    """The caps of the programmes that may pay for the job: of an opportunistic one `program_id`, else those of the
    grants that its organization may draw on, or of the one that it names."""
    if program_id is not None:
        return caps.caps_of(connection, {program_id})
    may_pay = {row.program_id for row in payable if body.grant_id in (None, row.id)}
    return caps.caps_of(connection, may_pay)


def bounds_on_grant(connection: Connection, grant_id: str) -> Bounds:
    """The caps of the programme that a grant is of."""
    program_id = connection.execute(select(grants.c.program_id).where(grants.c.id == grant_id)).scalar_one()
    return caps.caps_of(connection, {program_id})


def tightest(of_hub: int | None, bounds: Bounds, name: str) -> Tightest | None:
    """Of the hub's cap (or the organization's) and the programmes' of this name the lowest; of equal ones the hub's."""
    found = [] if of_hub is None else [Tightest(of_hub)]
    for program_id, each in bounds.items():
        cap = getattr(each, name)
        if cap is not None:
            found.append(Tightest(cap, program_id))
    return min(found, key=lambda each: each.cap, default=None)


def refuse_size(program_id: str, needed_gpus: int, max_gpus: int, field: str) -> JobTooLarge:
    """What a job is told that is larger than a programme has it."""
    return JobTooLarge(
        "the job takes {needed_gpus} GPUs, a job of programme {program_id} may take at most {max_gpus}",
        field=field,
        needed_gpus=needed_gpus,
        max_gpus=max_gpus,
        program_id=program_id,
    )


def refuse_walltime(program_id: str, walltime_s: int, max_walltime_s: int) -> WalltimeTooLong:
    """What a job is told that is longer than a programme has it."""
    return WalltimeTooLong(
        "the job asks for {walltime_s} s, a job of programme {program_id} may run for at most {max_walltime_s} s",
        field="walltime_s",
        walltime_s=walltime_s,
        max_walltime_s=max_walltime_s,
        program_id=program_id,
    )


def check_queues(connection: Connection, organization_id: str, bounds: Bounds) -> None:
    """Refuse one more than may wait for a programme. The caller lets an organization submit one job at a time.

    Raises QueueFull with the cap.
    """
    for program_id, each in bounds.items():
        if each.queued_jobs is None:
            continue
        queued = _queued_of(connection, organization_id, program_id)
        if queued >= each.queued_jobs:
            raise QueueFull(
                "{organization_id} has {queued_jobs} jobs waiting that programme {program_id} could pay for, of at "
                "most {max_queued_jobs}",
                organization_id=organization_id,
                program_id=program_id,
                queued_jobs=queued,
                max_queued_jobs=each.queued_jobs,
            )


def shown(connection: Connection, organization_id: str, now_ms: int) -> tuple[ProgramBound, ...]:
    """What binds an organization in the programmes that it may draw on, by id."""
    may_pay = {row.program_id for row in programs.payable_grants(connection, organization_id, now_ms)}
    return tuple(
        ProgramBound(
            program_id=program_id,
            caps=each,
            queued_jobs=_queued_of(connection, organization_id, program_id),
        )
        for program_id, each in caps.caps_of(connection, may_pay).items()
    )


def _queued_of(connection: Connection, organization_id: str, program_id: str) -> int:
    return int(_QUEUED.one(connection, {"organization": organization_id, "program": program_id}).jobs)
