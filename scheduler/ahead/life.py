"""One job on its way through a look ahead, the attempt that it runs as, and the cluster that stays in sight."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scheduler.ahead.books import Hold
from scheduler.ahead.outlook import Prospect
from scheduler.core.model import Attempt, Cluster, Job
from scheduler.core.policy import Policy

ALWAYS_MS = 1 << 62


@dataclass(slots=True)
class Life:
    """One job on its way."""

    job: Job
    left_ms: int | None = None
    """Of its work; None until somebody had to ask."""
    grant_id: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    preemptions: int = 0

    def prospect(self) -> Prospect:
        """What is known by the end."""
        job = self.job
        return Prospect(
            job_id=job.id,
            organization_id=job.organization_id,
            grant_id=self.grant_id or job.grant_id,
            gpus=job.gpus,
            submitted_at_ms=job.submitted_at_ms,
            start_ms=self.start_ms,
            end_ms=self.end_ms,
            preemptions=self.preemptions,
        )


@dataclass(slots=True)
class Run:
    """One attempt that occupies GPUs."""

    life: Life
    attempt: Attempt
    hold: Hold
    start_ms: int
    work_from_ms: int
    """A start after a preemption first pays for the restart."""


def kept_in_sight(cluster: Cluster, now_ms: int, policy: Policy) -> Cluster:
    """A cluster that is in sight now stays in sight."""
    if now_ms - cluster.last_seen_ms > policy.cluster_unseen_ms:
        return cluster
    return replace(cluster, last_seen_ms=ALWAYS_MS)
