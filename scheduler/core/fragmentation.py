"""Score what a placement leaves unusable: GPUs that the jobs still to come could no longer use.

Three expected losses, all in thousandths of a GPU, are added without weights to tune:

- *stranded* on the node: the fragmentation of FGD (Weng et al., USENIX ATC 2023, section 4). Over the typical
  pods t with popularity p_t it is Σ p_t·F(t), where F(t) is every free part of a GPU when t cannot run on the
  node, else the free parts that are too small for t;
- *starved* on the node: GPUs that its free CPU (or memory) cannot feed. With S free GPU milli and C free CPU,
  pods of the mix want S·r ± s of CPU, so E[max(0, S·r - C)] / r is lost: the loss of a newsvendor with normal
  demand, r the CPU per GPU milli of the mix and s² = (S / g)·Var(c - r·m), g the GPU milli of the mean pod;
- *scarce* models: a GPU of a model that the rest of the demand cannot do without is taken from somebody with
  the probability that the demand left to this model exceeds what is free of it.

The first alone, rounded and with ties by name, is what FGD does. It sees CPU only when the next pod no longer
fits; the second sees it from the first pod on and keeps nodes balanced.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GPU_MILLI = 1000
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def gradient(total: int, mix: Mapping[int, float]) -> list[float]:
    """Expected GPUs of a node that pods of the mix could not use, for every count of free GPUs 0..total.

    F[free] = Σ p_g·free over the sizes g > free: whole GPUs of one class, so FGD's formula with nothing else
    short. A pod of g GPUs belongs on the node where F[free - g] - F[free] is smallest. `mix` gives popularity by
    GPUs per pod, in any unit; an empty one strands nothing.
    """
    weight = sum(mix.values())
    if weight <= 0:
        return [0.0] * (total + 1)
    return [free * sum(p for size, p in mix.items() if size > free) / weight for free in range(total + 1)]


@dataclass(frozen=True, slots=True)
class PodType:
    """What a pod asks for; pods of equal type are interchangeable."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    """Of each GPU: 1000, or less when the pod shares its only one."""
    models: frozenset[str] = frozenset()
    """GPU models it accepts; empty for any."""

    @property
    def all_gpu_milli(self) -> int:
        """Of all its GPUs together."""
        return self.gpus * self.gpu_milli

    @property
    def shared(self) -> bool:
        """Whether it takes a part of one GPU."""
        return self.gpus == 1 and self.gpu_milli < GPU_MILLI


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is free on a node; nodes of equal state are interchangeable."""

    model: str
    cpu_milli: int
    memory_mib: int
    gpu_milli: tuple[int, ...]

    def after(self, pod: PodType, gpu: int) -> "NodeState":
        """The node with the pod on it; a shared pod goes on this GPU, others on the first that are whole."""
        free, left = list(self.gpu_milli), pod.gpus
        if pod.shared:
            free[gpu] -= pod.gpu_milli
        else:
            for index, milli in enumerate(free):
                if left and milli == GPU_MILLI:
                    free[index], left = 0, left - 1
            assert not left, f"{pod} does not fit {self}"
        node = NodeState(
            self.model, self.cpu_milli - pod.cpu_milli, self.memory_mib - pod.memory_mib, tuple(sorted(free))
        )
        assert min(node.cpu_milli, node.memory_mib, *node.gpu_milli) >= 0, f"{pod} does not fit {self}"
        return node


_NOTHING = PodType(0, 0, 0, 0)


class Losses:
    """The change of a node's expected loss by each of `pods`, for all of them in one pass."""

    def __init__(
        self,
        pods: Sequence[PodType],
        mix: Mapping[PodType, float],
        *,
        memory: bool = True,
        starved: bool = True,
    ) -> None:
        """`pods` will be placed; `mix` is the typical demand. FGD looks neither at memory nor at starving."""
        everyone = [*pods, _NOTHING]  # the last row is the node as it is
        self._cpu = np.array([pod.cpu_milli for pod in everyone])
        self._memory = np.array([pod.memory_mib for pod in everyone])
        self._gpus = np.array([pod.gpus for pod in everyone])
        self._milli = np.array([pod.gpu_milli for pod in everyone])
        self._taken = self._gpus * self._milli
        self._shared = np.array([pod.shared for pod in everyone])
        self._models = [pod.models for pod in everyone]
        self._accepts: dict[str, npt.NDArray[np.bool_]] = {}
        self._stranded = _Stranded(mix, memory, len(everyone))
        self._starved = (
            [_Starved(mix, [pod.cpu_milli for pod in mix]), _Starved(mix, [pod.memory_mib for pod in mix])]
            if starved
            else []
        )

    def changes(self, node: NodeState) -> Floats:
        """By pod (row) and GPU of the node (column) what the loss grows by; ∞ where the pod does not fit.

        A pod that shares no GPU has the same value in all columns.
        """
        cpu, memory = node.cpu_milli - self._cpu, node.memory_mib - self._memory
        free, column, number = np.unique(node.gpu_milli, return_inverse=True, return_counts=True)
        milli_left = sum(node.gpu_milli) - self._taken
        pods, left = (self._gpus, self._milli, self._shared), (milli_left, cpu, memory)
        loss = self._stranded.after(node, free, number, pods, left)
        for part, unused in zip(self._starved, (cpu, memory), strict=False):
            loss += part.loss(milli_left, unused)[:, None]
        loss -= loss[-1, 0]
        room = (cpu >= 0) & (memory >= 0) & self._accepted_by(node.model)
        whole = node.gpu_milli.count(GPU_MILLI) >= self._gpus
        fits = np.where(self._shared[:, None], free >= self._milli[:, None], whole[:, None])
        return np.where(fits & room[:, None], np.round(loss, 6), np.inf)[:-1, column]

    def _accepted_by(self, model: str) -> npt.NDArray[np.bool_]:
        if model not in self._accepts:
            self._accepts[model] = np.array([not models or model in models for models in self._models])
        return self._accepts[model]


def shortage(
    demand: Mapping[frozenset[str], float], pod_milli: float, free: Mapping[str, int]
) -> dict[str, float]:
    """By model the probability that more of it will be wanted than is free.

    `demand` is GPU milli by accepted models (empty for any), scaled here to what is free altogether; who may
    choose goes where demand per free GPU is lowest (found by iteration). `pod_milli` is the mean pod as seen by
    a GPU milli, Σm² / Σm: as many of them as fit vary like a Poisson count.
    """
    models = sorted(model for model, milli in free.items() if milli > 0)
    sets = [accepted & set(models) if accepted else frozenset(models) for accepted in demand]
    accepts = np.array([[model in accepted for model in models] for accepted in sets], float).reshape(
        -1, len(models)
    )
    wanted = np.array(list(demand.values()), float)
    if not models or wanted.sum() <= 0:
        return dict.fromkeys(free, 0.0)
    supply = np.array([free[model] for model in models], float)
    wanted *= supply.sum() / wanted.sum()
    pull = np.ones(len(models))
    load = pull
    for _ in range(_ROUNDS):
        reach = accepts @ (pull * supply)
        load = (wanted / np.where(reach > 0, reach, np.inf)) @ accepts * pull
        pull = pull / np.sqrt(load + 1e-9)
        pull /= pull.sum()
    spread = np.sqrt(np.maximum(load, 1e-9) * supply * max(pod_milli, 1.0))
    over = {
        model: 0.5 * math.erfc(-z / math.sqrt(2))
        for model, z in zip(models, (load - 1) * supply / spread, strict=True)
    }
    return {model: round(over.get(model, 1.0), 6) for model in free}


_ROUNDS = 100


class _Stranded:
    """FGD's fragmentation by tables: popularity summed over everything that runs at a level of CPU and memory."""

    def __init__(self, mix: Mapping[PodType, float], memory: bool, rows: int) -> None:
        self._weight = sum(mix.values())
        self._mix = {pod: weight / self._weight for pod, weight in mix.items() if pod.gpus}
        self._cpus = np.unique([pod.cpu_milli for pod in self._mix])
        self._memories = np.unique([pod.memory_mib if memory else 0 for pod in self._mix])
        self._parts = np.unique([pod.gpu_milli for pod in self._mix if pod.gpus == 1])
        self._sizes = np.unique([pod.gpus for pod in self._mix if pod.gpus > 1])
        self._memory = memory
        self._rows = np.arange(rows)[:, None]
        self._tables: dict[str, tuple[Floats, Floats, Floats]] = {}

    def after(
        self,
        node: NodeState,
        free: Ints,
        number: Ints,
        pods: tuple[Ints, Ints, npt.NDArray[np.bool_]],
        left: tuple[Ints, Ints, Ints],
    ) -> Floats:
        """The fragmentation that each pod would leave, by what is free of the GPU that it could share.

        `free` and the `number` of such GPUs; of each pod GPUs, milli of each, shared or not; what it leaves.
        """
        gpus, milli, shared = pods
        milli_left, cpu, memory = left
        running, larger, several = self._at(node.model, cpu, memory)
        now = larger[:, np.searchsorted(self._parts, free, "right")] * free
        part_left = free - (milli * shared)[:, None]
        level = np.searchsorted(self._parts, part_left, "right")
        parts = larger[self._rows, level] * part_left - now
        parts += (now @ number)[:, None]
        whole = int(number[free == GPU_MILLI].sum())
        unbroken = np.where(shared, whole, np.maximum(whole - gpus, 0))  # a shared pod may break one more
        usable = unbroken * (several * (unbroken[:, None] >= self._sizes)).sum(1)
        fewer = (whole - 1) * (several * (whole - 1 >= self._sizes)).sum(1)
        breaks = shared[:, None] & (free == GPU_MILLI)
        parts -= GPU_MILLI * np.where(breaks, fewer[:, None], usable[:, None])
        lost: Floats = parts + ((1 - running + several.sum(1)) * milli_left)[:, None]
        return lost

    def _at(self, model: str, cpu: Ints, memory: Ints) -> tuple[Floats, Floats, Floats]:
        """Popularity of what runs there: all, by the free part that is just too small, by number of GPUs."""
        if model not in self._tables:
            self._tables[model] = self._table(model)
        at = (
            np.searchsorted(self._cpus, cpu, "right"),
            np.searchsorted(self._memories, memory if self._memory else np.zeros_like(memory), "right"),
        )
        running, larger, several = self._tables[model]
        return running[at], larger[at], several[at]

    def _table(self, model: str) -> tuple[Floats, Floats, Floats]:
        levels = (len(self._cpus) + 1, len(self._memories) + 1)
        running = np.zeros(levels)
        larger = np.zeros((*levels, len(self._parts) + 1))
        several = np.zeros((*levels, len(self._sizes)))
        for pod, popularity in self._mix.items():
            if pod.models and model not in pod.models:
                continue
            at = (
                int(np.searchsorted(self._cpus, pod.cpu_milli)) + 1,
                int(np.searchsorted(self._memories, pod.memory_mib if self._memory else 0)) + 1,
            )
            running[at] += popularity
            if pod.gpus == 1:
                larger[at][: int(np.searchsorted(self._parts, pod.gpu_milli)) + 1] += popularity
            else:
                several[at][int(np.searchsorted(self._sizes, pod.gpus))] += popularity
        running, larger, several = (table.cumsum(0).cumsum(1) for table in (running, larger, several))
        return running, larger, several


class _Starved:
    """Expected GPU milli that a node's free CPU (or memory) cannot feed."""

    def __init__(self, mix: Mapping[PodType, float], needs: Sequence[int]) -> None:
        rows = [
            (pod.all_gpu_milli, need, w)
            for (pod, w), need in zip(mix.items(), needs, strict=True)
            if pod.gpus
        ]
        weight = sum(w for _, _, w in rows) or 1.0
        self._pod_milli = sum(milli * w for milli, _, w in rows) / weight
        self._rate = sum(need * w for _, need, w in rows) / weight / (self._pod_milli or 1.0)
        self._variance = sum(w * (need - self._rate * milli) ** 2 for milli, need, w in rows) / weight
        self._z = np.linspace(-8.0, 8.0, 8001)
        self._unit_loss = np.array([_unit_loss(z) for z in self._z])

    def loss(self, milli: Ints, have: Ints) -> Floats:
        """For so much free of the GPUs and of the resource; at most all that is free."""
        if not self._rate:
            return np.zeros(len(milli))
        some = np.maximum(milli, 0)
        spread = np.sqrt(some / self._pod_milli * self._variance) + 1e-9
        z = (some * self._rate - have) / spread
        short = spread * (np.interp(z, self._z, self._unit_loss) + np.maximum(z - 8.0, 0.0))
        loss: Floats = np.minimum(some, short / self._rate)
        return loss


def _unit_loss(z: float) -> float:
    """E[max(0, z + X)] for a standard normal X."""
    return z * 0.5 * math.erfc(-z / math.sqrt(2)) + math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
