"""A cluster in memory: the port's promises in the fewest lines, and calls that get lost or arrive late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from scheduler.clusters.port import (
    ClusterUnavailable,
    NodeStatus,
    ObjectSpec,
    ObjectStatus,
    Observation,
    PodPhase,
    PodStatus,
    StartOutcome,
    StartRefused,
)

T = TypeVar("T")


@dataclass
class Time:
    """One hand-moved time for everybody: business, wall and monotonic."""

    now_ms: int = 1_800_000_000_000

    def monotonic_s(self) -> float:
        """Seconds of a monotonic clock."""
        return self.now_ms / 1000


@dataclass
class ClusterModel:
    """Objects by name. `faults` are taken one by one by the next start or stop: refuse, drop, forget, late."""

    time: Time
    nodes: tuple[str, ...] = ("n0", "n1")
    gpus: int = 8
    run_ms: int = 60_000
    exit_code: int = 0
    faults: list[str] = field(default_factory=list)
    objects: dict[str, ObjectStatus] = field(default_factory=dict)
    late: list[Callable[[], object]] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    """How often pods of an object were created to run."""
    suspensions: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    name: str = "sim"
    _changed: set[str] = field(default_factory=set)
    _gone: set[str] = field(default_factory=set)
    _complete: bool = True
    _nodes_told: bool = False

    # --- the port ---

    def observe(self, wait_s: float) -> Observation:
        """What changed since the last call."""
        names = set(self.objects) if self._complete else self._changed & set(self.objects)
        seen = Observation(
            through_ms=self.time.now_ms,
            complete=self._complete,
            objects=tuple(self.objects[name] for name in sorted(names)),
            gone=tuple(sorted(self._gone)),
            nodes=None if self._nodes_told else self._node_statuses(),
        )
        self._changed, self._gone, self._complete, self._nodes_told = set(), set(), False, True
        return seen

    def forget_observations(self) -> None:
        """Be complete next time."""
        self._complete, self._nodes_told = True, False

    def get(self, name: str) -> ObjectStatus | None:
        """One object."""
        return self.objects.get(name)

    def start(self, spec: ObjectSpec) -> StartOutcome:
        """Create, unless the name is taken."""
        self.calls.append(("start", spec.name))
        return self._with_fault(lambda: self._start(spec))

    def stop(self, spec: ObjectSpec, *, abandoned: bool) -> None:
        """Suspend, or leave a tombstone."""
        self.calls.append(("stop", spec.name))
        self._with_fault(lambda: self._stop(spec, abandoned))

    def notify(self, spec: ObjectSpec, stop_at_ms: int, reason: str) -> None:
        """Tell it, once, when it will be stopped."""
        self.calls.append(("notify", spec.name))
        self._put(replace(self.objects[spec.name], notified=True))

    def delete(self, name: str) -> bool:
        """Forget what does not run."""
        self.calls.append(("delete", name))
        seen = self.objects.get(name)
        if seen is not None and any(pod.phase is PodPhase.RUNNING for pod in seen.pods):
            return False
        if self.objects.pop(name, None) is not None:
            self._gone.add(name)
        return True

    # --- what happens there ---

    def pass_time(self) -> None:
        """Start pending pods, end those whose time is over."""
        for seen in list(self.objects.values()):
            pods = tuple(self._aged(pod, suspended=seen.suspended) for pod in seen.pods)
            if pods != seen.pods:
                self._put(replace(seen, pods=pods))

    def deliver_late(self) -> None:
        """Calls that were given up long ago reach the cluster now."""
        while self.late:
            self.late.pop(0)()

    def lose(self, node: str) -> None:
        """The node is gone: nobody knows whether its pods run."""
        self.lost[node] = self.time.now_ms
        self._nodes_told = False
        self._change_pods(node, self._unknown)

    def find(self, node: str) -> None:
        """The node is back, empty."""
        died_ms = self.lost.pop(node, None)
        if died_ms is None:
            return
        self._nodes_told = False
        self._change_pods(node, lambda pod: self._dead(pod, died_ms))

    def add(self, status: ObjectStatus) -> None:
        """An object that others made."""
        self._put(status)

    # --- inside ---

    def _with_fault(self, work: Callable[[], T]) -> T:
        fault = self.faults.pop(0) if self.faults else ""
        match fault:
            case "refuse":
                raise StartRefused("not now")
            case "drop":
                raise ClusterUnavailable("the request was lost")
            case "late":
                self.late.append(work)
                raise ClusterUnavailable("no answer in time")
            case "forget":
                work()
                raise ClusterUnavailable("the answer was lost")
            case _:
                return work()

    def _start(self, spec: ObjectSpec) -> StartOutcome:
        there = self.objects.get(spec.name)
        if there is not None:
            if there.abandoned:
                return StartOutcome.ABANDONED
            same = there.spec_hash == spec.spec_hash()
            return StartOutcome.ADOPTED if same else StartOutcome.CONFLICT
        assert spec.name not in self.suspensions, f"{spec.name} was started after its stop"
        self.runs[spec.name] = self.runs.get(spec.name, 0) + 1
        pods = tuple(a_pod(pod.index, pod.node, PodPhase.PENDING) for pod in spec.pods)
        self._put(replace(an_object(spec, self.time.now_ms, pods), notified=False))
        return StartOutcome.CREATED

    def _stop(self, spec: ObjectSpec, abandoned: bool) -> None:
        there = self.objects.get(spec.name)
        self.suspensions.setdefault(spec.name, self.time.now_ms)
        if there is None:
            self._put(replace(an_object(spec, self.time.now_ms, ()), suspended=True, abandoned=True))
        elif not there.suspended:
            pods = tuple(self._stopped(pod) for pod in there.pods)
            self._put(replace(there, suspended=True, abandoned=abandoned, pods=pods))

    def _stopped(self, pod: PodStatus) -> PodStatus:
        if pod.phase is not PodPhase.RUNNING:
            return pod
        return replace(pod, phase=PodPhase.FAILED, ended_ms=self.time.now_ms, exit_code=143, reason="stopped")

    def _aged(self, pod: PodStatus, *, suspended: bool) -> PodStatus:
        now_ms = self.time.now_ms
        if pod.phase is PodPhase.PENDING and not suspended and pod.node not in self.lost:
            return replace(pod, phase=PodPhase.RUNNING, started_ms=now_ms, gpu_uuids=("GPU-1",))
        started_ms = pod.started_ms
        if pod.phase is PodPhase.RUNNING and started_ms is not None and now_ms >= started_ms + self.run_ms:
            phase = PodPhase.FAILED if self.exit_code else PodPhase.SUCCEEDED
            reason = "failed" if self.exit_code else "completed"
            ended_ms = started_ms + self.run_ms
            return replace(pod, phase=phase, ended_ms=ended_ms, exit_code=self.exit_code, reason=reason)
        return pod

    def _unknown(self, pod: PodStatus) -> PodStatus:
        if pod.phase is not PodPhase.RUNNING:
            return pod
        return replace(pod, phase=PodPhase.UNKNOWN, last_seen_ms=self.time.now_ms)

    def _dead(self, pod: PodStatus, died_ms: int) -> PodStatus:
        if pod.phase is not PodPhase.UNKNOWN:
            return pod
        return replace(pod, phase=PodPhase.FAILED, ended_ms=died_ms, reason="node_lost")

    def _change_pods(self, node: str, change: Callable[[PodStatus], PodStatus]) -> None:
        for seen in list(self.objects.values()):
            pods = tuple(change(pod) if pod.node == node else pod for pod in seen.pods)
            if pods != seen.pods:
                self._put(replace(seen, pods=pods))

    def _put(self, status: ObjectStatus) -> None:
        self.objects[status.name] = status
        self._changed.add(status.name)

    def _node_statuses(self) -> tuple[NodeStatus, ...]:
        return tuple(
            NodeStatus(node, node not in self.lost, self.time.now_ms, (("h100", self.gpus),), ())
            for node in self.nodes
        )


def a_pod(
    index: int = 0,
    node: str = "n0",
    phase: PodPhase = PodPhase.RUNNING,
    *,
    started_ms: int | None = None,
    ended_ms: int | None = None,
    exit_code: int | None = None,
    reason: str | None = None,
    last_seen_ms: int | None = None,
) -> PodStatus:
    """A pod as last seen."""
    return PodStatus(index, node, phase, started_ms, ended_ms, exit_code, reason, (), last_seen_ms)


def an_object(spec: ObjectSpec, created_ms: int, pods: tuple[PodStatus, ...]) -> ObjectStatus:
    """An object as last seen, made from `spec`."""
    return ObjectStatus(
        name=spec.name,
        job_id=spec.job_id,
        attempt=spec.attempt,
        suspended=False,
        abandoned=False,
        spec_hash=spec.spec_hash(),
        created_ms=created_ms,
        pods=pods,
    )
