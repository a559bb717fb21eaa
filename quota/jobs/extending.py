"""EXTEND at the door: more time for the attempt that runs, held at its pinned rate before it is promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import BadRequest, CapacityTaken, GrantNotActive, InsufficientBalance, NotFound, WrongState
from quota.identity import service as identity
from quota.identity.freezing import check_not_frozen
from quota.jobs.booked import free_until_ms
from quota.jobs.organization_caps import longest_walltime
from quota.jobs.program_caps import Tightest
from quota.jobs.service import lock_job
from quota.jobs.tables import attempts, jobs
from quota.ledger import extending, holds
from quota.ledger.rules import Hold, amount_gpu_us
from quota.ledger.tables import accounts
from quota.programs.limits import room_outside
from quota.programs.tables import grants
from quota.queue import Queue
from quota.schemas.identity import Caller
from quota.schemas.job_changes import ExtendedJob, JobExtension
from quota.schemas.jobs import Extension
from quota.schemas.scheduling import JobState

_OPEN = (JobState.STARTING.value, JobState.RUNNING.value)
_ATTEMPT = (
    select(attempts)
    .where(attempts.c.job_id == bindparam("job"), attempts.c.attempt == bindparam("number"))
    .with_for_update()
)
# its end must not move before this is committed
_GRANT = (
    select(grants.c.organization_id, grants.c.ends_at_ms)
    .where(grants.c.id == bindparam("grant"))
    .with_for_update(read=True)
)


@dataclass(frozen=True, slots=True)
class _Room:
    """How many more whole seconds each bound leaves an attempt, and the bounds."""

    limit_s: int
    longest: Tightest
    """The cap that `limit_s` is of."""
    grant_s: int
    balance_s: int
    told_s: int
    told_gpu_us: int
    """The same as the caller may know it: a party of a consortium learns of its own share only."""
    grant_ends_ms: int
    booked_s: int | None
    """None: nothing is booked on its nodes."""
    booked_at_ms: int

    @property
    def fitting_s(self) -> int:
        bounds = (self.limit_s, self.grant_s, self.told_s)
        return max(0, min(bounds if self.booked_s is None else (*bounds, self.booked_s)))


def extend(
    tx: Tx, caller: Caller, job_id: str, body: JobExtension, queue: Queue | None = None
) -> ExtendedJob:
    """Give a job's running attempt `body.walltime_s` seconds more, and hold their cost on its whole path.

    The job's own limit grows too: a later attempt does the same work and needs the same time. Locks go from job
    and attempt to hold, accounts and grant, as in settling. Raises NotFound, WrongState (no attempt runs, it
    is asked to stop, or its time is over), NotSchedulable (frozen), and BadRequest, GrantNotActive, CapacityTaken
    (its GPUs are booked; `queue` knows where) or InsufficientBalance with `fitting_walltime_s`, the longest
    extension that would be taken.
    """
    job = lock_job(tx, job_id)
    if job is None or not identity.sees(caller, job.organization_id):
        raise NotFound("there is no job {job_id}", job_id=job_id)
    if job.program_id is not None:
        raise WrongState("job {job_id} is opportunistic; it cannot be extended", job_id=job_id)
    row = _open_attempt(tx, job)
    check_not_frozen(tx, job.organization_id)
    held = holds.read_hold(tx, row.hold_id)
    room = _room(tx, job.organization_id, row, held, queue)
    _check_fits(body, held, room, row.grant_id)
    number = held.extensions + 1
    extending.extend(tx, held, number, body.walltime_s * 1000, actor=caller.token_id, reason=body.reason)
    extended = _extended(tx, caller, row, held, body, room)
    _grow(tx, row, body.walltime_s * 1000)
    before = {"walltime_s": row.walltime_ms // 1000, "held_gpu_us": str(held.amount_gpu_us)}
    after = {"walltime_s": extended.walltime_s, "held_gpu_us": str(extended.held_gpu_us)}
    detail = {"attempt": row.attempt, "transfer_id": extended.extension.transfer_id}
    audit.record(
        tx, caller, "job.extend", job_id, reason=body.reason, detail=detail, before=before, after=after
    )
    return extended


def _open_attempt(tx: Tx, job: Row[Any]) -> Row[Any]:
    """The attempt that runs, locked. A recorded stop is irrevocable, an asked one is on its way."""
    if job.state not in _OPEN:
        raise WrongState("job {job_id} is {state}; it cannot be extended", job_id=job.id, state=job.state)
    row = tx.connection.execute(_ATTEMPT, {"job": job.id, "number": job.attempt}).one()
    assert row.state in _OPEN, "a job is where its open attempt is"
    if job.cancel_requested_at_ms is not None or row.stop_asked is not None:
        raise WrongState(
            "job {job_id} was asked to end; it cannot be extended", job_id=job.id, state=job.state
        )
    if row.last_started_at_ms is not None:
        over_ms = row.last_started_at_ms + row.walltime_ms
        # what was settled past its time is the platform's already
        if max(tx.now_ms, row.settled_through_ms or 0) >= over_ms:
            raise WrongState("the time of job {job_id} is over; it is being stopped", job_id=job.id)
    return row


def _room(tx: Tx, organization_id: str, row: Row[Any], held: Hold, queue: Queue | None) -> _Room:
    # what does not run yet may start as late as now
    starts_ms = tx.now_ms if row.last_started_at_ms is None else row.last_started_at_ms
    per_s = amount_gpu_us(1000, held.gpus, held.rate.rate_thousandths)
    left_gpu_us = extending.room_gpu_us(tx, held.path)
    _check_open(tx, row, held)
    outside_gpu_us = room_outside(tx.connection, row.grant_id, held.path)
    if outside_gpu_us is not None:
        left_gpu_us = min(left_gpu_us, outside_gpu_us)
    grant = tx.connection.execute(_GRANT, {"grant": row.grant_id}).one()
    told_gpu_us = left_gpu_us
    if grant.organization_id != organization_id:
        told_gpu_us = extending.room_gpu_us(tx, [f"share:{row.grant_id}:{organization_id}"])
    grant_ends_ms, ends_ms = int(grant.ends_at_ms), starts_ms + row.walltime_ms
    booked_at_ms = None if queue is None else free_until_ms(tx, queue, row, ends_ms)
    longest = longest_walltime(tx, organization_id, row.grant_id)
    return _Room(
        limit_s=longest.cap - row.walltime_ms // 1000,
        longest=longest,
        grant_s=(grant_ends_ms - starts_ms - row.walltime_ms) // 1000,
        balance_s=left_gpu_us // per_s,
        told_s=told_gpu_us // per_s,
        told_gpu_us=told_gpu_us,
        grant_ends_ms=grant_ends_ms,
        booked_s=None if booked_at_ms is None else (booked_at_ms - ends_ms) // 1000,
        booked_at_ms=booked_at_ms or 0,
    )


def _check_open(tx: Tx, row: Row[Any], held: Hold) -> None:
    """More is held only where a start could hold it: a party whose share was closed runs on, and takes no more."""
    closed = select(accounts.c.id).where(accounts.c.id.in_(held.path), accounts.c.released.is_(False))
    if tx.connection.execute(closed.limit(1)).first() is not None:
        raise WrongState(
            "the share that pays for job {job_id} was closed; it cannot be extended", job_id=row.job_id
        )


def _check_fits(body: JobExtension, held: Hold, room: _Room, grant_id: str) -> None:
    if body.walltime_s > room.limit_s and room.longest.program_id is not None:
        raise BadRequest(
            "a job of programme {program_id} may run for at most {limit_s} s; {fitting_walltime_s} s more fit",
            field="walltime_s",
            program_id=room.longest.program_id,
            limit_s=room.longest.cap,
            fitting_walltime_s=room.fitting_s,
        )
    if body.walltime_s > room.limit_s:
        raise BadRequest(
            "a job may run for at most {limit_s} s; {fitting_walltime_s} s more fit",
            field="walltime_s",
            limit_s=room.longest.cap,
            fitting_walltime_s=room.fitting_s,
        )
    if body.walltime_s > room.grant_s:
        raise GrantNotActive(
            "grant {grant_id} ends before the job would; {fitting_walltime_s} s more fit",
            grant_id=grant_id,
            ends_at_ms=room.grant_ends_ms,
            fitting_walltime_s=room.fitting_s,
        )
    if room.booked_s is not None and body.walltime_s > room.booked_s:
        raise CapacityTaken(
            "the GPUs of this job are booked from {booked_at_ms} on; {fitting_walltime_s} s more fit",
            booked_at_ms=room.booked_at_ms,
            fitting_walltime_s=room.fitting_s,
        )
    needed_gpu_us = amount_gpu_us(body.walltime_s * 1000, held.gpus, held.rate.rate_thousandths)
    if room.balance_s < body.walltime_s <= room.told_s:
        raise InsufficientBalance(
            "{walltime_s} s more need {needed_gpu_us} GPU-us, more than the parties of grant {grant_id} have left",
            needed_gpu_us=needed_gpu_us,
            walltime_s=body.walltime_s,
            grant_id=grant_id,
        )
    if body.walltime_s > room.balance_s:
        raise InsufficientBalance(
            "{walltime_s} s more need {needed_gpu_us} GPU-us, {left_gpu_us} are left; {fitting_walltime_s} s fit",
            needed_gpu_us=needed_gpu_us,
            left_gpu_us=room.told_gpu_us,
            walltime_s=body.walltime_s,
            fitting_walltime_s=room.fitting_s,
        )


def _grow(tx: Tx, row: Row[Any], extra_ms: int) -> None:
    this = (attempts.c.job_id == row.job_id, attempts.c.attempt == row.attempt)
    tx.connection.execute(update(attempts).where(*this).values(walltime_ms=attempts.c.walltime_ms + extra_ms))
    tx.connection.execute(
        update(jobs).where(jobs.c.id == row.job_id).values(walltime_ms=jobs.c.walltime_ms + extra_ms)
    )
    for kind, key in (
        ("job", row.job_id),
        ("attempt", f"{row.job_id}-{row.attempt}"),
        ("grant", row.grant_id),
    ):
        tx.touch(kind, key)


def _extended(
    tx: Tx, caller: Caller, row: Row[Any], held: Hold, body: JobExtension, room: _Room
) -> ExtendedJob:
    number = held.extensions + 1
    walltime_ms = row.walltime_ms + body.walltime_s * 1000
    more = amount_gpu_us(body.walltime_s * 1000, held.gpus, held.rate.rate_thousandths)
    return ExtendedJob(
        job_id=row.job_id,
        attempt=row.attempt,
        extension=Extension(
            number=number,
            transfer_id=extending.transfer_id_of(held, number),
            at=tx.now_ms,
            actor=caller.token_id,
            reason=body.reason,
            walltime_s=body.walltime_s,
            held_gpu_us=more,
        ),
        walltime_s=walltime_ms // 1000,
        held_gpu_us=held.amount_gpu_us + more,
        ends_at=None if row.last_started_at_ms is None else row.last_started_at_ms + walltime_ms,
        fitting_walltime_s=room.fitting_s - body.walltime_s,
    )
