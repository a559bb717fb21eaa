"""What jobs, attempts and waits are called: states, reasons, how the pods of a gang lie."""

from __future__ import annotations

from enum import StrEnum


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
