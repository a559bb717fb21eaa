"""Calls about reconciliations and periodic tasks."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import reconciliation, service


class ReconciliationCalls(Transport):
    """Calls about reconciliations and periodic tasks."""

    def list_reconciliations(
        self, before: str | None = None, limit: int = 31
    ) -> reconciliation.ReconciliationPage:
        """GPU time per day by the ledger, the clusters and the agents, newest day first."""
        return self._get("/v1/reconciliations", reconciliation.ReconciliationPage, before=before, limit=limit)

    def reconcile_day(self, body: reconciliation.ReconcileDay) -> reconciliation.ReconciliationPage:
        """Compare a day again (operators)."""
        return self._send("POST", "/v1/reconciliations", body, reconciliation.ReconciliationPage)

    def list_tasks(self) -> service.TaskList:
        """Periodic tasks with their newest runs (operators, auditors)."""
        return self._get("/v1/tasks", service.TaskList)
