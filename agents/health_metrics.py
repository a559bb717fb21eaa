"""The series of the GPUs' health and of the verdicts on them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from agents.verdicts import HealthCounts
from quota.schemas.gpus import GpuHealth


def health_families(counts: HealthCounts) -> Iterator[Metric]:
    """One series per GPU and state, of which one is 1; none for a reader that tells nothing of health."""
    family = GaugeMetricFamily(
        "hub_gpu_health",
        "1 for how healthy the GPU is, 0 for the rest.",
        labels=("node", "gpu_uuid", "state"),
    )
    for (node, gpu_uuid), health in counts.health.items():
        for state in GpuHealth:
            family.add_metric((node, gpu_uuid, state.value), float(state is health))
    yield family
    yield CounterMetricFamily(
        "hub_agent_verdicts", "Verdicts on GPUs since the agent started.", counts.verdicts
    )
    yield GaugeMetricFamily(
        "hub_agent_verdicts_unsent", "Verdicts that the service has not taken.", counts.unsent
    )
    yield CounterMetricFamily("hub_agent_verdicts_failed", "Deliveries of them that failed.", counts.failed)
    yield CounterMetricFamily(
        "hub_agent_verdicts_refused", "Rows or verdicts that were refused.", counts.refused
    )
