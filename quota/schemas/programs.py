"""Programmes with a budget, and the grants awarded from it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import model_validator

from quota.schemas.scheduling import Pace
from quota.schemas.values import (
    GpuHoursIn,
    GpuHoursOut,
    GpuUs,
    Id,
    Instant,
    Name,
    Reason,
    Reply,
    Request,
    Slug,
)


class NewProgram(Request):
    """Open a programme and put its budget on its account."""

    id: Slug
    name: Name
    budget_gpu_hours: GpuHoursIn
    reason: Reason = "programme opened"


class Program(Reply):
    """A programme: budget = awarded + remaining."""

    id: str
    name: str
    account_id: str
    budget_gpu_us: GpuUs
    budget_gpu_hours: GpuHoursOut
    awarded_gpu_us: GpuUs
    remaining_gpu_us: GpuUs
    remaining_gpu_hours: GpuHoursOut
    created_at: Instant


class ProgramList(Reply):
    """Programmes in order of id."""

    items: tuple[Program, ...]


class Award(Request):
    """Award GPU hours of a programme to an organization for a term."""

    program_id: Slug
    organization_id: Slug
    gpu_hours: GpuHoursIn
    starts_at: Instant | None = None
    """Default: now."""
    ends_at: Instant
    reason: Reason

    @model_validator(mode="after")
    def _term_is_ordered(self) -> Award:
        if self.starts_at is not None and self.ends_at <= self.starts_at:
            raise ValueError("ends_at must be after starts_at")
        return self


class GrantState(StrEnum):
    """Where a grant is in its term."""

    COMING = "coming"
    ACTIVE = "active"
    ENDED = "ended"


class GrantChange(Request):
    """A top-up or a cut: how many GPU hours, and why."""

    gpu_hours: GpuHoursIn
    reason: Reason


class Grant(Reply):
    """A grant: granted = used + held + available."""

    id: str
    program_id: str
    organization_id: str
    account_id: str
    state: GrantState
    starts_at: Instant
    ends_at: Instant
    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs
    available_gpu_us: GpuUs
    granted_gpu_hours: GpuHoursOut
    held_gpu_hours: GpuHoursOut
    used_gpu_hours: GpuHoursOut
    available_gpu_hours: GpuHoursOut
    pace: Pace | None
    created_at: Instant


class GrantList(Reply):
    """Grants in order of id."""

    items: tuple[Grant, ...]
    next: Id | None
