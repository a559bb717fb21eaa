"""What the scheduler saw of clusters: nodes, attempts that started, ended, were lost or freed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from quota.schemas.scheduling.decisions import ItemResult
from quota.schemas.scheduling.objects import FeedItem
from quota.schemas.values import (
    NO_NUL,
    AttemptNumber,
    ClassId,
    Count,
    Id,
    Instant,
    NodeName,
    RackName,
    Reply,
    Request,
    Sequence,
    ShortId,
    Text,
    wrong,
)


class ClassCount(Request):
    """GPUs of a class on a node: all of them, and those others than the hub use."""

    gpu_class: ClassId
    total: Count
    foreign: Count = 0


class NodeReport(Request):
    """One node as its cluster describes it."""

    node: NodeName
    schedulable: bool
    classes: Annotated[tuple[ClassCount, ...], Field(max_length=64)]
    rack: Annotated[RackName | None, Field(exclude_if=lambda rack: rack is None)] = None
    """The rack that it is in, by a name of its cluster's; null: none is known."""


class StartedItem(Request):
    """Containers of an attempt run; `last_started_at` is set once all of them started."""

    kind: Literal["started"] = "started"
    job_id: ShortId
    attempt: AttemptNumber
    first_started_at: Instant
    last_started_at: Instant | None = None


Detail = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]
"""What the cluster says of an attempt, in its own words: `pod 0: ImagePullBackOff`, `pod 1: oom_killed`."""


class PendingItem(Request):
    """Pods of an attempt have not started, and the cluster says why."""

    kind: Literal["pending"] = "pending"
    job_id: ShortId
    attempt: AttemptNumber
    detail: Detail


class EndedItem(Request):
    """All pods of an attempt are gone or terminal: settles the charge and frees the capacity.

    Without `first_started_at` nothing ever ran and nothing is charged.
    """

    kind: Literal["ended"] = "ended"
    job_id: ShortId
    attempt: AttemptNumber
    first_started_at: Instant | None = None
    last_started_at: Instant | None = None
    ended_at: Instant
    exit_code: Annotated[int, Field(strict=True, ge=-1, le=255)] | None = None
    reason: Literal["completed", "failed", "stopped", "node_lost", "never_started"]
    detail: Detail | None = None
    """None keeps what was said last."""


class LostItem(Request):
    """An attempt can no longer be seen (node gone): it ends at `last_seen_at`, its capacity stays taken."""

    kind: Literal["lost"] = "lost"
    job_id: ShortId
    attempt: AttemptNumber
    first_started_at: Instant | None = None
    last_started_at: Instant | None = None
    last_seen_at: Instant


class FreedItem(Request):
    """The pods of a lost attempt are known to be gone: its capacity is free. `ended_at`: when they really ended."""

    kind: Literal["freed"] = "freed"
    job_id: ShortId
    attempt: AttemptNumber
    ended_at: Instant | None = None


class FindingItem(Request):
    """Something that should not be, with numbers, for operators."""

    kind: Literal["finding"] = "finding"
    job_id: ShortId
    attempt: Annotated[int, Field(strict=True, ge=0, le=10_000)]
    code: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{2,60}$")]
    detail: Text


ReportItem = Annotated[
    StartedItem | PendingItem | EndedItem | LostItem | FreedItem | FindingItem, Field(discriminator="kind")
]


class ReportBatch(Request):
    """What one cluster shows. Everything that happened up to `observed_through` is in this or an earlier batch."""

    epoch: Sequence
    stream: Annotated[str, Field(pattern=r"^cluster:[a-z0-9._-]{1,60}$")]
    seq: Annotated[int, Field(strict=True, ge=1)]
    cluster: Id
    nodes: Annotated[tuple[NodeReport, ...], Field(max_length=20_000)] | None = None
    """All nodes of the cluster when they changed, else null. A node left out is unschedulable from now on."""
    items: Annotated[tuple[ReportItem, ...], Field(max_length=2000)]
    observed_through: Instant

    @model_validator(mode="after")
    def _stream_is_the_clusters(self) -> ReportBatch:
        if self.stream != f"cluster:{self.cluster}":
            raise wrong("stream must be cluster:<cluster>, of the cluster that is reported")
        return self

    @field_validator("nodes")
    @classmethod
    def _each_node_once(cls, nodes: tuple[NodeReport, ...] | None) -> tuple[NodeReport, ...] | None:
        names = [report.node for report in nodes or ()]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise wrong("node {node} is named twice", node=twice)
        return nodes


class ReportReply(Reply):
    """Results in the order of the items."""

    stream: str
    stream_seq: int
    seq: int
    results: tuple[ItemResult, ...]
    objects: tuple[FeedItem, ...] = ()
