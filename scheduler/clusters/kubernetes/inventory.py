"""What is on a cluster, as its watches have told: the hub's Jobs with their pods, everybody's pods, the nodes.

Belongs to one `Sight` and is used under its lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from scheduler.clusters.kubernetes.facts import JobFacts, NodeFacts, PodFacts
from scheduler.clusters.kubernetes.manifests import NodeShape
from scheduler.clusters.kubernetes.reading import (
    are_pods_known,
    is_second,
    node_shape,
    node_status,
    object_status,
)
from scheduler.clusters.kubernetes.settings import KubernetesSettings
from scheduler.clusters.kubernetes.watch import Change
from scheduler.clusters.port import NodeStatus, ObjectStatus

ORPHAN_MS = 15_000
"""A pod that has run so long without its Job being seen has none."""


class Inventory:
    """The present state, and which names changed since somebody asked."""

    def __init__(self, settings: KubernetesSettings, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self.jobs: dict[str, JobFacts] = {}
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

    @property
    def has_news(self) -> bool:
        """Whether something changed since it was last asked for."""
        return bool(self._dirty or self._gone or self._nodes_dirty)

    def expect_deletion(self, name: str) -> None:
        """The hub itself deletes this Job: what is known of it is no longer needed."""
        job = self.jobs.get(name)
        if job is None:
            return
        if job.is_deleted:
            self._drop_job(name)
        else:
            self._expected.add(name)

    def status_of(self, job: JobFacts, pods: Iterable[PodFacts]) -> ObjectStatus:
        """An object read just now, with what is remembered of its pods that are gone."""
        gone = self._gone_pods.get(job.name, {}).values()
        return object_status(job, pods, gone, self._nodes, self._lost)

    def shapes(self) -> Mapping[str, NodeShape]:
        """What pinning has to know of each node."""
        if self._shapes is None:
            classes = self._settings.classes
            self._shapes = {name: node_shape(node, classes) for name, node in self._nodes.items()}
        return self._shapes

    def objects(self, pods_version: int, *, everything: bool) -> tuple[ObjectStatus, ...]:
        """The objects that changed, or all. `pods_version`: up to where the pods are known."""
        self._look_for_silence()
        self._dirty |= self._unsettled
        wanted = self.jobs.keys() if everything else self._dirty & self.jobs.keys()
        objects = tuple(self._status(name, pods_version) for name in sorted(wanted))
        self._dirty.clear()
        return objects

    def gone(self) -> tuple[str, ...]:
        """The objects that are there no more since it was last asked for."""
        gone = tuple(sorted(self._gone))
        self._gone.clear()
        return gone

    def nodes(self, *, everything: bool) -> tuple[NodeStatus, ...] | None:
        """All nodes if something about them changed, else None; always all when everything is asked for."""
        # time alone makes a pod without a Job an orphan
        without_jobs = not self._pods.keys() <= self.jobs.keys()
        replaced = not self._pods.keys().isdisjoint(self._gone_pods)
        if not (self._nodes_dirty or without_jobs or replaced or everything):
            return None
        self._nodes_dirty = False
        orphans = self._orphans()
        found = (
            node_status(
                node,
                [*self._node_pods.get(node.name, {}).values(), *orphans.get(node.name, ())],
                self._settings.classes,
                self._settings.rack_label,
            )
            for _, node in sorted(self._nodes.items())
        )
        nodes = tuple(node for node in found if node is not None)
        if not everything and _without_beats(nodes) == _without_beats(self._nodes_shown or ()):
            return None
        self._nodes_shown = nodes
        return nodes

    # --- what the mirrors tell ---

    def take_jobs(self, changes: list[Change[JobFacts]]) -> None:
        """Jobs were made, changed or deleted."""
        for change in changes:
            if change.after is not None:
                self.jobs[change.after.name] = change.after
                self._dirty.add(change.after.name)
                self._gone.discard(change.after.name)
            elif change.before is not None:
                self._forget_job(change.before)

    def _forget_job(self, job: JobFacts) -> None:
        there = self.jobs.get(job.name)
        if there is None or there.uid != job.uid:
            return  # another one has the name by now
        if job.name in self._expected or there.is_tombstone:
            self._drop_job(job.name)
        else:
            # not by the hub: its GPUs are free when its pods are gone, and only here is known how they ended
            self.jobs[job.name] = replace(there, is_deleted=True, suspended=True)
            self._dirty.add(job.name)

    def _drop_job(self, name: str) -> None:
        del self.jobs[name]
        self._expected.discard(name)
        self._unsettled.discard(name)
        self._gone_pods.pop(name, None)
        self._dirty.discard(name)
        self._gone.add(name)

    def take_pods(self, changes: list[Change[PodFacts]]) -> None:
        """Pods, the hub's or others', were made, changed or deleted."""
        for change in changes:
            pod = change.after or change.before
            assert pod is not None
            if change.after is not None:
                self._put_pod(change.after)
            else:
                self._drop_pod(pod)
            if pod.job is not None:
                self._dirty.add(pod.job)
            if pod.job not in self.jobs and pod.node:
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
        if pod.job in self.jobs and not is_second(pod, self._gone_pods[pod.job].values()):
            self._gone_pods[pod.job][pod.index] = _ended(pod, self._now_ms())

    def take_nodes(self, changes: list[Change[NodeFacts]]) -> None:
        """Nodes were made, changed or deleted."""
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

    # --- what it comes to ---

    def _status(self, name: str, pods_version: int) -> ObjectStatus:
        pods = self._pods.get(name, {})
        gone = self._gone_pods.get(name, {}).values()
        job = self.jobs[name]
        status = object_status(job, pods.values(), gone, self._nodes, self._lost, pods_version)
        if are_pods_known(job, {pod.index for pod in status.pods}, pods_version):
            self._unsettled.discard(name)
        else:
            self._unsettled.add(name)
        return status

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
                if is_second(pod, gone) or (name not in self.jobs and is_old):
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
