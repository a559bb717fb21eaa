"""All that is seen of one cluster: three mirrors, which of the hub's objects changed, and up to when all is known.

One lock guards everything here; its bell rings at every change.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.api import Json, KubernetesApi
from scheduler.clusters.kubernetes.facts import (
    JobFacts,
    NodeFacts,
    PodFacts,
    job_facts,
    node_facts,
    pod_facts,
)
from scheduler.clusters.kubernetes.manifests import NodeShape
from scheduler.clusters.kubernetes.reading import (
    are_pods_known,
    is_second,
    node_shape,
    node_status,
    object_status,
)
from scheduler.clusters.kubernetes.settings import KubernetesSettings
from scheduler.clusters.kubernetes.watch import Change, F, Mirror, Reflector, version_number
from scheduler.clusters.port import ClusterUnavailable, NodeStatus, ObjectStatus, Observation

JOBS = "/apis/batch/v1/jobs"
PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"

MARK_S = 1.0
"""How often the server is asked how far it is: slices of the ledger close behind the answers."""
BEHIND_S = 45.0
"""A watch that has not reached a moment this long ago does not count as an answer of the cluster."""


ORPHAN_MS = 15_000
"""A pod that has run so long without its Job being seen has none."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment, and the versions that the server had reached after it."""

    at_ms: int
    asked_s: float
    versions: Mapping[str, int]


class Sight:
    """What one cluster shows. `observation` belongs to one thread."""

    def __init__(
        self,
        name: str,
        api: KubernetesApi,
        settings: KubernetesSettings,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._api = api
        self._settings = settings
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._stopping = threading.Event()
        self._bell = threading.Condition()
        self._jobs: dict[str, JobFacts] = {}
        self._pods: dict[str, dict[str, PodFacts]] = defaultdict(dict)
        """Pods that are there, by the name of their Job, then by uid."""
        self._gone_pods: dict[str, dict[int, PodFacts]] = defaultdict(dict)
        """How each pod ended that is there no more, by Job and index."""
        self._node_pods: dict[str, dict[str, PodFacts]] = defaultdict(dict)
        self._nodes: dict[str, NodeFacts] = {}
        self._shapes: dict[str, NodeShape] | None = None
        """Made anew, never changed, when a node did: every start asks for it."""
        self._lost: set[str] = set()
        """Nodes that have been silent for too long."""
        self._expected: set[str] = set()
        """Jobs that the hub itself is deleting."""
        self._unsettled: set[str] = set()
        """Jobs with pods that the watch has not shown yet: it may come to them without an event of theirs."""
        self._dirty: set[str] = set()
        self._gone: set[str] = set()
        self._nodes_dirty = True
        self._nodes_shown: tuple[NodeStatus, ...] | None = None
        self._complete_wanted = True
        self._mark: Mark | None = None
        self._asked_s = float("-inf")
        self._through_ms = 0
        self._job_mirror: Mirror[JobFacts] = Mirror("jobs", job_facts, self._jobs_changed, self._bell)
        self._pod_mirror: Mirror[PodFacts] = Mirror("pods", pod_facts, self._pods_changed, self._bell)
        self._node_mirror: Mirror[NodeFacts] = Mirror("nodes", node_facts, self._nodes_changed, self._bell)
        self._reflectors: list[Reflector[JobFacts] | Reflector[PodFacts] | Reflector[NodeFacts]] = [
            self._reflector(JOBS, self._job_mirror, names.JOB_ID),
            # others' pods as well: they use GPUs, too
            self._reflector(PODS, self._pod_mirror, None),
            self._reflector(NODES, self._node_mirror, None),
        ]
        self._started = False

    def close(self) -> None:
        """Let the watches end."""
        self._stopping.set()

    def forget(self) -> None:
        """The next observation is complete again."""
        with self._bell:
            self._complete_wanted = True

    def observation(self, wait_s: float) -> Observation:
        """What changed since the last one; waits up to `wait_s` for a change. Raises ClusterUnavailable."""
        self._start()
        self._set_mark()
        with self._bell:
            # the first answer is worth the wait: until then nothing can be said at all
            patience_s = wait_s if self._synced() else max(wait_s, self._settings.call_timeout_s)
            until_s = self._monotonic_s() + patience_s
            while not self._has_news():
                rest_s = until_s - self._monotonic_s()
                if rest_s <= 0:
                    break
                self._bell.wait(rest_s)
            if not self._synced():
                raise ClusterUnavailable(f"cluster {self._name}: {self._trouble() or 'not listed yet'}")
            self._advance()
            return self._observation()

    def job(self, name: str) -> JobFacts | None:
        """A Job as last seen."""
        with self._bell:
            return self._jobs.get(name)

    def expect_deletion(self, name: str) -> None:
        """The hub itself deletes this Job: what is known of it is no longer needed."""
        with self._bell:
            job = self._jobs.get(name)
            if job is None:
                return
            if job.is_deleted:
                self._drop_job(name)
            else:
                self._expected.add(name)

    def status_of(self, job: JobFacts, pods: list[PodFacts]) -> ObjectStatus:
        """An object read just now, with what is remembered of its pods that are gone."""
        with self._bell:
            gone = self._gone_pods.get(job.name, {}).values()
            return object_status(job, pods, gone, self._nodes, self._lost)

    def shapes(self) -> Mapping[str, NodeShape]:
        """What pinning has to know of each node."""
        with self._bell:
            if self._shapes is None:
                classes = self._settings.classes
                self._shapes = {name: node_shape(node, classes) for name, node in self._nodes.items()}
            return self._shapes

    # --- what the mirrors tell, under the lock ---

    def _jobs_changed(self, changes: list[Change[JobFacts]]) -> None:
        for change in changes:
            if change.after is not None:
                self._jobs[change.after.name] = change.after
                self._dirty.add(change.after.name)
                self._gone.discard(change.after.name)
            elif change.before is not None:
                self._forget_job(change.before)

    def _forget_job(self, job: JobFacts) -> None:
        there = self._jobs.get(job.name)
        if there is None or there.uid != job.uid:
            return  # another one has the name by now
        if job.name in self._expected or there.is_tombstone:
            self._drop_job(job.name)
        else:
            # not by the hub: its GPUs are free when its pods are gone, and only here is known how they ended
            self._jobs[job.name] = replace(there, is_deleted=True, suspended=True)
            self._dirty.add(job.name)

    def _drop_job(self, name: str) -> None:
        del self._jobs[name]
        self._expected.discard(name)
        self._gone_pods.pop(name, None)
        self._dirty.discard(name)
        self._gone.add(name)

    def _pods_changed(self, changes: list[Change[PodFacts]]) -> None:
        for change in changes:
            pod = change.after or change.before
            assert pod is not None
            if change.after is not None:
                self._put_pod(change.after)
            else:
                self._drop_pod(pod)
            if pod.job is not None:
                self._dirty.add(pod.job)
            if pod.job not in self._jobs and pod.node:
                self._nodes_dirty = True

    def _put_pod(self, pod: PodFacts) -> None:
        if pod.job is not None:
            self._pods[pod.job][pod.uid] = pod
        elif pod.node:
            self._node_pods[pod.node][pod.uid] = pod

    def _drop_pod(self, pod: PodFacts) -> None:
        if pod.job is None:
            self._node_pods.get(pod.node, {}).pop(pod.uid, None)
            return
        there = self._pods.get(pod.job, {})
        there.pop(pod.uid, None)
        if not there:
            self._pods.pop(pod.job, None)
        if pod.job in self._jobs:
            self._gone_pods[pod.job][pod.index] = _ended(pod, self._now_ms())

    def _nodes_changed(self, changes: list[Change[NodeFacts]]) -> None:
        self._nodes_dirty, self._shapes = True, None
        for change in changes:
            node = change.after or change.before
            assert node is not None
            if change.after is not None:
                self._nodes[node.name] = change.after
            else:
                self._nodes.pop(node.name, None)
            if change.before is None or change.after is None:
                self._touch_jobs_on(node.name)

    def _touch_jobs_on(self, node: str) -> None:
        """Whether its pods are lost depends on the node."""
        self._dirty.update(
            job for job, pods in self._pods.items() if any(pod.node == node for pod in pods.values())
        )

    def _look_for_silence(self) -> None:
        """Time alone makes a silent node a lost one."""
        before_ms = self._now_ms() - round(self._settings.lost_after_s * 1000)
        lost = {
            name
            for name, node in self._nodes.items()
            if node.silent_since_ms is not None and node.silent_since_ms <= before_ms
        }
        for name in lost ^ self._lost:
            self._touch_jobs_on(name)
        self._lost = lost

    # --- the observation ---

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for reflector in self._reflectors:
                reflector.start()

    def _reflector(self, path: str, mirror: Mirror[F], selector: str | None) -> Reflector[F]:
        return Reflector(
            self._api,
            path,
            mirror,
            selector=selector,
            watch_s=self._settings.watch_s,
            relist_s=self._settings.relist_s,
            stopping=self._stopping,
        )

    def _set_mark(self) -> None:
        """Ask the server how far it is now. An earlier answer that the watches have not reached stays the mark."""
        at_ms, asked_s = self._now_ms(), self._monotonic_s()
        if asked_s < self._asked_s + MARK_S:
            return
        versions = {
            "jobs": self._version_of(JOBS, names.JOB_ID),
            "pods": self._version_of(PODS, None),
        }
        self._asked_s = asked_s
        with self._bell:
            # before it is judged: after an outage the watches may have reached it long since
            self._advance()
        if self._mark is None:
            self._mark = Mark(at_ms, asked_s, versions)
        elif asked_s > self._mark.asked_s + BEHIND_S:
            raise ClusterUnavailable(
                f"cluster {self._name}: the watches are {asked_s - self._mark.asked_s:.0f} s behind: "
                f"{self._trouble()}"
            )

    def _version_of(self, path: str, selector: str | None) -> int:
        """The version that a consistent read has: everything that happened before it is at most that."""
        answer = self._api.get(path, limit=1, labelSelector=selector)
        return version_number(answer.body["metadata"]["resourceVersion"])

    def _synced(self) -> bool:
        return all(mirror.version for mirror in (self._job_mirror, self._pod_mirror, self._node_mirror))

    def _trouble(self) -> str:
        return "; ".join(reflector.trouble for reflector in self._reflectors if reflector.trouble)

    def _has_news(self) -> bool:
        if not self._synced():
            return False
        return bool(
            self._complete_wanted or self._dirty or self._gone or self._nodes_dirty or self._mark_reached()
        )

    def _mark_reached(self) -> bool:
        mark = self._mark
        return mark is not None and (
            self._job_mirror.version >= mark.versions["jobs"]
            and self._pod_mirror.version >= mark.versions["pods"]
        )

    def _advance(self) -> None:
        if self._mark is None or not self._mark_reached():
            return
        # The cluster's times are whole seconds: of the second that runs at the mark more may come.
        lag_ms = round(self._settings.report_lag_s * 1000)
        through_ms = (self._mark.at_ms - lag_ms) // 1000 * 1000 - 1
        self._through_ms = max(self._through_ms, through_ms)
        self._mark = None

    def _observation(self) -> Observation:
        complete = self._complete_wanted
        self._look_for_silence()
        self._dirty |= self._unsettled & self._jobs.keys()
        # time alone makes a pod without a Job an orphan
        without_jobs = not self._pods.keys() <= self._jobs.keys()
        self._nodes_dirty = (
            self._nodes_dirty or without_jobs or not self._pods.keys().isdisjoint(self._gone_pods)
        )
        wanted = self._jobs.keys() if complete else self._dirty & self._jobs.keys()
        objects = tuple(self._status(name) for name in sorted(wanted))
        gone = () if complete else tuple(sorted(self._gone))
        nodes = self._changed_nodes(complete)
        self._dirty.clear()
        self._gone.clear()
        self._complete_wanted = self._nodes_dirty = False
        return Observation(self._through_ms, complete, objects, gone, nodes)

    def _status(self, name: str) -> ObjectStatus:
        pods = self._pods.get(name, {})
        gone = self._gone_pods.get(name, {}).values()
        job, version = self._jobs[name], self._pod_mirror.version
        status = object_status(job, pods.values(), gone, self._nodes, self._lost, version)
        if are_pods_known(job, {pod.index for pod in status.pods}, version):
            self._unsettled.discard(name)
        else:
            self._unsettled.add(name)
        return status

    def _changed_nodes(self, complete: bool) -> tuple[NodeStatus, ...] | None:
        if not self._nodes_dirty and not complete:
            return None
        orphans = self._orphans()
        found = (
            node_status(
                node,
                [*self._node_pods.get(node.name, {}).values(), *orphans.get(node.name, ())],
                self._settings.classes,
            )
            for _, node in sorted(self._nodes.items())
        )
        nodes = tuple(node for node in found if node is not None)
        if not complete and _without_beats(nodes) == _without_beats(self._nodes_shown or ()):
            return None
        self._nodes_shown = nodes
        return nodes

    def _orphans(self) -> dict[str, list[PodFacts]]:
        """Pods that no attempt accounts for: their Job is gone, or another pod had their place before.

        Until their end they take room as others' pods do.
        """
        before_ms = self._now_ms() - ORPHAN_MS
        orphans: dict[str, list[PodFacts]] = defaultdict(list)
        for name, pods in self._pods.items():
            gone = self._gone_pods.get(name, {}).values()
            for pod in pods.values():
                # a new pod may only be seen earlier than its Job
                is_old = pod.started_ms is not None and pod.started_ms < before_ms
                if is_second(pod, gone) or (name not in self._jobs and is_old):
                    orphans[pod.node].append(pod)
        return orphans


def _without_beats(nodes: tuple[NodeStatus, ...]) -> list[NodeStatus]:
    return [replace(node, last_seen_ms=0) for node in nodes]


def _ended(pod: PodFacts, now_ms: int) -> PodFacts:
    """A pod that is gone has ended, whatever it showed last: at the latest now."""
    if pod.is_over:
        return pod
    ended_ms = min(pod.ended_ms or pod.disrupted_ms or pod.deleting_ms or now_ms, now_ms)
    return replace(pod, phase="Failed", ended_ms=ended_ms)


def job_and_pods(job: Json, pods: list[Json]) -> tuple[JobFacts, list[PodFacts]] | None:
    """A Job and its pods as read just now; None if it is not one of the hub's."""
    facts = job_facts(job)
    return None if facts is None else (facts, [pod_facts(pod) for pod in pods])
