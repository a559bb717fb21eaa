"""The statement of a grant, or of a party's share of it: sealed, with a hash, or as things stand now."""

from __future__ import annotations

from enum import StrEnum

from quota.schemas.ledger import RefundKind, SliceArithmetic, TransferType
from quota.schemas.values import GpuHoursOut, GpuUs, Id, Instant, Reply


class StatementFormat(StrEnum):
    """How a statement is written down."""

    JSON = "json"
    CSV = "csv"
    """UTF-8 with BOM, CRLF, no cell that a spreadsheet would take for a formula."""
    HTML = "html"
    """To print."""


class StatementLanguage(StrEnum):
    """Of the words in a CSV or printed statement; figures and ids are the same."""

    KO = "ko"
    EN = "en"


class SealStamp(Reply):
    """The audit seal that a statement stands at: everything up to `through_seq` is under it."""

    number: int
    at: Instant
    through_seq: int
    sha256: str


class Balance(Reply):
    """An account's sums at one moment: granted = used + held + available."""

    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs


class StatementLine(Reply):
    """One transfer on one account: what it changed, why, on what evidence, and the arithmetic of a charge."""

    transfer_id: str
    seq: int
    at: Instant
    type: TransferType
    actor: str
    reason: str
    evidence: str | None
    job_id: str | None
    attempt: int | None
    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs
    available_gpu_us: GpuUs
    """What was left after this line."""
    krw: int
    """Won for what was used, rounded half up; negative for a refund."""
    slice: SliceArithmetic | None
    slice_id: str | None
    refund_of: str | None
    refund_kind: RefundKind | None


class Statement(Reply):
    """Opening balance, every transfer in order, and the balance they add up to."""

    format: str
    grant_id: str
    organization_id: str | None
    """null: of what a programme pays opportunistic jobs from."""
    """Whose statement it is: the grant's organization, or the party whose share it is."""
    program_id: str
    account_id: str
    as_of: Instant
    """The seal's time; without a seal, when it was read."""
    seq: int
    seal: SealStamp | None
    """Head of the audit chain that this statement stands at; null: not sealed, figures as they stand now."""
    since: SealStamp | None
    """The seal at which the opening balance stands; null: from the beginning."""
    opening: Balance
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
    """Sum of the lines' won."""


class IssuedStatement(Reply):
    """A sealed statement that somebody was given: asked for again, it has the same bytes."""

    id: str
    grant_id: str
    account_id: str
    seal: int
    since_seal: int
    """0: from the beginning."""
    format: StatementFormat
    language: StatementLanguage
    sha256: str
    size_bytes: int
    issued_at: Instant
    issued_by: str


class IssuedStatementPage(Reply):
    """Issued statements in order of id."""

    items: tuple[IssuedStatement, ...]
    next: Id | None
