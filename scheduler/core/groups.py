"""Waiting jobs that share every verdict, and those of one organization that would draw on one grant."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heapreplace

from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import Shape
from scheduler.core.model import Reason, WaitReason

Entry = tuple[int, int, str]
"""(0 for a gang that goes first, else 1; submitted_at_ms; job id): the order inside a grant."""
GroupKey = tuple[str | None, Shape, int]
"""(pinned grant, shape, walltime_ms): jobs of one organization with an equal key share every verdict."""


class Group:
    """Waiting jobs that cost the same, fit the same and draw on the same grant.

    Jobs that accept several GPU classes have a group for each: a family, whose groups share their entries and
    are judged each by itself, since neither cost nor room is the same.
    """

    __slots__ = (
        "book",
        "cost_gpu_us",
        "entries",
        "family",
        "key",
        "listed",
        "path",
        "reason",
        "shape",
        "taken",
        "told",
        "walltime_ms",
    )

    def __init__(self, key: GroupKey) -> None:
        self.key = key
        _, self.shape, self.walltime_ms = key
        assert self.shape.gpus_per_pod > 0, f"a pod without a GPU: {key}"
        self.entries: list[Entry] = []
        self.taken = 0  # how many, from the first, were picked in this cycle
        self.cost_gpu_us = 0
        self.book: GrantBook | None = None  # what it draws on; else the reason why on none
        self.path: tuple[str, ...] = ()
        self.reason: Reason | None = None
        self.listed = False  # in Knowledge.by_shape
        self.told: Reason | None = None  # the reason that every one of its jobs was told, if it is one
        self.family: tuple[Group, ...] = ()  # in order of preference; none for a single class

    @property
    def gpus(self) -> int:
        """How many GPUs one job takes."""
        return self.shape.gpus

    @property
    def rate(self) -> int:
        """What one job uses in a millisecond, in GPU-microseconds."""
        return self.cost_gpu_us // max(1, self.walltime_ms)

    @property
    def left(self) -> Sequence[Entry]:
        """The jobs that were not picked in this cycle."""
        return self.entries[self.taken :] if self.taken else self.entries

    @property
    def able(self) -> "Sequence[Group]":
        """Of its family those that could pay, in order of preference."""
        if self.family:
            return [group for group in self.family if group.book]
        return (self,) if self.book else ()

    @property
    def speaks(self) -> bool:
        """Whether its jobs are told why this group waits: of a family the first that could pay, else the first."""
        if not self.family:
            return True
        return self is next((group for group in self.family if group.book), self.family[0])

    @property
    def is_decided(self) -> bool:
        """Whether it was ever judged."""
        return self.book is not None or self.reason is not None

    def waits_for(self, code: WaitReason) -> bool:
        """Whether that is why it draws on no grant."""
        return self.reason is not None and self.reason.code is code

    def take(self) -> None:
        """Its first job was picked, and is no longer to be had by another class."""
        for group in self.family or (self,):
            group.taken += 1

    def give_back(self) -> None:
        """Nothing of it was picked."""
        for group in self.family or (self,):
            group.taken, group.told = 0, None

    def blocked(self, code: WaitReason, **numbers: int | str) -> None:
        """The jobs wait for something other than room."""
        self.book, self.path = None, ()
        if self.family:
            numbers["other_classes"] = len(self.family) - 1
        if self.reason is None or self.reason.code is not code or self.reason.numbers != numbers:
            self.reason = Reason(code, numbers)


class Leaf:
    """The jobs of one organization that would draw on one grant. After `put` and `drop`, `rank` it again."""

    __slots__ = ("_came", "_ids", "_mixed", "_since_known", "_since_ms", "book", "first", "heads", "sorted")

    def __init__(self, book: GrantBook, before: "Leaf | None") -> None:
        self.book = book
        self.sorted: list[Entry] = before.sorted if before else []
        self.heads: dict[Shape, list[tuple[Entry, Group]]] = {}  # heaps: the first job of each group
        self.first: Entry | None = None
        self._ids: list[str] | None = (
            None  # of `sorted`, but for those that came and went; None: find all anew
        )
        self._came: dict[Entry, bool] = {}  # since then: whether this job came, or went
        self._mixed = False  # whether two of its groups may share a job
        self._since_known = False
        self._since_ms: int | None = None

    def fill(self, groups: Iterable[Group]) -> None:
        """Put all that draw on this grant, where there is none yet."""
        for group in groups:
            self._mixed = self._mixed or bool(group.family)
            if group.taken < len(group.entries):
                self.heads.setdefault(group.shape, []).append((group.entries[group.taken], group))
        for heap in self.heads.values():
            heapify(heap)
        self.rank()

    def put(self, group: Group) -> None:
        """A group draws on this grant now, or its first job is another one."""
        self._mixed = self._mixed or bool(group.family)
        heap = [head for head in self.heads.get(group.shape, ()) if head[1] is not group]
        if group.taken < len(group.entries):
            heap.append((group.entries[group.taken], group))
        self._heap(group.shape, heap)

    def drop(self, group: Group) -> None:
        """None of the group's jobs draws on this grant any more."""
        self._heap(group.shape, [head for head in self.heads.get(group.shape, ()) if head[1] is not group])

    def rank(self) -> None:
        """Find its first job."""
        self.first = min((heap[0][0] for heap in self.heads.values()), default=None)
        self._since_known = False

    def come(self, entries: Iterable[Entry], came: bool = True) -> None:
        """These jobs draw on this grant now (or no longer)."""
        if self._ids is not None:
            for entry in entries:
                self._came[entry] = came
            if self._mixed or len(self._came) > 32 + len(self.sorted) // 16:
                self._ids, self._came = None, {}

    def take(self, group: Group) -> None:
        """The first job of the group was picked; it is the first of its shape, but for booked room."""
        heap = self.heads[group.shape]
        self.come((group.entries[group.taken],), False)
        group.take()
        if heap[0][1] is not group:
            self.put(group)
        elif group.taken < len(group.entries):
            heapreplace(heap, (group.entries[group.taken], group))
        else:
            heappop(heap)
            if not heap:
                del self.heads[group.shape]
        self.rank()

    @property
    def waiting_since_ms(self) -> int | None:
        """When the first of its jobs was submitted."""
        if not self._since_known:
            firsts = (group.entries[group.taken][1] for heap in self.heads.values() for _, group in heap)
            self._since_known, self._since_ms = True, min(firsts, default=None)
        return self._since_ms

    @property
    def ids(self) -> list[str]:
        """Its jobs in order."""
        if self._ids is None:
            entries = {entry for heap in self.heads.values() for _, group in heap for entry in group.left}
            # nearly sorted is soon sorted: begin with the order of the last time
            self.sorted = [entry for entry in self.sorted if entry in entries]
            if len(self.sorted) < len(entries):
                self.sorted += entries.difference(self.sorted)
                self.sorted.sort()
            self._ids = [job_id for _, _, job_id in self.sorted]
        elif self._came:
            for entry, came in self._came.items():
                at = bisect_left(self.sorted, entry)
                is_there = at < len(self.sorted) and self.sorted[at] == entry
                if came and not is_there:
                    self.sorted.insert(at, entry)
                    self._ids.insert(at, entry[2])
                elif is_there and not came:
                    del self.sorted[at], self._ids[at]
            self._came = {}
        return self._ids

    def _heap(self, shape: Shape, heap: list[tuple[Entry, Group]]) -> None:
        if heap:
            heapify(heap)
            self.heads[shape] = heap
        else:
            self.heads.pop(shape, None)
