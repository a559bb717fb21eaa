"""Transfers: their types, and the arithmetic of a charge."""

from __future__ import annotations

from enum import StrEnum

from quota.schemas.values import Instant, Reply


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
