"""The ledger in virtual time: accounts that grants share, holds that starts take, and what ends settle."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from scheduler.core.model import Account, Attempt, Change, Fund, Grant, JobState, Organization, Path


@dataclass(slots=True)
class Hold:
    """What one attempt still holds, and on which accounts."""

    accounts: tuple[str, ...]
    held_gpu_us: int
    settled_gpu_us: int
    """What was charged of it already."""
    rate: int
    """GPU-microseconds per millisecond."""


class Books:
    """Accounts, grants and organizations as they move. `news` tells the core what changed."""

    def __init__(
        self,
        grants: Iterable[Grant],
        organizations: Iterable[Organization],
        half_life_ms: int,
        funds: Iterable[Fund] = (),
    ) -> None:
        self._grants = {grant.id: grant for grant in grants}
        self._funds = {fund.id: fund for fund in funds}
        self._organizations = {each.id: each for each in organizations}
        self._scale_ms = half_life_ms / math.log(2)
        self._accounts: dict[str, Account] = {}
        self._grants_on: dict[str, set[str]] = defaultdict(set)
        self._touched_grants: set[str] = set()
        self._touched_organizations: set[str] = set()
        for grant in self._grants.values():
            for path in grant.paths:
                for account in path.accounts:
                    self._grants_on[account.id].add(grant.id)
                    known = self._accounts.get(account.id)
                    # of copies that differ the core goes by the least left, so do these books
                    if known is None or account.left_gpu_us < known.left_gpu_us:
                        self._accounts[account.id] = account
        for fund in self._funds.values():
            self._grants_on[fund.account.id].add(fund.id)
            self._accounts[fund.account.id] = fund.account

    def hold(self, accounts: tuple[str, ...], cost_gpu_us: int, walltime_ms: int) -> Hold:
        """An attempt starts."""
        for id in accounts:
            self._move(id, cost_gpu_us, 0)
        return Hold(accounts, cost_gpu_us, 0, cost_gpu_us // max(1, walltime_ms))

    def settle(
        self, hold: Hold, organization_id: str, useful_ms: int, now_ms: int, *, opportunistic: bool = False
    ) -> None:
        """An attempt ended at `now_ms` after so much time that is charged: the rest of its hold is let go."""
        used_gpu_us = max(0, hold.rate * useful_ms - hold.settled_gpu_us)
        for id in hold.accounts:
            self._move(id, -hold.held_gpu_us, used_gpu_us)
        self._decay(organization_id, hold.rate, used_gpu_us, now_ms, opportunistic)

    def used_gpu_us(self) -> dict[str, int]:
        """What each grant's own account was charged, by grant."""
        used: dict[str, int] = {}
        for grant in self._grants.values():
            own = {path.accounts[-1].id for path in grant.paths if path.accounts}
            used[grant.id] = sum(self._accounts[id].used_gpu_us for id in own)
        used |= {fund.id: self._accounts[fund.account.id].used_gpu_us for fund in self._funds.values()}
        return used

    def news(self) -> list[Change]:
        """Every grant and organization that changed since the last call, in order of ids."""
        changes: list[Change] = [self._grant(id) for id in sorted(self._touched_grants)]
        changes += (self._organizations[id] for id in sorted(self._touched_organizations))
        self._touched_grants.clear()
        self._touched_organizations.clear()
        return changes

    def open_holds(self, running: Iterable[tuple[Attempt, str]], now_ms: int) -> dict[str, Hold]:
        """The holds of attempts that are under way, with the organization of each; by attempt.

        Slices of them may have been charged, and nobody says whose. What a grant's attempts cost in all, less what
        its own account holds, was charged: it is shared out in proportion to what each can have used by now.
        """
        by_grant: dict[str, list[tuple[Attempt, str]]] = defaultdict(list)
        for attempt, organization_id in running:
            by_grant[attempt.grant_id].append((attempt, organization_id))
        holds: dict[str, Hold] = {}
        free = {id: account.held_gpu_us for id, account in self._accounts.items()}
        for grant_id, found in sorted(by_grant.items()):
            possible = {attempt.id: _used_by(attempt, now_ms) for attempt, _ in found}
            held = self._held(grant_id)
            charged = min(sum(possible.values()), max(0, sum(each.cost_gpu_us for each, _ in found) - held))
            whole = max(1, sum(possible.values()))
            for attempt, organization_id in sorted(found, key=lambda pair: pair[0].id):
                settled = possible[attempt.id] * charged // whole
                left = attempt.cost_gpu_us - settled
                accounts = self._path_of(attempt, organization_id, left, free)
                for id in accounts:
                    free[id] -= left
                holds[attempt.id] = Hold(accounts, left, settled, _rate_of(attempt))
        return holds

    def _held(self, grant_id: str) -> int:
        fund = self._funds.get(grant_id)
        if fund is not None:
            return self._accounts[fund.account.id].held_gpu_us
        grant = self._grants.get(grant_id)
        own = {path.accounts[-1].id for path in grant.paths if path.accounts} if grant else set()
        return sum(self._accounts[id].held_gpu_us for id in own)

    def _path_of(
        self, attempt: Attempt, organization_id: str, left_gpu_us: int, free: dict[str, int]
    ) -> tuple[str, ...]:
        """Its first path whose accounts hold enough that is nobody else's; the core is not told which one it took."""
        fund = self._funds.get(attempt.grant_id)
        if fund is not None:
            return (fund.account.id,)
        grant = self._grants.get(attempt.grant_id)
        paths = [
            tuple(account.id for account in path.accounts)
            for path in (grant.paths if grant else ())
            if path.organization_id == organization_id
        ]
        enough = (path for path in paths if all(free[id] >= left_gpu_us for id in path))
        return next(enough, paths[0] if paths else ())

    def _move(self, account_id: str, held_gpu_us: int, used_gpu_us: int) -> None:
        account = self._accounts[account_id]
        self._accounts[account_id] = replace(
            account,
            # shares of what was charged are estimates: an account may let go a little more than it holds
            held_gpu_us=max(0, account.held_gpu_us + held_gpu_us),
            used_gpu_us=account.used_gpu_us + used_gpu_us,
        )
        self._touched_grants |= self._grants_on[account_id]

    def _decay(
        self, organization_id: str, rate: int, used_gpu_us: int, now_ms: int, opportunistic: bool
    ) -> None:
        """Work done evenly up to now decays on the way: the integral of 0.5 ** (age / half-life) over its ages."""
        known = self._organizations.get(organization_id)
        if known is None or rate == 0:
            return
        work = rate * self._scale_ms * -math.expm1(-(used_gpu_us / rate) / self._scale_ms)
        if opportunistic:
            since_ms, usage = known.opportunistic_as_of_ms, known.opportunistic_usage_gpu_us
            usage = usage * math.exp((since_ms - now_ms) / self._scale_ms) + work
            changed = replace(known, opportunistic_usage_gpu_us=usage, opportunistic_as_of_ms=now_ms)
        else:
            before = known.decayed_usage_gpu_us * math.exp((known.as_of_ms - now_ms) / self._scale_ms)
            changed = replace(known, decayed_usage_gpu_us=before + work, as_of_ms=now_ms)
        self._organizations[organization_id] = changed
        self._touched_organizations.add(organization_id)

    def _grant(self, grant_id: str) -> Grant | Fund:
        fund = self._funds.get(grant_id)
        if fund is not None:
            return replace(fund, account=self._accounts[fund.account.id])
        grant = self._grants[grant_id]
        paths = tuple(
            Path(tuple(self._accounts[account.id] for account in path.accounts), path.organization_id)
            for path in grant.paths
        )
        return replace(grant, paths=paths)


def _rate_of(attempt: Attempt) -> int:
    started_ms, ends_ms = attempt.started_at_ms, attempt.ends_at_ms
    whole_ms = attempt.walltime_ms or (ends_ms - started_ms if started_ms and ends_ms else 0)
    return attempt.cost_gpu_us // whole_ms if whole_ms > 0 else 0


def _used_by(attempt: Attempt, now_ms: int) -> int:
    """What it can have used at most by now."""
    if attempt.started_at_ms is None or attempt.state is JobState.ENDED:
        return 0
    return min(attempt.cost_gpu_us, _rate_of(attempt) * max(0, now_ms - attempt.started_at_ms))
