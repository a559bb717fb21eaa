"""Limits inside a grant: a consortium's shares, tranches that wait for a milestone, and the cap on GPUs at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quota.schemas.values import (
    NO_NUL,
    Flag,
    GpuHoursIn,
    GpuHoursOut,
    GpuUs,
    Name,
    Reason,
    Reply,
    Request,
    Slug,
)

Position = Annotated[int, Field(ge=1, le=20, description="Tranches are counted from 1.", examples=[2])]
TrancheNumber = Annotated[Position, Field(strict=True)]
"""The same in a body, where no text stands for a number."""
Cap = Annotated[int, Field(strict=True, ge=1, le=1_000_000, examples=[8])]
"""How many GPUs attempts on a grant may keep at once."""


class ShareChange(Request):
    """How many GPU hours of the grant a party may use in all; 0 closes its share for new starts."""

    gpu_hours: GpuHoursIn
    reason: Reason


class ShareMove(Request):
    """Move hours that one party neither used nor holds to another party of the same grant."""

    from_organization_id: Slug
    to_organization_id: Slug
    gpu_hours: GpuHoursIn
    reason: Reason


class NewTranche(Request):
    """One part of a grant's hours, and what it waits for."""

    gpu_hours: GpuHoursIn
    label: Name


class NewTranches(Request):
    """Divide a grant into tranches, once; they are released in this order."""

    tranches: Annotated[tuple[NewTranche, ...], Field(min_length=1, max_length=20)]
    first_released: Flag = True
    """Whether the first one can be drawn on at once."""
    reason: Reason


class TrancheChange(Request):
    """How many GPU hours of the grant a tranche has in all."""

    gpu_hours: GpuHoursIn
    reason: Reason


class TrancheRelease(Request):
    """Release the next tranche: why, and what shows that its milestone was reached."""

    reason: Reason
    evidence: Annotated[
        str,
        Field(
            min_length=1,
            max_length=500,
            pattern=NO_NUL,
            description="What it rests on: a report's number, a signed paper and its hash.",
            examples=["report 2027-03, sha256 9f86d081"],
        ),
    ]


class LimitBalance(Reply):
    """granted = used + held + available."""

    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs
    available_gpu_us: GpuUs
    granted_gpu_hours: GpuHoursOut
    held_gpu_hours: GpuHoursOut
    used_gpu_hours: GpuHoursOut
    available_gpu_hours: GpuHoursOut


class Share(Reply):
    """What one party of a consortium may use of a grant."""

    grant_id: str
    organization_id: str
    account_id: str
    open: bool
    """Whether its jobs may start; what runs on a closed share runs on."""
    balance: LimitBalance


class ShareList(Reply):
    """Shares in order of organization."""

    items: tuple[Share, ...]


class Tranche(Reply):
    """A part of a grant's hours; locked until it is released."""

    grant_id: str
    position: int
    label: str
    released: bool
    account_id: str
    balance: LimitBalance | None
    """Absent for a party of a consortium: it is everybody's together."""


class TrancheList(Reply):
    """Tranches in the order of their release."""

    items: tuple[Tranche, ...]


class GrantLimits(Reply):
    """Every limit inside a grant, as far as the caller may know it: a party sees its own share."""

    grant_id: str
    max_gpus: int | None
    """How many GPUs attempts on this grant may keep at once; absent: no cap."""
    gpus_in_use: int | None
    """GPUs that attempts on this grant keep now; absent for a party."""
    shares: tuple[Share, ...]
    left_for_shares_gpu_us: GpuUs | None
    """What could still be given to parties; absent for a party."""
    tranches: tuple[Tranche, ...]
    left_for_tranches_gpu_us: GpuUs | None
    """What stands in no tranche and was not used or held before there were any; absent for a party."""
