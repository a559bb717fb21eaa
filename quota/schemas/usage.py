"""Evidence: what agents measured, cumulative and exactly once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from quota.clock import HOUR_MS
from quota.schemas.values import (
    NO_NUL,
    AttemptNumber,
    ClassId,
    Instant,
    NodeName,
    Reply,
    Request,
    Sequence,
    ShortId,
    wrong,
)

GpuUuid = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{4,80}$")]
MillisecondsInHour = Annotated[int, Field(strict=True, ge=0, le=3_600_000)]


class EvidenceRow(Request):
    """Cumulative milliseconds of one GPU under one attempt within one hour, by one agent epoch.

    The row with the greatest `seq` counts; replaying an older one changes nothing.
    """

    job_id: ShortId
    attempt: AttemptNumber
    gpu_uuid: GpuUuid
    gpu_class: ClassId
    node: NodeName
    hour: Instant
    """Start of the hour (a multiple of 3,600,000 ms)."""
    agent_epoch: Annotated[str, Field(min_length=8, max_length=64, pattern=NO_NUL)]
    seq: Sequence
    busy_ms: MillisecondsInHour
    observed_ms: MillisecondsInHour

    @model_validator(mode="after")
    def _lies_within_its_hour(self) -> EvidenceRow:
        if self.hour % HOUR_MS:
            raise wrong("hour must be the start of an hour")
        if self.busy_ms > self.observed_ms:
            raise wrong("busy_ms must not be more than observed_ms")
        return self


class EvidenceBatch(Request):
    """Rows of one delivery; sending it again is harmless."""

    rows: Annotated[tuple[EvidenceRow, ...], Field(min_length=1, max_length=5000)]


class EvidenceReply(Reply):
    """How many rows were newer than what was known, and which attempts are unknown (kept as findings)."""

    accepted: int
    unchanged: int
    unknown: int


class Finding(Reply):
    """Something that should not be, with numbers."""

    id: int
    at: Instant
    code: str
    subject: str
    detail: str
    numbers: dict[str, int | str] = Field(default_factory=dict)


class FindingPage(Reply):
    """Findings, oldest first; pass `next` as `after` for the following page."""

    items: tuple[Finding, ...]
    next: int | None
