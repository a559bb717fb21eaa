"""The simulated cluster as the reconciler sees it: the port over the simulator's HTTP door.

What a call may leave behind is the port's promise: after ClusterUnavailable the work may or may not have
been done, and asking again is safe because the object's name is the fence.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx2

from quota.addresses import is_encrypted
from scheduler.clusters.logs import LogRequest, NoLogs, NoLogsReason, OpenLog
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

LONGEST_WAIT_S = 60.0
"""The simulator's own limit for a long poll."""


class SimulatedCluster:
    """One simulated cluster. `observe` belongs to one thread; everything else may be called from any."""

    def __init__(
        self,
        name: str,
        base_url: str,
        token: str = "",
        *,
        timeout_s: float = 5.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds connecting, sending and waiting for an answer; `observe` adds its `wait_s`."""
        self._name = name
        self._timeout_s = timeout_s
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx2.Client(
            base_url=base_url,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s),
            limits=httpx2.Limits(max_connections=32, max_keepalive_connections=8),
            trust_env=False,
            verify=is_encrypted(base_url),
            transport=transport,
        )
        # apart, so that readers of logs never keep a start or a stop from its connection
        self._log_client = httpx2.Client(
            base_url=base_url,
            headers=headers,
            limits=httpx2.Limits(max_keepalive_connections=0),
            trust_env=False,
            verify=is_encrypted(base_url),
            transport=transport,
        )
        self._version = 0
        self._nodes_version: int | None = None
        self._through_ms = 0

    @property
    def name(self) -> str:
        """The cluster's id in the quota service."""
        return self._name

    def observe(self, wait_s: float) -> Observation:
        """Everything that changed since the last call; waits up to `wait_s` wall seconds for a change."""
        wait_s = min(wait_s, LONGEST_WAIT_S)
        changed = self._ask(
            "GET",
            "/v1/objects",
            params={"after": self._version, "wait_s": wait_s},
            timeout=httpx2.Timeout(self._timeout_s, read=self._timeout_s + wait_s),
        ).json()
        if changed["complete"]:
            self._nodes_version = None
        nodes = self._nodes_if_changed(changed["nodes_version"])
        # Only now: had the nodes not been answered, the next call would have to bring these objects again.
        self._version = changed["version"]
        self._through_ms = max(self._through_ms, changed["now_ms"])
        return Observation(
            through_ms=self._through_ms,
            complete=changed["complete"],
            objects=tuple(_object_status(thing) for thing in changed["objects"]),
            gone=tuple(changed["gone"]),
            nodes=nodes,
        )

    def forget_observations(self) -> None:
        """Let the next `observe` be complete again."""
        self._version = 0
        self._nodes_version = None

    def get(self, name: str) -> ObjectStatus | None:
        """One object now, or None if the name is free."""
        answer = self._ask("GET", f"/v1/objects/{name}", fine=(404,))
        return None if answer.status_code == 404 else _object_status(answer.json())

    def start(self, spec: ObjectSpec) -> StartOutcome:
        """Create the object unless its name is taken. Starting what already runs does nothing.

        Raises StartRefused when the cluster declines.
        """
        answer = self._ask("POST", "/v1/objects", json=_creation(spec), fine=(409, 422, 503))
        if answer.status_code == 409:
            return _judge(_object_status(answer.json()["object"]), spec)
        if not answer.is_success:
            if answer.status_code == 422 or _code(answer) == "start_refused":
                raise StartRefused(f"cluster {self._name} declines {spec.name}: {answer.text}")
            raise self._unavailable(answer)
        return StartOutcome.CREATED

    def stop(self, spec: ObjectSpec, *, abandoned: bool) -> bool:
        """Suspend the object: its pods end within `spec.grace_ms`, and the name stays taken.

        A name that does not exist yet is created suspended, so that a late start finds a tombstone.
        Stopping twice is stopping once.
        """
        if self._suspend(spec, abandoned=abandoned):
            return True
        answer = self._ask("POST", "/v1/objects", json=_tombstone(spec), fine=(409,))
        if answer.status_code == 409 and not self._suspend(spec, abandoned=abandoned):
            raise ClusterUnavailable(f"cluster {self._name}: {spec.name} came and went; ask again")
        return True

    def place(self, spec: ObjectSpec) -> None:
        """Nothing to do: the simulated cluster reads each pod's node from the object."""

    def extend(self, spec: ObjectSpec) -> None:
        """Nothing to do: the simulated cluster has no net of its own."""

    def notify(self, spec: ObjectSpec, stop_at_ms: int, reason: str) -> None:
        """Nothing to do: a simulated pod has nothing to save."""

    def acknowledge(self, name: str) -> None:
        """Nothing to do: the simulated cluster never forgets how a pod ended."""

    def delete(self, name: str) -> bool:
        """Forget an ended object or a tombstone. False while its pods run; True if it is gone."""
        return self._ask("DELETE", f"/v1/objects/{name}", fine=(404, 409)).status_code != 409

    def logs(self, name: str, pod_index: int, request: LogRequest) -> OpenLog:
        """Open the log of one pod of an object; the caller reads it in a `with` block.

        Raises NoLogs when there is none.
        """
        asked = self._log_client.build_request(
            "GET",
            f"/v1/objects/{name}/logs",
            params={
                "pod": pod_index,
                "tail_lines": request.tail_lines,
                "follow": request.follow,
                "timestamps": request.timestamps,
                **({} if request.since_s is None else {"since_s": request.since_s}),
            },
            timeout=httpx2.Timeout(self._timeout_s, read=self._timeout_s + request.limit_s),
        )
        try:
            answer = self._log_client.send(asked, stream=True)
        except httpx2.RequestError as trouble:
            raise self._unanswered("GET", asked.url.path, trouble) from trouble
        if not answer.is_success:
            with suppress(httpx2.RequestError):
                answer.read()
            answer.close()
            raise self._no_logs(answer)
        return OpenLog(self._chunks(answer), lambda: _shut(answer), answer.close)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._log_client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _suspend(self, spec: ObjectSpec, *, abandoned: bool) -> bool:
        """False if there is no such object."""
        body = {"suspend": True, "abandoned": abandoned, "grace_ms": spec.grace_ms}
        return self._ask("PATCH", f"/v1/objects/{spec.name}", json=body, fine=(404,)).is_success

    def _nodes_if_changed(self, version: int) -> tuple[NodeStatus, ...] | None:
        if version == self._nodes_version:
            return None
        answer = self._ask("GET", "/v1/nodes").json()
        self._nodes_version = answer["version"]
        return tuple(_node_status(node) for node in answer["nodes"])

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, float] | None = None,
        json: Mapping[str, object] | None = None,
        timeout: httpx2.Timeout | None = None,
        fine: tuple[int, ...] = (),
    ) -> httpx2.Response:
        """The answer if it is a success or one of the statuses that the caller judges itself."""
        try:
            answer = self._client.request(
                method, path, params=params, json=json, timeout=timeout or httpx2.Timeout(self._timeout_s)
            )
        except httpx2.RequestError as trouble:
            raise self._unanswered(method, path, trouble) from trouble
        if answer.is_success or answer.status_code in fine:
            return answer
        raise self._unavailable(answer)

    def _chunks(self, answer: httpx2.Response) -> Iterator[bytes]:
        try:
            yield from answer.iter_raw()
        except httpx2.RequestError as trouble:
            raise self._unanswered("GET", answer.request.url.path, trouble) from trouble

    def _no_logs(self, answer: httpx2.Response) -> NoLogs | ClusterUnavailable:
        match _code(answer):
            case "not_started":
                return NoLogs(NoLogsReason.NOT_STARTED, answer.json()["detail"])
            case "unknown_object" | "gone":
                return NoLogs(NoLogsReason.GONE, answer.json()["detail"])
            case _:
                return self._unavailable(answer)

    def _unanswered(self, method: str, path: str, trouble: httpx2.RequestError) -> ClusterUnavailable:
        return ClusterUnavailable(f"cluster {self._name}: {method} {path}: {trouble!r}")

    def _unavailable(self, answer: httpx2.Response) -> ClusterUnavailable:
        asked = f"{answer.request.method} {answer.request.url.path}"
        return ClusterUnavailable(
            f"cluster {self._name}: {asked} answered {answer.status_code}: {answer.text[:200]}"
        )


def _judge(there: ObjectStatus, spec: ObjectSpec) -> StartOutcome:
    """What it means that the name is taken by this object."""
    if there.abandoned:
        return StartOutcome.ABANDONED
    return StartOutcome.ADOPTED if there.spec_hash == spec.spec_hash() else StartOutcome.CONFLICT


def _shut(answer: httpx2.Response) -> None:
    """Let who waits for the next bytes of an answer find its end."""
    stream = answer.extensions.get("network_stream")
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)


def _creation(spec: ObjectSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "job_id": spec.job_id,
        "attempt": spec.attempt,
        "suspend": False,
        "abandoned": False,
        "spec_hash": spec.spec_hash(),
        "walltime_ms": spec.walltime_ms,
        "grace_ms": spec.grace_ms,
        "pods": [
            {"index": pod.index, "node": pod.node, "gpu_class": pod.gpu_class, "count": pod.count}
            for pod in spec.pods
        ],
        "annotations": dict(spec.annotations),
    }


def _tombstone(spec: ObjectSpec) -> dict[str, object]:
    return _creation(spec) | {"suspend": True, "abandoned": True, "pods": [], "annotations": {}}


def _code(answer: httpx2.Response) -> str | None:
    """The stable code of a refusal, if it is one of the simulator's."""
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return None
    content = answer.json()
    return content.get("code") if isinstance(content, dict) else None


def _object_status(thing: dict[str, Any]) -> ObjectStatus:
    return ObjectStatus(
        name=thing["name"],
        job_id=thing["job_id"],
        attempt=thing["attempt"],
        suspended=thing["suspend"],
        abandoned=thing["abandoned"],
        spec_hash=thing["spec_hash"],
        created_ms=thing["created_ms"],
        pods=tuple(_pod_status(pod) for pod in thing["pods"]),
    )


def _pod_status(pod: dict[str, Any]) -> PodStatus:
    return PodStatus(
        index=pod["index"],
        node=pod["node"],
        phase=PodPhase(pod["phase"]),
        started_ms=pod["started_ms"],
        ended_ms=pod["ended_ms"],
        exit_code=pod["exit_code"],
        reason=pod["reason"],
        gpu_uuids=tuple(pod["gpu_uuids"]),
        last_seen_ms=pod["last_seen_ms"],
    )


def _node_status(node: dict[str, Any]) -> NodeStatus:
    return NodeStatus(
        node=node["node"],
        ready=node["ready"],
        last_seen_ms=node["last_seen_ms"],
        classes=tuple(sorted(node["classes"].items())),
        foreign=tuple(sorted(node["foreign"].items())),
        rack=node.get("rack", ""),
    )
