"""Programmes with a budget, and the grants awarded from it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from quota.schemas.limits import Cap, NewTranche, TrancheNumber
from quota.schemas.policies import GrantPolicy
from quota.schemas.scheduling import Pace
from quota.schemas.values import (
    NO_NUL,
    Flag,
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
    wrong,
)


class NewProgram(Request):
    """Open a programme and put its budget on its account."""

    id: Slug
    name: Name
    budget_gpu_hours: GpuHoursIn
    policy_id: Slug = "default"
    """The policy that its grants take a copy of."""
    reason: Reason = "programme opened"


class ProgramChange(Request):
    """Another name, or another policy for grants awarded from now on; what is absent stays."""

    name: Name | None = None
    policy_id: Slug | None = None
    reason: Reason


class Program(Reply):
    """A programme: budget = awarded + remaining + expired."""

    id: str
    name: str
    account_id: str
    policy_id: str
    budget_gpu_us: GpuUs
    budget_gpu_hours: GpuHoursOut
    awarded_gpu_us: GpuUs
    remaining_gpu_us: GpuUs
    remaining_gpu_hours: GpuHoursOut
    expired_gpu_us: GpuUs
    expired_gpu_hours: GpuHoursOut
    created_at: Instant


class ProgramList(Reply):
    """Programmes in order of id; pass `next` as `after` for the following page."""

    items: tuple[Program, ...]
    next: str | None = None


class Award(Request):
    """Award GPU hours of a programme to an organization for a term."""

    program_id: Slug
    organization_id: Slug
    gpu_hours: GpuHoursIn
    starts_at: Instant | None = None
    """Default: now."""
    ends_at: Instant
    max_gpus: Cap | None = None
    """How many GPUs attempts on it may keep at once; absent: no cap."""
    tranches: Annotated[tuple[NewTranche, ...], Field(max_length=20)] = ()
    """Parts that are released one after the other; together they come to `gpu_hours`."""
    first_tranche_released: Flag = True
    reason: Reason

    @model_validator(mode="after")
    def _term_is_ordered(self) -> Award:
        if self.starts_at is not None and self.ends_at <= self.starts_at:
            raise wrong("ends_at must be after starts_at")
        return self


class GrantState(StrEnum):
    """Where a grant is in its term."""

    COMING = "coming"
    ACTIVE = "active"
    ENDED = "ended"


Evidence = Annotated[
    str,
    Field(
        min_length=1,
        max_length=500,
        pattern=NO_NUL,
        description="What it rests on: a decision, a report, a signed paper and its hash.",
        examples=["decision 2027-014, sha256:9f86d081"],
    ),
]


class GrantChange(Request):
    """A top-up or a cut: how many GPU hours, and why."""

    gpu_hours: GpuHoursIn
    reason: Reason
    evidence: Evidence | None = None


class TopUp(GrantChange):
    """Hours that a grant gets on top."""

    tranche: TrancheNumber | None = None
    """The tranche that they come into; absent: the one released last, of a grant that has tranches."""


class LimitCut(Request):
    """A share or a tranche that loses hours together with its grant."""

    account_id: Id
    gpu_hours: GpuHoursIn


class GrantCut(GrantChange):
    """Hours that a grant loses; what stands on shares and tranches is taken only where they are named."""

    children: Annotated[tuple[LimitCut, ...], Field(max_length=100)] = ()


class GrantTransfer(GrantCut):
    """Hours that one grant gives to another of the same programme."""

    to_grant_id: Id
    tranche: TrancheNumber | None = None
    """The other grant's tranche that they come into; absent: the one released last, if it has tranches."""


class Adjustment(Request):
    """A correction: more than 0 adds hours, less than 0 takes them away."""

    gpu_hours: GpuHoursIn
    reason: Reason
    evidence: Evidence


class CarryOver(GrantChange):
    """Expired hours of a grant, for another grant of the same programme that has not ended."""

    to_grant_id: Id
    tranche: TrancheNumber | None = None


class Grant(Reply):
    """A grant: granted = used + held + available. A party of a consortium sees the balance of its share."""

    id: str
    program_id: str
    organization_id: str | None
    """null: it is the programme's own, from which it pays opportunistic jobs."""
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
    max_gpus: int | None = None
    """How many GPUs attempts on it may keep at once."""
    overdraft_gpu_us: GpuUs = 0
    """How much more than granted its policy lets be held and used."""
    policy: GrantPolicy = GrantPolicy()
    """The rules that it was awarded under."""
    expired_at: Instant | None = None
    """When its remainder expired."""
    created_at: Instant


class GrantMove(Reply):
    """Hours went from one grant to another: both as they are now."""

    transfer_id: str
    source: Grant
    target: Grant


class GrantList(Reply):
    """Grants in order of id; pass `next` as `after` for the following page."""

    items: tuple[Grant, ...]
    next: Id | None
