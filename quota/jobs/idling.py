"""Running attempts whose GPUs do nothing: warned, then stopped, as the idle rules have it. Called by a periodic task.

What can go wrong, and what then happens:

- The process dies before an attempt's transaction is committed: nothing was said; the next run judges anew.
- It dies after that: warning, audit row and what was found are there together; the next run finds them.
- Two runs at once: the job's row is locked first and everything is judged once more behind it, so each warning is
  given once and the stop is asked for once.
- Evidence of work comes before the stop is asked for: the judgement behind the lock sees it, the warnings are
  withdrawn. It comes after that: the stop stands, as any other; the scheduler may have recorded it.
- Evidence ends: nothing is warned and nothing stopped; where the stop would be due it is a finding.
- The hub was away: warnings come late, and the stop waits for the gaps after them.
- The attempt ends or is cancelled meanwhile: it is not running any more, and nothing is asked for.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, insert, select, tuple_, update

from quota.audit import service as audit
from quota.clock import instant_text
from quota.db import Database, Tx
from quota.idle import activity
from quota.idle.policy import read_policy
from quota.idle.tables import found, warnings
from quota.jobs.idle_looking import Attempt, Look, kept_ms, look, stored
from quota.jobs.service import ask_stop, lock_job
from quota.jobs.tables import attempts
from quota.schemas.idle import IdleState
from quota.schemas.scheduling import JobState, StopReason

HUB = "hub"
NOT_MEASURED = "idle_not_measured"


def judge_all(database: Database) -> str:
    """Judge every running attempt and act on what changed, each in a transaction of its own. Says what was done."""
    speed = database.clock.speed
    with database.read() as connection:
        now_ms = database.clock.now_ms()
        looks = look(connection, now_ms, speed)
        before = stored(connection, [(each.job_id, each.attempt) for each in looks])
    due = [each for each in looks if _changes(each, before.get((each.job_id, each.attempt)))]
    done = database.write_each(due, lambda tx, each: _act(tx, each.job_id, speed))
    while database.write(_forget):
        pass
    counted = {kind: sum(each == kind for each in done) for kind in ("warned", "stopped", "withdrawn")}
    return ", ".join(f"{count} {kind}" for kind, count in counted.items()) + f" of {len(looks)}"


def _changes(seen: Look, before: dict[str, Any] | None) -> bool:
    step = seen.step
    if step.warn or step.stop or step.withdraw or step.blind:
        return True
    row = seen.row()
    if before is None:
        return step.state is not IdleState.ACTIVE
    moving = ("worked_at_ms", "utilization_thousandths")
    return any(row[name] != before[name] for name in row if name not in moving)


def _act(tx: Tx, job_id: str, speed: int) -> str:
    """Behind the job's lock judge it once more, and write down what follows."""
    if lock_job(tx, job_id) is None:
        return ""
    for seen in look(tx.connection, tx.now_ms, speed, only=job_id):
        before = stored(tx.connection, [(seen.job_id, seen.attempt)]).get((seen.job_id, seen.attempt))
        if not _changes(seen, before):
            return ""
        _withdraw(tx, seen)
        if seen.step.warn:
            _warn(tx, seen)
        if seen.step.stop:
            _stop(tx, seen)
        if seen.step.blind:
            _find_blind(tx, seen)
        _write_down(tx, seen, before is None)
        if seen.step.stop:
            return "stopped"
        return "warned" if seen.step.warn else ("withdrawn" if seen.step.withdraw else "")
    return ""


def _withdraw(tx: Tx, seen: Look) -> None:
    if not seen.step.withdraw:
        return
    tx.connection.execute(
        update(warnings)
        .where(
            warnings.c.job_id == seen.job_id,
            warnings.c.attempt == seen.attempt,
            warnings.c.number.in_(seen.step.withdraw),
        )
        .values(withdrawn_at_ms=tx.now_ms)
    )
    detail = {"attempt": seen.attempt, "warnings": list(seen.step.withdraw), "found": seen.step.state.value}
    audit.record(tx, HUB, "attempt.idle_withdrawn", seen.job_id, detail=detail)


def _warn(tx: Tx, seen: Look) -> None:
    this = (warnings.c.job_id == seen.job_id, warnings.c.attempt == seen.attempt)
    last = select(func.coalesce(func.max(warnings.c.number), 0)).where(*this)
    number = int(tx.connection.execute(last).scalar_one()) + 1
    row = {
        "job_id": seen.job_id,
        "attempt": seen.attempt,
        "number": number,
        "step": seen.step.warn,
        "at_ms": tx.now_ms,
        "idle_since_ms": seen.verdict.idle_since_ms,
        "rule": "from_start" if seen.verdict.from_start else "sliding",
        "stop_at_ms": seen.step.stop_at_ms,
    }
    tx.connection.execute(insert(warnings), row)
    detail = {
        "attempt": seen.attempt,
        "number": number,
        "step": seen.step.warn,
        "rule": row["rule"],
        "stop_at": None if seen.step.stop_at_ms is None else instant_text(seen.step.stop_at_ms),
    }
    why = f"no work since {instant_text(seen.verdict.idle_since_ms)}"
    audit.record(tx, HUB, "attempt.idle_warning", seen.job_id, reason=why, detail=detail)


def _stop(tx: Tx, seen: Look) -> None:
    first, second = seen.given
    why = (
        f"no work since {instant_text(seen.verdict.idle_since_ms)}, warned at {instant_text(first.at_ms)}"
        f" and {instant_text(second.at_ms)}"
    )
    named = f"{seen.job_id}-{seen.attempt}: warnings {first.number} and {second.number}"
    asked = ask_stop(tx, seen.job_id, StopReason.IDLE_RECLAIMED, actor=HUB, why=why, evidence=named)
    assert asked, f"{seen.job_id} runs and nobody asked for its stop, but it cannot be asked for"


def _find_blind(tx: Tx, seen: Look) -> None:
    since = seen.verdict.through_ms
    detail = "warned twice, but not stopped: not all of its GPUs are measured" + (
        "" if since is None else f" since {instant_text(since)}"
    )
    audit.find(tx, NOT_MEASURED, f"{seen.job_id}-{seen.attempt}", detail)


def _write_down(tx: Tx, seen: Look, is_new: bool) -> None:
    values = seen.row() | {"changed_at_ms": tx.now_ms}
    if is_new:
        tx.connection.execute(insert(found), values | {"job_id": seen.job_id, "attempt": seen.attempt})
        return
    this = (found.c.job_id == seen.job_id, found.c.attempt == seen.attempt)
    tx.connection.execute(update(found).where(*this).values(**values))


def _forget(tx: Tx) -> int:
    """Of attempts that have ended, and what is older than the longest span; in short transactions."""
    open_ones: set[Attempt] = {
        (row.job_id, row.attempt)
        for row in tx.connection.execute(
            select(attempts.c.job_id, attempts.c.attempt).where(
                attempts.c.capacity_held.is_(True), attempts.c.state != JobState.ENDED.value
            )
        )
    }
    kept_since_ms = tx.now_ms - kept_ms(read_policy(tx.connection).policy) - activity.BIN_MS
    bins = activity.prune(tx, kept_since_ms, open_ones)
    known = tx.connection.execute(select(found.c.job_id, found.c.attempt))
    gone = [key for key in ((row.job_id, row.attempt) for row in known) if key not in open_ones][:500]
    if gone:
        tx.connection.execute(delete(found).where(tuple_(found.c.job_id, found.c.attempt).in_(gone)))
    return bins + len(gone)
