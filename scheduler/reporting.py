"""What one cluster's report stream has told quota in this term, and what is to be told next."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
from pydantic import ValidationError

from quota.schemas.scheduling import (
    AttemptObject,
    FindingItem,
    ItemResult,
    NodeReport,
    ReportItem,
    StartedItem,
)
from scheduler.clusters.port import NodeStatus
from scheduler.gateway import ClusterNews
from scheduler.sightings import report_of
from scheduler.specs import node_reports
from scheduler.views import ClusterView

TELL_AGAIN_WALL_S = 5.0
"""A report that was answered, but does not show in the attempt, is sent again after this."""

log = structlog.get_logger()

Told = tuple[str, int, str]


class ClusterReporter:
    """Tells each thing until quota shows that it knows; says up to when everything is told."""

    def __init__(self, view: ClusterView, interval_s: float, monotonic_s: Callable[[], float]) -> None:
        """`interval_s`: how often the watermark alone is worth a report."""
        self.view = view
        self._interval_s = interval_s
        self._monotonic_s = monotonic_s
        self._told_s: dict[Told, float] = {}
        self._findings: dict[Told, FindingItem] = {}
        self._found: set[Told] = set()
        self._nodes_told: tuple[NodeReport, ...] | None = None
        self._nodes_seen: tuple[NodeStatus, ...] | None = None
        self._nodes: tuple[NodeReport, ...] | None = None
        self._through_ms = 0
        self._sent_s = float("-inf")

    def find(self, job_id: str, attempt: int, code: str, detail: str) -> None:
        """Tell of something that should not be, once in this term."""
        key = (job_id, attempt, code)
        if key in self._found:
            return
        self._found.add(key)
        log.warning("finding", cluster=self.view.name, job=job_id, attempt=attempt, code=code, detail=detail)
        try:
            self._findings[key] = FindingItem(job_id=job_id, attempt=attempt, code=code, detail=detail[:500])
        except ValidationError as error:
            # an object that others made may have a name that quota cannot even store
            log.warning("finding_not_reported", cluster=self.view.name, job=job_id, trouble=str(error))

    def news(
        self, attempts: Iterable[AttemptObject], tombstones: set[str], margin_ms: int
    ) -> ClusterNews | None:
        """What to send now, or None. Everything up to the view's watermark is in it or was sent before."""
        view, now_s = self.view, self._monotonic_s()
        if not view.complete:
            return None
        items: list[ReportItem] = list(self._findings.values())
        for attempt in attempts:
            item = report_of(attempt, view, margin_ms, tombstone=attempt.id in tombstones)
            if item is not None and now_s >= self._told_s.get(_key(item), float("-inf")):
                items.append(item)
        nodes = self._changed_nodes()
        idle = view.through_ms <= self._through_ms or now_s < self._sent_s + self._interval_s
        if not items and nodes is None and idle:
            return None
        return ClusterNews(
            cluster=view.name,
            items=tuple(items),
            nodes=nodes,
            observed_through_ms=max(view.through_ms, self._through_ms),
            reported_through_ms=self._through_ms,
        )

    def told(self, news: ClusterNews, results: Iterable[ItemResult]) -> None:
        """Quota has answered all of these news."""
        now_s = self._monotonic_s()
        for item in news.items:
            if isinstance(item, FindingItem):
                self._findings.pop(_key(item), None)
            else:
                self._told_s[_key(item)] = now_s + TELL_AGAIN_WALL_S
        self._told_s = {key: until_s for key, until_s in self._told_s.items() if until_s > now_s}
        if news.nodes is not None:
            self._nodes_told = news.nodes
        self._through_ms = news.observed_through_ms
        self._sent_s = now_s
        for result, item in zip(results, news.items, strict=False):
            if result.outcome == "refused":
                log.warning(
                    "report_refused",
                    job=result.job_id,
                    attempt=result.attempt,
                    report=item.kind,
                    code=result.code,
                    detail=result.detail,
                )

    def _changed_nodes(self) -> tuple[NodeReport, ...] | None:
        if self.view.nodes is None:
            return None
        if self.view.nodes is not self._nodes_seen:
            self._nodes_seen = self.view.nodes
            self._nodes, left_out = node_reports(self.view.nodes)
            if left_out:
                log.warning("nodes_left_out", cluster=self.view.name, nodes=left_out)
        return None if self._nodes == self._nodes_told else self._nodes


def _key(item: ReportItem) -> Told:
    whole = "+" if isinstance(item, StartedItem) and item.last_started_at is not None else ""
    code = item.code if isinstance(item, FindingItem) else item.kind + whole
    return (item.job_id, item.attempt, code)
