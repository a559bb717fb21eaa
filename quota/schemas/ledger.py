"""Transfers and the statement of a grant."""

from __future__ import annotations

from enum import StrEnum

from quota.schemas.values import GpuHoursOut, GpuUs, Instant, Reply


class TransferType(StrEnum):
    """What a transfer does."""

    DEPOSIT = "deposit"
    HOLD = "hold"
    EXTEND = "extend"
    SETTLE = "settle"
    RELEASE = "release"
    REFUND = "refund"
    TRANSFER = "transfer"
    PULLBACK = "pullback"
    EXPIRE = "expire"
    ADJUST = "adjust"


class RefundKind(StrEnum):
    """Why a charge was given back."""

    CORRECTION = "correction"
    """That time was never occupied."""
    FAULT = "fault"
    """The hub's hardware failed; the platform pays."""
    PREEMPTED = "preempted"
    """Work lost to a preemption; the platform pays."""


class SliceArithmetic(Reply):
    """Where a charge comes from: (ends - starts) x GPUs x rate."""

    starts_at: Instant
    ends_at: Instant
    milliseconds: int
    gpus: int
    gpu_class: str
    rate_id: str
    rate_thousandths: int
    price_krw: int


class StatementLine(Reply):
    """One transfer on one account, with what it changed and why."""

    transfer_id: str
    seq: int
    at: Instant
    type: TransferType
    actor: str
    reason: str
    job_id: str | None
    attempt: int | None
    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs
    krw: int
    """Won for what was used, rounded half up; negative for a refund."""
    slice: SliceArithmetic | None


class Statement(Reply):
    """Every transfer of a grant in order, and the balance they add up to."""

    grant_id: str
    organization_id: str
    program_id: str
    as_of: Instant
    seq: int
    lines: tuple[StatementLine, ...]
    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs
    available_gpu_us: GpuUs
    granted_gpu_hours: GpuHoursOut
    held_gpu_hours: GpuHoursOut
    used_gpu_hours: GpuHoursOut
    available_gpu_hours: GpuHoursOut
    total_krw: int
