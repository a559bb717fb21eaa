"""The scheduler's contract."""

from __future__ import annotations

from quota.client.transport import PACKED, Transport, packed
from quota.schemas import forecasts, scheduling


class SchedulingCalls(Transport):
    """The scheduler's contract."""

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
        return self._call(
            "PUT", "/v1/scheduler/ranking", scheduling.RankingReply, content=packed(body), headers=PACKED
        )

    def put_forecast(self, body: forecasts.ForecastDocument) -> forecasts.ForecastReply:
        """When waiting jobs are likely to start."""
        return self._call(
            "PUT", "/v1/scheduler/forecast", forecasts.ForecastReply, content=packed(body), headers=PACKED
        )

    def read_recent_jobs(self, limit: int = 20_000) -> forecasts.RecentJobs:
        """The newest jobs, newest first."""
        return self._get("/v1/scheduler/recent-jobs", forecasts.RecentJobs, limit=limit)
