"""How many GPUs one organization may keep at once: its own cap, and its share of the hub's pool.

A MIG profile counts as one GPU, in the pool as in use.
"""

from collections import Counter
from collections.abc import Mapping

from scheduler.core.model import Node, Organization
from scheduler.core.policy import Policy


class Pool:
    """The GPUs of all nodes that take jobs, of every class, and the most that one of these nodes has of one class."""

    __slots__ = ("_largest", "_nodes", "gpus")

    def __init__(self) -> None:
        self.gpus = 0
        self._nodes: dict[str, tuple[int, int]] = {}  # node: (GPUs, most of one class)
        self._largest: Counter[int] = Counter()

    @property
    def largest(self) -> int:
        """The most GPUs of one class on one node."""
        return max(self._largest, default=0)

    def put(self, node: Node) -> bool:
        """Count a node as it is now. Returns whether that changed anything."""
        totals = [capacity.total for capacity in node.capacities.values()] if node.schedulable else []
        now = sum(totals), max(totals, default=0)
        return self._move(node.id, now)

    def drop(self, node_id: str) -> bool:
        """The node is no more. Returns whether that changed anything."""
        return self._move(node_id, (0, 0))

    def _move(self, node_id: str, now: tuple[int, int]) -> bool:
        before = self._nodes.get(node_id, (0, 0))
        if before == now:
            return False
        self.gpus += now[0] - before[0]
        if before[1]:
            self._largest[before[1]] -= 1
            if not self._largest[before[1]]:
                del self._largest[before[1]]
        if now[1]:
            self._largest[now[1]] += 1
            self._nodes[node_id] = now
        else:
            self._nodes.pop(node_id, None)
        return True


def cap_of(organization: Organization, policy: Policy, pool: Pool) -> int | None:
    """How many GPUs an organization may keep at once; None: no cap.

    The least of its own cap and its share of the pool, rounded up. A share is never less than the largest node has of
    one class: a job on one node can always run. The hub's share binds pools of `organization_pool_from_gpus` and more;
    while no node takes jobs at all there is nothing to share.
    """
    share = organization.pool_thousandths
    if share is None:
        small = pool.gpus < policy.organization_pool_from_gpus
        share = 1000 if small else policy.organization_pool_thousandths
    if share >= 1000 or not pool.gpus:
        return organization.max_gpus
    of_pool = max(-(-pool.gpus * share // 1000), pool.largest)
    return of_pool if organization.max_gpus is None else min(organization.max_gpus, of_pool)


class Ceiling:
    """An organization's cap while its jobs are judged, with what is in use below it.

    `claims`: its jobs for which others are being stopped, in order, with their GPUs. What is being cleared for them
    counts as in use for its other jobs: else these would take the place, and the others were stopped for nothing.
    """

    __slots__ = ("cap", "claims", "in_use", "organization_id")

    def __init__(self, organization_id: str, cap: int, in_use: int, claims: Mapping[str, int]) -> None:
        self.organization_id, self.cap, self.in_use, self.claims = organization_id, cap, in_use, claims

    @property
    def left(self) -> int:
        """How many GPUs more may be in use; negative when the cap was lowered since."""
        return self.cap - self.in_use

    def keep(self, gpus: int) -> None:
        """A claim was found good: it counts from now on."""
        self.in_use += gpus

    def numbers(self, gpus: int) -> dict[str, int | str]:
        """What stands beside ORGANIZATION_CAP for a job of so many GPUs."""
        return {
            "organization": self.organization_id,
            "cap": self.cap,
            "in_use": self.in_use,
            "needed": gpus,
        }
