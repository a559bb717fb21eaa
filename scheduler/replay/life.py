"""One job on its way through a replay, and the attempt that it runs as."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.model import Attempt, Job, JobState
from scheduler.replay.history import Record
from scheduler.replay.settings import Settings, gang
from scheduler.replay.traces import TraceJob

GPU_CLASS = "gpu"


@dataclass(slots=True)
class Life:
    """One job on its way."""

    trace: TraceJob
    pods: int
    gpus_per_pod: int
    limit_ms: int
    """Of the next attempt."""
    left_ms: int
    """Of its work."""
    attempt: int = 0
    preempted_at_ms: tuple[int, ...] = ()
    first_start_ms: int | None = None
    end_ms: int | None = None
    preemptions: int = 0
    lost_ms: int = 0

    def job(self, state: JobState) -> Job:
        """As the core is to know it."""
        trace = self.trace
        return Job(
            id=trace.id,
            organization_id=trace.organization,
            grant_id=None,
            gpu_class=GPU_CLASS,
            gpus_per_pod=self.gpus_per_pod,
            pods=self.pods,
            walltime_ms=self.limit_ms,
            submitted_at_ms=trace.submit_s * 1000,
            state=state,
            attempt=self.attempt,
            restartable=True,
            preempted_at_ms=self.preempted_at_ms,
        )


@dataclass(slots=True)
class Run:
    """One attempt that occupies GPUs."""

    life: Life
    attempt: Attempt
    start_ms: int
    work_from_ms: int
    """A start after a preemption first pays for the restart."""
    for_job: str | None = None


def life_of(job: TraceJob, settings: Settings) -> Life:
    """A job of the trace before anything happened to it."""
    pods, gpus_per_pod = gang(job.gpus, settings.gpus_per_node)
    run_ms = min(job.run_s, job.limit_s) * 1000
    return Life(job, pods, gpus_per_pod, job.limit_s * 1000, run_ms)


def record_of(life: Life) -> Record:
    """What came of it."""
    trace = life.trace
    return Record(
        id=trace.id,
        organization=trace.organization,
        gpus=trace.gpus,
        submit_s=trace.submit_s,
        run_s=min(trace.run_s, trace.limit_s),
        first_start_s=None if life.first_start_ms is None else life.first_start_ms // 1000,
        end_s=None if life.end_ms is None else life.end_ms // 1000,
        preemptions=life.preemptions,
        lost_gpu_s=life.lost_ms * trace.gpus // 1000,
    )
