"""Caps: how many GPUs an organization may keep at once, how large and long a job may be, how many may wait."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from quota.schemas.jobs import BIGGEST_WALLTIME_S
from quota.schemas.limits import Cap
from quota.schemas.values import Instant, Reason, Reply, Request

PoolPart = Annotated[int, Field(strict=True, ge=1, le=1000)]
Walltime = Annotated[int, Field(strict=True, ge=1, le=BIGGEST_WALLTIME_S)]
QueuedJobs = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class HubCaps(Request):
    """The hub's caps; an organization may have its own."""

    organization_pool_thousandths: PoolPart = 200
    """An organization keeps at most this part of the pool at once, rounded up; 1000: any. The pool is all GPUs of the
    nodes that take jobs, a MIG profile counted as one. The part is never less than the largest such node has of one
    class, so that a job on one node can always run."""
    organization_pool_from_gpus: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 100
    """A smaller pool is not divided in this way: a fifth of it is two nodes at most."""
    job_gpus: Cap | None = None
    """How many GPUs one job may take; null: as many as there are."""
    job_walltime_s: Walltime = BIGGEST_WALLTIME_S
    """How long one job may run, extensions included."""
    queued_jobs: QueuedJobs = 5000
    """How many jobs of an organization may wait; who submits more is refused until some have started or ended."""


class CapsPut(Request):
    """Set the hub's caps, whole: what is left out is the default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "caps": {"organization_pool_thousandths": 250, "job_walltime_s": 604_800},
                    "reason": "as decided by the steering group on 3 November",
                }
            ]
        }
    )

    caps: HubCaps
    reason: Reason


class CapsDocument(Reply):
    """The hub's caps, and how often they were changed."""

    version: int
    caps: HubCaps
    changed_at: Instant
    etag: str
    """What `If-Match` takes."""


class OrganizationCaps(Request):
    """What an organization has of its own; null: as the hub has it."""

    max_gpus: Cap | None = None
    """How many GPUs it may keep at once, whatever the pool; null: no such cap. Of this and its part of the pool the
    lower one binds."""
    pool_thousandths: PoolPart | None = None
    """Its part of the pool, whatever the pool's size; 1000: any."""
    job_gpus: Cap | None = None
    job_walltime_s: Walltime | None = None
    queued_jobs: QueuedJobs | None = None


class OrganizationCapsPut(Request):
    """Set an organization's own caps, whole: what is left out is the hub's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "caps": {"pool_thousandths": 400, "queued_jobs": 200},
                    "reason": "the only one on the pool until May",
                }
            ]
        }
    )

    caps: OrganizationCaps
    reason: Reason


class ProgramCaps(Request):
    """What a programme has of its own, as one for a course may; null: none. It only narrows: of the hub's (or the
    organization's) and the programme's the tighter one binds."""

    job_gpus: Cap | None = None
    job_walltime_s: Walltime | None = None
    queued_jobs: QueuedJobs | None = None
    """How many jobs of one organization may wait that the programme could pay for."""


class ProgramCapsPut(Request):
    """Set a programme's caps, whole: what is left out is none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "caps": {"job_gpus": 1, "job_walltime_s": 14_400, "queued_jobs": 4},
                    "reason": "a course of 200 students",
                }
            ]
        }
    )

    caps: ProgramCaps
    reason: Reason


class ProgramCapsDocument(Reply):
    """A programme's caps."""

    program_id: str
    caps: ProgramCaps
    etag: str
    """What `If-Match` takes."""


class ProgramBound(Reply):
    """A programme whose grants an organization may draw on, with the caps that it sets."""

    program_id: str
    caps: ProgramCaps
    queued_jobs: int
    """The organization's waiting jobs that it could pay for."""


class CapsInEffect(Reply):
    """What binds an organization now, its own caps and the hub's taken together."""

    max_gpus: int | None
    """GPUs at once, as the pool is now; null: no cap."""
    job_gpus: int | None
    job_walltime_s: int
    queued_jobs: int


class OrganizationCapsDocument(Reply):
    """An organization's own caps, those in effect, and how far they are reached."""

    organization_id: str
    caps: OrganizationCaps
    in_effect: CapsInEffect
    gpus_in_use: int
    """Of attempts that keep their GPUs, stopping ones and those lost from sight included."""
    queued_jobs: int
    programs: tuple[ProgramBound, ...] = ()
    """Tighter ones for jobs that these programmes may pay for, by id; those without any are left out."""
    etag: str
    """What `If-Match` takes; changes with `caps` alone."""
