"""Typed client of the quota service: the scheduler's, the agents', the command line's and everybody's SDK.

One method per operation of the API, named like its operationId. Sync, thread-safe, one connection pool.
"""

from __future__ import annotations

import gzip
from types import TracebackType
from typing import Self, TypeVar

import httpx2
from pydantic import BaseModel

from quota.schemas import fleet, identity, jobs, ledger, programs, scheduling, service, usage

T = TypeVar("T", bound=BaseModel)


class ServiceUnavailable(Exception):
    """The service did not answer, or not with an answer; what the call did is unknown."""


class ServiceProblem(Exception):
    """The service refused: a problem document with a stable code."""

    def __init__(self, problem: service.Problem) -> None:
        super().__init__(f"{problem.code}: {problem.detail or problem.title}")
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail


class QuotaClient:
    """Calls one quota service with one token."""

    def __init__(self, base_url: str, token: str, timeout_s: float = 30.0) -> None:
        self._http = httpx2.Client(
            base_url=base_url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- what the service says of itself ---

    def read_clock(self) -> service.ClockReply:
        """The hub's clock."""
        return self._get("/v1/clock", service.ClockReply)

    def read_caller(self) -> identity.Caller:
        """Who this client's token speaks for."""
        return self._get("/v1/caller", identity.Caller)

    # --- identity ---

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

    # --- fleet ---

    def create_cluster(self, body: fleet.NewCluster) -> fleet.Cluster:
        """Register a cluster."""
        return self._send("POST", "/v1/clusters", body, fleet.Cluster)

    def list_clusters(self) -> fleet.ClusterList:
        """All clusters."""
        return self._get("/v1/clusters", fleet.ClusterList)

    def put_gpu_class(self, body: fleet.NewGpuClass) -> fleet.GpuClass:
        """Add a GPU class, or give it a new rate version."""
        return self._send("PUT", f"/v1/gpu-classes/{body.id}", body, fleet.GpuClass)

    def list_gpu_classes(self) -> fleet.GpuClassList:
        """All GPU classes with their present rates."""
        return self._get("/v1/gpu-classes", fleet.GpuClassList)

    def list_nodes(self) -> fleet.NodeList:
        """All nodes with their capacity."""
        return self._get("/v1/nodes", fleet.NodeList)

    def change_node(self, cluster: str, node: str, body: fleet.NodeChange) -> fleet.Node:
        """Cordon a node or let it take jobs again (operators)."""
        return self._send("PATCH", f"/v1/nodes/{cluster}/{node}", body, fleet.Node)

    # --- programmes and grants ---

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

    # --- jobs ---

    def submit_job(self, body: jobs.JobSubmission, key: str | None = None) -> jobs.Job:
        """Submit a job; the same key with the same body answers the same job."""
        return self._send("POST", "/v1/jobs", body, jobs.Job, key)

    def list_jobs(
        self,
        state: scheduling.JobState | None = None,
        organization_id: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> jobs.JobPage:
        """Jobs, newest first; a member sees its organization's."""
        state_text = None if state is None else state.value
        return self._get(
            "/v1/jobs",
            jobs.JobPage,
            state=state_text,
            organization_id=organization_id,
            before=before,
            limit=limit,
        )

    def read_job(self, job_id: str) -> jobs.JobDetail:
        """One job with attempts, charge and evidence."""
        return self._get(f"/v1/jobs/{job_id}", jobs.JobDetail)

    def cancel_job(self, job_id: str) -> jobs.Job:
        """Ask a job to end; a waiting one ends at once."""
        return self._send("POST", f"/v1/jobs/{job_id}/cancel", None, jobs.Job)

    # --- evidence and findings ---

    def deliver_evidence(self, body: usage.EvidenceBatch) -> usage.EvidenceReply:
        """Deliver cumulative evidence rows (agents)."""
        return self._send("POST", "/v1/usage/evidence", body, usage.EvidenceReply)

    def list_findings(self, after: int = 0, limit: int = 100) -> usage.FindingPage:
        """Findings after an id (operators, auditors)."""
        return self._get("/v1/findings", usage.FindingPage, after=after, limit=limit)

    # --- the scheduler's contract ---

    def take_lease(self, body: scheduling.LeaseRequest) -> scheduling.LeaseReply:
        """Take or renew the scheduler lease."""
        return self._send("PUT", "/v1/scheduler/lease", body, scheduling.LeaseReply)

    def read_snapshot(self, after: str | None = None, limit: int = 5000) -> scheduling.SnapshotPage:
        """One page of the snapshot."""
        return self._get("/v1/scheduler/snapshot", scheduling.SnapshotPage, after=after, limit=limit)

    def follow_feed(self, after: int, wait_s: float = 25.0, limit: int = 2000) -> scheduling.FeedPage:
        """What changed after a cursor; waits up to `wait_s` seconds when nothing did."""
        return self._get(
            "/v1/scheduler/feed",
            scheduling.FeedPage,
            patience_s=wait_s,
            after=after,
            wait=wait_s,
            limit=limit,
        )

    def send_decisions(self, body: bytes) -> scheduling.DecisionReply:
        """A `DecisionBatch` as the JSON bytes to send, and to send again if the outcome is unknown."""
        return self._send("POST", "/v1/scheduler/decisions", body, scheduling.DecisionReply)

    def send_reports(self, body: bytes) -> scheduling.ReportReply:
        """A `ReportBatch` as the JSON bytes to send, and to send again if the outcome is unknown."""
        return self._send("POST", "/v1/scheduler/reports", body, scheduling.ReportReply)

    def put_ranking(self, body: scheduling.RankingDocument) -> scheduling.RankingReply:
        """The waiting jobs in order with reasons and paces."""
        packed = gzip.compress(body.model_dump_json().encode(), 1)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        return self._call(
            "PUT", "/v1/scheduler/ranking", scheduling.RankingReply, content=packed, headers=headers
        )

    # --- transport ---

    def _get(self, path: str, reply: type[T], patience_s: float = 0.0, **query: object) -> T:
        params = {name: str(value) for name, value in query.items() if value is not None}
        return self._call("GET", path, reply, params=params, patience_s=patience_s)

    def _send(
        self, method: str, path: str, body: BaseModel | bytes | None, reply: type[T], key: str | None = None
    ) -> T:
        content = body.model_dump_json().encode() if isinstance(body, BaseModel) else body
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        return self._call(method, path, reply, content=content, headers=headers)

    def _call(
        self,
        method: str,
        path: str,
        reply: type[T],
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        patience_s: float = 0.0,
    ) -> T:
        timeout = self._http.timeout
        if patience_s:
            timeout = httpx2.Timeout(patience_s + 15.0, connect=5.0)
        try:
            answer = self._http.request(
                method, path, params=params, content=content, headers=headers, timeout=timeout
            )
        except httpx2.TransportError as error:
            raise ServiceUnavailable(f"{method} {path}: {type(error).__name__} {error}".strip()) from error
        if answer.status_code >= 500:
            raise ServiceUnavailable(f"{method} {path}: answered {answer.status_code}")
        if answer.status_code >= 400:
            raise ServiceProblem(_problem(answer))
        return reply.model_validate_json(answer.content)


def _problem(answer: httpx2.Response) -> service.Problem:
    try:
        return service.Problem.model_validate_json(answer.content)
    except ValueError:
        return service.Problem(
            type="about:blank",
            title=f"HTTP {answer.status_code}",
            status=answer.status_code,
            code=f"http_{answer.status_code}",
            detail=answer.text[:200],
        )
