"""What a programme pays opportunistic jobs from: jobs on GPUs that nobody is entitled to, first to go."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from quota.schemas.limits import Cap
from quota.schemas.values import (
    Flag,
    GpuHoursIn,
    GpuHoursOut,
    GpuUs,
    Instant,
    Reason,
    Reply,
    Request,
)

BIGGEST_GRACE_S = 600


class FundPut(Request):
    """Set what a programme pays opportunistic jobs from, whole: what is left out is the default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "gpu_hours": "2000",
                    "ends_at": "2027-12-31T15:00:00.000Z",
                    "max_gpus": 32,
                    "reason": "idle GPUs of the winter, as decided on 3 November",
                }
            ]
        }
    )

    gpu_hours: GpuHoursIn
    """All that the account was given of the programme's budget, used hours included. Once it has ended: what the next
    one is given."""
    ends_at: Instant
    """Nothing starts that could run longer; what is left then expires as on a grant."""
    pays: Flag = True
    """Whether it pays for new jobs and new starts. What runs runs on."""
    max_gpus: Cap | None = None
    """How many GPUs opportunistic jobs of the programme may keep at once; null: whatever is idle."""
    job_walltime_s: Annotated[int, Field(strict=True, ge=60, le=2_592_000)] = 86_400
    """The longest time limit of one job."""
    job_grace_s: Annotated[int, Field(strict=True, ge=0, le=BIGGEST_GRACE_S)] = 120
    """The longest grace of one job: so long whoever is entitled to its GPUs waits for it, after the notice."""
    reason: Reason


class Fund(Reply):
    """What a programme pays opportunistic jobs from: granted = used + held + available."""

    program_id: str
    grant_id: str
    """Its account is a grant of no organization: statements, transfers, top-ups and cuts name it."""
    account_id: str
    pays: bool
    starts_at: Instant
    ends_at: Instant
    granted_gpu_us: GpuUs
    granted_gpu_hours: GpuHoursOut
    held_gpu_us: GpuUs
    held_gpu_hours: GpuHoursOut
    used_gpu_us: GpuUs
    used_gpu_hours: GpuHoursOut
    available_gpu_us: GpuUs
    available_gpu_hours: GpuHoursOut
    max_gpus: int | None
    job_walltime_s: int
    job_grace_s: int
    version: int
    changed_at: Instant
    etag: str
    """What `If-Match` takes."""
