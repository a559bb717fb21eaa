"""Whether an attempt may be stopped for another job, and what it is then taken to lose. Called by decisions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, bindparam, func, select

from quota.db import Tx
from quota.dispatch.fair_share import checkpoint_ms
from quota.errors import NotRestartable, PreemptedTooOften, WrongState
from quota.jobs import service as job_service
from quota.jobs.states import RESTARTS_LIMIT
from quota.jobs.tables import attempts
from quota.prepared import Prepared
from quota.schemas.fair_share import DAY_MS, PREEMPTIONS_PER_DAY
from quota.schemas.scheduling import JobState

_TIMES = Prepared(
    select(func.count().label("times")).where(
        attempts.c.job_id == bindparam("job"),
        attempts.c.end_reason == "preempted",
        attempts.c.ended_at_ms > bindparam("since"),
    )
)


def check_preemption(tx: Tx, job: Row[Any], attempt: Row[Any], for_job: str | None) -> None:
    """What no policy overrides. Raises WrongState, NotRestartable, PreemptedTooOften."""
    if attempt.state != JobState.RUNNING.value:
        raise WrongState(
            "attempt {attempt} of job {job_id} is {state}; only one that runs is stopped for another",
            attempt=attempt.attempt,
            job_id=job.id,
            state=attempt.state,
        )
    if not job.restartable:
        raise NotRestartable("job {job_id} is not restartable: it would not come again", job_id=job.id)
    if attempt.attempt >= RESTARTS_LIMIT:
        raise NotRestartable(
            "attempt {attempt} of job {job_id} is its last one: it would not come again",
            attempt=attempt.attempt,
            job_id=job.id,
        )
    times = int(_TIMES.one(tx.connection, {"job": job.id, "since": tx.now_ms - DAY_MS}).times)
    if times >= PREEMPTIONS_PER_DAY:
        raise PreemptedTooOften(
            "job {job_id} was stopped for others {times} times within 24 hours; {most} is the most",
            job_id=job.id,
            times=times,
            most=PREEMPTIONS_PER_DAY,
        )
    if for_job is not None:
        _check_waits(tx, for_job)


def check_leaving(tx: Tx, job: Row[Any], attempt: Row[Any], for_job: str | None) -> None:
    """An opportunistic attempt leaves whenever somebody is entitled to its GPUs, and however often.

    Raises WrongState where nobody waits for them.
    """
    assert attempt.opportunistic, f"attempt {attempt.attempt} of {job.id} is somebody's by right"
    if for_job is None:
        raise WrongState("job {job_id} leaves for nobody", job_id=job.id)
    if _check_waits(tx, for_job).program_id is not None:
        raise WrongState("job {job_id} leaves for no other opportunistic job", job_id=job.id)


def taken_to_save_every_ms(tx: Tx, job: Row[Any]) -> int | None:
    """What the job says of itself, else what the policy takes it for, as of now."""
    declared: int | None = job.checkpoint_interval_ms
    return declared or checkpoint_ms(tx)


def _check_waits(tx: Tx, job_id: str) -> Row[Any]:
    """Locked, so that it gives up the room that is freed for it if it ends or starts later."""
    job = job_service.lock_job(tx, job_id)
    if job is None or job.state != JobState.QUEUED.value:
        raise WrongState("job {job_id} does not wait: nothing is stopped for it", job_id=job_id)
    return job
