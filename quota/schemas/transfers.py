"""Transfers of the ledger as people read them: who moved what, why, and the arithmetic."""

from __future__ import annotations

from quota.schemas.ledger import RefundKind, SliceArithmetic, TransferType
from quota.schemas.values import GpuHoursOut, GpuUs, Instant, Reply


class TransferLeg(Reply):
    """What a transfer changed on one account."""

    account_id: str
    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs


class Transfer(Reply):
    """One row of the ledger. It never changes; a correction is another one."""

    id: str
    seq: int
    position: int
    at: Instant
    type: TransferType
    actor: str
    reason: str
    evidence: str | None
    amount_gpu_us: GpuUs
    amount_gpu_hours: GpuHoursOut
    job_id: str | None
    attempt: int | None
    hold_id: str | None
    slice_id: str | None
    refund_of: str | None
    refund_kind: RefundKind | None
    slice: SliceArithmetic | None
    """Where the amount of a charge or a refund comes from."""
    legs: tuple[TransferLeg, ...]
    """Every account that it changed; a member sees its own organization's."""


class TransferPage(Reply):
    """Transfers in the order of the ledger; pass `next` as `after` for the following page."""

    items: tuple[Transfer, ...]
    next: str | None
