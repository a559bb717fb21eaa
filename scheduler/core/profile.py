"""What will be free when: running attempts give their GPUs back at their walltime's end, reservations take some.

For the nodes of one GPU class in one cluster. Times are business milliseconds.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from itertools import accumulate

OVERDUE_MS = 60_000
"""An attempt that should have ended is taken to end so soon."""
NEVER_MS = 1 << 62

Interval = tuple[int, int, int]
"""(from, to, GPUs)"""


class NodeProfile:
    """One node: what is free now, what comes back when."""

    __slots__ = ("_cumulated", "_ends", "_given", "_gpus", "free")

    def __init__(self) -> None:
        self.free = 0
        self._gpus: dict[str, tuple[int, int]] = {}  # attempt: (end, GPUs)
        self._ends: list[int] = []  # in order
        self._given: list[int] = []  # GPUs that each of them gives back
        self._cumulated: list[int] | None = None  # [i]: what the first i ends give back

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of it."""
        return not self._gpus and not self.free

    def put(self, attempt: str, end_ms: int, gpus: int) -> None:
        """An attempt keeps GPUs until then at the latest."""
        self.drop(attempt)
        self._gpus[attempt] = end_ms, gpus
        at = bisect_right(self._ends, end_ms)
        self._ends.insert(at, end_ms)
        self._given.insert(at, gpus)
        self._cumulated = None

    def drop(self, attempt: str) -> None:
        """It keeps none."""
        found = self._gpus.pop(attempt, None)
        if found:
            end_ms, gpus = found
            at = self._given.index(gpus, bisect_left(self._ends, end_ms))
            assert self._ends[at] == end_ms, f"{attempt} does not end at {end_ms}"
            del self._ends[at], self._given[at]
            self._cumulated = None

    def free_at(self, at_ms: int, now_ms: int) -> int:
        """What the attempts leave at a moment, reservations aside; it only grows with time."""
        cumulated = self._cumulated or self._cumulate()
        ends = self._ends
        count = bisect_right(ends, at_ms)
        if at_ms < now_ms + OVERDUE_MS and ends and ends[0] <= now_ms:
            overdue = bisect_right(self._ends, now_ms)
            return self.free + cumulated[max(count, overdue)] - cumulated[overdue]
        return self.free + cumulated[count]

    def when(self, gpus: int, now_ms: int) -> int:
        """From when on so many are free, reservations aside."""
        if gpus <= self.free:
            return now_ms
        cumulated = self._cumulated or self._cumulate()
        count = bisect_left(cumulated, gpus - self.free)
        if count == len(cumulated):
            return NEVER_MS
        if self._ends[0] > now_ms:
            return self._ends[count - 1]
        overdue = bisect_right(self._ends, now_ms)
        later = bisect_left(cumulated, gpus - self.free + cumulated[overdue])
        return min(
            max(self._ends[count - 1], now_ms + OVERDUE_MS),
            self._ends[later - 1] if later < len(cumulated) else NEVER_MS,
        )

    def slots(self, size: int) -> list[int]:
        """The moment from which on each further pod of this size fits, reservations aside; 0 is now."""
        found = [0] * (self.free // size)
        needed = (len(found) + 1) * size
        for end_ms, gpus in zip(self._ends, (self._cumulated or self._cumulate())[1:], strict=True):
            if end_ms >= NEVER_MS:
                break
            while self.free + gpus >= needed:
                found.append(end_ms)
                needed += size
        return found

    def ending_at(self, end_ms: int) -> str:
        """The attempt that gives GPUs back then; of several the first by id, "" if none does."""
        return min((attempt for attempt, (at_ms, _) in self._gpus.items() if at_ms == end_ms), default="")

    def _cumulate(self) -> list[int]:
        if self._cumulated is None:
            self._cumulated = [0, *accumulate(self._given)]
        return self._cumulated


class Taken:
    """What reservations and picks take of one node, as steps over time."""

    __slots__ = ("levels", "times")

    def __init__(self, intervals: Iterable[Interval]) -> None:
        changes: dict[int, int] = {}
        for start, end, gpus in intervals:
            changes[start] = changes.get(start, 0) + gpus
            changes[end] = changes.get(end, 0) - gpus
        self.times = sorted(changes)
        self.levels = [0, *accumulate(changes[time] for time in self.times)]
        """[i]: GPUs taken before times[i], and from times[i - 1] on."""

    def at(self, at_ms: int) -> int:
        """How many are taken at a moment."""
        return self.levels[bisect_right(self.times, at_ms)]


def least_free(node: NodeProfile, taken: Taken, from_ms: int, to_ms: int, now_ms: int) -> int:
    """The fewest GPUs that are free at any moment of [from, to), what is taken counted."""
    times, levels = taken.times, taken.levels
    at = bisect_right(times, from_ms)
    least = node.free_at(from_ms, now_ms) - levels[at]
    while at < len(times) and times[at] < to_ms:
        # between two steps what is free only grows
        least = min(least, node.free_at(times[at], now_ms) - levels[at + 1])
        at += 1
    return least


def earliest(node: NodeProfile, taken: Taken, gpus: int, span_ms: int, from_ms: int, now_ms: int) -> int:
    """From when on, not before `from_ms`, so many are free for so long; NEVER_MS if that does not come."""
    times, levels = taken.times, taken.levels
    start_ms = max(from_ms, node.when(gpus, now_ms))
    if start_ms >= NEVER_MS:
        return NEVER_MS
    at = bisect_right(times, start_ms)
    moment_ms = start_ms
    while True:
        next_ms = times[at] if at < len(times) else NEVER_MS
        needed = gpus + levels[at]
        if node.free_at(moment_ms, now_ms) < needed:
            grown_ms = node.when(needed, now_ms)
            start_ms = moment_ms = min(max(grown_ms, moment_ms), next_ms)
            if start_ms >= NEVER_MS:
                return NEVER_MS
            if start_ms == next_ms:
                at += 1
                continue
        if next_ms >= start_ms + span_ms:
            return start_ms
        moment_ms = next_ms
        at += 1


class Profile:
    """The schedulable nodes of one class in one cluster, and per pod size when each node has room for it."""

    __slots__ = ("_dirty", "_slots", "_sorted", "nodes", "version")

    def __init__(self) -> None:
        self.nodes: dict[str, NodeProfile] = {}
        self.version = 0
        self._slots: dict[int, dict[str, list[int]]] = {}  # pod size: node: moment of each pod; 0: now
        self._sorted: dict[int, list[tuple[int, str]]] = {}
        self._dirty: dict[int, set[str]] = {}

    def touch(self, node: str) -> NodeProfile:
        """A node, about to be changed."""
        self.version += 1
        for dirty in self._dirty.values():
            dirty.add(node)
        found = self.nodes.get(node)
        if found is None:
            found = self.nodes[node] = NodeProfile()
        return found

    def slots(self, size: int, open_nodes: Mapping[str, object]) -> list[tuple[int, str]]:
        """(moment, node) of every pod of this size that will fit, reservations aside, sorted; 0 is now."""
        if size not in self._sorted:
            self._slots[size], self._sorted[size], self._dirty[size] = {}, [], set(self.nodes)
        slots, ordered, dirty = self._slots[size], self._sorted[size], self._dirty[size]
        if len(dirty) * 8 > len(self.nodes):
            for name in dirty:
                slots[name] = self._of(name, size, open_nodes)
            self._sorted[size] = ordered = sorted((at, name) for name, ats in slots.items() for at in ats)
        else:
            for name in dirty:
                for at_ms in slots.pop(name, ()):
                    del ordered[bisect_left(ordered, (at_ms, name))]
                slots[name] = self._of(name, size, open_nodes)
                for at_ms in slots[name]:
                    insort(ordered, (at_ms, name))
        self._dirty[size] = set()
        return ordered

    def _of(self, name: str, size: int, open_nodes: Mapping[str, object]) -> list[int]:
        if name not in open_nodes:
            return []
        return self.nodes[name].slots(size)
