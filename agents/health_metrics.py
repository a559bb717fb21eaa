"""The series of the GPUs' health and of the verdicts on them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from agents import families
from agents.verdicts import HealthCounts
from quota.schemas.gpus import GpuHealth


def health_families(counts: HealthCounts) -> Iterator[Metric]:
    """One series per GPU and state, of which one is 1; none for a reader that tells nothing of health."""
    yield families.HEALTH.gauge_of(
        {
            (node, gpu_uuid, state.value): float(state is health)
            for (node, gpu_uuid), health in counts.health.items()
            for state in GpuHealth
        }
    )
    yield families.VERDICTS.counter(counts.verdicts)
    yield families.VERDICTS_UNSENT.gauge(counts.unsent)
    yield families.VERDICTS_FAILED.counter(counts.failed)
    yield families.VERDICTS_REFUSED.counter(counts.refused)
