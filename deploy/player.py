"""Submits the jobs of a trace, each at its own time on the hub's clock, and keeps count."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quota.client import QuotaClient, ServiceProblem, ServiceUnavailable
from quota.clock import Clock
from quota.schemas.jobs import JobSubmission
from scheduler.replay.settings import gang
from scheduler.replay.traces import TraceJob

SUBMITTERS = 8
LATE_WALL_S = 1.0
"""A request that leaves later than this after its time is counted as late."""

RETRY_S = 0.2
GPU_CLASS = "h100"


@dataclass(slots=True)
class Tally:
    """What became of the submissions. Filled by several threads under one lock."""

    job_ids: dict[str, str] = field(default_factory=dict)
    """Job id by the trace's id."""
    refused: Counter[str] = field(default_factory=Counter)
    late: int = 0
    worst_late_s: float = 0.0
    """In seconds of the wall."""
    retries: int = 0


class Player:
    """Plays jobs against a clock from `origin_ms`, the business time of the trace's window's beginning."""

    def __init__(
        self,
        clients: Mapping[str, QuotaClient],
        clock: Clock,
        origin_ms: int,
        first_s: int,
        gpus_per_node: int,
    ) -> None:
        self.tally = Tally()
        self._clients = clients
        self._clock = clock
        self._origin_ms = origin_ms
        self._first_s = first_s
        self._gpus_per_node = gpus_per_node
        self._due: queue.Queue[TraceJob | None] = queue.Queue()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def play(self, jobs: Sequence[TraceJob], until_ms: int) -> None:
        """Submit every job at its time and return at business time `until_ms`."""
        threads = [threading.Thread(target=self._submit_due, daemon=True) for _ in range(SUBMITTERS)]
        for thread in threads:
            thread.start()
        try:
            for job in jobs:
                self._sleep_until(self._moment_ms(job))
                self._due.put(job)
            self._sleep_until(until_ms)
        finally:
            self._closed.set()
            for _ in threads:
                self._due.put(None)
            for thread in threads:
                thread.join()

    def _sleep_until(self, moment_ms: int) -> None:
        while (left_s := self._clock.wall_s(moment_ms - self._clock.now_ms())) > 0:
            time.sleep(min(left_s, 0.5))

    def _moment_ms(self, job: TraceJob) -> int:
        return self._origin_ms + (job.submit_s - self._first_s) * 1000

    def _submit_due(self) -> None:
        while (job := self._due.get()) is not None:
            late_s = self._clock.wall_s(self._clock.now_ms() - self._moment_ms(job))
            with self._lock:
                self.tally.late += late_s > LATE_WALL_S
                self.tally.worst_late_s = max(self.tally.worst_late_s, late_s)
            self._submit(job)

    def _submit(self, job: TraceJob) -> None:
        body = submission(job, self._gpus_per_node)
        while True:
            try:
                made = self._clients[job.organization].submit_job(body, f"trace:{job.id}")
            except ServiceUnavailable:
                # The same key again: whether the first try arrived makes no difference.
                with self._lock:
                    self.tally.retries += 1
                    given_up = self._closed.is_set() and self.tally.retries > 100 * SUBMITTERS
                    self.tally.refused["service_unavailable"] += given_up
                if given_up:
                    return
                time.sleep(RETRY_S)
            except ServiceProblem as problem:
                with self._lock:
                    self.tally.refused[problem.code] += 1
                return
            else:
                with self._lock:
                    self.tally.job_ids[job.id] = made.id
                return


def submission(job: TraceJob, gpus_per_node: int) -> JobSubmission:
    """The request of a trace's job; the simulated cluster runs it as long as the trace says."""
    pods, gpus_per_pod = gang(job.gpus, gpus_per_node)
    return JobSubmission(
        name=job.id,
        gpu_class=GPU_CLASS,
        gpus_per_pod=gpus_per_pod,
        pods=pods,
        walltime_s=job.limit_s,
        annotations={"simulate.gpuhub/duration_s": str(job.run_s), "simulate.gpuhub/exit_code": "0"},
    )
