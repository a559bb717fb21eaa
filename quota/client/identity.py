"""Calls about organizations, tokens, the audit trail and the service itself."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import identity, service


class IdentityCalls(Transport):
    """Calls about organizations, tokens, the audit trail and the service itself."""

    def read_clock(self) -> service.ClockReply:
        """The hub's clock."""
        return self._get("/v1/clock", service.ClockReply)

    def read_caller(self) -> identity.Caller:
        """Who this client's token speaks for."""
        return self._get("/v1/caller", identity.Caller)

    def create_organization(self, body: identity.NewOrganization) -> identity.Organization:
        """Register an organization (operators)."""
        return self._send("POST", "/v1/organizations", body, identity.Organization)

    def list_organizations(self) -> identity.OrganizationList:
        """All organizations; a member sees its own."""
        return self._get("/v1/organizations", identity.OrganizationList)

    def create_token(self, body: identity.NewToken) -> identity.TokenWithSecret:
        """Make a token; its secret is answered once."""
        return self._send("POST", "/v1/tokens", body, identity.TokenWithSecret)

    def list_tokens(self) -> identity.TokenList:
        """All tokens without secrets (operators)."""
        return self._get("/v1/tokens", identity.TokenList)

    def revoke_token(self, token_id: str) -> identity.Token:
        """End a token at once."""
        return self._send("POST", f"/v1/tokens/{token_id}/revoke", None, identity.Token)

    def list_audit(self, after: int = 0, limit: int = 100) -> identity.AuditPage:
        """Audit rows after an id (operators, auditors)."""
        return self._get("/v1/audit", identity.AuditPage, after=after, limit=limit)
