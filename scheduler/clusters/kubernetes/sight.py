"""All that is seen of one cluster: three mirrors, which of the hub's objects changed, and up to when all is known.

One lock guards everything here; its bell rings at every change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
from scheduler.clusters.kubernetes.inventory import Inventory
from scheduler.clusters.kubernetes.manifests import NodeShape
from scheduler.clusters.kubernetes.settings import KubernetesSettings
from scheduler.clusters.kubernetes.watch import F, Mirror, Reflector, version_number
from scheduler.clusters.port import ClusterUnavailable, ObjectStatus, Observation

JOBS = "/apis/batch/v1/jobs"
PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"

MARK_S = 1.0
"""How often the server is asked how far it is: slices of the ledger close behind the answers."""
BEHIND_S = 45.0
"""A watch that has not reached a moment this long ago does not count as an answer of the cluster."""


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
        self._inventory = inventory = Inventory(settings, now_ms)
        self._complete_wanted = True
        self._mark: Mark | None = None
        self._asked_s = float("-inf")
        self._through_ms = 0
        self._job_mirror: Mirror[JobFacts] = Mirror("jobs", job_facts, inventory.take_jobs, self._bell)
        self._pod_mirror: Mirror[PodFacts] = Mirror("pods", pod_facts, inventory.take_pods, self._bell)
        self._node_mirror: Mirror[NodeFacts] = Mirror("nodes", node_facts, inventory.take_nodes, self._bell)
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
            return self._inventory.jobs.get(name)

    def expect_deletion(self, name: str) -> None:
        """The hub itself deletes this Job: what is known of it is no longer needed."""
        with self._bell:
            self._inventory.expect_deletion(name)

    def status_of(self, job: JobFacts, pods: list[PodFacts]) -> ObjectStatus:
        """An object read just now, with what is remembered of its pods that are gone."""
        with self._bell:
            return self._inventory.status_of(job, pods)

    def shapes(self) -> Mapping[str, NodeShape]:
        """What pinning has to know of each node."""
        with self._bell:
            return self._inventory.shapes()

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
        return self._complete_wanted or self._inventory.has_news or self._mark_reached()

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
        complete, self._complete_wanted = self._complete_wanted, False
        objects = self._inventory.objects(self._pod_mirror.version, everything=complete)
        gone = self._inventory.gone()
        nodes = self._inventory.nodes(everything=complete)
        return Observation(self._through_ms, complete, objects, () if complete else gone, nodes)


def job_and_pods(job: Json, pods: list[Json]) -> tuple[JobFacts, list[PodFacts]] | None:
    """A Job and its pods as read just now; None if it is not one of the hub's."""
    facts = job_facts(job)
    return None if facts is None else (facts, [pod_facts(pod) for pod in pods])
