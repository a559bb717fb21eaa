"""The jobs that wait, per organization: those that could start, those that may not, those in cooldown."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from scheduler.core.capping import Ceiling
from scheduler.core.entitlement import Balances, Caps, GrantBook
from scheduler.core.fit import Shape, span_of
from scheduler.core.groups import Entry, Group, GroupKey, Leaf
from scheduler.core.judging import NEVER_MS, Basis, Judge, Offers
from scheduler.core.model import Job, Organization, Reason, WaitReason

NEVER_US = 1 << 100


class Queue:
    """The waiting jobs of one organization. `judge` again when anything it saw changed, or at `until_ms`."""

    __slots__ = (
        "_basis",
        "_blocked",
        "_cooling",
        "_dearest_on",
        "_decided_until_ms",
        "_frozen",
        "_moved",
        "_tail_moved",
        "can_narrow",
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
        "untold",
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
        self.widest_gpus = 0  # at least what the widest of the groups takes that could pay
        self.gpus_left: int | None = None  # below the organization's cap, when it was judged; None: no cap
        self.is_capped = False  # some job could pay and waits for that
        self.has_claims = False  # others are being stopped for some job
        self._basis: Basis | None = None  # of the verdicts; None: decide all anew
        self._decided_until_ms = NEVER_MS  # while the basis is the same
        self._moved: dict[Group, None] = {}  # an ordered set: who got or lost jobs since they were ranked
        self._blocked: dict[Group, None] = {}  # those that draw on no grant
        self.untold: dict[Group, None] = {}  # whose jobs, or why they wait, changed since everybody was told
        self._tail_moved = False
        self.can_narrow = False  # after a pick only those are judged anew whose path has too little left
        self._dearest_on: dict[tuple[str, ...], int] = {}  # by path: at least what the dearest group costs
        self._frozen: Reason | None = None

    def add(self, job: Job, kept: bool, now_ms: int) -> None:
        """A job waits; `kept` when room is kept for it."""
        kept_for = job.id if kept else ""
        if job.not_before_ms is not None and job.not_before_ms > now_ms:
            self._cooling[job.id] = job, kept_for
            self._tail_moved = True
        else:
            self._enter(job, kept_for)

    def remove(self, job: Job) -> None:
        """A job waits no more (or is about to be added anew)."""
        if self._cooling.pop(job.id, None):
            self._tail_moved = True
            return
        for kept_for in ("", job.id):
            group = self.groups.get(_key(job, kept_for))
            entry = self._entry(job)
            if group and _holds(group.entries, entry):
                del group.entries[bisect_left(group.entries, entry)]
                self._come(group, (entry,), False)
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
            if group and group.able and _holds(group.entries, self._entry(job), group.taken):
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
            self._moved[group] = None
            self.leaves[group.book.grant.id].take(group)
            return
        self._come(group, (group.entries[group.taken],), False)
        group.take()
        for each in group.family:
            if each.book:
                leaf = self.leaves[each.book.grant.id]
                leaf.put(each)
                leaf.rank()

    def give_back(self, group: Group) -> None:
        """Nothing of the group was picked."""
        self._come(group, group.entries[: group.taken])
        group.give_back()

    def sweep(self) -> list[Group]:
        """Forget the groups that have no job any more. Returns them."""
        empty = [group for group in self._moved if not group.entries]
        for group in empty:
            del self.groups[group.key]
            if group.book:
                leaf = self.leaves[group.book.grant.id]
                leaf.drop(group)
                leaf.rank()
            self._blocked.pop(group, None)
            self.untold.pop(group, None)
            del self._moved[group]
        return empty

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
    ) -> Collection[Group]:
        """Give every group its grant or its reason; books are those open to it, whatever their term.

        Returns those whose verdict may be another one than before.
        """
        self._thaw(now_ms)
        self.gpus_left = ceiling.left if ceiling else None
        if organization is not None and organization.frozen:
            self._freeze(organization)
            return self._placed(self.groups.values())
        self._frozen = None
        offers = Offers(self.organization_id, balances, caps)
        judge = Judge(books if organization else (), rates, offers, step_ms, now_ms, ceiling)
        basis = judge.basis()
        due = self._due(basis, now_ms)
        self._basis = basis
        if due is None:
            self._decide(judge, ceiling)
            return self._placed(self.groups.values())
        self._decide_some(judge, due)
        return self._placed(due)

    def settle(self, balances: Balances) -> bool:
        """When only jobs and money came and went: give the jobs their places, if that needs no verdict.

        Returns whether it was so; else `judge`.
        """
        before = self._basis
        if before is None or self._tail_moved or self.gpus_left is not None:
            return False
        if not all([group.entries and group.is_decided for group in self._moved]):
            return False
        basis = before.brought_to(balances)
        # of grants that end together the one with less left comes first
        if basis.accounts != before.accounts and (not self.can_narrow or self._due_by_money(basis, before)):
            return False
        self._basis = basis
        self._rank_moved()
        self._moved = {}
        return True

    def is_bound(self, gpus_left: int) -> bool:
        """Whether a verdict may differ, or its numbers do, when so many are left below the organization's cap."""
        return self.is_capped or self.has_claims or gpus_left < self.widest_gpus

    def take_gpus(self, gpus: int) -> bool:
        """Count a pick below the organization's cap. Returns whether a job that could start may no longer."""
        if self.gpus_left is None:
            return False
        self.gpus_left -= gpus
        return self.has_claims or self.gpus_left < self.widest_gpus

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
        assert self.can_narrow
        low = {path: left for path, cost in self._dearest_on.items() if (left := balances.on(path)) < cost}
        if not low:
            return []
        on_low = [group for group in self.groups.values() if group.book and group.path in low]
        short = [group for group in on_low if group.cost_gpu_us > low[group.path]]
        for path, left in low.items():
            self._dearest_on[path] = left  # nobody on it costs more from now on
        judge = Judge(books, rates, Offers(self.organization_id, balances, caps), step_ms, now_ms)
        self._decide_each(judge, short)
        basis = judge.basis()
        if basis and self._basis:
            # what has gone from accounts, and below the cap, is to be told as well
            self._basis = basis._replace(accounts=(), below_cap=self._basis.below_cap)
        return short

    def _due(self, basis: Basis | None, now_ms: int) -> dict[Group, None] | None:
        """The groups on which the verdict may be another one now; None for all of them."""
        before = self._basis
        if basis is None or before is None or now_ms >= self._decided_until_ms or basis[:2] != before[:2]:
            return None
        due = dict.fromkeys([group for group in self._moved if not group.is_decided])
        due |= self._due_by_money(basis, before)
        if basis.below_cap != before.below_cap:
            if basis.below_cap is None or before.below_cap is None:
                return None
            low, high = sorted(cap - in_use for cap, in_use in (basis.below_cap, before.below_cap))
            if low < self.widest_gpus:
                due |= dict.fromkeys([group for group in self.groups.values() if low < group.gpus <= high])
            due |= self._blocked_by(WaitReason.ORGANIZATION_CAP)
        return due

    def _due_by_money(self, basis: Basis, before: Basis) -> dict[Group, None]:
        if basis.accounts == before.accounts:
            return {}
        due = self._blocked_by(WaitReason.GRANT_EXHAUSTED)
        for low, high in basis.moved(before):
            groups = self.groups.values()
            due |= dict.fromkeys([group for group in groups if low < group.cost_gpu_us <= high])
        return due

    def _blocked_by(self, code: WaitReason) -> dict[Group, None]:
        return dict.fromkeys([group for group in self._blocked if group.waits_for(code)])

    def _freeze(self, organization: Organization) -> None:
        """No job may start whatever it costs."""
        self._tail_moved = True
        self._frozen = Reason(WaitReason.ORGANIZATION_FROZEN, {"organization": organization.id})
        self.leaves, self.can_narrow, self._basis = {}, False, None
        self.is_capped = self.has_claims = False
        self._blocked, self.untold = dict.fromkeys(self.groups.values()), dict.fromkeys(self.groups.values())
        for group in self._blocked:
            group.book, group.path, group.reason = None, (), self._frozen

    def _decide(self, judge: Judge, ceiling: Ceiling | None) -> None:
        """Judge every group, and note what the next picks must leave for all this to stay true."""
        self._tail_moved = True
        claims = self._claim(judge, ceiling) if ceiling and ceiling.claims else ()
        on_grant = defaultdict[GrantBook, list[Group]](list)
        for group in self.groups.values():
            if group.shape.kept_for not in claims:
                judge.decide(group)
            if group.book:
                on_grant[group.book].append(group)
        self._blocked = dict.fromkeys([group for group in self.groups.values() if not group.book])
        self.untold = dict.fromkeys(self.groups.values())
        before, self.leaves = self.leaves, {}
        for book, groups in on_grant.items():
            leaf = self.leaves[book.grant.id] = Leaf(book, before.get(book.grant.id))
            leaf.fill(groups)
        self._decided_until_ms = judge.until_ms
        self.until_ms = min(judge.until_ms, self.until_ms)
        able = [group for groups in on_grant.values() for group in groups]
        self.dearest_gpu_us = NEVER_US
        self.gpus_left = ceiling.left if ceiling else None  # without what is claimed
        self.is_capped, self.has_claims = judge.is_capped, bool(claims)
        self.widest_gpus = max([group.gpus for group in able], default=0)
        self.can_narrow, self._dearest_on = judge.only_money, {}
        if judge.only_money:
            for group in able:
                self._note_cost(group)
        elif judge.one_path:
            self.dearest_gpu_us = max((group.cost_gpu_us for group in able), default=0)

    def _decide_some(self, judge: Judge, due: Iterable[Group]) -> None:
        """Judge these, and rank those again that got or lost jobs."""
        self._decide_each(judge, due)
        self.is_capped = bool(self._blocked_by(WaitReason.ORGANIZATION_CAP))
        self._rank_moved()

    def _rank_moved(self) -> None:
        """Rank those again that got or lost jobs."""
        ranked = set[Leaf]()
        for group in self._moved:
            if group.book:
                leaf = self.leaves[group.book.grant.id]
                leaf.put(group)
                ranked.add(leaf)
        for leaf in ranked:
            leaf.rank()

    def _decide_each(self, judge: Judge, groups: Iterable[Group]) -> None:
        """Judge these, and move those that draw on another grant now."""
        ranked = set[Leaf]()
        for group in groups:
            before = group.book
            judge.decide(group)
            self.untold[group] = None
            if group.book is not before:
                self._tail_moved = True
                self.untold |= dict.fromkeys(group.family)  # another of them may speak now
                if before:
                    leaf = self.leaves[before.grant.id]
                    leaf.drop(group)
                    leaf.come(group.left, False)
                    ranked.add(leaf)
                if group.book:
                    leaf = self._leaf(group.book)
                    leaf.put(group)
                    leaf.come(group.left)
                    ranked.add(leaf)
            if group.book:
                self._blocked.pop(group, None)
                self._note_cost(group)
            else:
                self._blocked[group] = None
        for leaf in ranked:
            leaf.rank()
        self._decided_until_ms = min(judge.until_ms, self._decided_until_ms)
        self.until_ms = min(self.until_ms, self._decided_until_ms)

    def _note_cost(self, group: Group) -> None:
        self.widest_gpus = max(group.gpus, self.widest_gpus)
        self._dearest_on[group.path] = max(group.cost_gpu_us, self._dearest_on.get(group.path, 0))

    def _placed(self, decided: Collection[Group]) -> Collection[Group]:
        """Every group has its place; what may not start stands in order of submission."""
        self._moved = {}
        if self._tail_moved:
            self._tail_moved = False
            self.tail = sorted(
                [entry[1:] for group in self._blocked if group.speaks for entry in group.left]
                + [(job.submitted_at_ms, job.id) for job, _ in self._cooling.values()]
            )
        return decided

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

    def _leaf(self, book: GrantBook) -> Leaf:
        leaf = self.leaves.get(book.grant.id)
        if leaf is None:
            leaf = self.leaves[book.grant.id] = Leaf(book, None)
        return leaf

    def _come(self, group: Group, entries: Sequence[Entry], came: bool = True) -> None:
        """The group has these jobs now (or no longer)."""
        for each in group.family or (group,):
            self._moved[each] = self.untold[each] = None
            if each.book:
                self.leaves[each.book.grant.id].come(entries, came)
            else:
                self._tail_moved = True

    def _thaw(self, now_ms: int) -> None:
        """Let jobs whose cooldown is over wait like the others."""
        self.until_ms = NEVER_MS
        for job, kept_for in list(self._cooling.values()):
            assert job.not_before_ms is not None
            if job.not_before_ms <= now_ms:
                del self._cooling[job.id]
                self._tail_moved = True
                self._enter(job, kept_for)
            else:
                self.until_ms = min(self.until_ms, job.not_before_ms)

    def _enter(self, job: Job, kept_for: str) -> None:
        key = _key(job, kept_for)
        group = self.groups.get(key)
        if group is None:
            group = self._found(key)
        entry = self._entry(job)
        insort(group.entries, entry)
        self._come(group, (entry,))
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


def _holds(entries: Sequence[Entry], entry: Entry, first: int = 0) -> bool:
    """Whether it is among them, from the given place on."""
    at = bisect_left(entries, entry, first)
    return at < len(entries) and entries[at] == entry


def _key(job: Job, kept_for: str) -> GroupKey:
    """Of the group for the class that it prefers."""
    classes = job.classes if job.fallbacks else ()
    size, pods, within = job.unit
    shape = Shape(job.gpu_class, size, pods, kept_for, within, span_of(job.walltime_ms), classes)
    return job.grant_id, shape, job.walltime_ms
