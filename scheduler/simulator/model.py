"""The simulated cluster as a state machine without clock, file or network.

Events are the only way in which it changes: a command makes one event, `advance` makes the events that
fall due, and replaying them all in order makes the same state. Whatever else follows from an event (when a
pod will end, which pod waits for a GPU) is worked out by `apply`, so no prefix of the journal is half of
a command.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import assert_never

from scheduler.simulator.behavior import read_behavior
from scheduler.simulator.due import Due, DueKind
from scheduler.simulator.events import (
    EndReason,
    Event,
    ForeignSet,
    GpuBroke,
    GpuMended,
    NodeAdded,
    NodeEvent,
    NodeLost,
    NodeNoticed,
    NodeReturned,
    ObjectCreated,
    ObjectDeleted,
    ObjectEvent,
    ObjectSuspended,
    PodEnded,
    PodStarted,
)
from scheduler.simulator.state import ClusterObject, Gpu, Node, Occupancy, Pod, Pool, Trouble

CRASHED = 139
"""The exit code of a program whose GPU broke."""
TERMINATED = 143
"""The exit code of a pod that was asked to end."""


class Model:
    """The state, the events that fall due, and those made since the last `drain`."""

    def __init__(self, past_kept_ms: int) -> None:
        self.now_ms = 0
        self.version = 0
        """The number of events so far: also the journal's last line number."""
        self.nodes: dict[str, Node] = {}
        self.nodes_version = 0
        self.objects: OrderedDict[str, ClusterObject] = OrderedDict()
        """By name, the latest changed last."""
        self.deletions: list[tuple[int, str]] = []
        self._past_kept_ms = past_kept_ms
        self._due: list[Due] = []
        self._unsettled: set[tuple[str, str]] = set()
        """Pools (node, class) in which a waiting pod may have become able to start."""
        self._made: list[Event] = []

    def replay(self, events: Iterable[Event]) -> None:
        """Become what the events of a journal say."""
        for event in events:
            self.apply(event)

    def do(self, event: Event) -> None:
        """Carry out a command: `rules.py` made the event and found it allowed."""
        assert event.t >= self.now_ms, "commands happen now, not in the past"
        self.apply(event)
        self._made.append(event)

    def drain(self) -> list[Event]:
        """The events made since the last call, for the journal."""
        made, self._made = self._made, []
        return made

    def next_due_ms(self) -> int | None:
        """When `advance` may next have something to do."""
        return self._due[0].due_ms if self._due else None

    def advance(self, now_ms: int) -> None:
        """Let everything happen that falls due until `now_ms`, each at its own time."""
        while True:
            if self._unsettled:
                moment_ms = self.now_ms
            elif self._due and self._due[0].due_ms <= now_ms:
                # Only right after a replay can something be overdue: what the torn end of the journal lost.
                moment_ms = max(self.now_ms, self._due[0].due_ms)
            else:
                break
            self.now_ms = moment_ms
            while self._due and self._due[0].due_ms <= moment_ms:
                self._fall_due(heappop(self._due))
            pools, self._unsettled = self._unsettled, set()
            for node, gpu_class in sorted(pools):
                self._start_waiting(node, gpu_class)
        self.now_ms = max(self.now_ms, now_ms)

    def _fall_due(self, due: Due) -> None:
        match due.kind:
            case DueKind.NOTICE:
                node = self.nodes[due.key]
                if node.lost_ms is not None and not node.noticed and node.notice_ms == due.due_ms:
                    self.do(NodeNoticed(self.now_ms, node.node))
            case DueKind.END:
                found = self._pod(due)
                if found is not None and found[1].running and found[1].due_ms == due.due_ms:
                    self._end(*found)
            case DueKind.READY:
                found = self._pod(due)
                if found is not None and found[1].pending:
                    self._queue(found[1], due)
            case _:
                assert_never(due.kind)

    def _pod(self, due: Due) -> tuple[ClusterObject, Pod] | None:
        thing = self.objects.get(due.key)
        # The name may have been deleted and taken again since.
        if thing is None or thing.order != due.order:
            return None
        return thing, thing.pods[due.pod_index]

    def _end(self, thing: ClusterObject, pod: Pod) -> None:
        assert pod.due_ms == self.now_ms, "an end happens at its due time"
        assert pod.due_reason is not None, "a planned end has a reason"
        self.do(pod_ended(self.now_ms, thing, pod, pod.due_exit_code, pod.due_reason))

    def _queue(self, pod: Pod, due: Due) -> None:
        node = self.nodes.get(pod.spec.node)
        pool = None if node is None else node.pools.get(pod.spec.gpu_class)
        # A pod that no node could ever serve stays pending, as on Kubernetes, and holds up nobody.
        if pool is not None and pod.spec.count <= len(pool.gpus):
            insort(pool.waiting, (due.order, due.pod_index, due.key))
            self._unsettled.add((pod.spec.node, pod.spec.gpu_class))

    def _start_waiting(self, node_name: str, gpu_class: str) -> None:
        node = self.nodes[node_name]
        pool = node.pools[gpu_class]
        while node.lost_ms is None and pool.waiting:
            order, index, name = pool.waiting[0]
            thing = self.objects.get(name)
            if thing is None or thing.order != order or not thing.pods[index].pending:
                del pool.waiting[0]
                continue
            count = thing.pods[index].spec.count
            if count > pool.free:
                break
            del pool.waiting[0]
            created = thing.created
            self.do(
                PodStarted(
                    self.now_ms,
                    name,
                    created.job_id,
                    created.attempt,
                    index,
                    node_name,
                    gpu_class,
                    pool.take(count),
                )
            )

    def apply(self, event: Event) -> None:
        """Change as `event` says."""
        self.version += 1
        self.now_ms = max(self.now_ms, event.t)
        match event:
            case (
                NodeAdded()
                | NodeLost()
                | NodeNoticed()
                | NodeReturned()
                | ForeignSet()
                | GpuBroke()
                | GpuMended()
            ):
                self._apply_to_node(event)
                self.nodes_version = self.version
            case ObjectCreated() | ObjectSuspended() | ObjectDeleted() | PodStarted() | PodEnded():
                self._apply_to_object(event)
            case _:
                assert_never(event)

    def _apply_to_node(self, event: NodeEvent) -> None:
        match event:
            case NodeAdded():
                self._node_added(event)
            case NodeLost():
                self._node_lost(event)
            case NodeNoticed():
                self._node_noticed(event)
            case NodeReturned():
                self._node_returned(event)
            case ForeignSet():
                self.nodes[event.node].pools[event.gpu_class].foreign = event.count
                self._unsettled.add((event.node, event.gpu_class))
            case GpuBroke():
                self._gpu_broke(event)
            case GpuMended():
                self._gpu_mended(event)
            case _:
                assert_never(event)

    def _apply_to_object(self, event: ObjectEvent) -> None:
        match event:
            case ObjectCreated():
                self._object_created(event)
            case ObjectSuspended():
                self._object_suspended(event)
            case ObjectDeleted():
                del self.objects[event.name]
                self.deletions.append((self.version, event.name))
            case PodStarted():
                self._pod_started(event)
            case PodEnded():
                self._pod_ended(event)
            case _:
                assert_never(event)

    def _node_added(self, event: NodeAdded) -> None:
        gpus = {spec.gpu_uuid: Gpu(spec.gpu_uuid, spec.gpu_class) for spec in event.gpus}
        pools: dict[str, Pool] = {}
        for gpu in gpus.values():
            pools.setdefault(gpu.gpu_class, Pool([])).gpus.append(gpu)
        self.nodes[event.node] = Node(event.node, gpus, pools, booted_ms=event.t, rack=event.rack)

    def _object_created(self, event: ObjectCreated) -> None:
        assert event.name not in self.objects, "a name is taken once"
        behavior = read_behavior(dict(event.annotations), event.walltime_ms)
        self.objects[event.name] = ClusterObject(
            created=event,
            order=self.version,
            version=self.version,
            behavior=behavior,
            suspended=event.suspend,
            abandoned=event.abandoned,
            pods={spec.index: Pod(spec) for spec in event.pods},
        )
        for spec in event.pods:
            ready_ms = event.t + behavior.start_ms
            heappush(self._due, Due(ready_ms, DueKind.READY, self.version, spec.index, event.name))

    def _object_suspended(self, event: ObjectSuspended) -> None:
        thing = self._touch(event.name)
        thing.abandoned = thing.abandoned or event.abandoned
        if thing.suspended:
            return
        thing.suspended = True
        stopped_ms = event.t + min(thing.behavior.stop_ms, event.grace_ms)
        for pod in thing.pods.values():
            self._ask_to_end(thing, pod, event.t, stopped_ms, EndReason.STOPPED)

    def _ask_to_end(
        self, thing: ClusterObject, pod: Pod, now_ms: int, end_ms: int, reason: EndReason
    ) -> None:
        """A pending pod is over at once and never started; a running one ends by `end_ms`."""
        if pod.pending:
            pod.ended_ms, pod.reason = now_ms, reason
        elif pod.running:
            assert pod.due_ms is not None, "a running pod has an end in sight"
            if end_ms < pod.due_ms:
                self._plan_end(thing, pod, end_ms, TERMINATED, reason)

    def _plan_end(
        self, thing: ClusterObject, pod: Pod, due_ms: int, exit_code: int | None, reason: EndReason
    ) -> None:
        pod.due_ms, pod.due_exit_code, pod.due_reason = due_ms, exit_code, reason
        heappush(self._due, Due(due_ms, DueKind.END, thing.order, pod.spec.index, thing.created.name))

    def _pod_started(self, event: PodStarted) -> None:
        thing = self._touch(event.name)
        pod, behavior = thing.pods[event.pod_index], thing.behavior
        assert pod.pending, "a pod starts once"
        pod.started_ms, pod.gpu_uuids = event.t, event.gpu_uuids
        node = self.nodes[event.node]
        stay = Occupancy(event.name, event.job_id, event.attempt, event.pod_index, event.t, behavior.load)
        for gpu_uuid in event.gpu_uuids:
            assert node.gpus[gpu_uuid].current is None, "no two pods share a GPU"
            node.gpus[gpu_uuid].current = stay
        node.pools[event.gpu_class].used += len(event.gpu_uuids)
        reason = EndReason.COMPLETED if behavior.exit_code == 0 else EndReason.FAILED
        self._plan_end(thing, pod, event.t + behavior.duration_ms, behavior.exit_code, reason)

    def _pod_ended(self, event: PodEnded) -> None:
        thing = self.objects[event.name]
        pod, node = thing.pods[event.pod_index], self.nodes[event.node]
        assert pod.running, "only a running pod ends"
        pod.ended_ms, pod.exit_code, pod.reason = event.t, event.exit_code, event.reason
        self._free(node, pod, event.t)
        match event.reason:
            case EndReason.NODE_LOST:
                pod.hidden = True
                node.hidden.append((event.name, event.pod_index))
            case EndReason.FAILED | EndReason.FAULT:
                self._touch(event.name)
                self._fail_gang(thing, event.pod_index, event.t)
            case EndReason.COMPLETED | EndReason.STOPPED | EndReason.GANG_FAILED:
                self._touch(event.name)
            case _:
                assert_never(event.reason)

    def _free(self, node: Node, pod: Pod, now_ms: int) -> None:
        forgotten_ms = now_ms - self._past_kept_ms
        for gpu_uuid in pod.gpu_uuids:
            gpu = node.gpus[gpu_uuid]
            stay = gpu.current
            assert stay is not None, "a running pod is on its GPUs"
            gpu.current = None
            gpu.past.append(
                Occupancy(
                    stay.name,
                    stay.job_id,
                    stay.attempt,
                    stay.pod_index,
                    stay.since_ms,
                    stay.load,
                    until_ms=now_ms,
                )
            )
            while (gpu.past[0].until_ms or 0) < forgotten_ms:
                gpu.past.popleft()
        node.pools[pod.spec.gpu_class].used -= len(pod.gpu_uuids)
        self._unsettled.add((node.node, pod.spec.gpu_class))

    def _fail_gang(self, thing: ClusterObject, failed_index: int, now_ms: int) -> None:
        end_ms = now_ms + min(thing.behavior.stop_ms, thing.created.grace_ms)
        for pod in thing.siblings_of(failed_index):
            self._ask_to_end(thing, pod, now_ms, end_ms, EndReason.GANG_FAILED)

    def _node_lost(self, event: NodeLost) -> None:
        node = self.nodes[event.node]
        node.lost_ms, node.notice_ms = event.t, event.t + event.silent_ms
        heappush(self._due, Due(node.notice_ms, DueKind.NOTICE, 0, 0, node.node))
        stays = {gpu.current for gpu in node.gpus.values() if gpu.current is not None}
        for stay in stays:
            thing = self.objects[stay.name]
            self._plan_end(thing, thing.pods[stay.pod_index], event.t, None, EndReason.NODE_LOST)

    def _node_noticed(self, event: NodeNoticed) -> None:
        node = self.nodes[event.node]
        node.noticed = True
        for name, _ in node.hidden:
            self._touch(name)

    def _node_returned(self, event: NodeReturned) -> None:
        node = self.nodes[event.node]
        node.lost_ms = node.notice_ms = None
        node.noticed = False
        node.boots += 1
        node.booted_ms = event.t
        hidden, node.hidden = node.hidden, []
        for name, index in hidden:
            self.objects[name].pods[index].hidden = False
        for name, index in hidden:
            self._fail_gang(self._touch(name), index, event.t)
        self._unsettled.update((node.node, gpu_class) for gpu_class in node.pools)

    def _gpu_broke(self, event: GpuBroke) -> None:
        gpu = self.nodes[event.node].gpus[event.gpu_uuid]
        trouble = gpu.trouble = gpu.trouble or Trouble()
        if event.xid is not None:
            trouble.xids[event.xid] = (trouble.xids.get(event.xid, (0, 0))[0] + 1, event.t)
        trouble.lost = trouble.lost or event.lost
        trouble.recovery_action = max(trouble.recovery_action, event.recovery_action)
        gpu.withdrawn = gpu.withdrawn or event.withdrawn
        if event.kills and gpu.current is not None:
            thing = self.objects[gpu.current.name]
            self._plan_end(thing, thing.pods[gpu.current.pod_index], event.t, CRASHED, EndReason.FAULT)

    def _gpu_mended(self, event: GpuMended) -> None:
        gpu = self.nodes[event.node].gpus[event.gpu_uuid]
        gpu.withdrawn = False
        if gpu.trouble is not None:
            gpu.trouble.lost, gpu.trouble.recovery_action = False, 0
        self._unsettled.add((event.node, gpu.gpu_class))

    def _touch(self, name: str) -> ClusterObject:
        """The object, from now on changed by the current event."""
        thing = self.objects[name]
        thing.version = self.version
        self.objects.move_to_end(name)
        return thing


def pod_ended(
    now_ms: int, thing: ClusterObject, pod: Pod, exit_code: int | None, reason: EndReason
) -> PodEnded:
    """The event that ends `pod`."""
    created, spec = thing.created, pod.spec
    return PodEnded(
        now_ms, created.name, created.job_id, created.attempt, spec.index, spec.node, exit_code, reason
    )
