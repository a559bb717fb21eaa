"""What people change of a job that has run: more time for it, and charged time given back."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from quota.schemas.jobs import BIGGEST_WALLTIME_S, Extension
from quota.schemas.ledger import RefundKind
from quota.schemas.values import (
    NO_NUL,
    AttemptNumber,
    GpuHoursOut,
    GpuUs,
    Instant,
    Reason,
    Reply,
    Request,
    wrong,
)


class JobExtension(Request):
    """More time for the attempt that runs now."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"walltime_s": 7200, "reason": "two more epochs until it converges"}]}
    )

    walltime_s: Annotated[int, Field(strict=True, ge=1, le=BIGGEST_WALLTIME_S)]
    """Seconds beyond what the attempt has now."""
    reason: Reason


class ExtendedJob(Reply):
    """What an extension did, or would do."""

    job_id: str
    attempt: int
    extension: Extension
    walltime_s: int
    """The attempt's whole time limit now; later attempts of the job start with it."""
    held_gpu_us: GpuUs
    """The attempt's whole hold now."""
    ends_at: Instant | None
    """When its time is over; null before it runs."""
    fitting_walltime_s: int
    """How many more seconds could still follow: the balance, the grant's end and the longest walltime allow them."""
    dry_run: bool = False


class JobRefund(Request):
    """Give back what a stretch of one attempt was charged, as far as it was not given back yet."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "attempt": 1,
                    "starts_at": "2026-11-22T09:00:00.000Z",
                    "ends_at": "2026-11-22T10:30:00.000Z",
                    "kind": "fault",
                    "reason": "the node's GPU 3 fell off the bus",
                    "evidence": "finding:1734",
                }
            ]
        }
    )

    attempt: AttemptNumber
    starts_at: Instant
    ends_at: Instant
    kind: RefundKind
    """`correction`: the time was never occupied. `fault` and `preempted`: the platform pays it instead."""
    reason: Reason
    evidence: Annotated[
        str,
        Field(
            min_length=1,
            max_length=500,
            pattern=NO_NUL,
            description="The finding, report or paper that it rests on; written into every transfer.",
        ),
    ]

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> Self:
        if self.ends_at <= self.starts_at:
            raise wrong("ends_at must lie after starts_at")
        return self


class RefundTransfer(Reply):
    """One refund of a part of one slice."""

    transfer_id: str
    slice_id: str
    starts_at: Instant
    ends_at: Instant
    amount_gpu_us: GpuUs
    payer: str
    """Who had paid it and got it back: `grant` or `platform`."""


class RefundedJob(Reply):
    """The transfers that a refund made, or would make."""

    job_id: str
    attempt: int
    kind: RefundKind
    transfers: tuple[RefundTransfer, ...]
    refunded_gpu_us: GpuUs
    """What the grant got back."""
    refunded_gpu_hours: GpuHoursOut
    fault_time_left_ms: int
    """How much of the job's time may still be given back after faults, over all its attempts."""
    dry_run: bool = False
