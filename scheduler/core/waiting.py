"""The jobs that wait, per organization: those that could start, those that may not, those in cooldown."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from scheduler.core.capping import Ceiling
from scheduler.core.entitlement import Balances, Caps, GrantBook
from scheduler.core.fit import Shape, span_of
from scheduler.core.groups import Entry, Group, GroupKey, Leaf
from scheduler.core.judging import NEVER_MS, Judge, Offers
from scheduler.core.model import Job, Organization, Reason, WaitReason

NEVER_US = 1 << 100


class Queue:
    """The waiting jobs of one organization. `judge` again when anything it saw changed, or at `until_ms`."""

    __slots__ = (
        "_by_path",
        "_cooling",
        "_frozen",
        "dearest_gpu_us",
        "gang_first_gpus",
        "gpus_left",
        "groups",
        "has_claims",
        "is_capped",
        "larger_gangs_first",
        "leaves",
        "organization_id",
        "tail",
        "until_ms",
        "widest_gpus",
    )

    def __init__(
        self, organization_id: str, gang_first_gpus: int = 0, larger_gangs_first: bool = False
    ) -> None:
        self.organization_id = organization_id
        self.gang_first_gpus = gang_first_gpus
        self.larger_gangs_first = larger_gangs_first
        self.groups: dict[GroupKey, Group] = {}
        self._cooling: dict[str, tuple[Job, str]] = {}  # with whom room is kept for
        self.leaves: dict[str, Leaf] = {}
        self.tail: list[tuple[int, str]] = []  # the jobs that may not start for another reason than room
        self.until_ms = 0
        # while the only path has this left, and the caps this many, no pick changes a verdict
        self.dearest_gpu_us = NEVER_US
        self.widest_gpus = 0
        self.gpus_left: int | None = None  # below the organization's cap, when it was judged; None: no cap
        self.is_capped = False  # some job could pay and waits for that
        self.has_claims = False  # others are being stopped for some job
        self._by_path: dict[tuple[str, ...], list[Group]] | None = (
            None  # those that could pay, the dearest last
        )
        self._frozen: Reason | None = None

    def add(self, job: Job, kept: bool, now_ms: int) -> None:
        """A job waits; `kept` when room is kept for it."""
        kept_for = job.id if kept else ""
        if job.not_before_ms is not None and job.not_before_ms > now_ms:
            self._cooling[job.id] = job, kept_for
        else:
            self._enter(job, kept_for)

    def remove(self, job: Job) -> None:
        """A job waits no more (or is about to be added anew)."""
        if self._cooling.pop(job.id, None):
            return
        for kept_for in ("", job.id):
            group = self.groups.get(_key(job, kept_for))
            entry = self._entry(job)
            at = bisect_left(group.entries, entry) if group else 0
            if group and at < len(group.entries) and group.entries[at] == entry:
                del group.entries[at]
                return

    def classes_later(self, job: Job) -> Sequence[str]:
        """The classes for which only room, time or a cooldown keeps this job; its money is there."""
        if self._frozen:
            return ()
        if job.id in self._cooling:
            return job.classes
        return self.classes_kept(job)

    def find(self, job: Job) -> Sequence[Group]:
        """Of a job that was not picked in this cycle: its groups that could pay now, in order of preference."""
        for kept_for in ("", job.id):
            group = self.groups.get(_key(job, kept_for))
            if group and group.able and self._entry(job) in group.left:
                return group.able
        return ()

    def classes_kept(self, job: Job) -> Sequence[str]:
        """The classes that a job could pay now for which room is kept."""
        group = self.groups.get(_key(job, job.id))
        return [each.shape.gpu_class for each in group.able] if group and group.entries else ()

    def take(self, group: Group) -> None:
        """The group's first job was picked."""
        assert group.book, f"picked without a grant: {group.key}"
        if not group.family:
            self.leaves[group.book.grant.id].take(group)
            return
        group.take()
        for each in group.family:
            if each.book:
                self.leaves[each.book.grant.id].step(each)

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
        caps: Caps,
        step_ms: int,
        now_ms: int,
        ceiling: Ceiling | None = None,
    ) -> None:
        """Give every group its grant or its reason; books are those open to it, whatever their term."""
        self._thaw(now_ms)
        before, self.leaves = self.leaves, {}
        self._frozen = None
        self.gpus_left, self.widest_gpus, self.is_capped, self.has_claims = None, 0, False, False
        if organization is not None and organization.frozen:
            self._frozen = Reason(WaitReason.ORGANIZATION_FROZEN, {"organization": organization.id})
            for group in self.groups.values():
                group.book, group.path, group.reason = None, (), self._frozen
        else:
            offers = Offers(self.organization_id, balances, caps)
            judge = Judge(books if organization else (), rates, offers, step_ms, now_ms, ceiling)
            self._decide(judge, ceiling, before)
        for leaf in self.leaves.values():
            leaf.seal()
        self.tail = sorted(
            [e[1:] for group in self.groups.values() if not group.book and group.speaks for e in group.left]
            + [(job.submitted_at_ms, job.id) for job, _ in self._cooling.values()]
        )

    def is_bound(self, gpus_left: int) -> bool:
        """Whether a verdict may differ, or its numbers do, when so many are left below the organization's cap."""
        return self.is_capped or self.has_claims or gpus_left < self.widest_gpus

    def take_gpus(self, gpus: int) -> bool:
        """Count a pick below the organization's cap. Returns whether a job that could start may no longer."""
        if self.gpus_left is None:
            return False
        self.gpus_left -= gpus
        return self.has_claims or self.gpus_left < self.widest_gpus

    @property
    def can_narrow(self) -> bool:
        """Whether after a pick only those have to be judged anew whose path has too little left."""
        return self._by_path is not None

    def narrow(
        self,
        books: Sequence[GrantBook],
        rates: Mapping[str, int],
        balances: Balances,
        caps: Caps,
        step_ms: int,
        now_ms: int,
    ) -> list[Group]:
        """After a pick: judge the groups anew that cost more than their path has left. Returns them."""
        assert self._by_path is not None
        short = [group for path, queue in self._by_path.items() for group in _short(queue, balances.on(path))]
        if not short:
            return []
        judge = Judge(books, rates, Offers(self.organization_id, balances, caps), step_ms, now_ms)
        for group in short:
            if group.book:
                self.leaves[group.book.grant.id].drop(group)
            judge.decide(group)
            if group.book and group.taken < len(group.entries):
                self._leaf(group.book, {}).add(group)
                insort(self._by_path[group.path], group, key=_cost)
        self.until_ms = min(judge.until_ms, self.until_ms)
        return short

    def _decide(self, judge: Judge, ceiling: Ceiling | None, before: Mapping[str, Leaf]) -> None:
        """Judge every group, and note what the next picks must leave for all this to stay true."""
        claims = self._claim(judge, ceiling) if ceiling and ceiling.claims else ()
        for group in self.groups.values():
            if group.shape.kept_for not in claims:
                judge.decide(group)
            if group.book:
                self._leaf(group.book, before).put(group)
        self.until_ms = min(judge.until_ms, self.until_ms)
        able = [group for group in self.groups.values() if group.book]
        self.dearest_gpu_us, self._by_path = NEVER_US, None
        self.gpus_left = ceiling.left if ceiling else None
        self.is_capped, self.has_claims = judge.is_capped, bool(claims)
        if ceiling or judge.one_path:
            self.widest_gpus = max((group.gpus for group in able), default=0)
        if judge.only_money:
            self._by_path = defaultdict(list)
            for group in sorted(able, key=_cost):
                self._by_path[group.path].append(group)
        elif judge.one_path:
            self.dearest_gpu_us = max((group.cost_gpu_us for group in able), default=0)

    def _claim(self, judge: Judge, ceiling: Ceiling) -> Mapping[str, int]:
        """Judge the jobs first that others are being stopped for, each counting before the next. Returns them."""
        for job_id, gpus in ceiling.claims.items():
            if job_id in self._cooling:
                ceiling.keep(gpus if ceiling.left >= gpus else 0)
            own = [g for g in self.groups.values() if g.shape.kept_for == job_id and g.entries]
            for group in own:
                judge.decide(group)
            # once, whichever of the classes that it accepts it can pay
            ceiling.keep(gpus if any(group.book for group in own) else 0)
        return ceiling.claims

    def _leaf(self, book: GrantBook, before: Mapping[str, Leaf]) -> Leaf:
        leaf = self.leaves.get(book.grant.id)
        if leaf is None:
            leaf = self.leaves[book.grant.id] = Leaf(book, before.get(book.grant.id))
        return leaf

    def _thaw(self, now_ms: int) -> None:
        """Let jobs whose cooldown is over wait like the others."""
        self.until_ms = NEVER_MS
        for job, kept_for in list(self._cooling.values()):
            assert job.not_before_ms is not None
            if job.not_before_ms <= now_ms:
                del self._cooling[job.id]
                self._enter(job, kept_for)
            else:
                self.until_ms = min(self.until_ms, job.not_before_ms)

    def _enter(self, job: Job, kept_for: str) -> None:
        key = _key(job, kept_for)
        group = self.groups.get(key)
        if group is None:
            group = self._found(key)
        insort(group.entries, self._entry(job))
        for each in group.family or (group,):
            each.told = None

    def _found(self, key: GroupKey) -> Group:
        """A new group, with the others of its family."""
        pinned, shape, walltime_ms = key
        group = self.groups[key] = Group(key)
        if shape.classes:
            others = [Group((pinned, shape._replace(gpu_class=c), walltime_ms)) for c in shape.classes[1:]]
            for each in others:
                self.groups[each.key] = each
                each.entries = group.entries
            group.family = (group, *others)
            for each in others:
                each.family = group.family
        return group

    def _entry(self, job: Job) -> Entry:
        goes_first = 0 < self.gang_first_gpus <= job.gpus
        turn = 1 if not goes_first else -job.gpus if self.larger_gangs_first else 0
        return turn, job.submitted_at_ms, job.id


def _short(queue: list[Group], left_gpu_us: int) -> Iterator[Group]:
    """Take out those that cost more."""
    while queue and queue[-1].cost_gpu_us > left_gpu_us:
        yield queue.pop()


def _cost(group: Group) -> int:
    return group.cost_gpu_us


def _key(job: Job, kept_for: str) -> GroupKey:
    """Of the group for the class that it prefers."""
    classes = job.classes if job.fallbacks else ()
    size, pods, within = job.unit
    shape = Shape(job.gpu_class, size, pods, kept_for, within, span_of(job.walltime_ms), classes)
    return job.grant_id, shape, job.walltime_ms
