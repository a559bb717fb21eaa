"""The `Cluster` port on Kubernetes: one `batch/v1` Job per attempt, its name the fence.

What a call may leave behind is the port's promise: after ClusterUnavailable the work may or may not have been
done, and asking again is safe, because every write either creates a name that only one can have or sets what
is set already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.api import JSON_PATCH, Answer, Json, KubernetesApi
from scheduler.clusters.kubernetes.facts import JobFacts, job_facts
from scheduler.clusters.kubernetes.logs import choose_pod, open_log
from scheduler.clusters.kubernetes.manifests import (
    Unstartable,
    extension_of,
    gate_patch,
    job_of,
    service_of,
    tombstone_of,
)
from scheduler.clusters.kubernetes.settings import KubernetesSettings
from scheduler.clusters.kubernetes.sight import JOBS, Sight, job_and_pods
from scheduler.clusters.logs import LogRequest, OpenLog
from scheduler.clusters.port import (
    ClusterUnavailable,
    ObjectSpec,
    ObjectStatus,
    Observation,
    StartOutcome,
    StartRefused,
)

TERMINAL = ("Succeeded", "Failed")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class KubernetesCluster:
    """One Kubernetes cluster. `observe` belongs to one thread; everything else may be called from any."""

    def __init__(
        self,
        name: str,
        settings: KubernetesSettings,
        *,
        now_ms: Callable[[], int] = _wall_ms,
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`step` is told of every point between two writes of one call. Raises BadClusterFile."""
        self._name = name
        self._settings = settings
        self._step = step
        self._api = KubernetesApi(name, settings)
        self._sight = Sight(name, self._api, settings, now_ms)

    @property
    def name(self) -> str:
        """The cluster's id in the quota service."""
        return self._name

    def observe(self, wait_s: float) -> Observation:
        """Everything that changed since the last call; waits up to `wait_s` wall seconds for a change."""
        return self._sight.observation(wait_s)

    def forget_observations(self) -> None:
        """Let the next `observe` be complete again."""
        self._sight.forget()

    def get(self, name: str) -> ObjectStatus | None:
        """One object now, or None if the name is free."""
        job = self._find(name)
        if job is None:
            return None
        found = job_and_pods(job, self._pods(job["metadata"]["namespace"], name))
        return None if found is None else self._sight.status_of(*found)

    def start(self, spec: ObjectSpec) -> StartOutcome:
        """Create the object unless its name is taken. Starting what already runs does nothing.

        Raises StartRefused when the cluster declines.
        """
        try:
            job = job_of(spec, self._settings, self._sight.shapes())
        except Unstartable as why:
            raise StartRefused(f"cluster {self._name} cannot start {spec.name}: {why}") from why
        namespace = self._namespace(spec)
        service = service_of(spec, self._settings)
        if service is not None:
            # before the Job, so that no pod ever looks for a name that is not there yet
            self._accepted(spec, self._api.post(_services(namespace), service, fine=(*_REFUSALS, 409)))
            self._step("between_service_and_job")
        answer = self._api.post(_jobs(namespace), job, fine=(*_REFUSALS, 409))
        if answer.status != 409:
            self._accepted(spec, answer)
            return StartOutcome.CREATED
        there = self._api.get(_job(namespace, spec.name), fine=(404,))
        if there.status == 404:
            raise ClusterUnavailable(f"cluster {self._name}: {spec.name} came and went; ask again")
        return _judge(job_facts(there.body), spec)

    def stop(self, spec: ObjectSpec, *, abandoned: bool) -> bool:
        """Suspend the object: its pods end within the grace they were created with, and the name stays taken.

        A name that does not exist yet is created suspended, so that a late start finds a tombstone.
        Stopping twice is stopping once. False: its namespace is not there, or about to go.
        """
        namespace = self._namespace(spec)
        for pod in self._pods(namespace, spec.name):
            self._keep(pod)
        self._step("between_finalizers_and_suspend")
        if self._suspend(namespace, spec.name, abandoned=abandoned):
            return True
        answer = self._api.post(
            _jobs(namespace), tombstone_of(spec, self._settings, namespace), fine=(403, 404, 409)
        )
        if answer.status == 404 or _is_going(answer):
            return False
        if answer.status == 403:
            raise ClusterUnavailable(f"cluster {self._name}: no tombstone for {spec.name}: {answer.message}")
        if answer.status == 409 and not self._suspend(namespace, spec.name, abandoned=abandoned):
            raise ClusterUnavailable(f"cluster {self._name}: {spec.name} came and went; ask again")
        return True

    def place(self, spec: ObjectSpec) -> None:
        """Tell each pod that waits at its gate which node is its own, and let it in."""
        namespace = self._namespace(spec)
        shapes = self._sight.shapes()
        placed = {pod.index: pod for pod in spec.pods}
        for pod in self._pods(namespace, spec.name):
            index = (pod["metadata"].get("annotations") or {}).get(names.COMPLETION_INDEX, "")
            if not pod["spec"].get("schedulingGates") or not index.isdecimal():
                continue
            placement = placed[int(index)]
            patch = gate_patch(placement, shapes.get(placement.node))
            # 422: its gate was opened meanwhile
            self._api.patch(_pod(pod), patch, content=JSON_PATCH, fine=(404, 422))
            self._step("after_gate")

    def extend(self, spec: ObjectSpec) -> None:
        """Move the cluster's own limit to what the attempt may run now."""
        patch = extension_of(spec.walltime_ms, spec.grace_ms)
        self._api.patch(_job(self._namespace(spec), spec.name), patch, fine=(404,))

    def notify(self, spec: ObjectSpec, stop_at_ms: int, reason: str) -> None:
        """Tell the pods of a running object when it will be stopped, and why: in files under `/etc/hub`."""
        moment = datetime.fromtimestamp(stop_at_ms / 1000, UTC).isoformat(timespec="seconds")
        patch = {"metadata": {"annotations": {names.STOP_AT: moment, names.STOP_REASON: reason}}}
        for pod in self._pods(self._namespace(spec), spec.name):
            if pod.get("status", {}).get("phase") not in TERMINAL:
                self._api.patch(_pod(pod), patch, fine=(404,))

    def acknowledge(self, name: str) -> None:
        """The end of this object's pods is recorded: what kept them readable may go."""
        namespace = self._namespace_of_job(name)
        if namespace is None:
            return
        for pod in self._pods(namespace, name):
            self._release(pod)

    def delete(self, name: str) -> bool:
        """Forget an ended object or a tombstone. False while its pods run; True if it is gone."""
        namespace = self._namespace_of_job(name)
        if namespace is None:
            return True
        pods = self._pods(namespace, name)
        if any(pod.get("status", {}).get("phase") not in TERMINAL for pod in pods):
            return False
        self._sight.expect_deletion(name)
        for pod in pods:
            self._release(pod)
        service = f"{_services(namespace)}/{name}"
        if self._api.get(service, fine=(404,)).status != 404:
            self._api.delete(service, fine=(404,))
        answer = self._api.delete(_job(namespace, name), fine=(404,), propagationPolicy="Background")
        return answer.status in (200, 202, 404)

    def logs(self, name: str, pod_index: int, request: LogRequest) -> OpenLog:
        """Open the log of one pod of an object; the caller reads it in a `with` block.

        Raises NoLogs when there is none.
        """
        job = self._find(name)
        pods = [] if job is None else self._pods(job["metadata"]["namespace"], name)
        return open_log(self._api, self._name, choose_pod(job, pods, name, pod_index), request)

    def close(self) -> None:
        """Stop watching and close the connections."""
        self._sight.close()
        self._api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- single writes ---

    def _suspend(self, namespace: str, name: str, *, abandoned: bool) -> bool:
        """False if there is no such object."""
        patch: Json = {"spec": {"suspend": True}}
        if abandoned:
            patch["metadata"] = {"labels": {names.ABANDONED: "true"}}
        return self._api.patch(_job(namespace, name), patch, fine=(404,)).status != 404

    def _keep(self, pod: Json) -> None:
        """Let its end stay readable: suspension deletes it. A pod without a node has nothing to tell."""
        metadata = pod["metadata"]
        finalizers = metadata.get("finalizers") or []
        over = pod.get("status", {}).get("phase") in TERMINAL
        if over or names.END_SEEN in finalizers or metadata.get("deletionTimestamp"):
            return
        if not pod["spec"].get("nodeName"):
            return
        path = "/metadata/finalizers/-" if finalizers else "/metadata/finalizers"
        value: object = names.END_SEEN if finalizers else [names.END_SEEN]
        patch: list[dict[str, object]] = [
            {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
            {"op": "add", "path": path, "value": value},
        ]
        # 422: it began to end on its own meanwhile
        self._api.patch(_pod(pod), patch, content=JSON_PATCH, fine=(404, 409, 422))

    def _release(self, pod: Json) -> None:
        finalizers = pod["metadata"].get("finalizers") or []
        if names.END_SEEN not in finalizers:
            return
        path = f"/metadata/finalizers/{finalizers.index(names.END_SEEN)}"
        patch: list[dict[str, object]] = [
            {"op": "test", "path": path, "value": names.END_SEEN},
            {"op": "remove", "path": path},
        ]
        answer = self._api.patch(_pod(pod), patch, content=JSON_PATCH, fine=(404, 422))
        if answer.status == 422:
            raise ClusterUnavailable(f"cluster {self._name}: {pod['metadata']['name']} changed; ask again")

    def _accepted(self, spec: ObjectSpec, answer: Answer) -> None:
        if answer.status in _REFUSALS:
            hint = ""
            if answer.status == 404:
                hint = "; `gpuhub scheduler provision` makes the namespaces"
            raise StartRefused(f"cluster {self._name} declines {spec.name}: {answer.message}{hint}")

    # --- reads ---

    def _find(self, name: str) -> Json | None:
        seen = self._sight.job(name)
        if seen is not None:
            answer = self._api.get(_job(seen.namespace, name), fine=(404,))
            return None if answer.status == 404 else answer.body
        listed = self._api.get(JOBS, labelSelector=names.JOB_ID, fieldSelector=f"metadata.name={name}")
        items: list[Json] = listed.body.get("items") or []
        return items[0] if items else None

    def _namespace_of_job(self, name: str) -> str | None:
        seen = self._sight.job(name)
        if seen is not None:
            return seen.namespace
        found = self._find(name)
        return None if found is None else str(found["metadata"]["namespace"])

    def _namespace(self, spec: ObjectSpec) -> str:
        """The organization's; of a stranger, that in which it was seen."""
        if spec.organization_id:
            return names.namespace_of(self._settings.namespace_prefix, spec.organization_id)
        namespace = self._namespace_of_job(spec.name)
        if namespace is None:
            raise ClusterUnavailable(f"cluster {self._name}: {spec.name} is gone; look again")
        return namespace

    def _pods(self, namespace: str, name: str) -> list[Json]:
        answer = self._api.get(
            f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"{names.JOB_NAME}={name}"
        )
        items: list[Json] = answer.body.get("items") or []
        return items


_REFUSALS = (400, 403, 404, 422)
"""What the API server will say again until somebody changes something."""


def _is_going(answer: Answer) -> bool:
    """Whether the namespace is being deleted: nothing new can be made in it."""
    causes = (answer.body.get("details") or {}).get("causes") or ()
    return answer.status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


def _judge(there: JobFacts | None, spec: ObjectSpec) -> StartOutcome:
    """What it means that the name is taken by this object."""
    if there is None:
        return StartOutcome.CONFLICT
    if there.abandoned:
        return StartOutcome.ABANDONED
    return StartOutcome.ADOPTED if there.spec_hash == spec.spec_hash() else StartOutcome.CONFLICT


def _jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def _job(namespace: str, name: str) -> str:
    return f"{_jobs(namespace)}/{name}"


def _services(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/services"


def _pod(pod: Json) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
