"""The GPUs of Kubernetes nodes that exist only as objects: which running pod has which, and how busy it keeps them.

On real nodes the kubelet's device plugin gives a pod its devices, and the driver says how busy they are. kwok plays
nodes without either, so this process stands in for both. A pod's devices are written into its annotation before
they are shown to anybody, so that a restart, and whoever reads the audit log, finds the same.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.api import Json, KubernetesApi
from scheduler.clusters.kubernetes.facts import NodeFacts, PodFacts, node_facts, pod_facts
from scheduler.clusters.kubernetes.sight import NODES, PODS
from scheduler.clusters.kubernetes.watch import Change, F, Mirror, Reflector
from scheduler.clusters.port import ClusterUnavailable
from scheduler.simulator.behavior import PREFIX, BadAnnotation, read_behavior
from scheduler.simulator.events import GpuSpec
from scheduler.simulator.load import DEFAULT_LOAD, Load, read_load
from scheduler.simulator.state import Gpu, Node, Occupancy

GPUS = f"{PREFIX}gpus"
"""Annotation of a pod: the ids of its devices, separated by commas."""

RETRY_S = 0.5
HOUR_MS = 3_600_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DevicePod:
    """A hub's pod as its node sees it."""

    facts: PodFacts
    job_id: str
    attempt: int
    gpu_class: str
    count: int
    gpu_uuids: tuple[str, ...]
    load: Load

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return self.facts.uid


def device_pod(thing: Json) -> DevicePod | None:
    """A pod that asks for devices of one of the hub's classes; None for any other."""
    metadata = thing["metadata"]
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    facts = pod_facts(thing)
    asked = sum(amount for key, amount in facts.requests_milli.items() if key.startswith("nvidia.com/"))
    if facts.job is None or names.GPU_CLASS not in labels or not asked:
        return None
    return DevicePod(
        facts=facts,
        job_id=labels[names.JOB_ID],
        attempt=int(labels[names.ATTEMPT]),
        gpu_class=labels[names.GPU_CLASS],
        count=asked // 1000,
        gpu_uuids=tuple(notes[GPUS].split(",")) if notes.get(GPUS) else (),
        load=_load(notes),
    )


class Devices:
    """All nodes with their devices. Fed by watches; read by the door under `lock`."""

    def __init__(
        self,
        api: KubernetesApi,
        fleet: Mapping[str, Sequence[GpuSpec]],
        booted_ms: int,
        past_kept_ms: int,
        watch_s: int,
    ) -> None:
        self._api = api
        self._past_kept_ms = past_kept_ms
        self._stopping = threading.Event()
        self._new: queue.SimpleQueue[DevicePod | None] = queue.SimpleQueue()
        self._reserved: dict[str, tuple[str, ...]] = {}
        """Devices of pods whose annotation is being written."""
        self.lock = threading.Condition()
        self.nodes = {
            name: Node(name, {gpu.gpu_uuid: Gpu(gpu.gpu_uuid, gpu.gpu_class) for gpu in gpus}, {}, booted_ms)
            for name, gpus in fleet.items()
        }
        pods: Mirror[DevicePod] = Mirror("pods", device_pod, self._pods_changed, self.lock)
        nodes: Mirror[NodeFacts] = Mirror("nodes", node_facts, self._nodes_changed, self.lock)
        self._pods, self._nodes = pods, nodes
        self._reflectors: list[Reflector[DevicePod] | Reflector[NodeFacts]] = [
            self._reflector(PODS, pods, names.JOB_ID, watch_s),
            self._reflector(NODES, nodes, None, watch_s),
        ]

    def start(self) -> None:
        """Begin to watch and to give devices out."""
        for reflector in self._reflectors:
            reflector.start()
        threading.Thread(target=self._give_out, name="devices", daemon=True).start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._new.put(None)

    @property
    def ready(self) -> bool:
        """Whether all pods and nodes were listed once."""
        return bool(self._pods.version and self._nodes.version)

    # --- what the watches tell, under the lock ---

    def _pods_changed(self, changes: list[Change[DevicePod]]) -> None:
        for change in changes:
            pod = change.after or change.before
            assert pod is not None
            if change.after is None or pod.facts.is_over:
                self._leave(pod)
            elif pod.facts.started_ms is not None and pod.facts.node in self.nodes:
                if pod.gpu_uuids:
                    self._enter(pod)
                else:
                    self._new.put(pod)

    def _nodes_changed(self, changes: list[Change[NodeFacts]]) -> None:
        for change in changes:
            facts = change.after or change.before
            assert facts is not None
            node = self.nodes.get(facts.name)
            if node is not None:
                gone = change.after is None or facts.ready == "Unknown"
                node.lost_ms = facts.heartbeat_ms if gone else None

    def _enter(self, pod: DevicePod) -> None:
        self._reserved.pop(pod.uid, None)
        node, since_ms = self.nodes[pod.facts.node], pod.facts.started_ms
        assert since_ms is not None
        stay = Occupancy(pod.facts.name, pod.job_id, pod.attempt, pod.facts.index, since_ms, pod.load)
        for gpu_uuid in pod.gpu_uuids:
            gpu = node.gpus.get(gpu_uuid)
            if gpu is None:
                log.warning("unknown_device", node=node.node, gpu=gpu_uuid, pod=pod.facts.name)
            elif gpu.current is not None and gpu.current != stay:
                log.error("device_taken", gpu=gpu_uuid, pod=pod.facts.name, by=gpu.current.name)
            else:
                gpu.current = stay

    def _leave(self, pod: DevicePod) -> None:
        self._reserved.pop(pod.uid, None)
        node = self.nodes.get(pod.facts.node)
        if node is None:
            return
        for gpu in node.gpus.values():
            stay = gpu.current
            if stay is None or stay.name != pod.facts.name:
                continue
            ended_ms = pod.facts.ended_ms or pod.facts.disrupted_ms or pod.facts.deleting_ms or stay.since_ms
            gpu.current = None
            gpu.past.append(replace(stay, until_ms=max(ended_ms, stay.since_ms)))
            _forget(gpu.past, ended_ms - self._past_kept_ms)

    # --- giving out, in a thread of its own ---

    def _give_out(self) -> None:
        while not self._stopping.is_set():
            pod = self._new.get()
            if pod is None:
                return
            try:
                self._give(pod)
            except ClusterUnavailable as trouble:
                log.warning("devices_not_given", pod=pod.facts.name, trouble=str(trouble))
                self._stopping.wait(RETRY_S)
                self._new.put(pod)

    def _give(self, pod: DevicePod) -> None:
        with self.lock:
            known = self._pods.get(pod.uid)
            if known is None or known.facts.is_over or known.gpu_uuids:
                return
            given = self._reserved.get(pod.uid) or self._free(pod)
            self._reserved[pod.uid] = given
        path = f"/api/v1/namespaces/{pod.facts.namespace}/pods/{pod.facts.name}"
        patch = {"metadata": {"uid": pod.uid, "annotations": {GPUS: ",".join(given)}}}
        # 409: another pod has its name by now
        if self._api.patch(path, patch, fine=(404, 409)).status in (404, 409):
            with self.lock:
                self._reserved.pop(pod.uid, None)

    def _free(self, pod: DevicePod) -> tuple[str, ...]:
        """The first free devices of the pod's class, as many as it asks for."""
        node = self.nodes[pod.facts.node]
        taken = {gpu_uuid for given in self._reserved.values() for gpu_uuid in given}
        free = [
            gpu.gpu_uuid
            for gpu in node.gpus.values()
            if gpu.gpu_class == pod.gpu_class and gpu.current is None and gpu.gpu_uuid not in taken
        ]
        if len(free) < pod.count:
            raise ClusterUnavailable(f"node {node.node} has {len(free)} free devices for {pod.facts.name}")
        return tuple(free[: pod.count])

    def _reflector(self, path: str, mirror: Mirror[F], selector: str | None, watch_s: int) -> Reflector[F]:
        return Reflector(
            self._api,
            path,
            mirror,
            selector=selector,
            watch_s=watch_s,
            relist_s=600.0,
            stopping=self._stopping,
        )


def _forget(past: deque[Occupancy], before_ms: int) -> None:
    while past and (past[0].until_ms or 0) < before_ms:
        past.popleft()


def _load(notes: Mapping[str, str]) -> Load:
    """How busy the pod keeps its devices; what cannot be read is the usual load."""
    known = {key: text for key, text in notes.items() if key in (f"{PREFIX}duration_s", f"{PREFIX}load")}
    try:
        return read_behavior(known, HOUR_MS).load
    except BadAnnotation as trouble:
        log.warning("load_not_read", detail=str(trouble))
        return read_load(DEFAULT_LOAD, HOUR_MS)
