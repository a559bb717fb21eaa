"""`gpuhub up --check`: prove that jobs start, end and are settled here, for every demo organization."""

from __future__ import annotations

import time

from deploy.commands.account import all_grants
from deploy.commands.follow import is_settled
from deploy.commands.statements import print_statement
from deploy.demo import ORGANIZATIONS
from deploy.hub import Hub
from deploy.progress import Progress
from quota.client import QuotaClient
from quota.schemas.scheduling import JobState

POLL_S = 0.2


class CheckFailed(Exception):
    """Not every organization had a settled job in time."""


def check(hub: Hub, progress: Progress, began: float, timeout_s: float) -> None:
    """Wait until a job of each demo organization is settled, print statements. Raises CheckFailed."""
    waited_for = {organization.id for organization, _ in ORGANIZATIONS}
    with hub.client() as client:
        with progress.step(
            "waiting for jobs to end", "one job of each organization has ended and is settled"
        ):
            while waited_for:
                waited_for -= {name for name in waited_for if _has_settled_job(client, name)}
                progress.update(f"waiting for settled jobs of {', '.join(sorted(waited_for))}")
                if waited_for and time.monotonic() - began > timeout_s:
                    raise CheckFailed(_why(client, waited_for, timeout_s))
                time.sleep(POLL_S)
        took_s = time.monotonic() - began
        for grant in all_grants(client):
            print_statement(client.read_statement(grant.id))
    progress.say(
        f"check passed: a job of each organization was settled {took_s:.1f} s after the start", "green"
    )


def _has_settled_job(client: QuotaClient, organization: str) -> bool:
    ended = client.list_jobs(JobState.ENDED, organization).items
    return any(job.charged_gpu_us > 0 and is_settled(client.read_job(job.id)) for job in ended)


def _why(client: QuotaClient, organizations: set[str], timeout_s: float) -> str:
    lines = [f"no settled job of {', '.join(sorted(organizations))} within {timeout_s:.0f} s; their jobs:"]
    for organization in sorted(organizations):
        for job in client.list_jobs(None, organization).items:
            waits = f", waits for {job.waiting.code.value}" if job.waiting else ""
            lines.append(f"  {job.id} {job.name} ({organization}): {job.state.value}{waits}")
    return "\n".join(lines)
