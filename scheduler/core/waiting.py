"""The jobs that wait, per organization: which grant each would draw on, or why it may draw on none."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from scheduler.core.entitlement import Balances, GrantBook
from scheduler.core.fit import Shape
from scheduler.core.model import Job, Organization, Reason, WaitReason

NEVER_MS = 1 << 62
NEVER_US = 1 << 100
Entry = tuple[int, str]
"""(submitted_at_ms, job id): the order inside a grant."""
GroupKey = tuple[str | None, Shape, int]
"""(pinned grant, shape, walltime_ms): jobs of one organization with an equal key share every verdict."""


class Group:
    """Waiting jobs that cost the same, fit the same and draw on the same grant."""

    __slots__ = (
        "book",
        "cost_gpu_us",
        "entries",
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

    @property
    def left(self) -> Sequence[Entry]:
        """The jobs that were not picked in this cycle."""
        return self.entries[self.taken :] if self.taken else self.entries

    def blocked(self, code: WaitReason, **numbers: int | str) -> None:
        """The jobs wait for something other than room."""
        self.book, self.path = None, ()
        if self.reason is None or self.reason.code is not code or self.reason.numbers != numbers:
            self.reason = Reason(code, numbers)


class Leaf:
    """The jobs of one organization that would draw on one grant."""

    __slots__ = ("_ids", "book", "first", "heads", "sorted")

    def __init__(self, book: GrantBook, before: "Leaf | None") -> None:
        self.book = book
        self.sorted: list[Entry] = before.sorted if before else []
        self.heads: dict[Shape, list[tuple[Entry, Group]]] = {}  # heaps: the first job of each group
        self.first: Entry | None = None
        self._ids: list[str] | None = None

    def put(self, group: Group) -> None:
        """Add a group; `seal` when all are there."""
        if group.taken < len(group.entries):
            self.heads.setdefault(group.shape, []).append((group.entries[group.taken], group))

    def seal(self) -> None:
        """Sort what was put."""
        for heap in self.heads.values():
            heapify(heap)
        self.first = min((heap[0][0] for heap in self.heads.values()), default=None)

    def take(self, group: Group) -> None:
        """The first job of the group, which is the first of its shape, was picked."""
        heap = self.heads[group.shape]
        assert heap[0][1] is group
        group.taken += 1
        if group.taken < len(group.entries):
            heapreplace(heap, (group.entries[group.taken], group))
        else:
            heappop(heap)
            if not heap:
                del self.heads[group.shape]
        self.first = min((heap[0][0] for heap in self.heads.values()), default=None)
        self._ids = None

    @property
    def ids(self) -> list[str]:
        """Its jobs in order of submission, then id."""
        if self._ids is None:
            entries = {entry for heap in self.heads.values() for _, group in heap for entry in group.left}
            # nearly sorted is soon sorted: begin with the order of the last time
            self.sorted = [entry for entry in self.sorted if entry in entries]
            if len(self.sorted) < len(entries):
                self.sorted += entries.difference(self.sorted)
                self.sorted.sort()
            self._ids = [job_id for _, job_id in self.sorted]
        return self._ids


class Offer(NamedTuple):
    """What a grant can give now: the room on each path."""

    book: GrantBook
    rooms: list[int]
    remainder: int


class Queue:
    """The waiting jobs of one organization. `judge` again when anything it saw changed, or at `until_ms`."""

    __slots__ = ("_cooling", "_frozen", "dearest_gpu_us", "groups", "leaves", "tail", "until_ms")

    def __init__(self) -> None:
        self.groups: dict[GroupKey, Group] = {}
        self._cooling: dict[str, tuple[Job, GroupKey]] = {}
        self.leaves: dict[str, Leaf] = {}
        self.tail: list[Entry] = []  # the jobs that may not start for another reason than room
        self.until_ms = 0
        self.dearest_gpu_us = NEVER_US  # while the only path has this left, no pick changes a verdict
        self._frozen: Reason | None = None

    def add(self, job: Job, kept: bool, now_ms: int) -> None:
        """A job waits; `kept` when room is being freed for it."""
        shape = Shape(job.gpu_class, job.gpus_per_pod, job.pods, job.id if kept else "")
        key = (job.grant_id, shape, job.walltime_ms)
        if job.not_before_ms is not None and job.not_before_ms > now_ms:
            self._cooling[job.id] = job, key
        else:
            self._enter(job, key)

    def remove(self, job: Job) -> None:
        """A job waits no more (or is about to be added anew)."""
        if self._cooling.pop(job.id, None):
            return
        for kept_for in ("", job.id):
            key = (job.grant_id, Shape(job.gpu_class, job.gpus_per_pod, job.pods, kept_for), job.walltime_ms)
            group = self.groups.get(key)
            entry = (job.submitted_at_ms, job.id)
            at = bisect_left(group.entries, entry) if group else 0
            if group and at < len(group.entries) and group.entries[at] == entry:
                del group.entries[at]
                return

    def may_start_later(self, job: Job) -> bool:
        """Whether only room, time or a cooldown keeps this job; its money is there."""
        if self._frozen:
            return False
        shape = Shape(job.gpu_class, job.gpus_per_pod, job.pods, job.id)
        group = self.groups.get((job.grant_id, shape, job.walltime_ms))
        return job.id in self._cooling or (group is not None and group.book is not None)

    def cooling(self) -> Iterator[tuple[str, Reason]]:
        """Why each job in cooldown waits."""
        for job, _ in self._cooling.values():
            yield job.id, self._frozen or Reason(WaitReason.COOLDOWN, {"until_ms": job.not_before_ms or 0})

    def judge(
        self,
        organization: Organization | None,
        books: Sequence[GrantBook],
        rates: Mapping[str, int],
        balances: Balances,
        step_ms: int,
        now_ms: int,
    ) -> None:
        """Give every group its grant or its reason; books are the organization's, whatever their term."""
        self._thaw(now_ms)
        before, self.leaves = self.leaves, {}
        self._frozen = None
        if organization is not None and organization.frozen:
            self._frozen = Reason(WaitReason.ORGANIZATION_FROZEN, {"organization": organization.id})
            for group in self.groups.values():
                group.book, group.path, group.reason = None, (), self._frozen
        else:
            judge = _Judge(books if organization else (), rates, balances, step_ms, now_ms)
            for group in self.groups.values():
                judge.decide(group)
                if group.book:
                    self._leaf(group.book, before).put(group)
            self.until_ms = min(judge.until_ms, self.until_ms)
            self.dearest_gpu_us = NEVER_US
            if judge.one_path:
                self.dearest_gpu_us = max((g.cost_gpu_us for g in self.groups.values() if g.book), default=0)
        for leaf in self.leaves.values():
            leaf.seal()
        self.tail = sorted(
            [e for group in self.groups.values() if not group.book for e in group.left]
            + [(job.submitted_at_ms, job.id) for job, _ in self._cooling.values()]
        )

    def _leaf(self, book: GrantBook, before: Mapping[str, Leaf]) -> Leaf:
        leaf = self.leaves.get(book.grant.id)
        if leaf is None:
            leaf = self.leaves[book.grant.id] = Leaf(book, before.get(book.grant.id))
        return leaf

    def _thaw(self, now_ms: int) -> None:
        """Let jobs whose cooldown is over wait like the others."""
        self.until_ms = NEVER_MS
        for job, key in list(self._cooling.values()):
            assert job.not_before_ms is not None
            if job.not_before_ms <= now_ms:
                del self._cooling[job.id]
                self._enter(job, key)
            else:
                self.until_ms = min(self.until_ms, job.not_before_ms)

    def _enter(self, job: Job, key: GroupKey) -> None:
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(key)
        insort(group.entries, (job.submitted_at_ms, job.id))
        group.told = None


class _Judge:
    """Decides groups of one organization against its grants as they are now."""

    def __init__(
        self,
        books: Sequence[GrantBook],
        rates: Mapping[str, int],
        balances: Balances,
        step_ms: int,
        now_ms: int,
    ) -> None:
        self.rates, self.step_ms, self.now_ms = rates, step_ms, now_ms
        self.until_ms = NEVER_MS
        self.running: list[Offer] = []
        self.coming: list[GrantBook] = []
        for book in sorted(books, key=lambda b: (b.grant.starts_at_ms, b.grant.id)):
            if book.runs(now_ms):
                rooms = [balances.on(path) for path in book.paths]
                self.running.append(Offer(book, rooms, max(rooms, default=0)))
                self._look_again(book.grant.ends_at_ms)
            elif now_ms < book.grant.starts_at_ms:
                self.coming.append(book)
                self._look_again(book.grant.starts_at_ms)
        # earliest end first, then the smallest remainder (facts: an hour that ends sooner is worth less)
        self.running.sort(key=lambda o: (o.book.grant.ends_at_ms, o.remainder, o.book.grant.id))
        self.one_path = len(self.running) == 1 and len(self.running[0].rooms) == 1

    def decide(self, group: Group) -> None:
        """Give the group the first grant and path that suffice, or the reason nearest to sufficing."""
        pinned, shape, walltime_ms = group.key
        rate = self.rates.get(shape.gpu_class)
        if rate is None:
            group.blocked(WaitReason.NODES_UNAVAILABLE, gpu_class=shape.gpu_class, gpus=0)
            return
        cost = group.cost_gpu_us = walltime_ms * shape.gpus_per_pod * shape.pods * rate
        in_time: Offer | None = None
        for offer in self.running:
            if pinned is not None and offer.book.grant.id != pinned:
                continue
            latest_ms = offer.book.grant.ends_at_ms - walltime_ms
            if self.now_ms > latest_ms:
                continue
            self._look_again(latest_ms + 1)
            if offer.remainder >= cost:
                group.book, group.reason = offer.book, None
                group.path = next(p for p, r in zip(offer.book.paths, offer.rooms, strict=True) if r >= cost)
                return
            if in_time is None or offer.remainder > in_time.remainder:
                in_time = offer
        if in_time:
            group.blocked(
                WaitReason.GRANT_EXHAUSTED,
                grant=in_time.book.grant.id,
                needed_gpu_us=cost,
                left_gpu_us=max(0, in_time.remainder),
            )
        else:
            self._out_of_time(group, pinned)

    def _out_of_time(self, group: Group, pinned: str | None) -> None:
        """No running grant lasts long enough: name the one that lasts longest, else the first to come."""
        running = [o.book.grant for o in self.running if pinned in (None, o.book.grant.id)]
        coming = [b.grant for b in self.coming if pinned in (None, b.grant.id)]
        if running:
            grant = running[-1]
            left_ms = grant.ends_at_ms - self.now_ms
            self._look_again(self.now_ms + left_ms % self.step_ms + 1)
            group.blocked(
                WaitReason.GRANT_ENDS_FIRST,
                grant=grant.id,
                ends_at_ms=grant.ends_at_ms,
                walltime_ms=left_ms - left_ms % self.step_ms,
            )
        elif coming:
            group.blocked(
                WaitReason.GRANT_NOT_STARTED, grant=coming[0].id, starts_at_ms=coming[0].starts_at_ms
            )
        else:
            group.blocked(WaitReason.NO_GRANT, grant=pinned or "")

    def _look_again(self, at_ms: int) -> None:
        if at_ms > self.now_ms:
            self.until_ms = min(self.until_ms, at_ms)
