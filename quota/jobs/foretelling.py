"""When a job would start that is not submitted yet, as the scheduler's last forecast tells. For quotes."""

from __future__ import annotations

from quota.jobs.choices import unit_of
from quota.queue import Queue
from quota.schemas.forecasts import NewcomerItem
from quota.schemas.jobs import JobSubmission
from quota.schemas.quotes import NoEta, QuotedEta, StartOutlook, WaitEstimate
from quota.schemas.scheduling import Topology, WaitReason

FORETOLD_MS = 24 * 3_600_000
"""So far the futures of a forecast reach; one that is older says nothing of now."""
_BY_TIME = frozenset(
    {
        WaitReason.NO_FREE_GPU,
        WaitReason.BEHIND_IN_ORDER,
        WaitReason.GRANT_CAP,
        WaitReason.ORGANIZATION_CAP,
        WaitReason.OPPORTUNISTIC_CAP,
    }
)
"""What a quoted job gets out of as others end."""


def quoted_eta(
    queue: Queue,
    organization_id: str,
    program_id: str | None,
    body: JobSubmission,
    estimate: WaitEstimate,
    now_ms: int,
) -> QuotedEta | NoEta:
    """When the job is likely to start if it is submitted now, or why that is not told."""
    if estimate.starts is StartOutlook.NOW:
        return NoEta.STARTS_NOW
    waiting = estimate.waiting
    if estimate.starts is StartOutlook.NEVER or (waiting is not None and waiting.code not in _BY_TIME):
        return NoEta.NOT_BY_TIME
    as_of_ms = queue.foretold_at_ms()
    if as_of_ms is None:
        return NoEta.NO_FORECAST
    if now_ms - as_of_ms > FORETOLD_MS:
        return NoEta.FORECAST_TOO_OLD
    like = (one for one in queue.newcomers(organization_id) if _is_like(one, program_id, body))
    found = next(like, None)
    return NoEta.NONE_ALIKE if found is None else _eta(found, as_of_ms, now_ms)


def _is_like(one: NewcomerItem, program_id: str | None, body: JobSubmission) -> bool:
    required = unit_of(body.topology, body.gpus_per_pod, body.pods) != unit_of(
        Topology.ANY, body.gpus_per_pod, body.pods
    )
    return (
        one.program_id == program_id
        and one.gpu_classes == tuple(body.accepted_classes)
        and one.topology == (body.topology if required else Topology.ANY)
        and _holds(one.gpus_over, body.pods * body.gpus_per_pod, one.gpus_to)
        and _holds(one.walltime_over_ms, body.walltime_s * 1000, one.walltime_to_ms)
    )


def _holds(over: int, value: int, to: int | None) -> bool:
    return over < value and (to is None or value <= to)


def _eta(found: NewcomerItem, as_of_ms: int, now_ms: int) -> QuotedEta:
    """Whoever comes now waits as long as who came at the forecast's moment."""
    passed_ms = now_ms - as_of_ms
    return QuotedEta(
        low=found.eta.low + passed_ms,
        median=found.eta.median + passed_ms,
        high=found.eta.high + passed_ms,
        basis=found.eta.basis,
        jobs=found.jobs,
        gpus_from=found.gpus_over + 1,
        gpus_to=found.gpus_to,
        walltime_over_s=found.walltime_over_ms // 1000,
        walltime_to_s=None if found.walltime_to_ms is None else found.walltime_to_ms // 1000,
        as_of=as_of_ms,
        age_s=max(0, passed_ms) // 1000,
    )
