"""Who leads, and what the leader decides: the lease, starts and stops."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quota.schemas.scheduling.objects import FeedItem, PodPlacement
from quota.schemas.scheduling.states import StopReason
from quota.schemas.values import (
    NO_NUL,
    AttemptNumber,
    Id,
    Instant,
    Milliseconds,
    Name,
    Numbers,
    Reply,
    Request,
    Sequence,
    ShortId,
    Text,
)


class LeaseRequest(Request):
    """Take or renew the hub's one scheduler lease."""

    holder: Name
    instance: Annotated[str, Field(min_length=8, max_length=64, pattern=NO_NUL)]
    """New at every process start: the same holder with a new instance takes over at once."""
    url: Text = ""
    epoch: Sequence | None = None
    """The epoch to renew; null to take over."""


class LeaseReply(Reply):
    """The lease is yours until `ttl_s` after you *sent* the request, by your monotonic clock."""

    epoch: int
    ttl_s: float
    streams: dict[str, int]
    """The last sequence accepted per stream."""
    seq: int
    door_secret: str = ""
    """What the quota service shows as a bearer token when it asks the holder for logs. The holder lets nobody in
    without it. New with every epoch."""


class StartItem(Request):
    """Start the next attempt of a job: hold its cost on the path and take the nodes' capacity, all or nothing."""

    kind: Literal["start"] = "start"
    job_id: ShortId
    attempt: AttemptNumber
    grant_id: Id
    account_path: Annotated[tuple[Id, ...], Field(min_length=1, max_length=8)]
    cluster: Id
    pods: Annotated[tuple[PodPlacement, ...], Field(min_length=1, max_length=4096)]


class StopItem(Request):
    """Record that an attempt must stop. Irrevocable; repeating it changes nothing."""

    kind: Literal["stop"] = "stop"
    job_id: ShortId
    attempt: AttemptNumber
    reason: StopReason
    stop_at: Instant
    grace_ms: Milliseconds
    for_job: ShortId | None = None


DecisionItem = Annotated[StartItem | StopItem, Field(discriminator="kind")]


class DecisionBatch(Request):
    """Decisions of one cycle; resend the same bytes after an unknown outcome."""

    epoch: Sequence
    stream: Annotated[str, Field(pattern=r"^[a-z0-9:._-]{1,80}$")]
    seq: Annotated[int, Field(strict=True, ge=1)]
    items: Annotated[tuple[DecisionItem, ...], Field(max_length=1000)]


class ItemResult(Reply):
    """What became of one item of a batch."""

    job_id: str
    attempt: int
    outcome: Literal["accepted", "unchanged", "refused"]
    code: str = ""
    detail: str = ""
    numbers: Numbers = Field(default_factory=dict)


class DecisionReply(Reply):
    """Results in the order of the items, and the objects they changed."""

    stream: str
    stream_seq: int
    seq: int
    results: tuple[ItemResult, ...]
    objects: tuple[FeedItem, ...]
