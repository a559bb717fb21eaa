"""Calls about organizations, tokens, the audit trail and the service itself."""

from __future__ import annotations

from typing import Any

from quota.client.transport import Transport
from quota.clock import instant_text
from quota.schemas import audit, identity, service


class IdentityCalls(Transport):
    """Calls about organizations, tokens, the audit trail and the service itself."""

    def read_clock(self) -> service.ClockReply:
        """The hub's clock."""
        return self._get("/v1/clock", service.ClockReply)

    def read_caller(self) -> identity.Caller:
        """Who this client's token speaks for."""
        return self._get("/v1/caller", identity.Caller)

    def create_organization(
        self, body: identity.NewOrganization, key: str | None = None
    ) -> identity.Organization:
        """Register an organization (operators)."""
        return self._send("POST", "/v1/organizations", body, identity.Organization, key)

    def list_organizations(
        self,
        after: str | None = None,
        limit: int | None = None,
        *,
        kind: identity.OrganizationKind | None = None,
        frozen: bool | None = None,
    ) -> identity.OrganizationList:
        """A page of organizations in order of id; a member sees its own."""
        query: dict[str, Any] = {"after": after, "limit": limit, "kind": kind, "frozen": frozen}
        return self._get("/v1/organizations", identity.OrganizationList, **query)

    def read_organization(self, organization_id: str) -> identity.Organization:
        """One organization; a member may read its own."""
        return self._get(f"/v1/organizations/{organization_id}", identity.Organization)

    def change_organization(
        self, organization_id: str, body: identity.OrganizationChange, if_match: str | None = None
    ) -> identity.Organization:
        """Correct an organization's name or kind (operators), if it still has this ETag."""
        content = body.model_dump_json(exclude_none=True).encode()
        headers = {"Content-Type": "application/json"} | ({} if if_match is None else {"If-Match": if_match})
        path = f"/v1/organizations/{organization_id}"
        return self._call("PATCH", path, identity.Organization, content=content, headers=headers)

    def revoke_organization_tokens(self, organization_id: str, reason: str) -> identity.RevokedTokens:
        """End all tokens of an organization at once (operators)."""
        body = identity.TokenRevocation(reason=reason)
        path = f"/v1/organizations/{organization_id}/revoke-tokens"
        return self._send("POST", path, body, identity.RevokedTokens)

    def create_token(self, body: identity.NewToken, key: str | None = None) -> identity.TokenWithSecret:
        """Make a token; its secret is answered once."""
        return self._send("POST", "/v1/tokens", body, identity.TokenWithSecret, key)

    def list_tokens(
        self,
        after: str | None = None,
        limit: int | None = None,
        *,
        role: identity.Role | None = None,
        organization_id: str | None = None,
        active: bool | None = None,
        reason: str | None = None,
    ) -> identity.TokenList:
        """A page of tokens without secrets, in order of creation (operators, auditors)."""
        query: dict[str, Any] = {
            "after": after,
            "limit": limit,
            "role": role,
            "organization_id": organization_id,
            "active": active,
            "reason": reason,
        }
        return self._get("/v1/tokens", identity.TokenList, **query)

    def rotate_token(
        self, token_id: str, body: identity.TokenRotation, key: str | None = None
    ) -> identity.TokenWithSecret:
        """Take a token over into a new one, whose secret is answered once."""
        return self._send("POST", f"/v1/tokens/{token_id}/rotate", body, identity.TokenWithSecret, key)

    def revoke_token(self, token_id: str, reason: str | None = None) -> identity.Token:
        """End a token at once."""
        body = None if reason is None else identity.TokenRevocation(reason=reason)
        return self._send("POST", f"/v1/tokens/{token_id}/revoke", body, identity.Token)

    def list_audit(
        self,
        after: int = 0,
        limit: int = 100,
        *,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        since: int | None = None,
        until: int | None = None,
        reason: str | None = None,
    ) -> audit.AuditPage:
        """Audit rows after an id (operators, auditors); times in business milliseconds, half open."""
        query: dict[str, Any] = {
            "after": after,
            "limit": limit,
            "actor": actor,
            "action": action,
            "subject": subject,
            "from": None if since is None else instant_text(since),
            "until": None if until is None else instant_text(until),
            "reason": reason,
        }
        return self._get("/v1/audit", audit.AuditPage, **query)
