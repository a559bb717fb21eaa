"""What a grant is entitled to now: how far it is behind its pace, what its accounts and its cap have left.

The pace is that of docs/scheduling-core.md ("Order"), after facts/scheduling.md 2.9 "Lag and hoarding".
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from scheduler.core.model import Account, Attempt, Grant, JobState, Organization, Pace
from scheduler.core.policy import Lane, Policy


class GrantBook:
    """The working copy of one grant: what was spent, and how far it is behind. Its parties share both."""

    __slots__ = (
        "_hold_share",
        "_idle_bound_ms",
        "_pace",
        "_promised",
        "_remaining",
        "_used_ms",
        "bound_ms",
        "committed",
        "ends_at_ms",
        "grant",
        "granted",
        "held_by",
        "pace_lag_ms",
        "pace_rate",
        "parties",
        "paths_of",
        "rank_lag_ms",
        "rate",
        "starts_at_ms",
        "term_ms",
        "used",
        "weight",
    )

    def __init__(self, grant: Grant, policy: Policy, remaining: "Remaining") -> None:
        self._remaining = remaining
        self._pace = grant.pace
        self.rewrite(grant, policy)

    def rewrite(self, grant: Grant, policy: Policy) -> None:
        """Take a newer version of the grant; of two paces the later one holds."""
        self.parties = grant.parties
        self.paths_of: dict[str, list[tuple[str, ...]]] = {party: [] for party in self.parties}
        for path in grant.paths:
            self.paths_of[path.organization_id].append(tuple(account.id for account in path.accounts))
        self._hold_share = policy.hold_share
        self.starts_at_ms, self.ends_at_ms = grant.starts_at_ms, grant.ends_at_ms
        self.term_ms = max(1, grant.ends_at_ms - grant.starts_at_ms)
        self.bound_ms = int(self.term_ms * policy.lag_bound_share)
        self._idle_bound_ms = int(self.term_ms * policy.idle_lag_share)
        self.rewrite_amounts(grant)

    def rewrite_amounts(self, grant: Grant) -> None:
        """Take a newer version that `differs_in_amounts` only."""
        if grant.pace and (self._pace is None or grant.pace.as_of_ms > self._pace.as_of_ms):
            self._pace = grant.pace
        self.grant = grant
        own = {path.accounts[-1].id: path.accounts[-1] for path in grant.paths if path.accounts}
        held = sum(account.held_gpu_us for account in own.values())
        self.held_by = _held_by(grant, self.parties, held)
        self.granted = sum(account.granted_gpu_us for account in own.values())
        self.weight = max(1, self.granted)
        """What its lag weighs beside those of other grants."""
        self.committed = held + sum(account.used_gpu_us for account in own.values())
        self.used = self.committed
        self._used_ms: int | None = None  # the same in the term; None: not known
        self._promised = 0
        self.rate = 0
        self.pace_rate = self.granted / self.term_ms
        """What its pace needs, in GPU-microseconds per millisecond."""
        self.pace_lag_ms = 0
        """How far it is behind by what was used alone."""
        self.rank_lag_ms = 0
        """The lag that orders, less what is held and picked in this cycle, within plus and minus the bound."""

    def differs_in_amounts(self, grant: Grant) -> bool:
        """Whether what a newer version of it grants, holds and used, and its pace, are all that may differ."""
        mine = self.grant
        return (
            mine.program_id == grant.program_id
            and mine.organization_id == grant.organization_id
            and (mine.starts_at_ms, mine.ends_at_ms) == (grant.starts_at_ms, grant.ends_at_ms)
            and mine.max_gpus == grant.max_gpus
            and _ways(mine) == _ways(grant)
        )

    @property
    def accounts(self) -> list[str]:
        """Every account on its paths."""
        return [account for paths in self.paths_of.values() for path in paths for account in path]

    def runs(self, now_ms: int) -> bool:
        """Whether the term has begun and not ended."""
        return self.starts_at_ms <= now_ms < self.ends_at_ms

    def advance(self, now_ms: int, waiting_since_ms: "Callable[[GrantBook], int | None]") -> Pace:
        """Bring the lag to now; `waiting_since_ms` tells since when a job has waited that draws on a grant.

        It moves with the time that passed, less what was used meanwhile (as milliseconds of the term). Beyond the
        policy's idle bound it grows by no more than the time for which a job that draws on this grant has waited
        since the last cycle. What is refunded lets it grow again. It never passes what the grant really is behind,
        (elapsed share - used share) x term, nor the upper bound. Being far ahead is kept in full.
        """
        starts_ms, pace = self.starts_at_ms, self._pace
        if pace is None:
            pace = Pace(0, starts_ms)
        remaining_gpu_us = self._remaining.at(now_ms)
        used, before, before_ms = self.committed - remaining_gpu_us, self.used, self._used_ms
        used_ms = self._in_term(used) if before_ms is None or used != before else before_ms
        spent, meanwhile_ms = pace.spent_gpu_us, 0
        if spent is not None:
            spent_ms = self._in_term(spent) if before_ms is None or spent != before else before_ms
            meanwhile_ms = used_ms - spent_ms
        # comparisons instead of min and max: of all that a quiet cycle does this is done most often
        since_ms = pace.as_of_ms if pace.as_of_ms > starts_ms else starts_ms
        growth_ms, lag_ms = now_ms - since_ms if now_ms > since_ms else 0, pace.lag_ms
        if meanwhile_ms > 0:
            growth_ms -= meanwhile_ms
        else:
            lag_ms -= meanwhile_ms
        may_grow_ms = self._idle_bound_ms - lag_ms
        if may_grow_ms < growth_ms:
            waiting_ms = waiting_since_ms(self)
            waited_ms = 0 if waiting_ms is None else now_ms - max(since_ms, waiting_ms)
            growth_ms = min(growth_ms, max(0, waited_ms, may_grow_ms))
        lag_ms = min(lag_ms + growth_ms, now_ms - starts_ms - used_ms, self.bound_ms)
        self.pace_lag_ms = lag_ms
        self.used, self._used_ms, self.rate = used, used_ms, self._remaining.rate
        self._promised = int(remaining_gpu_us * self._hold_share)
        self._rank()
        self._pace = Pace(lag_ms, now_ms, used)
        return self._pace

    def charge(self, cost_gpu_us: int, rate: int) -> None:
        """Count a pick of this cycle as held and running (negative: give it back)."""
        self.rate += rate
        self._promised += cost_gpu_us if self._hold_share == 1.0 else int(cost_gpu_us * self._hold_share)
        self._rank()

    @property
    def spent_share(self) -> float:
        """What was used and the policy's share of what is held, of what was granted."""
        return (self.used + self._promised) / self.granted if self.granted > 0 else 1.0

    def behind_share(self, now_ms: int) -> float:
        """Elapsed share of the term - spent share of the grant."""
        return (now_ms - self.grant.starts_at_ms) / self.term_ms - self.spent_share

    def lane_ms(self, lane: Lane, worst_behind_share: float) -> int:
        """The longest walltime that may still pass in the lane; 0 if none may."""
        room = 1.0 - lane.delivery_weight * max(0.0, worst_behind_share) - self.spent_share
        return max((walltime_ms for walltime_ms, z in lane.tapers if room + z > 0), default=0)

    def _rank(self) -> None:
        spent_ms = self._in_term(self._promised) if self._promised or self.granted <= 0 else 0
        self.rank_lag_ms = max(self.pace_lag_ms - spent_ms, -self.bound_ms)

    def _in_term(self, gpu_us: int) -> int:
        """An amount as milliseconds of the term: its share of the grant x term."""
        return self.term_ms * gpu_us // self.granted if self.granted > 0 else self.term_ms


class Remaining:
    """What the attempts on one grant may still use, as sums that tell it for any moment.

    An attempt may use its cost x the part of its walltime until its end; before its start that is all of it.
    """

    __slots__ = ("_ending", "_whole", "rate")

    def __init__(self) -> None:
        self._whole = 0  # of attempts that have not started
        self.rate = 0
        """GPU-microseconds per millisecond that the running ones use."""
        self._ending = 0  # rate x the moment of the end

    def add(self, attempt: Attempt, sign: int = 1) -> None:
        """Count an attempt (sign -1: no more)."""
        if attempt.state is JobState.ENDED:
            return
        starts_ms, ends_ms = attempt.started_at_ms, attempt.ends_at_ms
        if starts_ms is None or ends_ms is None or ends_ms <= starts_ms:
            self._whole += sign * attempt.cost_gpu_us
            return
        rate = attempt.cost_gpu_us // (attempt.walltime_ms or ends_ms - starts_ms)
        self.rate += sign * rate
        self._ending += sign * rate * ends_ms

    def at(self, now_ms: int) -> int:
        """At a moment, in GPU-microseconds; attempts that are overdue count below zero."""
        return self._whole + self._ending - self.rate * now_ms


class Balances:
    """What every account has left. Grants may share accounts; of copies that differ the least left holds."""

    __slots__ = ("_copies", "left")

    def __init__(self) -> None:
        self._copies: dict[str, dict[str, int]] = {}  # account: grant: left
        self.left: dict[str, int] = {}

    def put(self, grant: Grant) -> None:
        """Take the accounts as this grant shows them."""
        self.drop(grant)
        for path in grant.paths:
            for account in path.accounts:
                self._copy(grant.id, account)

    def drop(self, grant: Grant) -> None:
        """Forget the accounts as this grant showed them."""
        for path in grant.paths:
            for account in path.accounts:
                copies = self._copies.get(account.id, {})
                copies.pop(grant.id, None)
                if copies:
                    self.left[account.id] = min(copies.values())
                else:
                    self._copies.pop(account.id, None)
                    self.left.pop(account.id, None)

    def grants_on(self, accounts: Iterable[str]) -> set[str]:
        """Every grant with a path over one of these accounts."""
        return {grant for account in accounts for grant in self._copies.get(account, ())}

    def charge(self, accounts: Iterable[str], cost_gpu_us: int) -> None:
        """Count a pick of this cycle as held (negative: give it back)."""
        for account in accounts:
            self.left[account] -= cost_gpu_us

    def on(self, path: Sequence[str]) -> int:
        """What one hold on this path may still cost."""
        return min((self.left[account] for account in path), default=0)

    def _copy(self, grant_id: str, account: Account) -> None:
        copies = self._copies.setdefault(account.id, {})
        copies[grant_id] = min(account.left_gpu_us, copies.get(grant_id, account.left_gpu_us))
        self.left[account.id] = min(copies.values())


def _ways(grant: Grant) -> list[tuple[str, list[str]]]:
    """Whose jobs may draw on it over which accounts."""
    return [(path.organization_id, [account.id for account in path.accounts]) for path in grant.paths]


_Kept = tuple[str, str, int]
"""Grant, organization, GPUs."""


class Caps:
    """How many GPUs the attempts on each grant and of each organization keep, this cycle's picks counted."""

    __slots__ = ("_attempts", "in_use", "used_by")

    def __init__(self) -> None:
        self._attempts: dict[str, _Kept] = {}
        self.in_use: Counter[str] = Counter()  # by grant
        self.used_by: Counter[str] = Counter()  # by organization

    def put(self, attempt: Attempt) -> tuple[_Kept, ...]:
        """Count an attempt as it is now. Returns what it counted as, and does, if that changed."""
        before = self._attempts.get(attempt.id)
        if attempt.gpus_held:
            now = attempt.grant_id, attempt.organization_id, attempt.gpus_held
            self._attempts[attempt.id] = now
        else:
            self._attempts.pop(attempt.id, None)
            now = None
        return self._move(before, now)

    def drop(self, attempt_id: str) -> tuple[_Kept, ...]:
        """The attempt is no more. Returns what it counted as."""
        return self._move(self._attempts.pop(attempt_id, None), None)

    def charge(self, grant_id: str, organization_id: str, gpus: int) -> None:
        """Count a pick of this cycle (negative: give it back)."""
        self.in_use[grant_id] += gpus
        self.used_by[organization_id] += gpus

    def left(self, grant: Grant) -> int | None:
        """How many GPUs more may be in use; negative when the cap was lowered since. None: there is no cap."""
        return None if grant.max_gpus is None else grant.max_gpus - self.in_use[grant.id]

    def _move(self, before: _Kept | None, now: _Kept | None) -> tuple[_Kept, ...]:
        if before == now:
            return ()
        for counted, sign in ((before, -1), (now, 1)):
            if counted:
                self.charge(counted[0], counted[1], sign * counted[2])
        return tuple(counted for counted in (before, now) if counted)


def _held_by(grant: Grant, parties: Sequence[str], held_gpu_us: int) -> Mapping[str, int]:
    """What each party holds: of several, what stands on the first accounts of its own paths, its share."""
    if len(parties) == 1:
        return {parties[0]: held_gpu_us}
    firsts: dict[str, dict[str, int]] = {party: {} for party in parties}
    for path in grant.paths:
        for account in path.accounts[:1]:
            firsts[path.organization_id][account.id] = account.held_gpu_us
    return {party: sum(held.values()) for party, held in firsts.items()}


def usage_gpu_us(organization: Organization, now_ms: int, half_life_ms: int) -> float:
    """Decayed usage brought to now: u x 0.5^(age / half-life)."""
    if not organization.decayed_usage_gpu_us:
        return 0.0
    return decayed(organization.decayed_usage_gpu_us, organization.as_of_ms, now_ms, half_life_ms)


def decayed(usage_gpu_us: float, as_of_ms: int, now_ms: int, half_life_ms: int) -> float:
    """A usage as of a moment brought to now."""
    return usage_gpu_us * math.pow(0.5, max(0, now_ms - as_of_ms) / half_life_ms)
