"""The audit trail and the seals that close it."""

from __future__ import annotations

from quota.schemas.values import Instant, Reply


class AuditRow(Reply):
    """One mutation, or one reading of personal data: who did what to what, and what it changed."""

    id: int
    at: Instant
    actor: str
    action: str
    subject: str
    reason: str
    detail: dict[str, object]
    before: dict[str, object] | None = None
    """What the change touched of the subject, as it was; null where there was nothing before."""
    after: dict[str, object] | None = None
    """The same, as it is since."""
    address: str | None = None
    """Where the request came from; absent when the hub itself did it."""


class AuditPage(Reply):
    """Audit rows, oldest first; pass `next` as `after` for the following page."""

    items: tuple[AuditRow, ...]
    next: int | None


class Seal(Reply):
    """A link of the audit chain: every audit row and transfer up to `through_seq` is under it or an earlier one."""

    number: int
    at: Instant
    through_seq: int
    audit_rows: int
    """Audit rows that it adds."""
    transfers: int
    """Transfers that it adds."""
    previous_sha256: str
    sha256: str


class SealPage(Reply):
    """Seals, oldest first; pass `next` as `after` for the following page."""

    items: tuple[Seal, ...]
    next: int | None
