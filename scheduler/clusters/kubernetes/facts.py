"""Jobs, pods and nodes as the hub needs them, read from what the API server sends. Pure.

An object that cannot be read is a bug or an odd server; one that merely lacks a field is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.api import Json
from scheduler.clusters.port import PodPlacement

TERMINAL = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A hub's Job."""

    uid: str
    namespace: str
    name: str
    job_id: str
    attempt: int
    suspended: bool
    abandoned: bool
    spec_hash: str
    created_ms: int
    pods: tuple[PodPlacement, ...]
    walltime_ms: int
    grace_ms: int
    finished_ms: int | None
    """When it was over for good."""
    failed_reason: str | None
    """Why it failed, or is about to fail; None if it does not."""
    completed: frozenset[int]
    """Indexes whose pods succeeded."""
    version: int = field(default=0, compare=False)
    """Its resource version when it became so."""
    is_tombstone: bool = False
    """It was created suspended."""
    is_emptied: bool = False
    """Its controller says that it is suspended and that none of its pods is left that could run."""
    is_deleted: bool = False
    """Somebody deleted it while its pods ran; it is remembered for their sake."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """Any pod of the cluster: a hub's, or one that takes room from it."""

    uid: str
    namespace: str
    name: str
    job: str | None
    """Name of the hub's Job that it belongs to."""
    index: int
    node: str
    phase: str
    started_ms: int | None
    ended_ms: int | None
    exit_code: int | None
    cause: str | None
    """Of the container: OOMKilled, Error, ImagePullBackOff …"""
    disruption: str | None
    """Reason of the DisruptionTarget condition."""
    disrupted_ms: int | None
    deleting_ms: int | None
    gated: bool
    notified: bool
    """It knows when it will be stopped."""
    kept: bool
    """It has the finalizer that keeps its end readable."""
    requests_milli: Mapping[str, int]
    """What it takes of its node, in thousandths of each resource's unit."""

    @property
    def is_over(self) -> bool:
        """Whether it uses no GPU any more."""
        return self.phase in TERMINAL


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node."""

    uid: str
    name: str
    labels: Mapping[str, str]
    allocatable_milli: Mapping[str, int]
    """What it has for pods, in thousandths of each resource's unit."""
    ready: str
    """True, False or Unknown, as its Ready condition says."""
    cordoned: bool
    taints: frozenset[tuple[str, str]]
    """(key, effect) of those that keep pods away."""
    silent_since_ms: int | None
    """Since when its Ready condition is Unknown."""
    heartbeat_ms: int = field(compare=False)
    """The last sign of life of its kubelet. A newer one alone is no change."""


def job_facts(thing: Json) -> JobFacts | None:
    """A Job; None if it is not one of the hub's."""
    metadata = thing["metadata"]
    labels = metadata.get("labels") or {}
    notes = metadata.get("annotations") or {}
    attempt = labels.get(names.ATTEMPT, "")
    if not labels.get(names.JOB_ID) or not attempt.isdecimal():
        return None
    status = thing.get("status") or {}
    return JobFacts(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        job_id=labels[names.JOB_ID],
        attempt=int(attempt),
        suspended=bool(thing["spec"].get("suspend")),
        abandoned=labels.get(names.ABANDONED) == "true",
        spec_hash=notes.get(names.SPEC_HASH, ""),
        created_ms=_required_ms(metadata["creationTimestamp"]),
        pods=_placement(notes.get(names.PLACEMENT, "[]")),
        walltime_ms=_number(notes.get(names.WALLTIME_MS)),
        grace_ms=_number(notes.get(names.GRACE_MS)),
        finished_ms=_finished_ms(status),
        failed_reason=_failed_reason(status),
        completed=frozenset(_indexes(status.get("completedIndexes") or "")),
        version=_number(metadata.get("resourceVersion")),
        is_tombstone=notes.get(names.TOMBSTONE) == "true",
        is_emptied=_is_emptied(status),
    )


def pod_facts(thing: Json) -> PodFacts:
    """A pod."""
    metadata, spec, status = thing["metadata"], thing["spec"], thing.get("status") or {}
    labels = metadata.get("labels") or {}
    container = _main_status(status)
    disruption = _true_condition(status, "DisruptionTarget") or {}
    started_ms, ended_ms, exit_code, cause = _container_times(container)
    return PodFacts(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        job=labels.get(names.JOB_NAME) if labels.get(names.JOB_ID) else None,
        index=_number((metadata.get("annotations") or {}).get(names.COMPLETION_INDEX)),
        node=spec.get("nodeName") or "",
        phase=status.get("phase") or "Pending",
        started_ms=started_ms,
        ended_ms=ended_ms,
        exit_code=exit_code,
        cause=cause or status.get("reason"),
        disruption=disruption.get("reason"),
        disrupted_ms=_instant_ms(disruption.get("lastTransitionTime")),
        deleting_ms=_instant_ms(metadata.get("deletionTimestamp")),
        gated=bool(spec.get("schedulingGates")),
        notified=names.STOP_AT in (metadata.get("annotations") or {}),
        kept=names.END_SEEN in (metadata.get("finalizers") or ()),
        requests_milli=_requests(spec),
    )


def node_facts(thing: Json) -> NodeFacts:
    """A node."""
    metadata, spec, status = thing["metadata"], thing.get("spec") or {}, thing.get("status") or {}
    ready = _condition(status, "Ready") or {}
    is_silent = (ready.get("status") or "Unknown") == "Unknown"
    beats = [_instant_ms(one.get("lastHeartbeatTime")) or 0 for one in status.get("conditions") or ()]
    return NodeFacts(
        uid=metadata["uid"],
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        allocatable_milli=_milli(status.get("allocatable") or {}),
        ready=ready.get("status") or "Unknown",
        cordoned=bool(spec.get("unschedulable")),
        taints=frozenset(
            (taint["key"], taint["effect"])
            for taint in spec.get("taints") or ()
            if taint.get("effect") != "PreferNoSchedule"
        ),
        silent_since_ms=_instant_ms(ready.get("lastTransitionTime")) or 0 if is_silent else None,
        heartbeat_ms=max(beats, default=0),
    )


def _finished_ms(status: Json) -> int | None:
    for kind in ("Complete", "Failed"):
        condition = _true_condition(status, kind)
        if condition is not None:
            return _instant_ms(condition.get("lastTransitionTime"))
    return None


def _failed_reason(status: Json) -> str | None:
    """`FailureTarget` says why the pods are being taken away, `Failed` that they are gone."""
    condition = _true_condition(status, "Failed") or _true_condition(status, "FailureTarget")
    return None if condition is None else condition.get("reason") or "Failed"


def _is_emptied(status: Json) -> bool:
    left = (status.get("active") or 0) + (status.get("terminating") or 0)
    return _true_condition(status, "Suspended") is not None and not left


def _placement(text: str) -> tuple[PodPlacement, ...]:
    return tuple(PodPlacement(*pod) for pod in json.loads(text))


def _indexes(text: str) -> Iterator[int]:
    """`0,2-4` as the Job controller writes it."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first:
            yield from range(int(first), int(last or first) + 1)


def _main_status(status: Json) -> Json:
    found = [one for one in status.get("containerStatuses") or () if one.get("name") == names.CONTAINER]
    return found[0] if found else {}


def _container_times(container: Json) -> tuple[int | None, int | None, int | None, str | None]:
    """Start, end, exit code, and the reason that its state gives."""
    state = container.get("state") or {}
    terminated = state.get("terminated")
    if terminated is not None:
        return (
            _instant_ms(terminated.get("startedAt")),
            _instant_ms(terminated.get("finishedAt")),
            terminated.get("exitCode"),
            terminated.get("reason"),
        )
    running = state.get("running")
    if running is not None:
        return _instant_ms(running.get("startedAt")), None, None, None
    return None, None, None, (state.get("waiting") or {}).get("reason")


def _condition(status: Json, kind: str) -> Json | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind:
            found: Json = condition
            return found
    return None


def _true_condition(status: Json, kind: str) -> Json | None:
    condition = _condition(status, kind)
    return condition if condition is not None and condition.get("status") == "True" else None


def _requests(spec: Json) -> dict[str, int]:
    """What the pod takes of its node: its containers together, or its greediest init container."""
    together: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for key, amount in _asked(container).items():
            together[key] = together.get(key, 0) + amount
    for container in spec.get("initContainers") or ():
        for key, amount in _asked(container).items():
            together[key] = max(together.get(key, 0), amount)
    return together


def _asked(container: Json) -> dict[str, int]:
    resources = container.get("resources") or {}
    return _milli((resources.get("limits") or {}) | (resources.get("requests") or {}))


def _milli(quantities: Mapping[str, str]) -> dict[str, int]:
    return {key: int(parse_quantity(text) * 1000) for key, text in quantities.items()}


def _instant_ms(text: Any) -> int | None:
    if not text:
        return None
    return round(datetime.fromisoformat(str(text)).timestamp() * 1000)


def _required_ms(text: str) -> int:
    moment = _instant_ms(text)
    assert moment is not None
    return moment


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
