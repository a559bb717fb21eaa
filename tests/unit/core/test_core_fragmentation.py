"""What a placement leaves unusable is scored as the formulas say: by hand, and against a slow second reading."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from scheduler.core.fragmentation import Losses, NodeState, PodType, gradient, shortage

Mix = dict[PodType, float]


def test_gradient_counts_gpus_that_larger_pods_could_not_use() -> None:
    assert gradient(8, {1: 3, 4: 1}) == [0, 0.25, 0.5, 0.75, 0, 0, 0, 0, 0]
    assert gradient(4, {4: 2.0}) == [0, 1, 2, 3, 0]
    assert gradient(4, {2: 1, 4: 1}) == [0, 1, 1, 1.5, 0]
    assert gradient(2, {1: 7}) == [0, 0, 0]
    assert gradient(3, {}) == [0, 0, 0, 0]


def test_gradient_sends_one_gpu_to_the_node_that_loses_least_by_it() -> None:
    lost = gradient(8, {1: 6, 4: 2, 8: 2})
    growth = {free: round(lost[free - 1] - lost[free], 9) for free in range(1, 9)}
    assert min(growth, key=lambda free: (growth[free], free)) == 1
    assert growth[8] == max(growth.values()), "an empty node is broken last"
    assert growth[4] > growth[5], "a whole four is kept"


def test_stranded_by_hand() -> None:
    whole, half = PodType(4000, 0, 1, 1000), PodType(1000, 0, 1, 500)
    node = NodeState("A", 5000, 0, (600, 1000))
    losses = Losses([whole, half], {whole: 1, half: 1}, memory=False, starved=False)
    # before: whole cannot use the 600, half can use all: 0.5·600. After whole: 600 free, CPU for half only: 0.5·600.
    # After half on the 600: 100 and 1000; CPU is enough: both lose the 100. On the 1000: 600, 500; whole loses all.
    assert losses.changes(node).tolist() == [[0.0, 0.0], [100 - 300.0, 550 - 300.0]]


def test_starved_by_hand() -> None:
    pod = PodType(2000, 1, 1, 1000)  # no variance: exactly two CPU per GPU
    heavy = PodType(4000, 1, 0, 0)
    node = NodeState("A", 6000, 100, (1000, 1000, 1000))
    losses = Losses([pod, heavy], {pod: 1})
    # pod: 4 CPU feed two GPUs. heavy: 2 CPU feed one of three, and the mix's pod still runs: 2000 starve.
    assert losses.changes(node)[:, 0] == pytest.approx([0.0, 2000.0], abs=1e-3)


def test_what_does_not_fit_is_infinite() -> None:
    node = NodeState("A", 1000, 10, (300, 1000))
    pods = [
        PodType(2000, 1, 1, 100),
        PodType(100, 20, 1, 100),
        PodType(100, 1, 2, 1000),
        PodType(100, 1, 1, 100, frozenset("B")),
        PodType(100, 1, 1, 400),
        PodType(100, 1, 1, 1000, frozenset("AB")),
        PodType(100, 1, 0, 0),
    ]
    fits = np.isfinite(Losses(pods, {pods[4]: 1}).changes(node))
    assert fits.any(axis=1).tolist() == [False, False, False, False, True, True, True]
    assert fits[4].tolist() == [False, True]


def test_a_node_refuses_what_does_not_fit() -> None:
    node = NodeState("A", 1000, 10, (300, 1000))
    assert node.after(PodType(400, 4, 1, 200), 0) == NodeState("A", 600, 6, (100, 1000))
    assert node.after(PodType(400, 4, 1, 1000), 0) == NodeState("A", 600, 6, (0, 300))
    for pod, gpu in ((PodType(1, 1, 1, 400), 0), (PodType(1, 1, 2, 1000), 0), (PodType(1001, 1, 0, 0), 0)):
        with pytest.raises(AssertionError):
            node.after(pod, gpu)


def test_hungry_pods_go_where_cpu_abounds_and_modest_ones_do_not() -> None:
    hungry, modest = PodType(20_000, 1, 1, 1000), PodType(4_000, 1, 1, 1000)
    losses = Losses([hungry, modest], {hungry: 1, modest: 1})
    rich, lean = NodeState("A", 100_000, 99, (1000,) * 2), NodeState("A", 90_000, 99, (1000,) * 8)
    on_rich, on_lean = losses.changes(rich)[:, 0], losses.changes(lean)[:, 0]
    assert on_rich[0] < on_lean[0]
    assert on_lean[1] < on_rich[1]


def test_shortage_by_hand() -> None:
    anyone, only_a = frozenset[str](), frozenset("A")
    even = shortage({anyone: 3, only_a: 1}, 1000, {"A": 50_000, "B": 50_000})
    assert even == pytest.approx({"A": 0.5, "B": 0.5}, abs=1e-4)
    # A: load 1.5 of 50 GPUs, 25 more than there are, spread √(75·1) GPUs. B: load 0.5, 25 fewer, spread √25.
    tight = shortage({anyone: 1, only_a: 3}, 1000, {"A": 50_000, "B": 50_000})
    assert tight["A"] == pytest.approx(0.5 * math.erfc(-25 / math.sqrt(75) / math.sqrt(2)), abs=1e-4)
    assert tight["B"] == pytest.approx(0.5 * math.erfc(25 / math.sqrt(25) / math.sqrt(2)), abs=1e-4)
    assert shortage({anyone: 1}, 1000, {"A": 0, "B": 10})["A"] == 1
    assert shortage({}, 1000, {"A": 10}) == {"A": 0}


# --- a slow second reading of the formulas: pod by pod, GPU by GPU, the normal demand integrated by steps


def slow_changes(pods: list[PodType], mix: Mix, node: NodeState) -> list[list[float]]:
    """As `Losses.changes`, from the definitions."""
    return [[_slow_change(pod, mix, node, gpu) for gpu in range(len(node.gpu_milli))] for pod in pods]


def _slow_change(pod: PodType, mix: Mix, node: NodeState, gpu: int) -> float:
    if not _runs(pod, node) or (
        pod.gpus == 1 and pod.gpu_milli > node.gpu_milli[gpu] and pod.gpu_milli < 1000
    ):
        return math.inf
    free, wanted = list(node.gpu_milli), pod.gpus
    if pod.gpus == 1 and pod.gpu_milli < 1000:
        free[gpu] -= pod.gpu_milli
        wanted = 0
    while wanted:
        free.remove(1000)
        free.append(0)
        wanted -= 1
    later = NodeState(
        node.model, node.cpu_milli - pod.cpu_milli, node.memory_mib - pod.memory_mib, tuple(free)
    )
    return _slow_loss(mix, later) - _slow_loss(mix, node)


def _runs(pod: PodType, node: NodeState) -> bool:
    enough = sum(free >= pod.gpu_milli for free in node.gpu_milli) >= pod.gpus
    room = pod.cpu_milli <= node.cpu_milli and pod.memory_mib <= node.memory_mib
    return enough and room and (pod.gpus == 0 or not pod.models or node.model in pod.models)


def _slow_loss(mix: Mix, node: NodeState) -> float:
    weight, lost = sum(mix.values()), 0.0
    for pod, popularity in mix.items():
        useless = [free for free in node.gpu_milli if free < pod.gpu_milli or not _runs(pod, node)]
        lost += popularity / weight * sum(useless)
    for have, needs in (
        (node.cpu_milli, [pod.cpu_milli for pod in mix]),
        (node.memory_mib, [pod.memory_mib for pod in mix]),
    ):
        lost += _slow_starved(mix, sum(node.gpu_milli), have, needs)
    return lost


def _slow_starved(mix: Mix, milli: int, have: int, needs: list[int]) -> float:
    if not milli:
        return 0.0
    weight = sum(mix.values())
    mean_milli = sum(pod.gpus * pod.gpu_milli * w for pod, w in mix.items()) / weight
    rate = sum(need * w for need, w in zip(needs, mix.values(), strict=True)) / weight / mean_milli
    variance = 0.0
    for (pod, w), need in zip(mix.items(), needs, strict=True):
        variance += w / weight * (need - rate * pod.gpus * pod.gpu_milli) ** 2
    spread, step = math.sqrt(milli / mean_milli * variance), 0.01
    short = 0.0
    for index in range(-800, 801):
        x = index * step
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        short += max(0.0, milli * rate + spread * x - have) * density * step
    return min(milli, short / rate)


def _worst_difference(losses: Losses, pods: list[PodType], mix: Mix, nodes: list[NodeState]) -> float:
    worst = 0.0
    for node in nodes:
        for ours, theirs in zip(losses.changes(node).tolist(), slow_changes(pods, mix, node), strict=True):
            for left, right in zip(ours, theirs, strict=True):
                if math.isinf(left) or math.isinf(right):
                    worst = max(worst, 0.0 if left == right else math.inf)
                else:
                    worst = max(worst, abs(left - right))
    return worst


def _world(seed: int) -> tuple[list[PodType], Mix, list[NodeState]]:
    rng = random.Random(seed)
    pods = [
        PodType(
            rng.choice((1000, 3000, 8000, 16000)),
            rng.choice((100, 400, 900)),
            *rng.choice(((1, 200), (1, 470), (1, 810), (1, 1000), (2, 1000), (4, 1000), (0, 0))),
            rng.choice((frozenset(), frozenset(), frozenset("A"), frozenset("AB"))),
        )
        for _ in range(12)
    ]
    pods = sorted({p if p.gpus else PodType(p.cpu_milli, p.memory_mib, 0, 0) for p in pods}, key=str)
    mix = {pod: rng.random() for pod in pods if pod.gpus}
    nodes = [
        NodeState(
            rng.choice("ABC"),
            rng.randrange(0, 60_000, 500),
            rng.randrange(0, 3000, 50),
            tuple(rng.choice((0, 150, 330, 530, 810, 1000, 1000)) for _ in range(rng.choice((1, 2, 4)))),
        )
        for _ in range(4)
    ]
    return pods, mix, nodes


@pytest.mark.parametrize("seed", range(6))
def test_the_tables_say_what_the_definitions_say(seed: int) -> None:
    pods, mix, nodes = _world(seed)
    assert _worst_difference(Losses(pods, mix), pods, mix, nodes) < 0.1


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(lambda pods, mix: Losses(pods, mix, memory=False), id="memory forgotten"),
        pytest.param(lambda pods, mix: Losses(pods, mix, starved=False), id="starving forgotten"),
        pytest.param(lambda pods, mix: Losses(pods, dict.fromkeys(mix, 1.0)), id="popularity forgotten"),
        pytest.param(
            lambda pods, mix: Losses(pods, {_bare(pod): w for pod, w in mix.items()}), id="models forgotten"
        ),
        pytest.param(
            lambda pods, mix: Losses([_bare(pod) for pod in pods], mix), id="a pod's models forgotten"
        ),
        pytest.param(
            lambda pods, mix: Losses(pods, {pod: w for pod, w in mix.items() if pod.gpus == 1}),
            id="several GPUs forgotten",
        ),
    ],
)
def test_planted_errors_are_found(plant: Callable[[list[PodType], Mix], Losses]) -> None:
    worlds = [_world(seed) for seed in range(3)]
    found = [_worst_difference(plant(pods, mix), pods, mix, nodes) for pods, mix, nodes in worlds]
    assert max(found) > 1


def _bare(pod: PodType) -> PodType:
    return PodType(pod.cpu_milli, pod.memory_mib, pod.gpus, pod.gpu_milli)
