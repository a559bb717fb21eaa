"""Calls about the audit chain and the export of the ledger."""

from __future__ import annotations

from typing import BinaryIO

from quota.client.transport import Transport
from quota.schemas import audit

EXPORT_PATIENCE_S = 600.0
"""Longest silence within an export: a database sorts millions of rows before the first of them comes."""


class AuditCalls(Transport):
    """Calls about the audit chain and the export of the ledger."""

    def list_seals(self, after: int = 0, limit: int = 100) -> audit.SealPage:
        """The seals after a number, oldest first (operators, auditors)."""
        return self._get("/v1/audit/seals", audit.SealPage, after=after, limit=limit)

    def export_ledger(self, target: BinaryIO, reason: str, through_seal: int | None = None) -> int:
        """Write the ledger up to a seal into `target` as JSON lines; answers the number of bytes.

        Raises ServiceUnavailable when the answer breaks off; what was written is of no use then.
        """
        query = {"reason": reason} | ({} if through_seal is None else {"through_seal": str(through_seal)})
        return self._copy("/v1/exports/ledger", target, EXPORT_PATIENCE_S, query)
