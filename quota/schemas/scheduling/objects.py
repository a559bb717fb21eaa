"""What the scheduler knows of the hub: the objects of its snapshot, and the feed of what changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quota.schemas.fair_share import FairShare
from quota.schemas.scheduling.states import JobState, StopReason, Topology
from quota.schemas.values import (
    ClassId,
    Count,
    Flag,
    GpuUs,
    Id,
    Instant,
    NodeName,
    Reply,
    Request,
    ShortId,
    Thousandths,
)


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
