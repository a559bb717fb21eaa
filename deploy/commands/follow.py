"""Follow one job to its end with a status line."""

from __future__ import annotations

import time
from contextlib import nullcontext

from rich.console import Console

from deploy.durations import duration_text
from deploy.waiting import waiting_line
from quota.client import QuotaClient, ServiceUnavailable
from quota.schemas.jobs import Job, JobDetail
from quota.schemas.scheduling import JobState

POLL_S = 0.5
OUTAGE_S = 60.0
"""A service that is away for this long ends the wait; a restart does not."""


def follow_job(client: QuotaClient, job: Job, quiet: bool = False) -> JobDetail:
    """Wait until the job has ended and its hold is resolved. Raises ServiceUnavailable after an outage."""
    out = Console(stderr=True, highlight=False, quiet=quiet)
    live = out.status(f"{job.id} submitted") if out.is_terminal else nullcontext()
    told = ""
    seen_at = time.monotonic()
    with live as status:
        while True:
            try:
                now = client.read_job(job.id)
                seen_at = time.monotonic()
            except ServiceUnavailable:
                if time.monotonic() - seen_at > OUTAGE_S:
                    raise
                time.sleep(POLL_S)
                continue
            line = _line(now)
            if status is not None:
                status.update(line)
            elif line != told:
                out.print(line, markup=False)
            told = line
            if is_settled(now):
                return now
            time.sleep(POLL_S)


def is_settled(job: JobDetail) -> bool:
    """Whether the job has ended and nothing of it is held any more."""
    return job.state is JobState.ENDED and all(attempt.hold_resolved for attempt in job.attempts)


def _line(job: JobDetail) -> str:
    match job.state:
        case JobState.QUEUED:
            return f"{job.id} waits: {waiting_line(job)}"
        case JobState.ENDED:
            reason = "" if job.end_reason is None else f": {job.end_reason.value}"
            return f"{job.id} ended{reason}" + (f" ({job.end_text})" if job.end_text else "")
        case _:
            places = sorted({pod.node for attempt in job.attempts[-1:] for pod in attempt.pods})
            limit = duration_text(job.walltime_s)
            return f"{job.id} {job.state.value} on {', '.join(places)} (attempt {job.attempt}, limit {limit})"
