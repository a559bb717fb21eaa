"""`gpuhub up --check`: prove that jobs start, end and are settled here, and that the ledger stands a check.

For every demo organization; then the ledger is sealed, a sealed statement of each grant is read, and the program that
shares no code with the service checks them and the whole ledger.
"""

from __future__ import annotations

import time
from pathlib import Path

from deploy import audit_verify
from deploy.commands.account import all_grants
from deploy.commands.follow import is_settled
from deploy.commands.statements import print_statement
from deploy.demo import ORGANIZATIONS
from deploy.hub import Hub
from deploy.progress import Progress
from quota.client import QuotaClient
from quota.client.paging import every
from quota.schemas.audit import Seal
from quota.schemas.scheduling import JobState
from quota.schemas.statements import StatementFormat, StatementLanguage

POLL_S = 0.2
CLOCK_SPEED = 10
"""The ledger is sealed each minute of the hub's clock: at this speed nobody waits for it."""


class CheckFailed(Exception):
    """Not every organization had a settled job in time, or the ledger broke a rule."""


def check(hub: Hub, progress: Progress, began: float, timeout_s: float) -> None:
    """Wait until a job of each demo organization is settled, check the ledger, print statements. Raises CheckFailed."""
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
        with progress.step("checking the ledger", "the sealed ledger and its statements break no rule"):
            seal = _wait_for_seal(client, began, timeout_s)
            _verify(client, seal, hub.data.path)
        for grant in all_grants(client):
            print_statement(client.read_statement(grant.id, seal.at))
    progress.say(
        f"check passed: a job of each organization was settled {took_s:.1f} s after the start", "green"
    )


def _wait_for_seal(client: QuotaClient, began: float, timeout_s: float) -> Seal:
    """The first seal over everything that the grants' statements hold now. Raises CheckFailed."""
    wanted = max(client.read_statement(grant.id).seq for grant in all_grants(client))
    while True:
        for seal in every(client.list_seals):
            if seal.through_seq >= wanted:
                return seal
        if time.monotonic() - began > timeout_s:
            raise CheckFailed(f"the ledger was not sealed within {timeout_s:.0f} s; see `gpuhub tasks`")
        time.sleep(POLL_S)


def _verify(client: QuotaClient, seal: Seal, folder: Path) -> None:
    """Check an export and a sealed statement of each grant without the service. Raises CheckFailed."""
    ledger = folder / "ledger.jsonl"
    with ledger.open("wb") as target:
        client.export_ledger(target, "gpuhub up --check", seal.number)
    statements = []
    for grant in all_grants(client):
        path = folder / f"{grant.id}.json"
        path.write_bytes(
            client.write_statement(grant.id, StatementFormat.JSON, StatementLanguage.EN, seal.at)
        )
        statements.append(path)
    told: list[str] = []
    if audit_verify.run(ledger, statements, [seal.sha256], told.append) != 0:
        raise CheckFailed("the ledger breaks its rules:\n" + "".join(told))


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
