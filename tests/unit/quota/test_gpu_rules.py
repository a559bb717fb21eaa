"""What verdicts may take, and when a node may still take jobs: against a checker that counts one GPU at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.fleet.gpu_rules import Spot, inventory_state, may_take, must_hold_back
from quota.schemas.gpus import GpuPolicy, InventoryState

May = Callable[[GpuPolicy, list[Spot], Spot, dict[str, int], int], bool]

_SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)
_PART = st.sampled_from([0, 1, 50, 100, 250, 1000])


def _fleet(sizes: list[int]) -> list[tuple[str, str]]:
    return [(f"GPU-{node}-{place}", f"n{node}") for node, size in enumerate(sizes) for place in range(size)]


def _nobody_gets(fleet: list[tuple[str, str]], taken: list[Spot]) -> set[str]:
    """The GPUs that no job can get."""
    return {
        gpu
        for gpu, node in fleet
        if any(spot.gpu_uuid == gpu or (spot.node == node and not spot.withdrawn) for spot in taken)
    }


def _broken(judge: May, sizes: list[int], part: int, order: list[tuple[int, bool]]) -> list[str]:
    """Let verdicts come in this order; what is wrong with what was taken."""
    fleet = _fleet(sizes)
    by_node = {f"n{node}": size for node, size in enumerate(sizes)}
    policy = GpuPolicy(auto_thousandths=part)
    taken: list[Spot] = []
    wrong = []
    for number, withdrawn in order:
        gpu, node = fleet[number % len(fleet)]
        if any(spot.gpu_uuid == gpu for spot in taken):
            continue
        wanted = Spot(gpu, node, "h100", withdrawn)
        before = _nobody_gets(fleet, taken)
        after = _nobody_gets(fleet, [*taken, wanted])
        fits = 1000 * len(after) <= part * len(fleet)
        should = part > 0 and (not taken or after == before or fits)
        if judge(policy, taken, wanted, by_node, len(fleet)) != should:
            wrong.append(f"{gpu} after {len(taken)}")
        if should:
            taken.append(wanted)
    first = _nobody_gets(fleet, taken[:1])
    lost = _nobody_gets(fleet, taken)
    if len(lost) > max(len(first), part * len(fleet) // 1000, 0) and not lost <= _closed(fleet, taken):
        wrong.append("more than the part")
    return wrong


def _closed(fleet: list[tuple[str, str]], taken: list[Spot]) -> set[str]:
    """All GPUs of the nodes that the first one closed."""
    return {gpu for gpu, node in fleet if taken and node == taken[0].node}


@given(_SIZES, _PART, st.lists(st.tuples(st.integers(0, 80), st.booleans()), max_size=30))
@settings(max_examples=300, deadline=None)
def test_verdicts_never_take_more_than_the_breaker_lets_them(
    sizes: list[int], part: int, order: list[tuple[int, bool]]
) -> None:
    assert _broken(may_take, sizes, part, order) == []  # type: ignore[arg-type]


def _counts_gpus_only(
    policy: GpuPolicy, taken: list[Spot], wanted: Spot, by_node: dict[str, int], fleet: int
) -> bool:
    return policy.auto_thousandths > 0 and (
        not taken or (len(taken) + 1) * 1000 <= policy.auto_thousandths * fleet
    )


def _lets_everything(*_: object) -> bool:
    return True


@pytest.mark.parametrize("planted", [_counts_gpus_only, _lets_everything])
def test_the_checker_finds_planted_errors(planted: May) -> None:
    order = [(0, False), (9, False), (18, False)]
    assert _broken(may_take, [8, 8, 8, 8], 100, order) == []  # type: ignore[arg-type]
    assert _broken(planted, [8, 8, 8, 8], 100, order) != []


def test_observing_only_lets_nothing_pass() -> None:
    assert not may_take(GpuPolicy(observe_only=True), [], Spot("a", "n", "h100", False), {"n": 8}, 8)


def a_spot(name: str, gpu_class: str = "h100", *, withdrawn: bool = False) -> Spot:
    return Spot(name, "n0", gpu_class, withdrawn)


@pytest.mark.parametrize(
    ("bad", "seen", "totals", "held"),
    [
        ([], ["a", "b"], {"h100": 2}, False),
        ([a_spot("a")], ["a", "b"], {"h100": 1}, True),
        ([a_spot("a", withdrawn=True)], ["a", "b"], {"h100": 2}, True),
        ([a_spot("a", withdrawn=True)], ["a", "b"], {"h100": 1}, False),
        ([a_spot("a", withdrawn=True)], ["a", "b"], {}, False),
        ([a_spot("a", withdrawn=True)], ["b"], {"h100": 1}, True),
        ([a_spot("a", withdrawn=True), a_spot("b")], ["a", "b", "c"], {"h100": 1}, True),
        ([a_spot("a", withdrawn=True), a_spot("b", withdrawn=True)], ["a", "b", "c"], {"h100": 2}, True),
        ([a_spot("a", withdrawn=True), a_spot("b", withdrawn=True)], ["a", "b", "c"], {"h100": 1}, False),
        ([a_spot("a", "a100", withdrawn=True)], ["b"], {"h100": 1}, True),
    ],
)
def test_a_node_is_held_back_unless_it_withdrew_all_its_bad_gpus(
    bad: list[Spot], seen: list[str], totals: dict[str, int], held: bool
) -> None:
    assert must_hold_back(bad, [a_spot(name) for name in seen], totals) is held


@pytest.mark.parametrize(
    ("registered", "last_seen_ms", "state"),
    [
        (True, 100, InventoryState.EXPECTED),
        (True, 99, InventoryState.VANISHED),
        (True, None, InventoryState.VANISHED),
        (False, 100, InventoryState.UNKNOWN),
        (False, 99, InventoryState.GONE),
    ],
)
def test_what_the_inventory_says(registered: bool, last_seen_ms: int | None, state: InventoryState) -> None:
    assert inventory_state(registered=registered, last_seen_ms=last_seen_ms, seen_after_ms=100) is state
