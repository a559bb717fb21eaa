"""The scheduler's latest word on who waits, in which order and why; positions are computed when someone reads."""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from sqlalchemy import Connection, bindparam, insert, select, update

from quota.db import Tx
from quota.dispatch import lease
from quota.dispatch.fair_share import read_fair_share
from quota.dispatch.forecasts import StoredForecast
from quota.dispatch.tables import ranking
from quota.errors import RankingBaseUnknown
from quota.jobs.tables import jobs
from quota.programs.tables import grants
from quota.queue import Place
from quota.schemas.bookings import OccurrenceRoom
from quota.schemas.forecasts import JobEta, NewcomerItem
from quota.schemas.scheduling import (
    BookedRoom,
    RankingDocument,
    RankingReply,
    Reservation,
    Waiting,
    WaitReason,
)

_RESERVATIONS: TypeAdapter[tuple[Reservation, ...]] = TypeAdapter(tuple[Reservation, ...])
_BOOKED: TypeAdapter[tuple[BookedRoom, ...]] = TypeAdapter(tuple[BookedRoom, ...])

_JOBS_AT_ONCE = 500

_PACE = (
    update(grants)
    .where(grants.c.id == bindparam("grant"))
    .values(
        pace_lag_ms=bindparam("lag"), pace_as_of_ms=bindparam("as_of"), pace_spent_gpu_us=bindparam("spent")
    )
)


def put_ranking(tx: Tx, document: RankingDocument) -> RankingReply:
    """Store the order, merge the reasons that changed, and keep each grant's pace and what room is promised.

    Raises StaleEpoch, and RankingBaseUnknown if the changes start from another document than the stored one.
    """
    lease.check_epoch(tx, document.epoch)
    row = tx.connection.execute(select(ranking).where(ranking.c.id == 1).with_for_update()).one_or_none()
    reasons: dict[str, object] = {}
    if document.base_cycle is not None:
        stored = None if row is None else json.loads(zlib.decompress(row.body))
        if stored is None or (stored["epoch"], row.cycle if row else 0) != (
            document.epoch,
            document.base_cycle,
        ):
            raise RankingBaseUnknown()
        waiting = set(document.order)
        reasons = {job_id: reason for job_id, reason in stored["reasons"].items() if job_id in waiting}
    reasons |= {job_id: reason.model_dump(mode="json") for job_id, reason in document.reasons.items()}
    body = zlib.compress(
        json.dumps({"epoch": document.epoch, "order": document.order, "reasons": reasons}).encode(), 1
    )
    values = {
        "cycle": document.cycle,
        "at_ms": document.at,
        "body": body,
        "reservations": _RESERVATIONS.dump_json(document.reservations).decode(),
        "booked": _BOOKED.dump_json(document.booked).decode(),
    }
    if row is None:
        tx.connection.execute(insert(ranking), values | {"id": 1})
    else:
        tx.connection.execute(update(ranking).where(ranking.c.id == 1).values(**values))
    for grant_id, pace in sorted(document.paces.items()):
        values = {"grant": grant_id, "lag": pace.lag_ms, "as_of": pace.as_of, "spent": pace.spent_gpu_us}
        tx.connection.execute(_PACE, values)
    return RankingReply(cycle=document.cycle, seq=0)


def read_reservations(connection: Connection) -> tuple[Reservation, ...]:
    """What room the last ranking promised to waiting jobs."""
    stored = connection.execute(select(ranking.c.reservations).where(ranking.c.id == 1)).scalar_one_or_none()
    return () if stored is None else _RESERVATIONS.validate_json(stored)


def read_booked(connection: Connection) -> tuple[BookedRoom, ...]:
    """Where the last ranking had the room of bookings."""
    stored = connection.execute(select(ranking.c.booked).where(ranking.c.id == 1)).scalar_one_or_none()
    return () if stored is None else _BOOKED.validate_json(stored)


@dataclass(frozen=True, slots=True)
class _Ranks:
    """One ranking's order as places; replaced as a whole, because others read it meanwhile."""

    positions: Mapping[str, int]
    own: Mapping[str, int]
    """Places among the jobs of the same organization."""
    organizations: Mapping[str, str]
    """By job; a job never changes its own."""
    lengths: Mapping[str, int]
    """Ranked jobs by organization."""

    def place(self, job_id: str) -> Place | None:
        if job_id not in self.positions:
            return None
        own_of = self.lengths[self.organizations.get(job_id, "")]
        return Place(self.positions[job_id], len(self.positions), self.own[job_id], own_of)


def _ranks(connection: Connection, order: list[str], organizations: Mapping[str, str]) -> _Ranks:
    """The places of an order; `organizations` are those known, only the others are read."""
    known = {job_id: organizations[job_id] for job_id in order if job_id in organizations}
    new = [job_id for job_id in order if job_id not in known]
    for first in range(0, len(new), _JOBS_AT_ONCE):
        some = jobs.c.id.in_(new[first : first + _JOBS_AT_ONCE])
        for row in connection.execute(select(jobs.c.id, jobs.c.organization_id).where(some)):
            known[row.id] = row.organization_id
    own, lengths = dict[str, int](), Counter[str]()
    for job_id in order:
        organization_id = known.get(job_id, "")
        lengths[organization_id] += 1
        own[job_id] = lengths[organization_id]
    positions = {job_id: place for place, job_id in enumerate(order, 1)}
    return _Ranks(positions, own, known, lengths)


class StoredQueue:
    """The stored ranking, unpacked once per cycle and process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._ranks = _Ranks({}, {}, {}, {})
        self._reasons: dict[str, dict[str, object]] = {}
        self._booked: dict[str, BookedRoom] = {}
        self._forecast = StoredForecast()

    def refresh(self, connection: Connection) -> None:
        """Take over the stored ranking and forecast if they are newer ones."""
        self._forecast.refresh(connection)
        row = connection.execute(
            select(ranking.c.cycle, ranking.c.at_ms).where(ranking.c.id == 1)
        ).one_or_none()
        if row is None or (row.cycle, row.at_ms) == self._version:
            return
        with self._lock:
            full = connection.execute(select(ranking).where(ranking.c.id == 1)).one()
            document = json.loads(zlib.decompress(full.body))
            self._ranks = _ranks(connection, document["order"], self._ranks.organizations)
            self._reasons = document["reasons"]
            self._booked = {room.booking_id: room for room in _BOOKED.validate_json(full.booked)}
            self._version = (full.cycle, full.at_ms)

    def ranked_at_ms(self) -> int | None:
        """When the queue was ranked; None if never."""
        return None if self._version is None else self._version[1]

    def position(self, job_id: str) -> int | None:
        """Place in the hub's queue, 1 = next; None if unranked."""
        return self._ranks.positions.get(job_id)

    def place(self, job_id: str) -> Place | None:
        """Place in the hub's queue and in its organization's; None if unranked."""
        return self._ranks.place(job_id)

    def eta(self, job_id: str) -> JobEta | None:
        """When a job is likely to start; None if the last forecast does not say."""
        return self._forecast.eta(job_id)

    def foretold_at_ms(self) -> int | None:
        """The moment that the last forecast was made for; None if there never was one."""
        return self._forecast.as_of_ms()

    def newcomers(self, organization_id: str) -> Sequence[NewcomerItem]:
        """What the last forecast says of jobs that the organization may submit, the closest likenesses first."""
        return self._forecast.newcomers(organization_id)

    def booked(self, occurrence_id: str) -> OccurrenceRoom | None:
        """Where the room of one time of a booking is; None if no cycle has said."""
        room = self._booked.get(occurrence_id)
        if room is None:
            return None
        return OccurrenceRoom(
            cluster=room.cluster,
            gpus=sum(room.gpus_by_node.values()),
            short_gpus=room.short_gpus,
            used=room.used,
            released=room.released,
        )

    def rooms(self, connection: Connection) -> Mapping[str, BookedRoom]:
        """Where the room of the coming times of bookings is, by their ids."""
        self.refresh(connection)
        return self._booked

    def opportunistic_notice_ms(self, connection: Connection) -> int:
        """How long before it is stopped an opportunistic job is told."""
        return read_fair_share(connection).fair_share.opportunistic_notice_ms

    def booking_lead_ms(self, connection: Connection) -> int:
        """How long before a booking begins others must be out of its room."""
        return read_fair_share(connection).fair_share.booking_lead_ms

    def code(self, job_id: str) -> WaitReason | None:
        """The code alone of why a job waits, or None if no cycle has said."""
        reason = self._reasons.get(job_id)
        return None if reason is None else WaitReason(str(reason["code"]))

    def waiting(self, job_id: str) -> Waiting | None:
        """Why a job waits, or None if no cycle has said."""
        reason = self._reasons.get(job_id)
        return None if reason is None else Waiting.model_validate(reason)
