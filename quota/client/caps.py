"""Calls about the caps of the hub, of organizations and of programmes."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import caps


class CapsCalls(Transport):
    """Calls about the caps of the hub, of organizations and of programmes."""

    def read_caps(self) -> caps.CapsDocument:
        """The hub's caps (operators, auditors)."""
        return self._get("/v1/caps", caps.CapsDocument)

    def put_caps(self, body: caps.CapsPut, if_match: str | None = None) -> caps.CapsDocument:
        """Change the hub's caps (operators); with `if_match` only if they still have that etag."""
        return self._send("PUT", "/v1/caps", body, caps.CapsDocument, if_match=if_match)

    def read_organization_caps(self, organization_id: str) -> caps.OrganizationCapsDocument:
        """An organization's own caps, those in effect, and how far they are reached; a member may read its own."""
        path = f"/v1/organizations/{organization_id}/caps"
        return self._get(path, caps.OrganizationCapsDocument)

    def put_organization_caps(
        self, organization_id: str, body: caps.OrganizationCapsPut, if_match: str | None = None
    ) -> caps.OrganizationCapsDocument:
        """Change an organization's own caps (operators); with `if_match` only if they still have that etag."""
        path = f"/v1/organizations/{organization_id}/caps"
        return self._send("PUT", path, body, caps.OrganizationCapsDocument, if_match=if_match)

    def read_program_caps(self, program_id: str) -> caps.ProgramCapsDocument:
        """A programme's caps on jobs (operators, auditors)."""
        return self._get(f"/v1/programs/{program_id}/caps", caps.ProgramCapsDocument)

    def put_program_caps(
        self, program_id: str, body: caps.ProgramCapsPut, if_match: str | None = None
    ) -> caps.ProgramCapsDocument:
        """Change a programme's caps on jobs (operators); with `if_match` only if they still have that etag."""
        path = f"/v1/programs/{program_id}/caps"
        return self._send("PUT", path, body, caps.ProgramCapsDocument, if_match=if_match)
