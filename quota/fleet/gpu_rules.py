"""When a verdict may take a GPU out of use, when a node may still take jobs, what the inventory says: pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quota.schemas.gpus import GpuPolicy, InventoryState


@dataclass(frozen=True, slots=True)
class Spot:
    """A GPU that counts for its node: where it is, and whether the node itself gives it to nobody any more."""

    gpu_uuid: str
    node: str
    gpu_class: str
    withdrawn: bool


def most_gpus(policy: GpuPolicy, fleet_gpus: int) -> int:
    """How many of the fleet's GPUs verdicts may take out of use, rounded down."""
    return fleet_gpus * policy.auto_thousandths // 1000


def out_of_use(taken: Iterable[Spot], gpus_by_node: Mapping[str, int]) -> int:
    """How many GPUs nobody can get because these were taken: of a node that is held back all of them."""
    own: Counter[str] = Counter()
    held: set[str] = set()
    for spot in taken:
        own[spot.node] += 1
        if not spot.withdrawn:
            held.add(spot.node)
    return sum(
        max(number, gpus_by_node.get(node, 0)) if node in held else number for node, number in own.items()
    )


def may_take(
    policy: GpuPolicy, taken: Iterable[Spot], wanted: Spot, gpus_by_node: Mapping[str, int], fleet_gpus: int
) -> bool:
    """Whether a verdict may take one GPU more: within the policy's part, or at no further cost, or as the first."""
    before = list(taken)
    if policy.observe_only or policy.auto_thousandths == 0:
        return False
    cost = out_of_use([*before, wanted], gpus_by_node)
    return not before or cost == out_of_use(before, gpus_by_node) or cost <= most_gpus(policy, fleet_gpus)


def must_hold_back(bad: Iterable[Spot], seen: Iterable[Spot], totals: Mapping[str, int]) -> bool:
    """Whether a node might give one of its bad GPUs to somebody.

    It does not if it withdrew all of them, and counts them no more: its totals by class are less than the GPUs seen
    there by as many as are bad. `seen` are the node's GPUs that its agent reads now.
    """
    bad_ones = list(bad)
    there: dict[str, set[str]] = defaultdict(set)
    for spot in seen:
        there[spot.gpu_class].add(spot.gpu_uuid)
    counted = Counter(spot.gpu_class for spot in bad_ones)
    return any(
        not spot.withdrawn
        or spot.gpu_uuid not in there[spot.gpu_class]
        or totals.get(spot.gpu_class, 0) > len(there[spot.gpu_class]) - counted[spot.gpu_class]
        for spot in bad_ones
    )


def inventory_state(*, registered: bool, last_seen_ms: int | None, seen_after_ms: int) -> InventoryState:
    """What the inventory says of a GPU that was last seen then."""
    seen = last_seen_ms is not None and last_seen_ms >= seen_after_ms
    if registered:
        return InventoryState.EXPECTED if seen else InventoryState.VANISHED
    return InventoryState.UNKNOWN if seen else InventoryState.GONE
