"""Publishes the waiting jobs in order, with the reasons that changed since the cycle quota has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quota.client import ServiceUnavailable
from quota.schemas.scheduling import BookedRoom, Pace, RankingDocument, Reservation, Waiting
from scheduler.gateway import Gateway

PACES_WALL_S = 30.0
"""Paces move with every tick of the clock: on their own they are worth a document only this often."""

LONGEST_ORDER = 200_000
"""The contract's limit; who stands behind it is shown without a position."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The queue at one moment."""

    order: tuple[str, ...] = ()
    reasons: Mapping[str, Waiting] = field(default_factory=dict)
    paces: Mapping[str, Pace] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()
    booked: tuple[BookedRoom, ...] = ()


class RankingPublisher:
    """One term's rankings. The first one is complete, and so is one after an unknown outcome."""

    def __init__(
        self, gateway: Gateway, interval_s: float, first_cycle: int, monotonic_s: Callable[[], float]
    ) -> None:
        self._gateway = gateway
        self._interval_s = interval_s
        self._monotonic_s = monotonic_s
        self._cycle = first_cycle
        self._known: Standing | None = None
        self._known_cycle = first_cycle
        self._sent_s = float("-inf")

    def due(self) -> bool:
        """Whether enough time has passed since the last document."""
        return self._monotonic_s() >= self._sent_s + self._interval_s

    def due_in_s(self) -> float:
        """How long until then; 0 if it has."""
        return max(0.0, self._sent_s + self._interval_s - self._monotonic_s())

    def publish(self, standing: Standing, now_ms: int) -> None:
        """Tell quota if something changed. Raises as the gateway does."""
        if not self._worth_telling(standing):
            return
        try:
            taken = self._gateway.rank(self._document(standing, self._known, now_ms))
            if not taken:
                taken = self._gateway.rank(self._document(standing, None, now_ms))
        except ServiceUnavailable:
            self._known = None
            raise
        finally:
            self._sent_s = self._monotonic_s()
        self._known = standing if taken else None
        self._known_cycle = self._cycle

    def _worth_telling(self, standing: Standing) -> bool:
        known = self._known
        if known is None or standing.order != known.order or standing.reasons != known.reasons:
            return True
        if (standing.reservations, standing.booked) != (known.reservations, known.booked):
            return True
        return standing.paces != known.paces and self._monotonic_s() >= self._sent_s + PACES_WALL_S

    def _document(self, standing: Standing, known: Standing | None, now_ms: int) -> RankingDocument:
        self._cycle += 1
        whole = known is None
        reasons = {} if known is None else known.reasons
        paces = {} if known is None else known.paces
        return RankingDocument(
            epoch=self._gateway.epoch,
            cycle=self._cycle,
            base_cycle=None if whole else self._known_cycle,
            at=now_ms,
            order=standing.order[:LONGEST_ORDER],
            reasons={job: reason for job, reason in standing.reasons.items() if reasons.get(job) != reason},
            paces={grant: pace for grant, pace in standing.paces.items() if paces.get(grant) != pace},
            reservations=standing.reservations,
            booked=standing.booked,
        )
