"""Which of an organization's grants a group of waiting jobs draws on, or why on none."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scheduler.core.capping import Ceiling
from scheduler.core.entitlement import Balances, Caps, GrantBook
from scheduler.core.groups import Group
from scheduler.core.model import WaitReason

NEVER_MS = 1 << 62


class Offer(NamedTuple):
    """What a grant can give to one of its parties now: the room on each path, and below the cap."""

    book: GrantBook
    paths: Sequence[tuple[str, ...]]
    rooms: list[int]
    remainder: int
    gpus_left: int | None


class Basis(NamedTuple):
    """What the verdicts on an organization's groups rest on, while only money, its jobs and time can change them."""

    fixed: tuple[object, ...]
    """Grants and their terms, and rates: what else it takes to compare `rooms`."""
    paths: tuple[tuple[str, ...], ...]
    """Of each running grant, in order."""
    rooms: tuple[int, ...]
    """What each path has left, grant by grant."""
    accounts: tuple[int, ...]
    """What each account on them has left."""
    below_cap: tuple[int, int] | None
    """The organization's cap, and what is in use below it; None while it has none."""

    def brought_to(self, balances: Balances) -> "Basis":
        """The same when only money moved."""
        left = balances.left
        return self._replace(
            rooms=tuple([balances.on(path) for path in self.paths]),
            accounts=tuple([left[account] for path in self.paths for account in path]),
        )

    def moved(self, before: "Basis") -> list[tuple[int, int]]:
        """(low, high): whether it can be paid changed for what costs more than low and at most high."""
        pairs = zip(self.rooms, before.rooms, strict=True)
        return [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]


class Offers:
    """What grants have for one organization: its own paths, and what is left below the cap for all parties."""

    def __init__(self, organization_id: str, balances: Balances, caps: Caps) -> None:
        self.organization_id, self.balances, self.caps = organization_id, balances, caps

    def of(self, book: GrantBook) -> Offer:
        """The grant as it is now."""
        paths = book.paths_of[self.organization_id]
        rooms = [self.balances.on(path) for path in paths]
        return Offer(book, paths, rooms, max(rooms, default=0), self.caps.left(book.grant))

    def exhausted(self, offer: Offer, cost_gpu_us: int) -> dict[str, int | str]:
        """The account that is short on the path with the most room, with what it has left."""
        short, left = "", 0
        if offer.paths:
            path = offer.paths[offer.rooms.index(offer.remainder)]
            short = min(path, key=self.balances.left.__getitem__, default="")
            left = max(0, offer.remainder)
        return {
            "grant": offer.book.grant.id,
            "account": short,
            "needed_gpu_us": cost_gpu_us,
            "left_gpu_us": left,
        }

    def capped(self, offers: Sequence[Offer], gpus: int) -> dict[str, int | str]:
        """The cap that could come to suffice, nearest first; else one that never will."""
        nearest = max(offers, key=lambda o: ((o.book.grant.max_gpus or 0) >= gpus, o.gpus_left or 0))
        grant = nearest.book.grant
        in_use = self.caps.in_use[grant.id]
        return {"grant": grant.id, "cap": grant.max_gpus or 0, "in_use": in_use, "needed": gpus}


class Judge:
    """Decides groups of one organization against its grants as they are now."""

    def __init__(
        self,
        books: Sequence[GrantBook],
        rates: Mapping[str, int],
        offers: Offers,
        step_ms: int,
        now_ms: int,
        ceiling: Ceiling | None = None,
    ) -> None:
        self.rates, self.offers, self.step_ms, self.now_ms = rates, offers, step_ms, now_ms
        self.ceiling = ceiling
        self.is_capped = False
        """Whether a group could pay and is kept back by the organization's cap."""
        self.until_ms = NEVER_MS
        self.running: list[Offer] = []
        self.coming: list[GrantBook] = []
        for book in sorted(books, key=lambda b: (b.grant.starts_at_ms, b.grant.id)):
            if book.runs(now_ms):
                self.running.append(offers.of(book))
                self._look_again(book.grant.ends_at_ms)
            elif now_ms < book.grant.starts_at_ms:
                self.coming.append(book)
                self._look_again(book.grant.starts_at_ms)
        # earliest end first, then the smallest remainder (facts: an hour that ends sooner is worth less)
        self.running.sort(key=lambda o: (o.book.grant.ends_at_ms, o.remainder, o.book.grant.id))
        self.one_path = len(self.running) == 1 and len(self.running[0].rooms) == 1
        # their order then does not depend on what is left, and only money can come to be short
        ends = {offer.book.grant.ends_at_ms for offer in self.running}
        self.only_money = len(ends) == len(self.running) and all(o.gpus_left is None for o in self.running)

    def basis(self) -> Basis | None:
        """What `decide` rests on; None where it rests on more: caps of grants, jobs that others are stopped for."""
        ceiling = self.ceiling
        if (ceiling and ceiling.claims) or any([offer.gpus_left is not None for offer in self.running]):
            return None
        running = tuple([(o.book, o.book.grant.ends_at_ms, len(o.paths)) for o in self.running])
        coming = tuple([(book, book.grant.starts_at_ms) for book in self.coming])
        left, paths = self.offers.balances.left, [path for offer in self.running for path in offer.paths]
        return Basis(
            (running, coming, tuple(self.rates.items()), self.step_ms),
            tuple(paths),
            tuple([room for offer in self.running for room in offer.rooms]),
            tuple([left[account] for path in paths for account in path]),
            (ceiling.cap, ceiling.in_use) if ceiling else None,
        )

    def decide(self, group: Group) -> None:
        """Give the group the first grant and path that suffice, or the reason nearest to sufficing.

        A grant that is capped is passed over like one that is short; of the two the cap is nearer. The organization's
        own cap binds last: no other grant would help.
        """
        pinned, shape, walltime_ms = group.key
        rate = self.rates.get(shape.gpu_class)
        if rate is None:
            group.blocked(WaitReason.NODES_UNAVAILABLE, gpu_class=shape.gpu_class, gpus=0)
            return
        cost = group.cost_gpu_us = walltime_ms * shape.gpus_per_pod * shape.pods * rate
        in_time: Offer | None = None
        capped: list[Offer] = []
        for offer in self.running:
            if pinned is not None and offer.book.grant.id != pinned:
                continue
            latest_ms = offer.book.grant.ends_at_ms - walltime_ms
            if self.now_ms > latest_ms:
                continue
            self._look_again(latest_ms + 1)
            if offer.remainder >= cost:
                if offer.gpus_left is None or offer.gpus_left >= group.gpus:
                    self._draw(group, offer, cost)
                    return
                capped.append(offer)
            elif in_time is None or offer.remainder > in_time.remainder:
                in_time = offer
        if capped:
            group.blocked(WaitReason.GRANT_CAP, **self.offers.capped(capped, group.gpus))
        elif in_time:
            group.blocked(WaitReason.GRANT_EXHAUSTED, **self.offers.exhausted(in_time, cost))
        else:
            self._out_of_time(group, pinned)

    def _draw(self, group: Group, offer: Offer, cost_gpu_us: int) -> None:
        """The grant pays, unless the organization has as many GPUs as it may."""
        if self.ceiling and self.ceiling.left < group.gpus:
            self.is_capped = True
            group.blocked(WaitReason.ORGANIZATION_CAP, **self.ceiling.numbers(group.gpus))
            return
        group.book, group.reason = offer.book, None
        group.path = next(p for p, r in zip(offer.paths, offer.rooms, strict=True) if r >= cost_gpu_us)

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
