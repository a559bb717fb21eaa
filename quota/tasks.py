"""What runs now and then, by APScheduler: each task scans for what is due, and is claimed once per period.

Any number of replicas tick; the first to insert (task, period) does the work of that period. Every task looks for all
that is due, not for what fell due within its period: what was missed while nothing ran is done by the next run. Dying
after the claim costs one period; dying within the work leaves whole transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Connection, func, insert, select, update

from quota.audit import seals
from quota.audit.tables import task_runs
from quota.clock import HOUR_MS, day_of
from quota.db import Database, Tx
from quota.dispatch import feed
from quota.fleet import inventory
from quota.identity import idempotency
from quota.jobs import endings as running
from quota.jobs import fault_stops, faults, idling
from quota.programs import endings
from quota.reports import reconciliation, retention, watching
from quota.schemas.service import TaskList, TaskState

log = structlog.get_logger("quota.tasks")

MINUTE_MS = 60_000
DAYS_PER_RUN = 31
"""Days that one run of the reconciliation catches up at most."""
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Task:
    """A name, a period in business milliseconds, and work that says in one line what it did."""

    name: str
    period_ms: int
    work: Callable[[Database], str]


def _seal(database: Database) -> str:
    return f"{seals.seal_due(database)} seals"


def _expire(database: Database) -> str:
    return f"{endings.expire_due(database)} grants"


def _stop(database: Database) -> str:
    return f"{running.stop_due(database)} attempts"


def _watch(database: Database) -> str:
    return f"{watching.find_behind(database)} clusters"


def _watch_gpus(database: Database) -> str:
    settled = f"{faults.settle_due(database)} faults, {inventory.find_strays(database)} GPUs"
    return f"{settled}, {fault_stops.stop_due(database)} stops"


def _reconcile(database: Database) -> str:
    days = days_due(database)
    for day in days[:DAYS_PER_RUN]:
        reconciliation.reconcile(database, day)
    return f"{len(days[:DAYS_PER_RUN])} days"


def _forget(database: Database) -> str:
    gone = retention.forget(database)
    return f"{gone.evidence_rows} evidence rows, {gone.token_labels} token labels, {gone.task_runs} task runs"


def _trim(database: Database) -> str:
    return f"oldest cursor {database.write(feed.trim)}"


def _forget_keys(database: Database) -> str:
    return f"{database.write(idempotency.forget_old)} keys"


TASKS = (
    Task("audit.seal", MINUTE_MS, _seal),
    Task("grants.expire", MINUTE_MS, _expire),
    Task("grants.stop_running", MINUTE_MS, _stop),
    Task("jobs.idle", MINUTE_MS, idling.judge_all),
    Task("clusters.watch", 5 * MINUTE_MS, _watch),
    Task("gpus.watch", MINUTE_MS, _watch_gpus),
    Task("reconcile", HOUR_MS, _reconcile),
    Task("retention", 24 * HOUR_MS, _forget),
    Task("feed.trim", MINUTE_MS, _trim),
    Task("idempotency.forget", 10 * MINUTE_MS, _forget_keys),
)


def start(database: Database, tasks: tuple[Task, ...] = TASKS) -> BackgroundScheduler:
    """Start ticking in a thread; the caller shuts the scheduler down."""
    scheduler = BackgroundScheduler(
        timezone="UTC",
        # None: a late tick runs late instead of being skipped, which the 1 s default would do
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )
    for task in tasks:
        wall_s = min(30.0, max(1.0, database.clock.wall_s(task.period_ms) / 4))
        scheduler.add_job(run_due, "interval", args=(database, task), seconds=wall_s, id=task.name)
    scheduler.add_listener(_failed, EVENT_JOB_ERROR)
    scheduler.start()
    return scheduler


def run_due(database: Database, task: Task) -> str | None:
    """Do the task's work unless somebody claimed this period. Answers what it did, None if it was not due."""
    now_ms = database.clock.now_ms()
    period_at_ms = now_ms - now_ms % task.period_ms
    with database.read() as connection:
        if _is_claimed(connection, task.name, period_at_ms):
            return None
    if not database.write(lambda tx: _claim(tx, task.name, period_at_ms)):
        return None
    try:
        result = task.work(database)
    except Exception as error:
        # the loop's edge: the next period tries again, and people can see why this one did not
        problem = f"failed: {type(error).__name__}: {error}"[:500]
        database.write(lambda tx: _finish(tx, task.name, period_at_ms, problem))
        log.error("task_failed", task=task.name, exc_info=error)
        return problem
    database.write(lambda tx: _finish(tx, task.name, period_at_ms, result))
    return result


def days_due(database: Database) -> list[str]:
    """Days of Asia/Seoul that are over long enough and were not compared yet, oldest first."""
    now_ms = database.clock.now_ms()
    with database.read() as connection:
        first = reconciliation.first_day_ms(connection)
        if first is None:
            return []
        due = []
        moment = first
        done = reconciliation.days_done(connection)
        last = day_of(now_ms - reconciliation.grace_ms(database.clock))
        while (day := day_of(moment)) < last:
            if day not in done:
                due.append(day)
            moment += reconciliation.DAY_MS
    return due


def read_tasks(connection: Connection) -> TaskList:
    """Every task with its newest run."""
    items = []
    for task in TASKS:
        newest = (
            select(func.max(task_runs.c.period_at_ms)).where(task_runs.c.task == task.name).scalar_subquery()
        )
        row = connection.execute(
            select(task_runs).where(task_runs.c.task == task.name, task_runs.c.period_at_ms == newest)
        ).one_or_none()
        items.append(
            TaskState(
                name=task.name,
                period_s=task.period_ms // 1000,
                last_run_at=None if row is None else row.done_at_ms,
                result=None if row is None else row.result,
            )
        )
    return TaskList(items=tuple(items))


def _is_claimed(connection: Connection, name: str, period_at_ms: int) -> bool:
    known = select(task_runs.c.task).where(task_runs.c.task == name, task_runs.c.period_at_ms == period_at_ms)
    return connection.execute(known).first() is not None


def _claim(tx: Tx, name: str, period_at_ms: int) -> bool:
    """Insert the period's row; another replica's at the same moment makes this run again, and see it."""
    if _is_claimed(tx.connection, name, period_at_ms):
        return False
    row = {"task": name, "period_at_ms": period_at_ms, "done_at_ms": tx.now_ms, "result": RUNNING}
    tx.connection.execute(insert(task_runs), row)
    return True


def _finish(tx: Tx, name: str, period_at_ms: int, result: str) -> None:
    key = (task_runs.c.task == name) & (task_runs.c.period_at_ms == period_at_ms)
    tx.connection.execute(update(task_runs).where(key).values(done_at_ms=tx.now_ms, result=result))


def _failed(event: JobExecutionEvent) -> None:
    log.error("task_not_run", task=event.job_id, error=str(event.exception))
