"""Attempts that go on with a GPU that is lost or hangs: asked to stop after a while. Called by a periodic task.

A program whose GPU is gone often does not end by itself: it waits in the driver, and its gang waits for it. What then
happens is what happens to one that died of the fault: the attempt ends as `node_failed`, its job waits again if it may,
and what it lost comes back, up to the cap. Rules:

- Only after `stop_after_s` in which the verdict stood and its agent still calls the GPU bad: one that came back
  meanwhile is given the benefit of the doubt.
- Only of a GPU in quarantine: what the circuit breaker or the observe-only switch withholds stops nobody.
- A GPU with a bad XID that still computes is left to its job: whether it dies is seen.

What can go wrong, and what then happens:

- The process dies before an attempt's transaction is committed: nothing was asked for; the next run does.
- It dies after it: the stop stands in the attempt, the scheduler finds it, and the fault stays open until the end.
- Two runs at once: the job's row is locked first and all is looked at once more behind it; asked once.
- The attempt ends by itself meanwhile, or before the scheduler recorded the stop: its end is the fault's all the same.
- It succeeds in its grace: it succeeded, and nothing comes back.
- Its pods cannot be killed: it keeps its GPUs, as with every stop; its time is charged up to stop and grace.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, and_, select

from quota.db import Database, Tx
from quota.fleet.gpu_tables import gpu_verdicts, gpus
from quota.fleet.quarantine import read_policy, seen_after_ms
from quota.jobs.fault_tables import gpu_faults
from quota.jobs.faults import GONE, told
from quota.jobs.service import ask_stop, lock_job
from quota.jobs.tables import attempts
from quota.schemas.gpus import BAD
from quota.schemas.scheduling import JobState, StopReason

HUB = "hub"

_HELD = (
    select(
        gpu_faults.c.job_id,
        gpu_faults.c.attempt,
        gpu_faults.c.verdict_id,
        gpu_faults.c.gpu_uuid,
        gpu_faults.c.at_ms,
        gpu_verdicts.c.rule,
        gpu_verdicts.c.node,
    )
    .join(gpu_verdicts, gpu_verdicts.c.id == gpu_faults.c.verdict_id)
    .join(
        gpus,
        and_(gpus.c.gpu_uuid == gpu_faults.c.gpu_uuid, gpus.c.node == gpu_verdicts.c.node),
    )
    .join(
        attempts, and_(attempts.c.job_id == gpu_faults.c.job_id, attempts.c.attempt == gpu_faults.c.attempt)
    )
    .where(
        gpu_faults.c.outcome == "open",
        gpu_verdicts.c.rule.in_(GONE),
        gpus.c.quarantine != "",
        gpus.c.health.in_(sorted(BAD)),
        attempts.c.state == JobState.RUNNING.value,
    )
    .order_by(gpu_faults.c.job_id, gpu_faults.c.at_ms, gpu_faults.c.verdict_id)
)


def stop_due(database: Database) -> int:
    """Ask for the stop of what is due, each attempt in a transaction of its own. Answers how many were asked."""
    clock = database.clock
    with database.read() as connection:
        due = {row.job_id: row for row in _due(connection, clock.now_ms(), clock.speed)}
    return sum(database.write_each(list(due), _ask))


def _ask(tx: Tx, job_id: str) -> bool:
    if lock_job(tx, job_id) is None:
        return False
    rows = _due(tx.connection, tx.now_ms, tx.speed, job_id)
    if not rows:
        return False
    row = rows[0]
    why = f"{row.gpu_uuid} on {row.node}: {row.rule}, and the job did not end by itself"
    return ask_stop(tx, job_id, StopReason.GPU_FAILED, actor=HUB, why=why, evidence=told(row.verdict_id))


def _due(connection: Connection, now_ms: int, speed: int, job_id: str | None = None) -> list[Row[Any]]:
    long_ago_ms = now_ms - read_policy(connection).stop_after_s * 1000
    statement = _HELD.where(
        gpu_faults.c.at_ms <= long_ago_ms, gpus.c.last_seen_ms >= seen_after_ms(connection, now_ms, speed)
    )
    if job_id is not None:
        statement = statement.where(gpu_faults.c.job_id == job_id)
    return list(connection.execute(statement))
