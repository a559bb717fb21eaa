"""What a look ahead answers: what becomes of each job, and what was used by when. Frozen; business milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prospect:
    """What becomes of one job."""

    job_id: str
    organization_id: str
    grant_id: str | None
    """That its last start draws on, or the one that it names while it has none."""
    gpus: int
    submitted_at_ms: int
    start_ms: int | None
    """Of its next start, or of the present attempt if it runs already; None: not by `Outlook.until_ms`."""
    end_ms: int | None
    """When it has done its work; None: not by `Outlook.until_ms`."""
    preemptions: int
    """How often it is stopped for others on the way."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """One future of the hub, played from `now_ms` to `until_ms`."""

    now_ms: int
    until_ms: int
    jobs: Mapping[str, Prospect]
    """Of every job of the snapshot that had not ended and of every arrival that came by `until_ms`."""
    used_gpu_us: Mapping[str, int]
    """By grant: what its own account has been charged by `until_ms`, running attempts included."""
    busy_gpu_ms: int
    """GPUs x time that the hub's attempts occupy between `now_ms` and `until_ms`."""
    cycles: int
    """How often `decide` was asked."""
    complete: bool
    """Nothing runs any more, nothing arrives and nothing more will start: a longer horizon would show the same."""
