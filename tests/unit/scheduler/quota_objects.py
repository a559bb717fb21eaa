"""Objects of the quota service as a scheduler reads them, and the hub that the tests begin with."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from quota.schemas.scheduling import (
    AccountBalance,
    AccountPath,
    AttemptObject,
    BookingObject,
    ClusterObject,
    FeedKind,
    GpuClassObject,
    GrantObject,
    JobObject,
    JobState,
    OrganizationObject,
    PolicyObject,
)

YEAR_MS = 366 * 86_400_000


def a_hub(now_ms: int) -> tuple[tuple[FeedKind, str, BaseModel], ...]:
    """The policy, one cluster, one class, one organization with one grant."""
    return (
        ("policy", "default", a_policy()),
        ("cluster", "sim", ClusterObject(id="sim", paused=False, observed_through=None)),
        ("gpu_class", "h100", a_class()),
        ("organization", "alpha", an_organization("alpha", now_ms)),
        ("grant", "g1", a_grant(now_ms)),
    )


def a_policy(**changes: Any) -> PolicyObject:
    """The hub's numbers."""
    words: dict[str, Any] = {
        "half_life_ms": 7 * 86_400_000,
        "lag_bound_thousandths": 100,
        "cluster_unseen_wall_s": 60,
        "start_limit_wall_s": 600,
        "abandonments_limit": 3,
    }
    return PolicyObject.model_validate(words | changes)


def a_class(paused: bool = False) -> GpuClassObject:
    """The reference GPU."""
    return GpuClassObject(id="h100", rate_id="r1", rate_thousandths=1000, paused=paused)


def a_booking(ident: str, starts_at: int = 0, ends_at: int = YEAR_MS, **changes: Any) -> BookingObject:
    """A node for alpha."""
    words: dict[str, Any] = {
        "organization_id": "alpha",
        "grant_id": None,
        "gpu_class": "h100",
        "cluster": None,
    }
    words |= {"gpus_per_pod": 8, "pods": 1, "starts_at": starts_at, "ends_at": ends_at, "hold": False}
    return BookingObject.model_validate({"id": ident} | words | changes)


def an_organization(ident: str, now_ms: int) -> OrganizationObject:
    """A firm that used nothing yet."""
    return OrganizationObject(id=ident, frozen=False, decayed_usage_gpu_us=0.0, decayed_as_of=now_ms)


def a_path(organization_id: str = "alpha", *accounts: str, granted_gpu_us: int = 10**17) -> AccountPath:
    """Where this organization's holds may stand."""
    balances = (
        AccountBalance(id=ident, granted_gpu_us=granted_gpu_us, held_gpu_us=0, used_gpu_us=0)
        for ident in accounts or ("a1",)
    )
    return AccountPath(accounts=tuple(balances), organization_id=organization_id)


def a_grant(now_ms: int, **changes: Any) -> GrantObject:
    """A grant of alpha half-way through its two years."""
    words: dict[str, Any] = {
        "id": "g1",
        "program_id": "p1",
        "organization_id": "alpha",
        "starts_at": now_ms - YEAR_MS,
        "ends_at": now_ms + YEAR_MS,
        "paths": (a_path(),),
        "pace": None,
    }
    return GrantObject.model_validate(words | changes)


def a_job(job_id: str = "job-1", **changes: Any) -> JobObject:
    """A waiting job for one GPU."""
    words: dict[str, Any] = {
        "id": job_id,
        "organization_id": "alpha",
        "grant_id": None,
        "gpu_class": "h100",
        "gpus_per_pod": 1,
        "pods": 1,
        "walltime_ms": 3_600_000,
        "grace_ms": 30_000,
        "restartable": True,
        "submitted_at": 1_800_000_000_000,
        "state": JobState.QUEUED,
        "attempt": 0,
        "not_before": None,
        "cancel_requested_at": None,
    }
    return JobObject.model_validate(words | changes)


def an_attempt(job_id: str = "job-1", number: int = 1, **changes: Any) -> AttemptObject:
    """An attempt that was claimed a moment ago, for one GPU on n0."""
    words: dict[str, Any] = {
        "id": f"{job_id}-{number}",
        "job_id": job_id,
        "organization_id": "alpha",
        "attempt": number,
        "state": JobState.STARTING,
        "cluster": "sim",
        "pods": ({"index": 0, "node": "n0", "gpu_class": "h100", "count": 1},),
        "grant_id": "g1",
        "hold_id": f"{job_id}:{number}:hold",
        "cost_gpu_us": 3_600_000_000,
        "walltime_ms": 3_600_000,
        "grace_ms": 30_000,
        "claimed_at": 1_800_000_000_000,
        "first_started_at": None,
        "last_started_at": None,
        "ended_at": None,
        "capacity_held": True,
        "stop": None,
    }
    return AttemptObject.model_validate(words | changes)
