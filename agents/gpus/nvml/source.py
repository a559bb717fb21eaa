"""This machine's GPUs, as the agent's settings name them: a collector, and the kubelet that tells who holds them."""

from __future__ import annotations

from pathlib import Path

from agents.gpus.nvml.reader import NvmlReader
from agents.gpus.nvml.supervisor import Timing
from agents.gpus.source import Source
from agents.outbox import Outbox
from agents.pods.cgroups import Node
from agents.pods.tracker import KubeletSettings, PodTracker
from agents.settings import AgentSettings, Unusable
from quota.clock import Clock


def open_source(settings: AgentSettings, clock: Clock, outbox: Outbox) -> Source:
    """A reader at work; `outbox` keeps who holds what. Raises Unusable."""
    if len(settings.node) > 1:
        raise Unusable(
            f"--node: {len(settings.node)} nodes given, but this machine's GPUs are of one; give it once"
        )
    timing = Timing(
        cycle_s=settings.nvml_cycle_s,
        deadline_s=settings.nvml_deadline_s,
        first_retry_s=settings.nvml_retry_s,
        longest_retry_s=20 * settings.nvml_retry_s,
    )
    try:
        pods = _pods(settings, clock, outbox)
        nvml = NvmlReader(clock, "".join(settings.node), timing, settings.gpu_classes, pods=pods)
    except ValueError as error:
        raise Unusable(str(error)) from error
    nvml.start()
    return Source(nvml, (nvml.node,), nvml.metrics, lambda: nvml.hopeless)


def _pods(settings: AgentSettings, clock: Clock, outbox: Outbox) -> PodTracker | None:
    if not settings.pods_socket:
        return None
    kubelet = KubeletSettings(
        Path(settings.pods_socket),
        settings.pods_interval_s,
        settings.pods_timeout_s,
        settings.pods_namespace_prefix,
    )
    node = Node(settings.pods_cgroups, settings.pods_proc, settings.pods_logs)
    return PodTracker(kubelet, clock, outbox, node)
