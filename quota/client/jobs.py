"""Calls about jobs, and what agents measured of them."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import jobs, scheduling, usage


class JobCalls(Transport):
    """Calls about jobs, and what agents measured of them."""

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

    def deliver_evidence(self, body: usage.EvidenceBatch) -> usage.EvidenceReply:
        """Deliver cumulative evidence rows (agents)."""
        return self._send("POST", "/v1/usage/evidence", body, usage.EvidenceReply)

    def list_findings(self, after: int = 0, limit: int = 100) -> usage.FindingPage:
        """Findings after an id (operators, auditors)."""
        return self._get("/v1/findings", usage.FindingPage, after=after, limit=limit)
