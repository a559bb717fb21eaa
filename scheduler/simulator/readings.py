"""What the driver and the kubelet of simulated nodes would say to an agent, written straight as JSON text.

A thousand GPUs with ten-second samples make tens of thousands of numbers per wall second on a fast clock,
so the text of each pod's samples is made once and shared by its GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from scheduler.simulator.fleet import boot_id, hardware
from scheduler.simulator.load import mean_ratio
from scheduler.simulator.state import Gpu, Node, Occupancy, Trouble

DRIVER = "simulated"
_WELL = f'"detail":{{"driver":"{DRIVER}","recovery_action":0}}'
SAMPLES_KEPT = 600
"""How many samples per GPU the driver remembers."""


class Readings:
    """Answers for agents, at a fixed sample period."""

    def __init__(self, period_ms: int, wall_of: Callable[[int], int] = int) -> None:
        """`wall_of` turns business ms into wall ms, in which a driver dates XIDs."""
        assert period_ms > 0, "samples are taken from time to time"
        self.period_ms = period_ms
        self._wall_of = wall_of
        self._heads: dict[str, tuple[str, int, float, float]] = {}

    def node_text(self, node: Node, after_ms: int, now_ms: int) -> str:
        """One node that is up: its GPUs, who is on them, and their samples newer than `after_ms`."""
        assert node.lost_ms is None, "a lost node says nothing"
        # The driver starts anew with every boot.
        floor_ms = max(after_ms, node.booted_ms)
        last = now_ms // self.period_ms
        first = max(floor_ms // self.period_ms, last - SAMPLES_KEPT) + 1
        window = _Window(self.period_ms, first, last)
        gpus = ",".join(self._gpu_text(gpu, window) for gpu in node.gpus.values())
        past = ",".join(_past_texts(node, after_ms))
        return (
            f'{{"now_ms":{now_ms},"node":{json.dumps(node.node)},'
            f'"boot_id":"{boot_id(node.node, node.boots)}","gpus":[{gpus}],"past":[{past}]}}'
        )

    def fleet_text(self, nodes: list[Node], after_ms: int, now_ms: int) -> str:
        """All nodes in one answer."""
        texts = ",".join(
            self.node_text(node, after_ms, now_ms)
            if node.lost_ms is None
            else f'{{"node":{json.dumps(node.node)},"lost":true}}'
            for node in nodes
        )
        return f'{{"now_ms":{now_ms},"nodes":[{texts}]}}'

    def _gpu_text(self, gpu: Gpu, window: _Window) -> str:
        head, memory_bytes, idle_watts, full_watts = self._head(gpu)
        stay = gpu.current
        stays = [past for past in gpu.past if (past.until_ms or 0) > window.from_ms - self.period_ms]
        if stay is not None:
            stays.append(stay)
        ratio, samples = window.samples(tuple(stays))
        used_bytes = 0 if stay is None else int(memory_bytes * (0.15 + 0.7 * ratio))
        watts = idle_watts + (full_watts - idle_watts) * ratio
        workload = "null" if stay is None else f"{_workload_text(stay)}}}"
        if gpu.trouble is not None or gpu.withdrawn:
            head = f"{head},{self._trouble_text(gpu)}"
            if gpu.trouble is not None and gpu.trouble.lost:
                return f'{head},"up":false,"workload":{workload},"samples":[]}}'
        else:
            head = f"{head},{_WELL}"
        return (
            f'{head},"memory_used_bytes":{used_bytes},"power_watts":{watts:.1f},'
            f'"temperature_celsius":{30 + 45 * ratio:.1f},"workload":{workload},"samples":[{samples}]}}'
        )

    def _trouble_text(self, gpu: Gpu) -> str:
        """What the driver says of a device that is, or was, not well."""
        trouble = gpu.trouble or Trouble()
        xids = [
            {
                "xid": xid,
                "xid_class": "unknown",
                "count": count,
                "last_wall_ms": self._wall_of(last_ms),
            }
            for xid, (count, last_ms) in sorted(trouble.xids.items())
        ]
        detail = {
            "driver": DRIVER,
            "lost": trouble.lost,
            "recovery_action": None if trouble.lost else trouble.recovery_action,
            "xids": xids,
            "withdrawn": gpu.withdrawn,
        }
        return f'"detail":{json.dumps(detail, separators=(",", ":"))}'

    def _head(self, gpu: Gpu) -> tuple[str, int, float, float]:
        """What never changes about a device: the beginning of its text, its memory and its power."""
        known = self._heads.get(gpu.gpu_uuid)
        if known is None:
            metal = hardware(gpu.gpu_class)
            fields = {
                "gpu_uuid": gpu.gpu_uuid,
                "gpu_class": gpu.gpu_class,
                "model": metal.model,
                "memory_total_bytes": metal.memory_total_bytes,
            }
            text = json.dumps(fields, separators=(",", ":")).removesuffix("}")
            known = (text, metal.memory_total_bytes, metal.idle_watts, metal.full_watts)
            self._heads[gpu.gpu_uuid] = known
        return known


class _Window:
    """The sample times of one answer, and the texts already made for it."""

    def __init__(self, period_ms: int, first: int, last: int) -> None:
        self.period_ms = period_ms
        self.ends_ms = range(first * period_ms, last * period_ms + 1, period_ms)
        self.from_ms = first * period_ms
        self._last_ms = last * period_ms
        self._made: dict[tuple[Occupancy, ...], tuple[float, str]] = {}

    def samples(self, stays: tuple[Occupancy, ...]) -> tuple[float, str]:
        """The latest mean, and all samples of a GPU that saw these workloads, as text."""
        made = self._made.get(stays)
        if made is None:
            means = [self._mean(stays, end_ms) for end_ms in self.ends_ms]
            text = ",".join([f"[{end_ms},{mean}]" for end_ms, mean in zip(self.ends_ms, means, strict=True)])
            made = (means[-1] if means else self._mean(stays, self._last_ms), text)
            self._made[stays] = made
        return made

    def _mean(self, stays: tuple[Occupancy, ...], end_ms: int) -> float:
        begin_ms = end_ms - self.period_ms
        busy_ms = 0.0
        for stay in stays:
            from_ms = max(begin_ms, stay.since_ms)
            until_ms = end_ms if stay.until_ms is None else min(end_ms, stay.until_ms)
            if from_ms < until_ms:
                ratio = mean_ratio(stay.load, from_ms - stay.since_ms, until_ms - stay.since_ms)
                busy_ms += ratio * (until_ms - from_ms)
        return round(busy_ms / self.period_ms, 6)


def _past_texts(node: Node, after_ms: int) -> list[str]:
    return [
        f'{{"gpu_uuid":"{gpu.gpu_uuid}",{_workload_text(stay).removeprefix("{")},"until_ms":{stay.until_ms}}}'
        for gpu in node.gpus.values()
        for stay in gpu.past
        if (stay.until_ms or 0) > after_ms
    ]


def _workload_text(stay: Occupancy) -> str:
    """The workload's fields, the closing brace left to the caller."""
    return (
        f'{{"job_id":{json.dumps(stay.job_id)},"attempt":{stay.attempt},"pod_index":{stay.pod_index},'
        f'"since_ms":{stay.since_ms}'
    )
