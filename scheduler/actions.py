"""What is done on a cluster, and the small pool that does it, so that one slow answer does not hold all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import assert_never

from scheduler.clusters.port import Cluster, ClusterUnavailable, ObjectSpec, StartOutcome, StartRefused
from scheduler.crash import CrashPlan


@dataclass(frozen=True, slots=True)
class StartObject:
    """Create an attempt's object; quota has accepted the start."""

    cluster: str
    spec: ObjectSpec

    @property
    def key(self) -> tuple[str, str, str]:
        """One action of a kind per object is under way at a time."""
        return (self.cluster, self.spec.name, "start")


@dataclass(frozen=True, slots=True)
class StopObject:
    """Suspend an attempt's object; quota has recorded the stop, or the attempt's end."""

    cluster: str
    spec: ObjectSpec
    abandoned: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """One action of a kind per object is under way at a time."""
        return (self.cluster, self.spec.name, "stop")


@dataclass(frozen=True, slots=True)
class DeleteObject:
    """Forget an old object of an attempt that ended long ago."""

    cluster: str
    name: str

    @property
    def key(self) -> tuple[str, str, str]:
        """One action of a kind per object is under way at a time."""
        return (self.cluster, self.name, "delete")


@dataclass(frozen=True, slots=True)
class PlaceObject:
    """Tell a gang's waiting pods their nodes; all of them are there."""

    cluster: str
    spec: ObjectSpec

    @property
    def key(self) -> tuple[str, str, str]:
        """One action of a kind per object is under way at a time."""
        return (self.cluster, self.spec.name, "place")


@dataclass(frozen=True, slots=True)
class ExtendObject:
    """Move the cluster's own net; quota has given the attempt more time."""

    cluster: str
    spec: ObjectSpec

    @property
    def key(self) -> tuple[str, str, str]:
        """One action of a kind per object is under way at a time."""
        return (self.cluster, self.spec.name, "extend")


@dataclass(frozen=True, slots=True)
class AcknowledgeObject:
    """Let go of an object's ended pods; quota has recorded their end."""

    cluster: str
    name: str

    @property
    def key(self) -> tuple[str, str, str]:
        """One action of a kind per object is under way at a time."""
        return (self.cluster, self.name, "acknowledge")


@dataclass(frozen=True, slots=True)
class NotifyObject:
    """Tell a job when it will be stopped, and why; quota has recorded the stop."""

    cluster: str
    spec: ObjectSpec
    stop_at_ms: int
    reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        """One action of a kind per object is under way at a time."""
        return (self.cluster, self.spec.name, "notify")


Action = (
    StartObject | StopObject | DeleteObject | PlaceObject | ExtendObject | AcknowledgeObject | NotifyObject
)


@dataclass(frozen=True, slots=True)
class Done:
    """How an action went; `trouble` is empty if the cluster did it."""

    action: Action
    outcome: StartOutcome | None = None
    trouble: str = ""


class Hands:
    """Carries actions out on the clusters and tells the loop how each went."""

    def __init__(
        self,
        clusters: Mapping[str, Cluster],
        executors: Mapping[str, Executor],
        tell: Callable[[Done], None],
        crash: CrashPlan,
    ) -> None:
        self._clusters = clusters
        self._executors = executors
        self._tell = tell
        self._crash = crash

    def submit(self, action: Action, allowed: Callable[[], bool]) -> None:
        """Do it soon; `allowed` is asked right before the cluster is touched."""
        self._executors[action.cluster].submit(self._run, action, allowed)

    def _run(self, action: Action, allowed: Callable[[], bool]) -> None:
        if not allowed():
            self._tell(Done(action, trouble="not the leader any more"))
            return
        try:
            done = self._carry_out(action)
        except (StartRefused, ClusterUnavailable) as trouble:
            done = Done(action, trouble=f"{type(trouble).__name__}: {trouble}")
        except Exception as trouble:  # the loop's edge for this thread: the next tick tries again
            done = Done(action, trouble=f"unexpected {type(trouble).__name__}: {trouble}")
        self._tell(done)

    def _carry_out(self, action: Action) -> Done:
        cluster = self._clusters[action.cluster]
        match action:
            case StartObject(spec=spec):
                self._crash.reach("between_claim_and_create")
                outcome = cluster.start(spec)
                self._crash.reach("after_create")
                return Done(action, outcome)
            case StopObject(spec=spec, abandoned=abandoned):
                self._crash.reach("between_stop_and_suspend")
                there = cluster.stop(spec, abandoned=abandoned)
                self._crash.reach("after_suspend")
                # without a place for it, it is as if its tombstone had been found
                return Done(action, None if there else StartOutcome.ABANDONED)
            case PlaceObject(spec=spec):
                cluster.place(spec)
                return Done(action)
            case ExtendObject(spec=spec):
                cluster.extend(spec)
                return Done(action)
            case AcknowledgeObject(name=name):
                cluster.acknowledge(name)
                return Done(action)
            case NotifyObject(spec=spec, stop_at_ms=stop_at_ms, reason=reason):
                cluster.notify(spec, stop_at_ms, reason)
                return Done(action)
            case DeleteObject(name=name):
                return Done(action, trouble="" if cluster.delete(name) else "its pods still run")
        assert_never(action)
