"""Opportunistic jobs and what they run on, kept out of everybody else's sight. Only `opportunistic` looks inside.

Whoever is entitled to GPUs plans as if no opportunistic job were there: their attempts' GPUs are free to him. So
his plan cannot depend on them. What that means for the GPUs that are really free is settled afterwards.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from scheduler.core.model import (
    Attempt,
    Change,
    Fund,
    GpuClass,
    Grant,
    Job,
    JobState,
    Kind,
    Node,
    Organization,
    Reason,
    Tombstone,
)
from scheduler.core.policy import Policy

Spot = tuple[str, str, str]
"""(GPU class, cluster, node)"""


class Spare:
    """The opportunistic part of what the core knows."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.funds: dict[str, Fund] = {}
        self.attempts: dict[str, Attempt] = {}  # those that keep their GPUs
        self.organizations: dict[str, Organization] = {}
        self.rates: dict[str, int] = {}
        self.told: dict[str, Reason] = {}  # by job, as last told
        self.yielding: Counter[Spot] = Counter()  # GPUs that leave when somebody is entitled to them
        self._nodes: dict[str, Node] = {}  # as they are
        self._yields: dict[str, Attempt] = {}
        self._seen: dict[str, Attempt] = {}  # attempts that everybody sees: nobody knows when they leave
        self._late_ms = Policy().cluster_unseen_ms

    def __bool__(self) -> bool:
        return bool(self.jobs or self.attempts or self.told)

    def sift(self, changes: Iterable[Change], now_ms: int) -> list[Change]:
        """Keep what is opportunistic. Returns what the others see instead: the rest, and nodes without it."""
        passed, touched = list[Change](), set[str]()
        for change in changes:
            if isinstance(change, Node):
                self._nodes[change.id] = change
                touched.add(change.id)
            elif type(change) is Grant or self._passes(change):
                passed.append(change)
        touched |= self._look(passed, now_ms)
        # a node that went and came back within these changes comes after its tombstone
        passed += (self._bare(self._nodes[id]) for id in sorted(touched) if id in self._nodes)
        return passed

    def idle(self, spot: Spot) -> int:
        """How many GPUs are really free there, whatever was decided in this cycle."""
        gpu_class, cluster, name = spot
        node = self._nodes.get(f"{cluster}/{name}")
        capacity = node.capacities.get(gpu_class) if node else None
        return max(0, capacity.total - capacity.foreign - capacity.used) if capacity else 0

    def yielding_attempts(self) -> Iterable[Attempt]:
        """Those whose GPUs count as free for whoever is entitled to them."""
        return self._yields.values()

    def _passes(self, change: Change) -> bool:
        """Take what is opportunistic; returns whether the others are to see the change as well."""
        match change:
            case Job(program_id=program_id) if program_id:
                self.jobs[change.id] = change
                return False
            case Attempt(opportunistic=True):
                self.attempts.pop(change.id, None)
                if change.capacity_held:
                    self.attempts[change.id] = change
                return False
            case Fund():
                self.funds[change.id] = change
                return False
            case Tombstone():
                return self._bury(change)
            case Organization():
                self.organizations[change.id] = change
            case GpuClass():
                self.rates[change.id] = change.rate_thousandths
            case Policy():
                self._late_ms = change.cluster_unseen_ms
        return True

    def _bury(self, tombstone: Tombstone) -> bool:
        id = tombstone.id
        match tombstone.kind:
            case Kind.JOB:
                return self.jobs.pop(id, None) is None
            case Kind.ATTEMPT:
                # who was seen goes out of sight below
                return self.attempts.pop(id, None) is None and id not in self._seen
            case Kind.GRANT:
                return self.funds.pop(id, None) is None
            case Kind.NODE:
                self._nodes.pop(id, None)
            case Kind.ORGANIZATION:
                self.organizations.pop(id, None)
            case Kind.GPU_CLASS:
                self.rates.pop(id, None)
        return True

    def _look(self, passed: list[Change], now_ms: int) -> set[str]:
        """Who yields now and whom everybody sees instead. Returns the nodes on which that changed."""
        if not self.attempts and not self._yields and not self._seen:
            return set()
        before, self._yields = self._yields, {}
        seen = dict[str, Attempt]()
        for id, attempt in self.attempts.items():
            if self._leaves(attempt, now_ms):
                self._yields[id] = attempt
            else:
                seen[id] = attempt
                if self._seen.get(id) is not attempt:
                    stop = attempt.stop and replace(attempt.stop, for_job=None)
                    # paid for by no organization: it counts below nobody's cap
                    passed.append(replace(attempt, stop=stop, organization_id=""))
        passed += (Tombstone(Kind.ATTEMPT, id) for id in sorted(self._seen.keys() - seen.keys()))
        self._seen = seen
        differ = [
            each
            for id in before.keys() | self._yields.keys()
            if before.get(id) is not self._yields.get(id)
            for each in (before.get(id), self._yields.get(id))
        ]
        if differ:
            self.yielding = Counter()
            for attempt in self._yields.values():
                for pod in attempt.pods:
                    self.yielding[pod.gpu_class, attempt.cluster, pod.node] += pod.count
        return {f"{each.cluster}/{pod.node}" for each in differ if each for pod in each.pods}

    def _leaves(self, attempt: Attempt, now_ms: int) -> bool:
        """Whether it is gone soon once it is asked. One that is lost, or should be gone by now, is no such thing."""
        match attempt.state:
            case JobState.STARTING | JobState.RUNNING:
                return True
            case JobState.STOPPING:
                return attempt.ends_at_ms is None or now_ms <= attempt.ends_at_ms + self._late_ms
        return False

    def _bare(self, node: Node) -> Node:
        """The node without the GPUs that leave when they are asked for."""
        if not self._yields:
            return node
        return replace(
            node,
            capacities={
                gpu_class: replace(
                    capacity,
                    used=max(0, capacity.used - self.yielding[gpu_class, node.cluster, node.node]),
                )
                for gpu_class, capacity in node.capacities.items()
            },
        )


def seen_by_others(objects: Iterable[Change], now_ms: int) -> list[Change]:
    """A whole snapshot without anything opportunistic, as everybody else plans with it.

    What is in everybody's way all the same stands there as ended and keeps its GPUs: its job is nobody's matter.
    """
    return [
        replace(each, state=JobState.ENDED, stop=None, ends_at_ms=None)
        if isinstance(each, Attempt) and each.opportunistic
        else each
        for each in Spare().sift(objects, now_ms)
    ]
