"""Calls about programmes, grants and statements."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import ledger, programs


class ProgramCalls(Transport):
    """Calls about programmes, grants and statements."""

    def create_program(self, body: programs.NewProgram) -> programs.Program:
        """Open a programme with its budget."""
        return self._send("POST", "/v1/programs", body, programs.Program)

    def list_programs(self) -> programs.ProgramList:
        """All programmes with their balances."""
        return self._get("/v1/programs", programs.ProgramList)

    def award_grant(self, body: programs.Award, key: str | None = None) -> programs.Grant:
        """Award a grant from a programme's budget."""
        return self._send("POST", "/v1/grants", body, programs.Grant, key)

    def top_up_grant(
        self, grant_id: str, body: programs.GrantChange, key: str | None = None
    ) -> programs.Grant:
        """Add hours of the programme's budget to a grant."""
        return self._send("POST", f"/v1/grants/{grant_id}/top-ups", body, programs.Grant, key)

    def cut_grant(self, grant_id: str, body: programs.GrantChange, key: str | None = None) -> programs.Grant:
        """Take unused hours of a grant back into the programme's budget."""
        return self._send("POST", f"/v1/grants/{grant_id}/cuts", body, programs.Grant, key)

    def list_grants(self, organization_id: str | None = None, after: str | None = None) -> programs.GrantList:
        """Grants with balances; a member sees its organization's."""
        return self._get("/v1/grants", programs.GrantList, organization_id=organization_id, after=after)

    def read_grant(self, grant_id: str) -> programs.Grant:
        """One grant with its balance."""
        return self._get(f"/v1/grants/{grant_id}", programs.Grant)

    def read_statement(self, grant_id: str) -> ledger.Statement:
        """Every transfer of a grant with its arithmetic."""
        return self._get(f"/v1/grants/{grant_id}/statement", ledger.Statement)
