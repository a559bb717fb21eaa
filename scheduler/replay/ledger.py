"""The replay's books: per organization what is granted, held and used, and the objects that tell the core so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from scheduler.core.model import Account, Grant, Organization, Path
from scheduler.core.policy import Policy
from scheduler.replay.settings import LedgerKind

BOUNDLESS_GPU_US = 1 << 80
MILLION = 1_000_000
"""GPU-microseconds in a GPU-second of the reference GPU: 1,000 ms x 1,000 thousandths."""


class Book:
    """One organization's grant. At a start its GPUs x limit are held; at the end that is let go, the use is used.

    The core lets a job start only if it would end within the grant's term, and a replay goes on until every job
    has run. So the core is shown a grant of `terms` terms that is `terms` times as large: hours per day, and with
    them every lag in milliseconds, stay what they are. Shares of a grant or a term are divided by `stretched`.
    """

    __slots__ = (
        "_allowed_gpu_us",
        "_as_of_ms",
        "_decayed_gpu_us",
        "_granted_gpu_us",
        "_half_life_ms",
        "_hard",
        "_term_ms",
        "held_gpu_us",
        "organization_id",
        "terms",
        "used_gpu_us",
    )

    def __init__(
        self,
        organization_id: str,
        grant_gpu_s: int,
        term_s: int,
        terms: int,
        kind: LedgerKind,
        half_life_ms: int,
    ) -> None:
        self.organization_id = organization_id
        self.held_gpu_us = self.used_gpu_us = 0
        self._granted_gpu_us = grant_gpu_s * MILLION
        self._allowed_gpu_us = self._granted_gpu_us
        self._term_ms, self.terms = term_s * 1000, terms
        self._hard = kind is LedgerKind.HARD
        self._half_life_ms = half_life_ms
        self._decayed_gpu_us, self._as_of_ms = 0.0, 0

    def hold(self, gpu_us: int) -> None:
        """An attempt starts."""
        self.held_gpu_us += gpu_us

    def settle(self, held_gpu_us: int, gpus: int, useful_ms: int, now_ms: int) -> None:
        """An attempt ended at `now_ms`, after so much work that counts; what it lost is not charged."""
        assert held_gpu_us <= self.held_gpu_us, "more is let go than was held"
        self.held_gpu_us -= held_gpu_us
        self.used_gpu_us += gpus * useful_ms * 1000
        # work done evenly up to now decays on the way: the integral of 0.5 ** (age / half-life) over its ages
        scale_ms = self._half_life_ms / math.log(2)
        work = gpus * 1000 * scale_ms * -math.expm1(-useful_ms / scale_ms)
        self._decayed_gpu_us *= math.exp((self._as_of_ms - now_ms) / scale_ms)
        self._decayed_gpu_us += work
        self._as_of_ms = now_ms

    def renew(self, running_gpu_us: int) -> None:
        """A new term with the same grant begins: what is left lapses. `running`: spent by what has not ended."""
        self._allowed_gpu_us = self.used_gpu_us + running_gpu_us + self._granted_gpu_us

    def grant(self) -> Grant:
        """The grant as the core is to know it now."""
        granted_gpu_us = self._granted_gpu_us * self.terms
        overdraft = self._allowed_gpu_us - granted_gpu_us if self._hard else BOUNDLESS_GPU_US
        id = self.organization_id
        account = Account(id, granted_gpu_us, self.held_gpu_us, self.used_gpu_us, overdraft)
        return Grant(id, "replay", id, 0, self._term_ms * self.terms, (Path((account,), id),))

    def organization(self) -> Organization:
        """The organization with its decayed usage as of its last end."""
        return Organization(self.organization_id, False, self._decayed_gpu_us, self._as_of_ms)


def books(
    grants_gpu_s: Mapping[str, int], term_s: int, longest_s: int, kind: LedgerKind, half_life_ms: int
) -> dict[str, Book]:
    """A book per organization, with terms enough for `longest_s`. Powers of two divide a share exactly."""
    terms = 1 << (longest_s // term_s + 1).bit_length()
    return {id: Book(id, gpu_s, term_s, terms, kind, half_life_ms) for id, gpu_s in grants_gpu_s.items()}


def stretched(policy: Policy, found: Iterable[Book]) -> Policy:
    """The policy for grants of as many terms as these books have: shares of one term become shares of all.

    A job of the lane passes while spent < (1 + z - weight x behind) x granted, so that 1 + z is divided; `behind`,
    a share of the term, is divided by the core.
    """
    terms = max((book.terms for book in found), default=1)
    lane = policy.lane
    if lane:
        lane = replace(lane, tapers=tuple((limit, (1 + z) / terms - 1) for limit, z in lane.tapers))
    return replace(
        policy,
        lag_bound_share=policy.lag_bound_share / terms,
        idle_lag_share=policy.idle_lag_share / terms,
        lane=lane,
    )
