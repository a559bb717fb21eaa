"""Pack the openb trace node by node as the FGD paper does: `python -m scheduler.replay.packing --path …/openb`.

The method (Weng et al., USENIX ATC 2023; hkust-adsl/kubernetes-scheduler-simulator): shuffle a mix's pods by seed,
add pods drawn with replacement until the GPUs asked for are 130 % of the cluster (or drop some down to it), shuffle
the nodes, place one pod after the other on a node where it fits, never remove one. What counts is the GPU milli
placed over the GPU milli there are, when 100 % and when 130 % have arrived.
"""

import argparse
import csv
import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from scheduler.core.fragmentation import GPU_MILLI, Floats, Losses, NodeState, PodType, shortage
from scheduler.replay.traces import BadTrace

POLICIES = ("random", "best-fit", "fgd", "gpuhub")
PUBLISHED = {"random": "01-Random", "best-fit": "05-BestFit", "fgd": "06-FGD"}
OVERLOAD = 1.3
FIRST_SEED = 42  # the authors' first
TYPICAL_SHARE = 0.95
PLACED_BETWEEN_PRICES = 100
"""Pods placed before the scarcity of models is looked at anew."""

Bytes = npt.NDArray[np.int8]
Row = TypeVar("Row")
Rate = Callable[[NodeState], tuple[Floats, Bytes]]
"""By pod type how bad the node is (∞: it does not fit) and the GPU it would share."""


@dataclass(frozen=True, slots=True)
class PackingResult:
    """One policy on one mix, means over the seeds, in per cent of all GPUs."""

    mix: str
    policy: str
    seeds: int
    allocated_at_100_percent: float
    allocated_at_130_percent: float
    published_at_100_percent: float | None
    """The authors' figure for this policy; None for ours."""
    published_at_130_percent: float | None
    fgd_at_130_percent: float | None

    @property
    def margin_over_fgd(self) -> float | None:
        """Points above what the authors published for FGD, when 130 % have arrived; None where they did not."""
        if self.fgd_at_130_percent is None:
            return None
        return self.allocated_at_130_percent - self.fgd_at_130_percent


def run(
    path: Path, *, seeds: int, policies: Sequence[str] = POLICIES, mixes: Sequence[str] | None = None
) -> list[PackingResult]:
    """Every policy on every mix that has published figures (or the named ones), `seeds` times."""
    published = read_published(path)
    nodes = read_nodes(path)
    capacity = GPU_MILLI * sum(len(node.gpu_milli) for node in nodes)
    found: list[PackingResult] = []
    for mix in mixes or sorted(published):
        pods = read_pods(path, mix)
        for policy in policies:
            rating = Rating(policy, Counter(pods))
            runs = [pack(nodes, pods, rating, FIRST_SEED + seed) for seed in range(seeds)]
            at_100, at_130 = (100 * sum(milli) / seeds / capacity for milli in zip(*runs, strict=True))
            known = published.get(mix, {})
            known_at_100, known_at_130 = known.get(PUBLISHED.get(policy, ""), (None, None))
            fgd_at_130 = known.get(PUBLISHED["fgd"], (None, None))[1]
            found.append(
                PackingResult(mix, policy, seeds, at_100, at_130, known_at_100, known_at_130, fgd_at_130)
            )
    return found


def pack(nodes: Sequence[NodeState], pods: Sequence[PodType], rating: "Rating", seed: int) -> tuple[int, int]:
    """GPU milli placed when 100 % and when 130 % of the cluster's GPUs have been asked for."""
    rng = np.random.default_rng(seed)
    capacity = GPU_MILLI * sum(len(node.gpu_milli) for node in nodes)
    arriving = arrivals(pods, capacity, rng)
    order = np.argsort(rng.permutation(len(nodes)))
    board = _Board([nodes[index] for index in order], rating, rng)
    placed = asked = 0
    at_100: int | None = None
    for pod in arriving:
        asked += pod.all_gpu_milli
        placed += pod.all_gpu_milli * board.place(pod)
        if at_100 is None and asked >= capacity:
            at_100 = placed
    return placed if at_100 is None else at_100, placed


def arrivals(pods: Sequence[PodType], capacity: int, rng: np.random.Generator) -> list[PodType]:
    """Pods in order of arrival: all of them shuffled, then as many drawn as 130 % of the capacity take."""
    arriving = [pods[index] for index in rng.permutation(len(pods))]
    asked, target = sum(pod.all_gpu_milli for pod in arriving), OVERLOAD * capacity
    while asked > target:
        asked -= arriving.pop(int(rng.integers(len(arriving)))).all_gpu_milli
    if len(arriving) < len(pods):
        return arriving
    while True:
        pod = pods[int(rng.integers(len(pods)))]
        if asked + pod.gpu_milli > target:
            return arriving
        asked += pod.all_gpu_milli
        arriving.append(pod)


class Rating:
    """How a policy likes nodes; what it has once said of a node's state is remembered, over seeds too."""

    def __init__(self, policy: str, count: Mapping[PodType, int]) -> None:
        self.policy = policy
        self.count = count
        self.rows = {pod: row for row, pod in enumerate(count)}
        self._rate = _rate(policy, count)
        self._known: dict[NodeState, tuple[Floats, Bytes]] = {}

    def of(self, node: NodeState) -> tuple[Floats, Bytes]:
        """By pod type how bad the node is (∞: it does not fit) and the GPU it would share."""
        if node not in self._known:
            self._known[node] = self._rate(node)
        return self._known[node]


class _Board:
    """What every node is worth to every type of pod, kept up to date as nodes change."""

    def __init__(self, nodes: Sequence[NodeState], rating: Rating, rng: np.random.Generator) -> None:
        self._rating = rating
        self._rng = rng if rating.policy == "random" else None
        self._nodes = list(nodes)
        self._worth = np.empty((len(rating.rows), len(nodes)))
        self._gpu = np.empty((len(rating.rows), len(nodes)), np.int8)
        for column, node in enumerate(nodes):
            self._put(column, node)
        picky = rating.policy == "gpuhub" and any(pod.models for pod in rating.count)
        self._prices = _Prices(nodes, rating.count) if picky else None

    def place(self, pod: PodType) -> bool:
        """Put the pod on the best node; of equal ones on the first."""
        row = self._rating.rows[pod]
        worth = self._worth[row]
        if self._rng:
            fitting = np.flatnonzero(worth < np.inf)
            column = int(self._rng.choice(fitting)) if len(fitting) else 0
        else:
            if self._prices and pod.gpus:
                worth = worth + pod.all_gpu_milli * self._prices.by_node
            column = int(worth.argmin())
        if worth[column] == np.inf:
            return False
        before = self._nodes[column]
        self._put(column, before.after(pod, int(self._gpu[row, column])))
        if self._prices:
            self._prices.taken(before.model, pod.all_gpu_milli)
        return True

    def _put(self, column: int, node: NodeState) -> None:
        self._nodes[column] = node
        self._worth[:, column], self._gpu[:, column] = self._rating.of(node)


class _Prices:
    """What a GPU milli of each model costs others, looked at anew now and then."""

    def __init__(self, nodes: Sequence[NodeState], count: Mapping[PodType, int]) -> None:
        self._demand: dict[frozenset[str], float] = {}
        for pod, number in count.items():
            self._demand[pod.models] = self._demand.get(pod.models, 0.0) + pod.all_gpu_milli * number
        squares = sum(pod.all_gpu_milli**2 * number for pod, number in count.items())
        self._pod_milli = squares / max(1.0, sum(self._demand.values()))
        self._free: dict[str, int] = Counter()
        for node in nodes:
            self._free[node.model] += sum(node.gpu_milli)
        models = list(self._free)
        self._models = np.array([models.index(node.model) for node in nodes])
        self._placed = 0
        self._look()

    def taken(self, model: str, milli: int) -> None:
        """A pod was placed."""
        self._free[model] -= milli
        self._placed += 1
        if self._placed % PLACED_BETWEEN_PRICES == 0:
            self._look()

    def _look(self) -> None:
        by_model = shortage(self._demand, self._pod_milli, self._free)
        self.by_node = np.array([by_model[model] for model in self._free])[self._models]


def _rate(policy: str, count: Mapping[PodType, int]) -> Rate:
    pods = list(count)
    match policy:
        case "gpuhub":
            losses = Losses(pods, {pod: float(number) for pod, number in count.items() if pod.gpus})
            return lambda node: _least(losses.changes(node))
        case "fgd":
            losses = Losses(pods, typical(count), memory=False, starved=False)
            return lambda node: _least(_fgd_score(losses.changes(node)))
        case "best-fit":
            losses = Losses(pods, typical(count), memory=False, starved=False)
            return lambda node: _best_fit(node, pods, losses.changes(node))
        case "random":
            losses = Losses(pods, typical(count), memory=False, starved=False)
            return lambda node: _least(np.where(losses.changes(node) < np.inf, 0.0, np.inf))
        case _:
            raise ValueError(f"no policy is called {policy}; there are {', '.join(POLICIES)}")


def typical(count: Mapping[PodType, int]) -> dict[PodType, float]:
    """FGD's typical pods: the most frequent that make up 95 %, memory left aside."""
    alike: Counter[PodType] = Counter()
    for pod, number in count.items():
        alike[PodType(pod.cpu_milli, 0, pod.gpus, pod.gpu_milli, pod.models)] += number
    found: dict[PodType, float] = {}
    ordered = sorted(
        alike.items(),
        key=lambda row: (
            row[1],
            row[0].cpu_milli,
            row[0].gpu_milli,
            row[0].gpus,
            "|".join(sorted(row[0].models)),
        ),
        reverse=True,
    )
    for pod, number in ordered:
        if sum(found.values()) >= TYPICAL_SHARE * alike.total():
            break
        found[pod] = float(number)
    return found


def _least(rating: Floats) -> tuple[Floats, Bytes]:
    return rating.min(1), rating.argmin(1).astype(np.int8)


def _fgd_score(changes: Floats) -> Floats:
    """The authors' whole number 0..100, here lower for better."""
    score = np.floor(100 / (1 + np.exp(np.minimum(changes, 1e5) / GPU_MILLI)))
    return np.where(changes < np.inf, -score, np.inf)


def _best_fit(node: NodeState, pods: Sequence[PodType], changes: Floats) -> tuple[Floats, Bytes]:
    """The authors' whole number again: half CPU, half GPU left, of the largest node; the fullest GPU that fits."""
    cpu = node.cpu_milli - np.array([pod.cpu_milli for pod in pods])
    milli = sum(node.gpu_milli) - np.array([pod.all_gpu_milli for pod in pods])
    score = np.floor(100 * (1 - 0.5 * cpu / 128_000 - 0.5 * milli / 8_000))
    fullest = np.where(changes < np.inf, np.array(node.gpu_milli), np.inf).argmin(1).astype(np.int8)
    return np.where(changes.min(1) < np.inf, -score, np.inf), fullest


def read_nodes(path: Path) -> list[NodeState]:
    """The trace's GPU nodes, all free, by name. Raises BadTrace where a line cannot be understood."""
    file = path / "csv/openb_node_list_gpu_node.csv.gz"
    rows = sorted(_rows(file, lambda row: (row["sn"], _node(row))), key=lambda row: row[0])
    nodes = [node for _, node in rows if node.gpu_milli]
    if not nodes:
        raise BadTrace(file.name, None, "no node has a GPU")
    return nodes


def read_pods(path: Path, mix: str) -> list[PodType]:
    """The pods of a mix, by name. Raises BadTrace where a line cannot be understood."""
    file = path / f"csv/openb_pod_list_{mix}.csv.gz"
    rows = sorted(_rows(file, lambda row: (row["name"], _pod(row))), key=lambda row: row[0])
    if not any(pod.gpus for _, pod in rows):
        raise BadTrace(file.name, None, "no pod asks for a GPU")
    return [pod for _, pod in rows]


def _node(row: Mapping[str, str]) -> NodeState:
    free = (GPU_MILLI,) * int(row["gpu"])
    return NodeState(row["model"], int(row["cpu_milli"]), int(row["memory_mib"]), free)


def _pod(row: Mapping[str, str]) -> PodType:
    cpu_milli, memory_mib, gpus = int(row["cpu_milli"]), int(row["memory_mib"]), int(row["num_gpu"])
    if not gpus:
        return PodType(cpu_milli, memory_mib, 0, 0)
    milli = int(row["gpu_milli"])
    if not (0 < milli <= GPU_MILLI if gpus == 1 else milli == GPU_MILLI):
        raise ValueError(f"{gpus} GPUs of {milli} thousandths each")
    models = (row.get("gpu_spec") or "").split("|")
    return PodType(cpu_milli, memory_mib, gpus, milli, frozenset(filter(None, models)))


def read_published(path: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """The authors' means of 10 seeds at 100 and 130 %, by mix and policy."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with (path / "published_alloc_mean_of_10_seeds.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            mix = found.setdefault(row["workload"].removeprefix("openb_pod_list_"), {})
            mix[row["policy"]] = (
                float(row["alloc_pct_at_100pct_arrived"]),
                float(row["alloc_pct_at_130pct_arrived"]),
            )
    return found


def _rows(path: Path, make: Callable[[Mapping[str, str]], Row]) -> Iterator[Row]:
    try:
        with gzip.open(path, "rt", newline="") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    yield make(row)
                except (KeyError, ValueError, TypeError) as error:
                    raise BadTrace(path.name, line, f"cannot be understood: {error}") from error
    except OSError as error:
        raise BadTrace(path.name, None, f"cannot be read: {error}") from error


def print_table(results: Sequence[PackingResult]) -> str:
    """Mixes and policies by line, ours beside what is published, at 100 and 130 % arrived."""
    lines = [f"{'mix':<12} {'policy':<9} {'100 %':>7} {'130 %':>7}   {'published':>15}   over FGD"]
    for row in results:
        ours = f"{row.allocated_at_100_percent:7.2f} {row.allocated_at_130_percent:7.2f}"
        known, margin = "-", row.margin_over_fgd
        if row.published_at_100_percent is not None:
            known = f"{row.published_at_100_percent:7.2f} {row.published_at_130_percent:7.2f}"
        over = "-" if margin is None else f"{margin:+.2f}"
        lines.append(f"{row.mix:<12} {row.policy:<9} {ours}   {known:>15}   {over:>8}")
    margins = [
        row.margin_over_fgd for row in results if row.policy == "gpuhub" and row.margin_over_fgd is not None
    ]
    if margins:
        mean = sum(margins) / len(margins)
        lines.append(
            f"gpuhub over published FGD at 130 %: worst {min(margins):+.2f}, mean {mean:+.2f} points"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m scheduler.replay.packing", description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="the openb directory: csv/, published_…csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--mixes", nargs="+", help="default: all 17 with published figures")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        results = run(options.path, seeds=options.seeds, policies=options.policies, mixes=options.mixes)
    except BadTrace as error:
        parser.error(str(error))
    text = json.dumps([asdict(row) for row in results], indent=1) if options.json else print_table(results)
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
