"""Why a job waits, in one English line for operators and logs, from the code and its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from quota.clock import instant_text
from quota.schemas.scheduling import Waiting, WaitReason
from quota.schemas.values import gpu_hours_text

LINES: Mapping[WaitReason, str] = {
    WaitReason.NEW: "no scheduling cycle has seen it yet",
    WaitReason.NO_FREE_GPU: "needs {needed} {gpu_class}, {free} are free",
    WaitReason.NO_NODE_FITS: (
        "{pods_fit} of {pods} pods with {gpus_per_pod} {gpu_class} each fit: what is free is scattered"
    ),
    WaitReason.GRANT_EXHAUSTED: (
        "needs {needed_gpu_us} GPU hours, grant {grant} has {left_gpu_us} GPU hours left (account {account})"
    ),
    WaitReason.GRANT_ENDS_FIRST: "grant {grant} ends at {ends_at_ms}: a walltime of {walltime_ms} would fit",
    WaitReason.GRANT_NOT_STARTED: "grant {grant} starts at {starts_at_ms}",
    WaitReason.NO_GRANT: "its organization has no running grant that it may use",
    WaitReason.COOLDOWN: "pauses until {until_ms} after an attempt that did not work out",
    WaitReason.CLUSTER_UNSEEN: "cluster {cluster} could hold it, but does not answer",
    WaitReason.NODES_UNAVAILABLE: "the nodes with {gpu_class} that could hold it take no jobs now",
    WaitReason.ORGANIZATION_FROZEN: "organization {organization} is frozen",
    WaitReason.ROOM_RESERVED: "the room is kept for job {job}",
    WaitReason.BOOKED: "it would fit, but {gpus} {gpu_class} are booked from {from_ms} on",
    WaitReason.RESERVED: (
        "needs {needed} {gpu_class}, {free} are free; room is kept for it from {starts_at_ms} on, or sooner"
    ),
    WaitReason.BEHIND_IN_ORDER: "job {job} of {organization} was ahead and took the room",
    WaitReason.PLACEMENT_PAUSED: "operators let nothing start on {what} {name}",
    WaitReason.GRANT_CAP: "needs {needed} GPUs, {in_use} of the {cap} that grant {grant} may use at once are in use",
    WaitReason.ORGANIZATION_CAP: (
        "needs {needed} GPUs, {in_use} of the {cap} that organization {organization} may use at once are in use"
    ),
    WaitReason.MAKING_ROOM: "its {needed} {gpu_class} are being freed: opportunistic jobs leave them",
    WaitReason.NO_IDLE_GPU: "needs {needed} {gpu_class} that nobody else could use, {idle} are idle",
    WaitReason.OPPORTUNISTIC_OFF: "programme {program} pays for no opportunistic jobs now",
    WaitReason.OPPORTUNISTIC_SPENT: (
        "needs {needed_gpu_us} GPU hours, programme {program} has {left_gpu_us} left for opportunistic jobs"
    ),
    WaitReason.OPPORTUNISTIC_CAP: (
        "needs {needed} GPUs, {in_use} of the {cap} that opportunistic jobs of {program} may use at once are in use"
    ),
    WaitReason.START_REFUSED: "its start was refused ({code}); it is tried again at {until_ms}",
}


def explain(waiting: Waiting) -> str:
    """One line; a number that is missing shows as `?`."""
    shown = _Shown({name: _show(name, value) for name, value in waiting.numbers.items()})
    line = LINES[waiting.code].format_map(shown).rstrip()
    within = {"node": "on one node", "rack": "in one rack"}.get(str(waiting.numbers.get("within")))
    line += f"; all of it has to be {within}" if within else ""
    others = waiting.numbers.get("other_classes")
    return (
        f"{line}; nor can it start on any of the {others} other GPU classes that it accepts"
        if others
        else line
    )


class _Shown(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _show(name: str, value: int | str) -> str:
    if not isinstance(value, int):
        return "none is open" if name == "account" and not value else value
    if name.endswith("_gpu_us"):
        return gpu_hours_text(value)
    if name == "walltime_ms":
        return f"{value // 60_000} min"
    if name.endswith("_ms"):
        return instant_text(value)
    return str(value)
