"""What the core knows and what it answers: frozen data, times in business milliseconds since 1970.

Amounts (`*_gpu_us`) are integer GPU-microseconds of the reference GPU:
milliseconds x GPUs x rate in thousandths.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from scheduler.core.policy import Policy

NODE, RACK = "node", "rack"
"""Within what all pods have to fit."""


class JobState(StrEnum):
    """Where a job or an attempt is on its way. Only QUEUED jobs wait."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class WaitReason(StrEnum):
    """Why a job waits; the numbers named here stand beside the code."""

    ORGANIZATION_FROZEN = "organization_frozen"
    """(organization)"""
    COOLDOWN = "cooldown"
    """(until_ms)"""
    NO_GRANT = "no_grant"
    """(grant), "" when the job names none"""
    GRANT_NOT_STARTED = "grant_not_started"
    """(grant, starts_at_ms)"""
    GRANT_ENDS_FIRST = "grant_ends_first"
    """(grant, ends_at_ms, walltime_ms): the walltime that would fit, in whole `Policy.walltime_step_ms`"""
    GRANT_EXHAUSTED = "grant_exhausted"
    """(grant, account, needed_gpu_us, left_gpu_us): the account that is short, "" when no path is open"""
    GRANT_CAP = "grant_cap"
    """(grant, cap, in_use, needed): GPUs; a job larger than the cap waits until people change it"""
    ORGANIZATION_CAP = "organization_cap"
    """(organization, cap, in_use, needed): GPUs, as for a grant; those that others are being stopped for are in use"""
    PLACEMENT_PAUSED = "placement_paused"
    """(what, name): "hub" with no name, or the "gpu_class" or "cluster" of this name"""
    BEHIND_IN_ORDER = "behind_in_order"
    """(position, organization, job, lag_thousandths): the start of this plan, counted from 1, that took the room, and
    how far the grant that pays for it ranks behind its pace, in thousandths of its term. Told to the first job in
    order of each shape only: for the jobs behind it, it is not that start that keeps them waiting."""
    ROOM_RESERVED = "room_reserved"
    """(job): the one for which the room is kept, now or from a moment before this job could end"""
    BOOKED = "booked"
    """(gpu_class, from_ms, gpus): it would fit, but for room booked in advance, first from then on"""
    RESERVED = "reserved"
    """(starts_at_ms, gpu_class, needed, free): room is kept for it from then on, or sooner if others end sooner"""
    CLUSTER_UNSEEN = "cluster_unseen"
    """(cluster)"""
    NODES_UNAVAILABLE = "nodes_unavailable"
    """(gpu_class, gpus)"""
    NO_FREE_GPU = "no_free_gpu"
    """(gpu_class, needed, free, [room_at_ms, ending_job]): fewer are free in all clusters together than the job needs.
    The last two where they are known: by when there is room for its walltime at the latest, what is promised to others
    left alone, and whose end makes it"""
    NO_NODE_FITS = "no_node_fits"
    """(gpu_class, gpus_per_pod, pods, pods_fit, [room_at_ms, ending_job]): enough are free, but scattered over nodes
    or clusters. `within` besides where one "node" has to hold all pods (they then count as one), or one "rack"."""
    MAKING_ROOM = "making_room"
    """(gpu_class, needed): it has its room, and opportunistic jobs are being stopped there"""
    NO_IDLE_GPU = "no_idle_gpu"
    """(gpu_class, needed, idle): opportunistic jobs find too few together that nobody could use or was promised"""
    OPPORTUNISTIC_OFF = "opportunistic_off"
    """(program): it pays for no opportunistic jobs now"""
    OPPORTUNISTIC_SPENT = "opportunistic_spent"
    """(program, needed_gpu_us, left_gpu_us): of what it pays opportunistic jobs from"""
    OPPORTUNISTIC_CAP = "opportunistic_cap"
    """(program, cap, in_use, needed): GPUs that its opportunistic jobs may keep at once"""


class Topology(StrEnum):
    """How the pods of a gang lie to each other. What is required is part of whether they fit, the rest of where."""

    ANY = "any"
    SAME_NODE = "same_node"
    SAME_RACK = "same_rack"
    PREFER_SAME_NODE = "prefer_same_node"
    """One node, else one rack, else anywhere."""
    PREFER_SAME_RACK = "prefer_same_rack"
    SPREAD = "spread"
    """As evenly over nodes as the room allows: on distinct ones where there are enough."""


@dataclass(frozen=True, slots=True)
class GpuClass:
    """A kind of GPU, or a MIG profile, with its present rate."""

    id: str
    rate_thousandths: int
    paused: bool = False
    """Whether people let none of its jobs start."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """GPUs of one class on one node: all, in others' use, and taken by the hub's own ledger of capacity."""

    total: int
    foreign: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster and what it offers, by GPU class."""

    cluster: str
    node: str
    schedulable: bool
    capacities: Mapping[str, Capacity]
    rack: str = ""
    """Its name within the cluster; "" for a node of which no rack is known: it shares one with no other."""

    @property
    def id(self) -> str:
        return f"{self.cluster}/{self.node}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster: when it was last heard of and whether people paused it."""

    id: str
    last_seen_ms: int
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """A limit account of the ledger; held + used may not pass granted + overdraft."""

    id: str
    granted_gpu_us: int
    held_gpu_us: int = 0
    used_gpu_us: int = 0
    overdraft_gpu_us: int = 0

    @property
    def left_gpu_us(self) -> int:
        return self.granted_gpu_us + self.overdraft_gpu_us - self.held_gpu_us - self.used_gpu_us


@dataclass(frozen=True, slots=True)
class Path:
    """Accounts that one hold charges together, from the party's share up to the grant's own, the last."""

    accounts: tuple[Account, ...]
    organization_id: str
    """Whose jobs may take it."""


class Pace(NamedTuple):
    """How far a grant was behind (positive) its pace at a moment, and what had been spent by then."""

    lag_ms: int
    as_of_ms: int
    spent_gpu_us: int | None = None
    """Used + held - what its attempts could still use at `as_of_ms`. None: not known, taken as what it is now."""


@dataclass(frozen=True, slots=True)
class Grant:
    """GPU time awarded for a term; a consortium's grant has paths for several organizations."""

    id: str
    program_id: str
    organization_id: str
    starts_at_ms: int
    ends_at_ms: int
    paths: tuple[Path, ...]
    """Per party in the order in which they are drawn on."""
    pace: Pace | None = None
    max_gpus: int | None = None
    """How many GPUs its attempts may keep at once."""

    @property
    def parties(self) -> tuple[str, ...]:
        """The organizations whose jobs may draw on it; its own while no path is open to anybody."""
        return tuple(sorted({path.organization_id for path in self.paths})) or (self.organization_id,)


@dataclass(frozen=True, slots=True)
class Fund:
    """What a programme pays opportunistic jobs from, beside its grants."""

    id: str
    """A grant's id: holds and attempts name it as theirs."""
    program_id: str
    account: Account
    starts_at_ms: int
    ends_at_ms: int
    pays: bool = True
    """Whether people let it pay for new starts."""
    max_gpus: int | None = None
    """How many GPUs its attempts may keep at once."""


@dataclass(frozen=True, slots=True)
class Organization:
    """A firm; its decayed usage is for taking turns only, never for the ledger."""

    id: str
    frozen: bool = False
    decayed_usage_gpu_us: float = 0.0
    as_of_ms: int = 0
    max_gpus: int | None = None
    """How many GPUs its attempts may keep at once, whatever the pool."""
    pool_thousandths: int | None = None
    """Which part of the pool its attempts may keep at once; 1000: any; None: that of the policy."""
    opportunistic_usage_gpu_us: float = 0.0
    """The decayed usage of its opportunistic jobs, which take turns by it and by nothing else."""
    opportunistic_as_of_ms: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A request for `pods` pods that start together, each on one node with GPUs of the same class."""

    id: str
    organization_id: str
    grant_id: str | None
    gpu_class: str
    """The class that it prefers."""
    gpus_per_pod: int
    pods: int
    walltime_ms: int
    submitted_at_ms: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    """The latest attempt's number, 0 before the first: a start is the next one."""
    not_before_ms: int | None = None
    cancel_requested: bool = False
    restartable: bool = False
    """Whether it may be stopped for another and come again."""
    preempted_at_ms: tuple[int, ...] = ()
    """When it was preempted, at least within the last 24 hours."""
    fallbacks: tuple[str, ...] = ()
    """Further classes that it accepts, in order of preference; all its pods get one and the same."""

    topology: Topology = Topology.ANY
    program_id: str = ""
    """The programme whose fund pays for an opportunistic job; "": the job is none, a grant pays."""

    @property
    def unit(self) -> tuple[int, int, str]:
        """(GPUs, how many such, within what): what has to fit. All pods on one node are like one large pod."""
        if self.pods > 1 and self.topology is Topology.SAME_NODE:
            return self.gpus, 1, NODE
        if self.pods > 1 and self.topology is Topology.SAME_RACK:
            return self.gpus_per_pod, self.pods, RACK
        return self.gpus_per_pod, self.pods, ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that it accepts, the preferred one first."""
        return self.gpu_class, *self.fallbacks

    @property
    def gpus(self) -> int:
        """How many it takes in all."""
        return self.gpus_per_pod * self.pods

    @property
    def waits(self) -> bool:
        return self.state is JobState.QUEUED and not self.cancel_requested


@dataclass(frozen=True, slots=True)
class PodPlacement:
    """GPUs given to one pod: `count` of one class on one node."""

    node: str
    gpu_class: str
    count: int


@dataclass(frozen=True, slots=True)
class Stop:
    """A recorded decision to stop an attempt; `for_job` is the job that the room is freed for."""

    reason: str
    for_job: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job. Keep it, even ended and freed, while the job named by its stop still waits."""

    job_id: str
    attempt: int
    grant_id: str
    state: JobState
    cluster: str
    pods: tuple[PodPlacement, ...]
    cost_gpu_us: int
    claimed_at_ms: int
    stop: Stop | None = None
    capacity_held: bool = True
    """Whether its GPUs still count in the nodes' `used`."""
    started_at_ms: int | None = None
    """When all its pods ran."""
    ends_at_ms: int | None = None
    """When it ends at the latest: its GPUs count as free from then on. None: nobody knows."""
    walltime_ms: int | None = None
    """What its cost is for. A stop moves its end and leaves this."""
    organization_id: str = ""
    """Whose it is; "": not known, and counted below nobody's cap."""
    opportunistic: bool = False
    """Whether a fund pays for it: whoever is entitled to its GPUs gets them."""

    @property
    def id(self) -> str:
        return f"{self.job_id}-{self.attempt}"

    @property
    def gpus_held(self) -> int:
        """How many GPUs it keeps."""
        return sum(pod.count for pod in self.pods) if self.capacity_held else 0


class Kind(StrEnum):
    """What a tombstone takes away."""

    GPU_CLASS = "gpu_class"
    NODE = "node"
    CLUSTER = "cluster"
    GRANT = "grant"
    ORGANIZATION = "organization"
    JOB = "job"
    ATTEMPT = "attempt"
    BOOKING = "booking"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The object is no more. Ids: `cluster/node` for a node, `job-attempt` for an attempt."""

    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room that a waiting job will get: from `starts_at_ms` on, for its walltime, on these nodes."""

    job_id: str
    cluster: str
    gpu_class: str
    starts_at_ms: int
    gpus_by_node: Mapping[str, int]
    made_at_ms: int
    number: int
    """Of those made at one moment the first has 0."""


@dataclass(frozen=True, slots=True)
class Reservations:
    """All that are kept, in the order in which they were made. As a change it replaces those known."""

    kept: tuple[Reservation, ...] = ()


@dataclass(frozen=True, slots=True)
class Booking:
    """Room that people promised an organization for a time: `pods` times `gpus_per_pod` GPUs, in one cluster."""

    id: str
    organization_id: str
    gpu_class: str
    gpus_per_pod: int
    pods: int
    from_ms: int
    until_ms: int
    grant_id: str | None = None
    """Only jobs that draw on it may use the room; None: all of the organization."""
    cluster: str | None = None
    """None: whichever has the room."""
    hold: bool = False
    """Whether it stays when nobody uses it."""

    @property
    def gpus(self) -> int:
        """How many it is for in all."""
        return self.gpus_per_pod * self.pods


@dataclass(frozen=True, slots=True)
class BookedRoom:
    """Where a booking's room is, and what became of it."""

    booking_id: str
    cluster: str
    gpus_by_node: Mapping[str, int]
    short_gpus: int = 0
    """As seen now, so many will not be free from its start on: attempts run into it, or nodes are lost."""
    used: bool = False
    """Whether one of its jobs ran in it."""
    released: bool = False
    """Whether it is anybody's for the rest of its time, because nobody used it."""


@dataclass(frozen=True, slots=True)
class BookedRooms:
    """All booked room. As a change it replaces what is known."""

    kept: tuple[BookedRoom, ...] = ()


Change = (
    GpuClass
    | Node
    | Cluster
    | Grant
    | Fund
    | Organization
    | Job
    | Attempt
    | Policy
    | Reservations
    | Booking
    | BookedRooms
    | Tombstone
)
"""An object stands for its own upsert."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start this attempt: hold its cost on the path, take the nodes' room, all or nothing."""

    job_id: str
    attempt: int
    grant_id: str
    account_path: tuple[str, ...]
    cluster: str
    pods: tuple[PodPlacement, ...]
    cost_gpu_us: int


@dataclass(frozen=True, slots=True)
class Preempt:
    """Stop this attempt at `stop_at_ms`, tell it now, and keep its room for `for_job`.

    Of an opportunistic attempt nothing is kept: its room was `for_job`'s before."""

    job_id: str
    attempt: int
    for_job: str
    stop_at_ms: int


@dataclass(frozen=True, slots=True)
class Reason:
    """The one thing that keeps a job waiting, with its numbers."""

    code: WaitReason
    numbers: Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one cycle decided. Every waiting job either starts or stands in `order` and in `reasons`."""

    starts: tuple[Start, ...]
    reasons: Mapping[str, Reason]
    order: tuple[str, ...]
    paces: Mapping[str, Pace]
    """Of every grant within its term, before this plan's starts: a refused start must not cost lag."""
    stops: tuple[Preempt, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    """Of jobs that still wait. Hand them to a state that begins anew, or what was promised is forgotten."""
    booked: tuple[BookedRoom, ...] = ()
    """Where the room of the coming bookings is, by id. Hand it, too, to a state that begins anew."""
    changed_reasons: Mapping[str, Reason] = field(default_factory=dict, compare=False)
    """Those of `reasons` that differ from the last cycle of the same state."""
