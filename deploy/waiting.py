"""Why a job waits, in one readable line with numbers."""

from __future__ import annotations

from quota.schemas.scheduling import Waiting, WaitReason

_LINES = {
    WaitReason.NEW: "it has just arrived; the next scheduling cycle will look at it",
    WaitReason.NO_FREE_GPU: "not enough GPUs of its class are free now",
    WaitReason.NO_NODE_FITS: "enough GPUs are free in all, but not together on the nodes it needs",
    WaitReason.GRANT_EXHAUSTED: "the grant has less GPU time left than the job could use",
    WaitReason.GRANT_ENDS_FIRST: "the grant ends before the job's time limit; a shorter --walltime fits",
    WaitReason.GRANT_NOT_STARTED: "the grant's term has not begun",
    WaitReason.GRANT_CAP: "the grant already has as many GPUs in use as it may have at once",
    WaitReason.PLACEMENT_PAUSED: "an operator paused the hub, its cluster or its GPU class",
    WaitReason.NO_GRANT: "no grant of the organization can pay for it",
    WaitReason.COOLDOWN: "its last attempt did not work out; it is tried again after a pause",
    WaitReason.CLUSTER_UNSEEN: "the cluster has not been heard of; nothing is started there until it answers",
    WaitReason.NODES_UNAVAILABLE: "the nodes that could run it are cordoned or down",
    WaitReason.ORGANIZATION_FROZEN: "the organization is frozen by the operator",
    WaitReason.ROOM_RESERVED: "the free room is kept for a job ahead of it",
    WaitReason.BOOKED: "the room that would do is booked in advance; a shorter --walltime may fit before",
    WaitReason.RESERVED: "room is kept for it from a moment on, or sooner if others end sooner",
    WaitReason.BEHIND_IN_ORDER: "a job ahead of it in the fair order took the room",
    WaitReason.START_REFUSED: "its start was refused",
}


def waiting_line(waiting: Waiting | None, position: int | None = None) -> str:
    """`no_free_gpu: not enough GPUs … (needed 8, free 3); place 4 in the queue`."""
    if waiting is None:
        return ""
    numbers = ", ".join(f"{name} {value}" for name, value in waiting.numbers.items())
    line = f"{waiting.code.value}: {_LINES.get(waiting.code, '')}"
    line += f" ({numbers})" if numbers else ""
    return line + (f"; place {position} in the queue" if position is not None else "")
