"""What runs now and then, by APScheduler: scan for what is due, one idempotent step each."""

from __future__ import annotations

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.background import BackgroundScheduler

from quota.db import Database
from quota.dispatch import feed
from quota.identity import idempotency

log = structlog.get_logger("quota.tasks")


def start(database: Database) -> BackgroundScheduler:
    """Start the periodic tasks in a thread; the caller shuts the scheduler down."""
    scheduler = BackgroundScheduler(
        timezone="UTC",
        # None: a late tick runs late instead of being skipped, which the 1 s default would do
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )
    scheduler.add_job(lambda: database.write(feed.trim), "interval", seconds=60, id="feed.trim")
    scheduler.add_job(
        lambda: database.write(idempotency.forget_old), "interval", minutes=10, id="idempotency.forget"
    )
    scheduler.add_listener(_failed, EVENT_JOB_ERROR)
    scheduler.start()
    return scheduler


def _failed(event: JobExecutionEvent) -> None:
    log.error("task_failed", task=event.job_id, error=str(event.exception))
