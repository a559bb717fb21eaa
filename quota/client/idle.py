"""Calls about the idle rules."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import idle


class IdleCalls(Transport):
    """Calls about the idle rules."""

    def read_idle_policy(self) -> idle.IdlePolicyDocument:
        """When a job that holds GPUs without using them is warned and stopped (operators, auditors)."""
        return self._get("/v1/idle-policy", idle.IdlePolicyDocument)

    def put_idle_policy(
        self, body: idle.IdlePolicyPut, if_match: str | None = None
    ) -> idle.IdlePolicyDocument:
        """Change the idle rules (operators); with `if_match` only if they still have that etag."""
        return self._send("PUT", "/v1/idle-policy", body, idle.IdlePolicyDocument, if_match=if_match)

    def list_idle_jobs(self, after: str | None = None, limit: int | None = None) -> idle.IdleJobList:
        """Running attempts that are not simply active; see `every` for all of them."""
        return self._get("/v1/idle-jobs", idle.IdleJobList, after=after, limit=limit)

    def create_idle_exemption(self, body: idle.NewExemption, key: str | None = None) -> idle.Exemption:
        """Keep jobs from the idle rules for a while (operators)."""
        return self._send("POST", "/v1/idle-exemptions", body, idle.Exemption, key)

    def list_idle_exemptions(self, after: str | None = None, limit: int | None = None) -> idle.ExemptionList:
        """Exemptions, newest first; see `every` for all of them."""
        return self._get("/v1/idle-exemptions", idle.ExemptionList, after=after, limit=limit)

    def end_idle_exemption(self, exemption_id: str, body: idle.ExemptionEnd) -> idle.Exemption:
        """End an exemption before its time (operators)."""
        return self._send("POST", f"/v1/idle-exemptions/{exemption_id}/end", body, idle.Exemption)
