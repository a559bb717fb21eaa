"""The one table of a job's states, and what the end of an attempt makes of its job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from quota.errors import WrongState
from quota.schemas.scheduling import EndReason, JobState, StopReason

MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.ENDED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.STOPPING, JobState.QUEUED, JobState.ENDED}),
    JobState.RUNNING: frozenset({JobState.STOPPING, JobState.QUEUED, JobState.ENDED}),
    JobState.STOPPING: frozenset({JobState.QUEUED, JobState.ENDED}),
    JobState.ENDED: frozenset(),
}

RESTARTS_LIMIT = 20
"""How often one job may be queued again after a fault or a preemption."""


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended, as its cluster tells."""

    succeeded: bool
    started: bool
    lost: bool
    stop_reason: StopReason | None
    stop_asked: StopReason | None = None
    """A stop that the service had asked for; the attempt may end before the scheduler recorded one."""
    gpu_fault: bool = False
    """Whether it failed of a GPU's fault, as an agent's verdict says."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """The job waits again; `abandoned` counts towards the limit of abandonments."""

    reason: EndReason
    abandoned: bool


@dataclass(frozen=True, slots=True)
class End:
    """The job is over."""

    reason: EndReason


def check_move(before: JobState, after: JobState, job_id: str) -> None:
    """Raise WrongState unless the table allows it."""
    if after not in MOVES[before]:
        raise WrongState(
            "job {job_id} is {state}; it cannot become {after}",
            job_id=job_id,
            state=before.value,
            after=after.value,
        )


def after_attempt(
    end: AttemptEnd,
    *,
    cancel_requested: bool,
    restartable: bool,
    attempt: int,
    abandonments: int,
    limit: int,
    opportunistic: bool = False,
) -> Requeue | End:
    """Succeeded if it did, else cancelled if asked, else the stop's reason, else lost or failed.

    What an operator sent back into the queue waits again, whether or not it was restartable. An opportunistic job
    comes again however often it had to leave, and also when it had not begun.
    """
    if end.succeeded:
        return End(EndReason.SUCCEEDED)
    if cancel_requested:
        return End(EndReason.CANCELLED)
    reason = _reason(end)
    match reason:
        case EndReason.ABANDONED:
            if abandonments + 1 >= limit:
                return End(EndReason.ABANDONED)
            return Requeue(reason, abandoned=True)
        case EndReason.PREEMPTED | EndReason.NODE_FAILED:
            left = opportunistic and reason is EndReason.PREEMPTED
            again = _again_after_leaving(end, restartable) if left else _again(end, restartable, attempt)
            return Requeue(reason, abandoned=False) if again else End(reason)
        case EndReason.REQUEUED:
            return Requeue(reason, abandoned=False)
        case EndReason.GRANT_ENDED | EndReason.IDLE_RECLAIMED:
            return End(reason)
        case EndReason.SUCCEEDED | EndReason.FAILED | EndReason.CANCELLED | EndReason.TIME_LIMIT:
            return End(reason)
        case _:
            assert_never(reason)


def _again(end: AttemptEnd, restartable: bool, attempt: int) -> bool:
    return end.stop_asked is StopReason.REQUEUED or (restartable and attempt < RESTARTS_LIMIT)


def _again_after_leaving(end: AttemptEnd, restartable: bool) -> bool:
    return end.stop_asked is StopReason.REQUEUED or restartable or not end.started


def _reason(end: AttemptEnd) -> EndReason:
    match end.stop_reason:
        case None:
            if end.lost or (end.gpu_fault and end.started):
                return EndReason.NODE_FAILED
            return EndReason.FAILED if end.started else EndReason.ABANDONED
        case StopReason.GPU_FAILED:
            return EndReason.NODE_FAILED
        case (
            StopReason.CANCELLED
            | StopReason.TIME_LIMIT
            | StopReason.PREEMPTED
            | StopReason.ABANDONED
            | StopReason.GRANT_ENDED
            | StopReason.REQUEUED
            | StopReason.IDLE_RECLAIMED
        ):
            return EndReason(end.stop_reason.value)
        case _:
            assert_never(end.stop_reason)
