"""A pod's log, read from its kubelet through the API server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import urllib3

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.api import Json, KubernetesApi, answer_of
from scheduler.clusters.logs import ClusterUnavailable, LogRequest, NoLogs, NoLogsReason, OpenLog

CHUNK = 65_536
OPEN = ("Running", "Succeeded", "Failed")
"""Phases of a pod that has written, or may have."""


def choose_pod(job: Json | None, pods: Sequence[Json], name: str, index: int) -> Json:
    """The pod with this index. Raises NoLogs."""
    if job is None:
        raise NoLogs(NoLogsReason.GONE, f"there is no {name} any more")
    ours = [pod for pod in pods if pod["metadata"]["labels"].get(names.COMPLETION_INDEX) == str(index)]
    if not ours:
        spec, status = job["spec"], job.get("status", {})
        over = spec.get("suspend") or any(
            condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
            for condition in status.get("conditions") or ()
        )
        reason = NoLogsReason.GONE if over else NoLogsReason.NOT_STARTED
        raise NoLogs(reason, f"{name} has no pod {index} now")
    pod = max(ours, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    if pod.get("status", {}).get("phase") not in OPEN:
        raise NoLogs(NoLogsReason.NOT_STARTED, f"pod {index} of {name} has not started")
    return pod


def open_log(api: KubernetesApi, cluster: str, pod: Json, request: LogRequest) -> OpenLog:
    """Open the log of a pod's one container. Raises NoLogs or ClusterUnavailable."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
    runs = pod["status"]["phase"] == "Running"
    response = api.text(
        path,
        request.limit_s + 5.0,
        container=names.CONTAINER,
        follow=request.follow and runs,
        tailLines=request.tail_lines,
        sinceSeconds=request.since_s,
        timestamps=request.timestamps,
        limitBytes=request.limit_bytes,
    )
    if response.status != 200:
        raise _refusal(response, cluster, path)

    def chunks() -> Iterator[bytes]:
        try:
            yield from response.stream(CHUNK)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterUnavailable(f"cluster {cluster}: GET {path}: {error!r}") from error

    def shut() -> None:
        with suppress(ValueError, RuntimeError, OSError):  # it has ended by itself
            response.shutdown()

    def release() -> None:
        # what was not read to its end cannot be used again
        response.close()
        response.release_conn()

    return OpenLog(chunks(), shut, release)


def _refusal(response: urllib3.BaseHTTPResponse, cluster: str, path: str) -> NoLogs | ClusterUnavailable:
    try:
        answer = answer_of(response)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        return ClusterUnavailable(f"cluster {cluster}: GET {path}: {error!r}")
    finally:
        response.release_conn()
    if answer.status == 404:
        return NoLogs(NoLogsReason.GONE, answer.message)
    if answer.status == 400:  # the container waits for its image, or what is left of it has no log
        waits = "waiting to start" in answer.message
        return NoLogs(NoLogsReason.NOT_STARTED if waits else NoLogsReason.GONE, answer.message)
    return ClusterUnavailable(f"cluster {cluster}: GET {path} answered {answer.status}: {answer.message}")
