"""The contract between scheduler and quota: lease, snapshot, feed, decisions, reports, ranking.

Every object and reply carries `seq`, the head of the feed when it was read; of two versions of one
object the one with the smaller seq is older and ignored.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from quota.schemas.fair_share import FairShare
from quota.schemas.values import (
    NO_NUL,
    AttemptNumber,
    ClassId,
    Count,
    Flag,
    GpuUs,
    Id,
    Instant,
    Milliseconds,
    Name,
    NodeName,
    Numbers,
    RackName,
    Reply,
    Request,
    Sequence,
    ShortId,
    Text,
    Thousandths,
    wrong,
)


class JobState(StrEnum):
    """Where a job is on its way."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a job, or one of its attempts, ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time_limit"
    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    ABANDONED = "abandoned"
    """It did not start in time, three times."""
    GRANT_ENDED = "grant_ended"
    """Its grant ended, and the grant's policy stops what still runs then."""
    REQUEUED = "requeued"
    """Of an attempt only: an operator sent the job back into the queue."""
    IDLE_RECLAIMED = "idle_reclaimed"
    """Its GPUs did no work for as long as the idle rules allow, after two warnings."""


class StopReason(StrEnum):
    """Why an attempt is asked to stop."""

    CANCELLED = "cancelled"
    TIME_LIMIT = "time_limit"
    PREEMPTED = "preempted"
    ABANDONED = "abandoned"
    """Not fully started within the time a start may take."""
    GRANT_ENDED = "grant_ended"
    REQUEUED = "requeued"
    IDLE_RECLAIMED = "idle_reclaimed"
    GPU_FAILED = "gpu_failed"
    """A GPU that it holds is lost or hangs, as an agent's verdict says."""


class WaitReason(StrEnum):
    """Why a job waits; the numbers stand beside it."""

    NEW = "new"
    """No scheduling cycle has seen it yet."""
    NO_FREE_GPU = "no_free_gpu"
    NO_NODE_FITS = "no_node_fits"
    GRANT_EXHAUSTED = "grant_exhausted"
    GRANT_ENDS_FIRST = "grant_ends_first"
    GRANT_NOT_STARTED = "grant_not_started"
    NO_GRANT = "no_grant"
    COOLDOWN = "cooldown"
    CLUSTER_UNSEEN = "cluster_unseen"
    NODES_UNAVAILABLE = "nodes_unavailable"
    ORGANIZATION_FROZEN = "organization_frozen"
    ROOM_RESERVED = "room_reserved"
    BOOKED = "booked"
    """It would fit, but for room that is booked in advance."""
    RESERVED = "reserved"
    """Room is kept for it from a moment on, or sooner if others end sooner."""
    BEHIND_IN_ORDER = "behind_in_order"
    START_REFUSED = "start_refused"
    PLACEMENT_PAUSED = "placement_paused"
    """An operator paused the hub, the clusters that could run it, or its GPU class."""
    GRANT_CAP = "grant_cap"
    """The grant already has as many GPUs in use as it may have at once."""
    ORGANIZATION_CAP = "organization_cap"
    """The organization already has as many GPUs in use as it may have at once."""
    MAKING_ROOM = "making_room"
    """It has its room; opportunistic jobs are being stopped there."""
    NO_IDLE_GPU = "no_idle_gpu"
    """An opportunistic job finds too few GPUs together that nobody else could use or was promised."""
    OPPORTUNISTIC_OFF = "opportunistic_off"
    """Its programme pays for no opportunistic jobs now."""
    OPPORTUNISTIC_SPENT = "opportunistic_spent"
    """Its programme has too little left for opportunistic jobs."""
    OPPORTUNISTIC_CAP = "opportunistic_cap"
    """The opportunistic jobs of its programme already have as many GPUs in use as they may have at once."""


class Topology(StrEnum):
    """How the pods of a gang lie to each other. What is required is waited for; what is preferred is taken if there."""

    ANY = "any"
    SAME_NODE = "same_node"
    SAME_RACK = "same_rack"
    """Nodes whose rack is not known are in none."""
    PREFER_SAME_NODE = "prefer_same_node"
    """One node, else one rack, else anywhere."""
    PREFER_SAME_RACK = "prefer_same_rack"
    SPREAD = "spread"
    """As evenly over nodes as there is room: on distinct ones where there are enough."""


# --- objects of snapshot and feed ---------------------------------------------------------------


class PodPlacement(Request):
    """`count` GPUs of one class on one node for one pod of the gang."""

    index: Count
    node: NodeName
    gpu_class: ClassId
    count: Annotated[int, Field(strict=True, ge=1, le=1024)]


class StopRecord(Reply):
    """An irrevocable stop: written before the cluster is touched."""

    reason: StopReason
    stop_at: Instant
    grace_ms: int
    for_job: str | None = None


class JobObject(Reply):
    """A job that has not ended."""

    id: str
    organization_id: str
    grant_id: str | None
    program_id: str | None = None
    """The programme that pays for an opportunistic job; null: the job is none."""
    gpu_class: str
    gpu_classes: tuple[str, ...] = ()
    """Every class that it accepts, in order of preference, `gpu_class` first."""
    gpus_per_pod: int
    pods: int
    topology: Topology = Topology.ANY
    walltime_ms: int
    grace_ms: int
    restartable: bool
    submitted_at: Instant
    state: JobState
    attempt: int
    """The latest attempt's number; 0 before the first."""
    not_before: Instant | None
    """A cooldown after an attempt that did not work out."""
    cancel_requested_at: Instant | None
    preempted_at: tuple[Instant, ...] = ()
    """Preemptions of the last 24 h."""
    image: str = ""
    command: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class AttemptObject(Reply):
    """An attempt that has not ended, or still keeps its capacity."""

    id: str
    """`<job>-<attempt>`, also the name of its object on the cluster."""
    job_id: str
    organization_id: str
    attempt: int
    state: JobState
    cluster: str
    pods: tuple[PodPlacement, ...]
    grant_id: str
    hold_id: str
    cost_gpu_us: GpuUs
    walltime_ms: int
    grace_ms: int
    claimed_at: Instant
    first_started_at: Instant | None
    last_started_at: Instant | None
    ended_at: Instant | None
    capacity_held: bool
    stop: StopRecord | None
    opportunistic: bool = False
    """A programme's own account pays: whoever is entitled to its GPUs gets them."""
    stop_asked: StopReason | None = None
    """The quota service wants this attempt stopped, for this reason; the scheduler decides the stop."""
    detail: str | None = None
    """What the cluster said of it last."""
    image: str = ""
    command: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class AccountBalance(Reply):
    """One limit account on a path."""

    id: str
    granted_gpu_us: GpuUs
    held_gpu_us: GpuUs
    used_gpu_us: GpuUs
    overdraft_gpu_us: GpuUs = 0


class AccountPath(Reply):
    """The accounts a hold on this path has legs on: the party's share, the tranche, the grant, in this order."""

    accounts: tuple[AccountBalance, ...]
    organization_id: str
    """Whose jobs may take it: the share's party, or the grant's own organization when it has no shares."""


class Pace(Reply):
    """How far a grant is behind the pace it needs; positive = behind. Bounded, see the scheduler's policy."""

    lag_ms: Annotated[int, Field(strict=True)]
    as_of: Instant
    spent_gpu_us: GpuUs | None = None
    """Used and held at that moment; the lag goes on from there."""


class GrantObject(Reply):
    """A grant that has not ended."""

    id: str
    program_id: str
    organization_id: str
    """Empty: the programme's own, from which it pays opportunistic jobs."""
    starts_at: Instant
    ends_at: Instant
    paths: tuple[AccountPath, ...]
    """Per party, released tranches in order: a start takes the first one that suffices."""
    pace: Pace | None
    max_gpus: int | None = None
    """How many GPUs attempts on this grant may keep at once."""
    pays: bool = True
    """Of a programme's own: whether it pays for new starts."""


class OrganizationObject(Reply):
    """An organization with its decayed usage (fair-share only; never the ledger's)."""

    id: str
    frozen: bool
    decayed_usage_gpu_us: float
    decayed_as_of: Instant
    max_gpus: int | None = None
    """How many GPUs its attempts may keep at once, whatever the pool."""
    pool_thousandths: int | None = None
    """Which part of the pool its attempts may keep at once; 1000: any; null: that of the policy."""
    opportunistic_usage_gpu_us: float = 0.0
    """The decayed usage of its opportunistic jobs, which take turns by it."""
    opportunistic_as_of: Instant = 0


class GpuClassObject(Reply):
    """A GPU class or MIG profile with its present rate."""

    id: str
    rate_id: str
    rate_thousandths: Thousandths
    paused: bool = False
    """Operators let no job of this class start."""


class NodeCapacityObject(Reply):
    """How many GPUs of one class a node has, how many others use, and how many the hub has given."""

    gpu_class: str
    total: int
    foreign: int
    used: int


class NodeObject(Reply):
    """A node of a cluster."""

    cluster: str
    node: str
    schedulable: bool
    capacities: tuple[NodeCapacityObject, ...]
    rack: str | None = None
    """As its cluster reports it; null: none is known."""


class ClusterObject(Reply):
    """A cluster as the quota service knows it."""

    id: str
    paused: bool
    observed_through: Instant | None


class BookingObject(Reply):
    """One coming time of a booking: room for `pods` x `gpus_per_pod` GPUs in one cluster."""

    id: str
    organization_id: str
    grant_id: str | None
    """Only jobs that draw on it use the room; null: all of the organization."""
    gpu_class: str
    cluster: str | None
    gpus_per_pod: int
    pods: int
    starts_at: Instant
    ends_at: Instant
    hold: bool
    """Kept though nobody uses it."""


class PolicyObject(Reply):
    """Numbers that the scheduler's core and reconciler follow."""

    half_life_ms: int
    lag_bound_thousandths: int
    """As in `fair_share`; for schedulers that do not know that yet."""
    cluster_unseen_wall_s: int
    placement_paused: bool = False
    """Operators let no job start anywhere."""
    start_limit_wall_s: int
    """A gang not fully running in this time is abandoned."""
    abandonments_limit: int
    fair_share: FairShare = Field(default_factory=FairShare)
    """Who goes first, who may pass, and who is stopped for whom."""
    organization_pool_thousandths: int = 1000
    """Which part of the pool an organization may keep at once; 1000: any."""
    organization_pool_from_gpus: int = 0
    """A smaller pool is not divided in this way."""


FeedKind = Literal[
    "job", "attempt", "grant", "organization", "gpu_class", "node", "cluster", "policy", "booking"
]
AnyObject = (
    JobObject
    | AttemptObject
    | GrantObject
    | OrganizationObject
    | GpuClassObject
    | NodeObject
    | ClusterObject
    | PolicyObject
    | BookingObject
)


class FeedItem(Reply):
    """One object as a whole, or its tombstone (`gone`). Exactly the field named by `kind` is set unless gone."""

    kind: FeedKind
    id: str
    seq: int
    gone: bool = False
    job: JobObject | None = None
    attempt: AttemptObject | None = None
    grant: GrantObject | None = None
    organization: OrganizationObject | None = None
    gpu_class: GpuClassObject | None = None
    node: NodeObject | None = None
    cluster: ClusterObject | None = None
    policy: PolicyObject | None = None
    booking: BookingObject | None = None


GpusByNode = Annotated[
    dict[NodeName, Annotated[int, Field(strict=True, ge=1, le=1024)]], Field(max_length=4096)
]


class Reservation(Request):
    """Room promised to a waiting job: from `starts_at` on, on these nodes."""

    job_id: ShortId
    cluster: Id
    gpu_class: ClassId
    starts_at: Instant
    gpus_by_node: GpusByNode
    made_at: Instant
    number: Count
    """Of those made at one moment the first has 0."""


class BookedRoom(Request):
    """Where the room of one time of a booking is, and what became of it."""

    booking_id: ShortId
    cluster: Annotated[str, Field(max_length=128)]
    """Empty while no cluster has any."""
    gpus_by_node: GpusByNode
    short_gpus: Count = 0
    """So many will not be free from its begin on."""
    used: Flag = False
    released: Flag = False


class SnapshotPage(Reply):
    """One page of everything the core needs. `cursor` was read before the first page: follow the feed from there."""

    cursor: int
    items: tuple[FeedItem, ...]
    next: str | None
    reservations: tuple[Reservation, ...] = ()
    """On the first page only: what the last ranking promised. What comes after it, the scheduler itself decides."""
    booked: tuple[BookedRoom, ...] = ()
    """On the first page only: where the last ranking had the room of bookings."""


class FeedPage(Reply):
    """What changed after a cursor."""

    cursor: int
    items: tuple[FeedItem, ...]


# --- lease ---------------------------------------------------------------------------------------


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


# --- decisions -----------------------------------------------------------------------------------


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


# --- reports -------------------------------------------------------------------------------------


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


# --- ranking -------------------------------------------------------------------------------------


class Waiting(Request):
    """Why a job waits: a code and the numbers behind it."""

    code: WaitReason
    numbers: Numbers = Field(default_factory=dict)


class RankingDocument(Request):
    """The waiting jobs in order, the reasons that changed since `base_cycle`, and each grant's pace."""

    epoch: Sequence
    cycle: Sequence
    base_cycle: Sequence | None = None
    """The cycle that `reasons` and `paces` are changes to; null: they are complete."""
    at: Instant
    order: Annotated[tuple[Id, ...], Field(max_length=200_000)]
    reasons: dict[str, Waiting]
    paces: dict[str, Pace] = Field(default_factory=dict)
    reservations: Annotated[tuple[Reservation, ...], Field(max_length=1000)] = ()
    """All room that is promised, in the order in which it was; always complete."""
    booked: Annotated[tuple[BookedRoom, ...], Field(max_length=20_000)] = ()
    """Where the room of coming bookings is; always complete."""


class RankingReply(Reply):
    """The cycle that the service now shows."""

    cycle: int
    seq: int
