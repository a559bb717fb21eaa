"""What programmes and organizations are ranked by: how far their grants are behind as their weight counts it, then
usage, then who waits first.
"""

from collections.abc import Iterator, Mapping
from heapq import heappop
from math import fsum, log
from typing import NamedTuple, assert_never

from scheduler.core.entitlement import GrantBook
from scheduler.core.groups import Entry, Leaf
from scheduler.core.policy import Ranking
from scheduler.core.waiting import Queue

Key = tuple[int, float, Entry]
"""(-lag, usage, first job); smaller is served sooner, and no two at one level are equal."""
FLOOR_LAG_MS = 1 << 62
"""The rank of who runs below the floor of the policy: before everybody else."""
RESERVED_LAG_MS = 1 << 63
"""The rank of a programme that keeps less than its reserved part of the pool: before the floor."""
_LOG_2 = log(2)
PLAIN = 1000
"""The weight, in thousandths, of who has no other."""


class Floor(NamedTuple):
    """Whom the policy protects from those who catch up; see `Policy.floor_share`."""

    share: float
    lag_ms: int
    half_life_ms: int


class Usage:
    """What an organization used of late and holds now, wherever it got it from; and what its lag counts."""

    __slots__ = ("decayed", "held", "weight_thousandths")

    def __init__(self, decayed: float, weight_thousandths: int = PLAIN, held: int = 0) -> None:
        self.decayed = decayed
        self.held = held
        self.weight_thousandths = weight_thousandths


class Standing(NamedTuple):
    """What the policy entitles a programme to."""

    weight_thousandths: int
    owed_gpus: int
    """How many GPUs it keeps less than its reserved part of the pool; negative: more."""


COMMON = Standing(PLAIN, 0)


class Branch:
    """One organization inside one programme, with every running grant there that is open to it."""

    __slots__ = (
        "books",
        "first",
        "floor",
        "is_below_floor",
        "key",
        "lag_weighted",
        "organization",
        "program",
        "queue",
        "ranking",
        "usage",
        "weight",
    )

    def __init__(
        self, program: "Program", organization: str, queue: Queue, ranking: Ranking, floor: Floor | None
    ) -> None:
        self.program, self.organization, self.queue = program, organization, queue
        self.ranking, self.floor = ranking, floor
        self.is_below_floor = False
        self.usage = Usage(0.0)
        self.books: list[GrantBook] = []
        self.lag_weighted = self.weight = 0
        self.first: Entry | None = None
        self.key: Key | None = None

    def leaves(self) -> Iterator[Leaf]:
        """Its grants that jobs wait for."""
        for book in self.books:
            leaf = self.queue.leaves.get(book.grant.id)
            if leaf and leaf.first:
                yield leaf

    def refresh(self) -> None:
        """Its key, this cycle's picks counted."""
        if len(self.books) == 1:
            leaf = self.queue.leaves.get(self.books[0].grant.id)
            self.first = leaf.first if leaf else None
        else:
            self.first = min((leaf.first for leaf in self.leaves() if leaf.first), default=None)
        was_below, self.is_below_floor = self.is_below_floor, False
        if self.first is None:
            self.key = None
        else:
            usage, counts = self.usage.decayed + self.usage.held, self.usage.weight_thousandths
            self.key = _key(self.ranking, self.lag_weighted, usage, self.weight, self.first, counts)
            self.is_below_floor = self.floor is not None and self._runs_below(self.floor)
        self.program.below_floor += self.is_below_floor - was_below
        if self.is_below_floor and self.key:
            # who kept his pace best first: those far behind have their lag to help them
            self.key = (-FLOOR_LAG_MS - self.key[0], *self.key[1:])

    def _runs_below(self, floor: Floor) -> bool:
        """Whether it is on its pace, and runs less than the floor of what it ran of late."""
        if not self.usage.decayed:
            return False
        if sum([book.pace_lag_ms * book.weight for book in self.books]) < -floor.lag_ms * self.weight:
            return False
        recent = self.usage.decayed * _LOG_2 / floor.half_life_ms
        needed = fsum([book.pace_rate for book in self.books])
        return sum([book.rate for book in self.books]) < floor.share * min(recent, needed)

    @property
    def lag_ms(self) -> int:
        """How far its grants here are behind, weighted by what was granted, this cycle's picks counted."""
        return self.lag_weighted // self.weight

    def begin(self, usages: Mapping[str, Usage]) -> None:
        """A new cycle: lags and usage as they are now."""
        self.usage = usages[self.organization]
        weight = lag_weighted = 0
        for book in self.books:
            weight += book.weight
            lag_weighted += book.rank_lag_ms * book.weight
        self.weight, self.lag_weighted = weight, lag_weighted
        self.refresh()


class Program:
    """A funding call with the organizations that its running grants are open to."""

    __slots__ = (
        "below_floor",
        "branches",
        "by_first",
        "contest",
        "decayed",
        "held",
        "id",
        "key",
        "lag_weighted",
        "owed_gpus",
        "ranking",
        "shared",
        "weight",
        "weight_thousandths",
    )

    def __init__(self, id: str, ranking: Ranking) -> None:
        self.id, self.ranking = id, ranking
        self.weight_thousandths, self.owed_gpus = COMMON
        self.shared: list[GrantBook] = []  # grants of several parties
        self.branches: list[Branch] = []
        self.below_floor = 0  # how many of them
        self.contest: list[
            tuple[Key, int, Branch]
        ] = []  # heaps; an entry is stale when its branch has moved on
        self.by_first: list[tuple[Entry, int, Branch]] = []
        self.lag_weighted = self.weight = self.held = 0
        self.decayed = 0.0
        self.key: Key | None = None

    def begin(self, usages: Mapping[str, Usage], standing: Standing) -> None:
        """A new cycle: lags and usage as they are now. A grant of several parties counts once."""
        self.weight_thousandths, self.owed_gpus = standing
        for branch in self.branches:
            branch.begin(usages)
        self.weight = sum(branch.weight for branch in self.branches)
        self.lag_weighted = sum(branch.lag_weighted for branch in self.branches)
        for book in self.shared:
            weight = book.weight * (len(book.parties) - 1)
            self.weight -= weight
            self.lag_weighted -= book.rank_lag_ms * weight
        self.decayed = fsum(branch.usage.decayed for branch in self.branches)
        self.held = sum(branch.usage.held for branch in self.branches)

    def refresh(self) -> None:
        """Its key, this cycle's picks counted."""
        while self.by_first and self.by_first[0][2].first is not self.by_first[0][0]:
            heappop(self.by_first)
        first = self.by_first[0][0] if self.by_first else None
        self.key = self.key_with(first)

    def key_with(self, first: Entry | None) -> Key | None:
        """Its key, if that were the first of its jobs."""
        usage, counts = self.decayed + self.held, self.weight_thousandths
        key = _key(self.ranking, self.lag_weighted, usage, self.weight, first, counts)
        if key and self.owed_gpus > 0:
            return (-RESERVED_LAG_MS + key[0], *key[1:])
        return (-FLOOR_LAG_MS + key[0], *key[1:]) if key and self.below_floor else key


def weighed(lag_ms: int, weight_thousandths: int) -> int:
    """A lag as its owner's weight counts it: who weighs twice is ranked as twice as far behind, or half as far ahead.

    So of what cannot be delivered he misses half as much as another, and of what is left over he gets twice as much.
    """
    if weight_thousandths == PLAIN:
        return lag_ms
    if lag_ms > 0:
        return lag_ms * weight_thousandths // PLAIN
    return -(-lag_ms * PLAIN // weight_thousandths)


def _key(
    ranking: Ranking,
    lag_weighted: int,
    usage: float,
    weight: int,
    first: Entry | None,
    weight_thousandths: int = PLAIN,
) -> Key | None:
    """By what a programme or an organization is ranked; None while it has no job that could pay."""
    if first is None:
        return None
    if weight_thousandths != PLAIN:
        usage = usage * PLAIN / weight_thousandths
    match ranking:
        case Ranking.GRANT:
            return -weighed(lag_weighted // weight, weight_thousandths), usage, first
        case Ranking.DECAY:
            return 0, usage / weight, first
        case Ranking.FIFO:
            return 0, 0.0, first
    assert_never(ranking)
