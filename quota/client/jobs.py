"""Calls about jobs, and what agents measured of them."""

from __future__ import annotations

from quota.client.transport import PACKED, Sink, Transport, packed
from quota.clock import instant_text
from quota.schemas import job_changes, jobs, scheduling, usage

LOG_PATIENCE_S = 3700.0
"""Longest silence of a log: the service itself ends each after at most an hour."""


class JobCalls(Transport):
    """Calls about jobs, and what agents measured of them."""

    def submit_job(self, body: jobs.JobSubmission, key: str | None = None) -> jobs.Job:
        """Submit a job; the same key with the same body answers the same job."""
        return self._send("POST", "/v1/jobs", body, jobs.Job, key)

    def list_jobs(
        self,
        state: scheduling.JobState | None = None,
        organization_id: str | None = None,
        after: str | None = None,
        limit: int = 50,
        *,
        grant_id: str | None = None,
        gpu_class: str | None = None,
        submitted_from: int | None = None,
        submitted_until: int | None = None,
    ) -> jobs.JobPage:
        """Jobs, newest first; a member sees its organization's. Times in milliseconds since 1970."""
        state_text = None if state is None else state.value
        return self._get(
            "/v1/jobs",
            jobs.JobPage,
            state=state_text,
            organization_id=organization_id,
            grant_id=grant_id,
            gpu_class=gpu_class,
            submitted_from=_instant(submitted_from),
            submitted_until=_instant(submitted_until),
            after=after,
            limit=limit,
        )

    def read_job(self, job_id: str) -> jobs.JobDetail:
        """One job with attempts, charge and evidence."""
        return self._get(f"/v1/jobs/{job_id}", jobs.JobDetail)

    def read_job_logs(
        self,
        job_id: str,
        target: Sink,
        *,
        attempt: int | None = None,
        pod: int = 0,
        tail_lines: int = 1000,
        since_s: int | None = None,
        follow: bool = False,
        timestamps: bool = False,
    ) -> int:
        """Write what a pod wrote into `target` as it comes; answers the number of bytes.

        A last line that begins with `[gpuhub]` says that there is more. Raises ServiceUnavailable when nobody can
        read logs now, or when the answer breaks off.
        """
        query = {
            "attempt": attempt,
            "pod": pod,
            "tail_lines": tail_lines,
            "since_s": since_s,
            "follow": str(follow).lower(),
            "timestamps": str(timestamps).lower(),
        }
        params = {name: str(value) for name, value in query.items() if value is not None}
        return self._copy(f"/v1/jobs/{job_id}/logs", target, LOG_PATIENCE_S, params)

    def cancel_job(self, job_id: str) -> jobs.Job:
        """Ask a job to end; a waiting one ends at once."""
        return self._send("POST", f"/v1/jobs/{job_id}/cancel", None, jobs.Job)

    def extend_job(
        self, job_id: str, body: job_changes.JobExtension, key: str | None = None, *, dry_run: bool = False
    ) -> job_changes.ExtendedJob:
        """Give a running job more time; with `dry_run` only what that would do."""
        path = f"/v1/jobs/{job_id}/extensions"
        return self._send("POST", path, body, job_changes.ExtendedJob, key, dry_run=dry_run or None)

    def refund_job(
        self, job_id: str, body: job_changes.JobRefund, key: str | None = None, *, dry_run: bool = False
    ) -> job_changes.RefundedJob:
        """Give charged time back (operators); with `dry_run` only what that would do."""
        path = f"/v1/jobs/{job_id}/refunds"
        return self._send("POST", path, body, job_changes.RefundedJob, key, dry_run=dry_run or None)

    def deliver_evidence(self, body: usage.EvidenceBatch) -> usage.EvidenceReply:
        """Deliver cumulative evidence rows (agents)."""
        return self._call(
            "POST", "/v1/usage/evidence", usage.EvidenceReply, content=packed(body), headers=PACKED
        )

    def list_findings(
        self, after: int = 0, limit: int = 100, *, code: str | None = None, subject: str | None = None
    ) -> usage.FindingPage:
        """Findings after an id (operators, auditors)."""
        return self._get(
            "/v1/findings", usage.FindingPage, after=after, limit=limit, code=code, subject=subject
        )


def _instant(moment_ms: int | None) -> str | None:
    return None if moment_ms is None else instant_text(moment_ms)
