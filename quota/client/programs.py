"""Calls about programmes, grants and statements."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.clock import instant_text
from quota.schemas import funds, ledger, policies, programs, transfers


class ProgramCalls(Transport):
    """Calls about programmes, grants and statements."""

    def create_program(self, body: programs.NewProgram, key: str | None = None) -> programs.Program:
        """Open a programme with its budget."""
        return self._send("POST", "/v1/programs", body, programs.Program, key)

    def list_programs(self, after: str | None = None, limit: int | None = None) -> programs.ProgramList:
        """Programmes with their balances, in order of id; see `every` for all of them."""
        return self._get("/v1/programs", programs.ProgramList, after=after, limit=limit)

    def award_grant(self, body: programs.Award, key: str | None = None) -> programs.Grant:
        """Award a grant from a programme's budget."""
        return self._send("POST", "/v1/grants", body, programs.Grant, key)

    def read_program(self, program_id: str) -> programs.Program:
        """One programme with its balances."""
        return self._get(f"/v1/programs/{program_id}", programs.Program)

    def change_program(
        self, program_id: str, body: programs.ProgramChange, if_match: str | None = None
    ) -> programs.Program:
        """Rename a programme or give it another policy; with `if_match` only if it still has that etag."""
        path = f"/v1/programs/{program_id}"
        return self._send("PATCH", path, body, programs.Program, if_match=if_match)

    def adjust_program(
        self, program_id: str, body: programs.Adjustment, key: str | None = None, dry_run: bool | None = None
    ) -> programs.Program:
        """Correct a programme's budget on evidence."""
        path = f"/v1/programs/{program_id}/adjustments"
        return self._send("POST", path, body, programs.Program, key, dry_run=dry_run)

    def top_up_grant(
        self, grant_id: str, body: programs.TopUp, key: str | None = None, dry_run: bool | None = None
    ) -> programs.Grant:
        """Add hours of the programme's budget to a grant."""
        return self._send(
            "POST", f"/v1/grants/{grant_id}/top-ups", body, programs.Grant, key, dry_run=dry_run
        )

    def cut_grant(
        self, grant_id: str, body: programs.GrantCut, key: str | None = None, dry_run: bool | None = None
    ) -> programs.Grant:
        """Take unused hours of a grant back into the programme's budget."""
        return self._send("POST", f"/v1/grants/{grant_id}/cuts", body, programs.Grant, key, dry_run=dry_run)

    def transfer_hours(
        self, grant_id: str, body: programs.GrantTransfer, key: str | None = None, dry_run: bool | None = None
    ) -> programs.GrantMove:
        """Move unused hours of a grant to another one of the same programme."""
        path = f"/v1/grants/{grant_id}/transfers"
        return self._send("POST", path, body, programs.GrantMove, key, dry_run=dry_run)

    def adjust_grant(
        self, grant_id: str, body: programs.Adjustment, key: str | None = None, dry_run: bool | None = None
    ) -> programs.Grant:
        """Correct what a grant was given, on evidence."""
        path = f"/v1/grants/{grant_id}/adjustments"
        return self._send("POST", path, body, programs.Grant, key, dry_run=dry_run)

    def carry_over_hours(
        self, grant_id: str, body: programs.CarryOver, key: str | None = None, dry_run: bool | None = None
    ) -> programs.GrantMove:
        """Give expired hours of a grant to another one of the same programme."""
        path = f"/v1/grants/{grant_id}/carry-over"
        return self._send("POST", path, body, programs.GrantMove, key, dry_run=dry_run)

    def read_fund(self, program_id: str) -> funds.Fund:
        """What a programme pays opportunistic jobs from."""
        return self._get(f"/v1/programs/{program_id}/opportunistic", funds.Fund)

    def put_fund(self, program_id: str, body: funds.FundPut, if_match: str | None = None) -> funds.Fund:
        """Let a programme pay for opportunistic jobs, or no longer; with `if_match` only if it still has that etag."""
        path = f"/v1/programs/{program_id}/opportunistic"
        return self._send("PUT", path, body, funds.Fund, if_match=if_match)

    def list_policies(self, after: str | None = None, limit: int | None = None) -> policies.PolicyList:
        """Policies in order of id."""
        return self._get("/v1/policies", policies.PolicyList, after=after, limit=limit)

    def read_policy(self, policy_id: str) -> policies.PolicyDocument:
        """One policy."""
        return self._get(f"/v1/policies/{policy_id}", policies.PolicyDocument)

    def put_policy(
        self, policy_id: str, body: policies.PolicyPut, if_match: str | None = None
    ) -> policies.PolicyDocument:
        """Make or change a policy; with `if_match` only if it still has that etag."""
        path = f"/v1/policies/{policy_id}"
        return self._send("PUT", path, body, policies.PolicyDocument, if_match=if_match)

    def list_transfers(
        self,
        account_id: str | None = None,
        grant_id: str | None = None,
        job_id: str | None = None,
        type: ledger.TransferType | None = None,
        since: int | None = None,
        until: int | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> transfers.TransferPage:
        """The ledger's transfers, oldest first; times in business ms, half open."""
        return self._get(
            "/v1/transfers",
            transfers.TransferPage,
            account_id=account_id,
            grant_id=grant_id,
            job_id=job_id,
            type=type,
            since=None if since is None else instant_text(since),
            until=None if until is None else instant_text(until),
            after=after,
            limit=limit,
        )

    def list_grants(
        self,
        organization_id: str | None = None,
        after: str | None = None,
        *,
        program_id: str | None = None,
        state: programs.GrantState | None = None,
        limit: int | None = None,
    ) -> programs.GrantList:
        """Grants with balances, in order of id; a member sees its organization's. See `every` for all of them."""
        return self._get(
            "/v1/grants",
            programs.GrantList,
            organization_id=organization_id,
            program_id=program_id,
            state=None if state is None else state.value,
            after=after,
            limit=limit,
        )

    def read_grant(self, grant_id: str) -> programs.Grant:
        """One grant with its balance."""
        return self._get(f"/v1/grants/{grant_id}", programs.Grant)
