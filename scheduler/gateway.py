"""Everything that the leader says to the quota service within one epoch: decisions, reports, rankings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from quota.client import ServiceProblem, ServiceUnavailable
from quota.schemas.scheduling import (
    DecisionBatch,
    DecisionItem,
    DecisionReply,
    FeedItem,
    FeedPage,
    ItemResult,
    LeaseReply,
    LeaseRequest,
    NodeReport,
    RankingDocument,
    RankingReply,
    ReportBatch,
    ReportItem,
    ReportReply,
    SnapshotPage,
)
from scheduler.crash import CrashPlan
from scheduler.streams import SteppedDown, Stream

BATCH_ITEMS = 500
"""So that one batch stays well under the contract's limit and one transaction stays short."""

DECISIONS = "decisions"

ItemT = TypeVar("ItemT")


class Quota(Protocol):
    """The operations of the quota service that a scheduler uses; `QuotaClient` is one implementation."""

    def take_lease(self, body: LeaseRequest) -> LeaseReply:
        """Take or renew the lease."""
        ...

    def read_snapshot(self, after: str | None = None, limit: int = 5000) -> SnapshotPage:
        """One page of everything."""
        ...

    def follow_feed(self, after: int, wait_s: float = 25.0, limit: int = 2000) -> FeedPage:
        """What changed after a cursor."""
        ...

    def send_decisions(self, body: bytes) -> DecisionReply:
        """A decision batch as bytes."""
        ...

    def send_reports(self, body: bytes) -> ReportReply:
        """A report batch as bytes."""
        ...

    def put_ranking(self, body: RankingDocument) -> RankingReply:
        """The waiting jobs in order."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What one batch brought: a result per item, and the objects that it changed."""

    results: tuple[ItemResult, ...]
    objects: tuple[FeedItem, ...]


@dataclass(frozen=True, slots=True)
class ClusterNews:
    """What one cluster shows since it was last reported."""

    cluster: str
    items: tuple[ReportItem, ...]
    nodes: tuple[NodeReport, ...] | None
    observed_through_ms: int
    reported_through_ms: int
    """What was reported last: all that a batch before the last one may still say."""


class Gateway:
    """Speaks for one epoch. Raises ServiceUnavailable (say it later) or SteppedDown (this epoch is over)."""

    def __init__(
        self,
        quota: Quota,
        epoch: int,
        last_seqs: Mapping[str, int],
        holds: Callable[[int], bool],
        crash: CrashPlan,
    ) -> None:
        self.epoch = epoch
        self._quota = quota
        self._last_seqs = last_seqs
        self._holds = holds
        self._crash = crash
        self._decisions: Stream[DecisionReply] = Stream(
            DECISIONS, last_seqs.get(DECISIONS, 0), self._send_decisions
        )
        self._reports: dict[str, Stream[ReportReply]] = {}

    def resend(self) -> Iterator[Answer]:
        """Send again, byte for byte, every batch whose outcome is unknown."""
        decided = self._decisions.resend()
        if decided is not None:
            yield Answer(decided.results, decided.objects)
        for stream in self._reports.values():
            reported = stream.resend()
            if reported is not None:
                yield Answer(reported.results, reported.objects)

    def decide(self, items: Sequence[DecisionItem]) -> Iterator[Answer]:
        """Send decisions in the order given."""
        for part in _parts(items):
            reply = self._decisions.post(partial(self._decision_batch, part))
            yield Answer(reply.results, reply.objects)

    def report(self, news: ClusterNews) -> Iterator[Answer]:
        """Send what a cluster shows; only the last batch says that everything up to now is told."""
        stream = self._report_stream(news.cluster)
        parts = list(_parts(news.items)) or [()]
        for part in parts[:-1]:
            reply = stream.post(partial(self._report_batch, news, part, news.reported_through_ms, None))
            yield Answer(reply.results, reply.objects)
        reply = stream.post(
            partial(self._report_batch, news, parts[-1], news.observed_through_ms, news.nodes)
        )
        yield Answer(reply.results, reply.objects)

    def rank(self, document: RankingDocument) -> bool:
        """Publish a ranking; False if it must be sent complete."""
        self._check()
        self._crash.reach("before_ranking")
        try:
            self._quota.put_ranking(document)
        except ServiceProblem as problem:
            if problem.code == "ranking_base_unknown":
                return False
            if problem.status == 409:
                raise SteppedDown(problem.code, problem.detail) from problem
            raise ServiceUnavailable(f"ranking: {problem}") from problem
        return True

    def _decision_batch(self, items: tuple[DecisionItem, ...], seq: int) -> DecisionBatch:
        return DecisionBatch(epoch=self.epoch, stream=DECISIONS, seq=seq, items=items)

    def _report_batch(
        self,
        news: ClusterNews,
        items: tuple[ReportItem, ...],
        through_ms: int,
        nodes: tuple[NodeReport, ...] | None,
        seq: int,
    ) -> ReportBatch:
        return ReportBatch(
            epoch=self.epoch,
            stream=_report_stream_name(news.cluster),
            seq=seq,
            cluster=news.cluster,
            nodes=nodes,
            items=items,
            observed_through=through_ms,
        )

    def _report_stream(self, cluster: str) -> Stream[ReportReply]:
        name = _report_stream_name(cluster)
        if name not in self._reports:
            self._reports[name] = Stream(name, self._last_seqs.get(name, 0), self._send_reports)
        return self._reports[name]

    def _send_decisions(self, body: bytes) -> DecisionReply:
        self._check()
        reply = self._quota.send_decisions(body)
        self._crash.reach("after_decision_sent_before_reply")
        return reply

    def _send_reports(self, body: bytes) -> ReportReply:
        self._check()
        started, ended = b'"kind":"started"' in body, b'"kind":"ended"' in body
        if started:
            self._crash.reach("before_started_report")
        if ended:
            self._crash.reach("before_ended_report")
        reply = self._quota.send_reports(body)
        if started:
            self._crash.reach("after_started_report")
        if ended:
            self._crash.reach("after_ended_report")
        return reply

    def _check(self) -> None:
        if not self._holds(self.epoch):
            raise ServiceUnavailable("the lease is not held at this moment")


def _report_stream_name(cluster: str) -> str:
    return f"cluster:{cluster}"


def _parts(items: Sequence[ItemT]) -> Iterator[tuple[ItemT, ...]]:
    for start in range(0, len(items), BATCH_ITEMS):
        yield tuple(items[start : start + BATCH_ITEMS])
