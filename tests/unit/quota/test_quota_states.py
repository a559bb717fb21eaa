"""The table of a job's states, and what each end of an attempt makes of its job: every combination."""

from __future__ import annotations

from itertools import product

import pytest

from quota.errors import WrongState
from quota.jobs.states import MOVES, RESTARTS_LIMIT, AttemptEnd, End, Requeue, after_attempt, check_move
from quota.schemas.scheduling import EndReason, JobState, StopReason

ALLOWED = {
    ("queued", "starting"),
    ("queued", "ended"),
    ("starting", "running"),
    ("starting", "stopping"),
    ("starting", "queued"),
    ("starting", "ended"),
    ("running", "stopping"),
    ("running", "queued"),
    ("running", "ended"),
    ("stopping", "queued"),
    ("stopping", "ended"),
}


@pytest.mark.parametrize(("before", "after"), list(product(JobState, JobState)))
def test_every_move_is_allowed_or_refused_by_the_table(before: JobState, after: JobState) -> None:
    if (before.value, after.value) in ALLOWED:
        check_move(before, after, "job-1")
        return
    with pytest.raises(WrongState) as caught:
        check_move(before, after, "job-1")
    assert caught.value.numbers == {"job_id": "job-1", "state": before.value, "after": after.value}
    assert "job-1" in caught.value.detail


def test_every_state_is_in_the_table_and_nothing_leaves_the_end() -> None:
    assert set(MOVES) == set(JobState)
    assert MOVES[JobState.ENDED] == frozenset()


ENDS = [
    AttemptEnd(succeeded=succeeded, started=started, lost=lost, stop_reason=stop, stop_asked=asked)
    for succeeded, started, lost, stop, asked in product(
        (False, True), (False, True), (False, True), (None, *StopReason), (None, StopReason.REQUEUED)
    )
    if started or not succeeded
]


def expected(end: AttemptEnd, cancel: bool, restartable: bool, attempt: int, abandonments: int) -> str:
    """The contract's sentence as a list of first matches."""
    cases = [
        (end.succeeded, "succeeded"),
        (cancel, "cancelled"),
        (end.stop_reason is StopReason.CANCELLED, "cancelled"),
        (end.stop_reason is StopReason.TIME_LIMIT, "time_limit"),
        (end.stop_reason is StopReason.PREEMPTED, "preempted"),
        (end.stop_reason is StopReason.ABANDONED, "abandoned"),
        (end.stop_reason is StopReason.GRANT_ENDED, "grant_ended"),
        (end.stop_reason is StopReason.REQUEUED, "requeued"),
        (end.stop_reason is StopReason.IDLE_RECLAIMED, "idle_reclaimed"),
        (end.stop_reason is StopReason.GPU_FAILED, "node_failed"),
        (end.lost, "node_failed"),
        (end.started, "failed"),
        (True, "abandoned"),
    ]
    reason = next(reason for holds, reason in cases if holds)
    restarts = (restartable and attempt < RESTARTS_LIMIT) or end.stop_asked is StopReason.REQUEUED
    again = (
        (reason in ("preempted", "node_failed") and restarts)
        or (reason == "abandoned" and abandonments < 2)
        or reason == "requeued"
    )
    return f"again {reason}" if again else reason


@pytest.mark.parametrize("end", ENDS, ids=str)
def test_every_end_of_an_attempt_has_its_verdict(end: AttemptEnd) -> None:
    for cancel, restartable, attempt, abandonments in product(
        (False, True), (False, True), (1, RESTARTS_LIMIT - 1, RESTARTS_LIMIT), (0, 1, 2)
    ):
        verdict = after_attempt(
            end,
            cancel_requested=cancel,
            restartable=restartable,
            attempt=attempt,
            abandonments=abandonments,
            limit=3,
        )
        said = f"again {verdict.reason.value}" if isinstance(verdict, Requeue) else verdict.reason.value
        assert said == expected(end, cancel, restartable, attempt, abandonments)
        if isinstance(verdict, Requeue):
            assert verdict.abandoned == (verdict.reason is EndReason.ABANDONED)
        else:
            assert isinstance(verdict, End)
