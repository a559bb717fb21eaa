"""Who is next: programme, then organization, then grant, the one furthest behind its pace first.

A programme that keeps less than its reserved part of the pool goes before all others.

A consortium's grant stands under each of its parties with one and the same lag.

Equal lags are told apart by usage (decayed, plus what is held), then by the first job in order (gangs that go
first, then the longest wait), then by its id.

A programme's or organization's lag is the mean of the lags of its running grants, weighted by
what was granted, so that a pick always moves it down and never up.
"""

from collections.abc import Container, Iterator, Mapping, Sequence, Set
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import Shape
from scheduler.core.groups import Entry, Group, Leaf
from scheduler.core.policy import Lane, Ranking
from scheduler.core.ranks import COMMON, Branch, Floor, Key, Program, Standing, Usage
from scheduler.core.waiting import Queue

_NO_STANDINGS: Mapping[str, Standing] = {}


class Race(NamedTuple):
    """Which jobs take part while turns are taken."""

    live: Set[Shape]
    """Those that fit."""
    reservable: Set[Shape] = frozenset()
    """Those that do not fit and may have a reservation."""
    full: Container[str] = ()
    """Organizations that may have no more of them."""
    lane: Lane | None = None
    """Only jobs whose grant lets them pass in it."""
    worst_behind_share: float = 0.0
    owed_only: bool = False
    """Only jobs of programmes that keep less than their reserved part of the pool."""

    def of(self, branch: Branch, leaf: Leaf) -> list[tuple[Entry, Group]]:
        """The first jobs that take part, one per shape."""
        wide = bool(self.reservable) and branch.organization not in self.full
        longest_ms = 1 << 62
        if self.lane and not branch.is_below_floor:
            longest_ms = leaf.book.lane_ms(self.lane, self.worst_behind_share)
        heads = list[tuple[Entry, Group]]()
        few = not wide and len(self.live) < len(leaf.heads)
        for shape in self.live if few else leaf.heads:
            heap = leaf.heads.get(shape)
            takes_part = shape in self.live or (wide and shape in self.reservable)
            if heap is None or not takes_part or shape.span_ms > longest_ms:
                continue
            if not shape.classes:
                heads.append(heap[0])
            elif found := [head for head in heap if self._is_choice(head[1])]:
                heads.append(min(found))
        return heads

    def _is_choice(self, group: Group) -> bool:
        """Whether no class that its jobs prefer takes part: the first that fits, else the first to reserve."""
        able = group.able
        live = next((each for each in able if each.shape in self.live), None)
        return group is (live or next((each for each in able if each.shape in self.reservable), None))


class Tree:
    """All running grants; `next` tells whose turn it is, `pick` counts it, `order` lists the rest."""

    def __init__(
        self,
        books: Sequence[GrantBook],
        queues: Mapping[str, Queue],
        ranking: Ranking,
        floor: Floor | None = None,
    ) -> None:
        self.books = books
        self.ranking, self._floor = ranking, floor
        self._serial = 0  # keeps the heaps from comparing branches
        self._contest: list[tuple[Key, int, Program]] = []
        self._programs: dict[str, Program] = {}
        self._branches: dict[str, dict[str, Branch]] = {}  # organization: programme
        self._branches_of: dict[str, list[Branch]] = {}  # grant: one per party
        for book in books:
            program_id = book.grant.program_id
            branches = [self._grow(program_id, party, queues) for party in book.parties]
            for branch in branches:
                branch.books.append(book)
            if len(branches) > 1:
                self._programs[program_id].shared.append(book)
            self._branches_of[book.grant.id] = branches

    def begin(self, usages: Mapping[str, Usage], standings: Mapping[str, Standing] = _NO_STANDINGS) -> None:
        """A new cycle: lags and usage as they are now. The grants are the same, or there is a new tree.

        `standings`: of the programmes that have one of their own.
        """
        for program in self._programs.values():
            program.begin(usages, standings.get(program.id, COMMON))

    @property
    def owes(self) -> bool:
        """Whether a programme keeps less than its reserved part of the pool."""
        return any(program.owed_gpus > 0 for program in self._programs.values())

    def start(self) -> None:
        """Make ready for `next`: only a cycle that has room needs it."""
        self._contest = []
        for program in self._programs.values():
            waiting = [branch for branch in program.branches if branch.key and branch.first]
            program.contest = [(b.key, i, b) for i, b in enumerate(waiting) if b.key]
            program.by_first = [(b.first, i, b) for i, b in enumerate(waiting) if b.first]
            self._serial += len(waiting)
            heapify(program.contest)
            heapify(program.by_first)
            self._enter(program)

    def next(self, race: Race) -> tuple[Branch, Leaf, Group] | None:
        """The job to be served now: the first of the returned group."""
        while self._contest:
            key, _, program = self._contest[0]
            if race.owed_only and key is program.key and program.owed_gpus <= 0:
                return None
            turn = self._next_of(program, race) if key is program.key else None
            if turn is None:
                heappop(self._contest)
            elif self.ranking is Ranking.FIFO and turn[0] > key[2]:
                # a job of another programme may wait longer
                program.key = (*key[:2], turn[0])
                self._serial += 1
                heapreplace(self._contest, (program.key, self._serial, program))
            else:
                return turn[1:]
        return None

    def branch(self, program_id: str, organization_id: str) -> Branch:
        """An organization with a running grant in this programme."""
        return self._branches[organization_id][program_id]

    def branches(self) -> Iterator[Branch]:
        """All of them, in no order that means anything."""
        for program in self._programs.values():
            yield from program.branches

    def _next_of(self, program: Program, race: Race) -> tuple[Entry, Branch, Leaf, Group] | None:
        while program.contest:
            key, _, branch = program.contest[0]
            turn = _turn(branch, race) if key is branch.key else None
            if turn is None:
                heappop(program.contest)
            elif self.ranking is Ranking.FIFO and turn[0] > key[2]:
                branch.key = (*key[:2], turn[0])
                self._serial += 1
                heapreplace(program.contest, (branch.key, self._serial, branch))
            else:
                return turn[0], branch, turn[1], turn[2]
        return None

    def pick(self, branch: Branch, book: GrantBook, cost_gpu_us: int, rate: int, gpus: int) -> None:
        """Count a pick's cost as spent by its grant and as used by its organization, in every programme.

        The grant's lag moves for all its parties: `refresh` each of them.
        """
        before = book.rank_lag_ms
        book.charge(cost_gpu_us, rate)
        moved = (book.rank_lag_ms - before) * book.weight
        for party in self._branches_of[book.grant.id]:
            party.lag_weighted += moved
        branch.program.lag_weighted += moved
        branch.program.owed_gpus -= gpus
        branch.usage.held += cost_gpu_us
        for other in self._branches[branch.organization].values():
            other.program.held += cost_gpu_us

    def refresh(self, organization: str) -> None:
        """Rank an organization anew after its queue or its usage changed."""
        for branch in self._branches.get(organization, {}).values():
            program = branch.program
            branch.refresh()
            if branch.key and branch.first:
                self._serial += 1
                heappush(program.contest, (branch.key, self._serial, branch))
                heappush(program.by_first, (branch.first, self._serial, branch))
            self._enter(program)

    def order(self) -> list[Leaf]:
        """The grants that jobs wait for, first to be served first."""
        leaves: list[Leaf] = []
        ranked: list[tuple[Key, list[tuple[Key, Branch]]]] = []
        for program in self._programs.values():
            branches = [(branch.key, branch) for branch in program.branches if branch.key]
            if branches:
                branches.sort(key=_by_key)
                first = min(key[2] for key, _ in branches)
                key = program.key_with(first)
                assert key is not None
                ranked.append((key, branches))
        ranked.sort(key=lambda entry: entry[0])
        for _, branches in ranked:
            for _, branch in branches:
                if len(branch.books) == 1:
                    leaves.append(branch.queue.leaves[branch.books[0].grant.id])
                else:
                    leaves += sorted(branch.leaves(), key=_leaf_key)
        return leaves

    def _grow(self, program_id: str, organization_id: str, queues: Mapping[str, Queue]) -> Branch:
        """The branch of a party, new with its programme where it is the first there."""
        program = self._programs.setdefault(program_id, Program(program_id, self.ranking))
        of_organization = self._branches.setdefault(organization_id, {})
        branch = of_organization.get(program_id)
        if branch is None:
            branch = Branch(program, organization_id, queues[organization_id], self.ranking, self._floor)
            of_organization[program_id] = branch
            program.branches.append(branch)
        return branch

    def _enter(self, program: Program) -> None:
        program.refresh()
        if program.key:
            self._serial += 1
            heappush(self._contest, (program.key, self._serial, program))


def _turn(branch: Branch, race: Race) -> tuple[Entry, Leaf, Group] | None:
    """The first job that takes part, of the grant furthest behind among those with one."""
    best: tuple[tuple[int, Entry], Entry, Leaf, Group] | None = None
    for leaf in branch.leaves():
        heads = race.of(branch, leaf)
        if heads:
            entry, group = min(heads)
            key = (0, entry) if branch.ranking is Ranking.FIFO else _leaf_key(leaf)
            if best is None or key < best[0]:
                best = key, entry, leaf, group
    return best[1:] if best else None


def _leaf_key(leaf: Leaf) -> tuple[int, Entry]:
    assert leaf.first is not None
    return -leaf.book.rank_lag_ms, leaf.first


def _by_key(entry: tuple[Key, Branch]) -> Key:
    return entry[0]
