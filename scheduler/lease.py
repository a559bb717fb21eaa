"""Keeps the hub's one scheduler lease; everything that acts asks here first whether it still may."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import structlog

from quota.client import ServiceProblem, ServiceUnavailable
from quota.schemas.scheduling import LeaseReply, LeaseRequest

SAFETY_S = 0.5
"""The lease counts as lost this much early: a call that was allowed must still reach the service."""

log = structlog.get_logger()


class LeaseDesk(Protocol):
    """Where the lease is asked for."""

    def take_lease(self, body: LeaseRequest) -> LeaseReply:
        """Take or renew the lease; ServiceProblem 409 if it is another's."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """Leadership under one epoch, valid until a moment of the monotonic clock."""

    epoch: int
    valid_until_s: float
    ttl_s: float
    streams: Mapping[str, int]
    """The last sequence that each stream had at the take-over."""
    door_secret: str = field(default="", repr=False)
    """What the quota service shows at this process's door; new with every epoch."""


class LeaseKeeper:
    """Takes the lease, renews it, and says from any thread whether it is held right now."""

    def __init__(
        self,
        desk: LeaseDesk,
        holder: str,
        *,
        on_change: Callable[[], None] = lambda: None,
        monotonic_s: Callable[[], float] = time.monotonic,
        new_instance: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._desk = desk
        self._own_name = holder
        self._holder = holder
        self._new_instance = new_instance
        self._instance = new_instance()
        self.url = ""
        """What the lease says of where this process is reached."""
        self._on_change = on_change
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self.standby_reason = "starting"

    def latest(self) -> Lease | None:
        """The lease as last granted; it may have run out and still be renewed under its epoch."""
        return self._lease

    def lease(self) -> Lease | None:
        """The lease if it is held at this moment."""
        lease = self._lease
        if lease is None or self._monotonic_s() >= lease.valid_until_s - SAFETY_S:
            return None
        return lease

    def holds(self, epoch: int) -> bool:
        """Whether this epoch is the one held at this moment."""
        lease = self.lease()
        return lease is not None and lease.epoch == epoch

    def step_down(self, epoch: int, *, superseded: bool) -> None:
        """Give up an epoch. `superseded`: somebody else leads now, so wait like any other until they stop."""
        with self._lock:
            if self._lease is None or self._lease.epoch != epoch:
                return
            self._lease = None
            self.standby_reason = "superseded" if superseded else "taking_over_again"
            self._begin_again(aside=superseded)

    def keep_once(self) -> bool:
        """One renewal or one attempt to take over; True if the lease is held afterwards."""
        held = self._lease
        sent_at_s = self._monotonic_s()
        request = LeaseRequest(
            holder=self._holder,
            instance=self._instance,
            url=self.url,
            epoch=None if held is None else held.epoch,
        )
        try:
            reply = self._desk.take_lease(request)
        except ServiceUnavailable as trouble:
            log.warning("lease_unanswered", holder=self._holder, trouble=str(trouble))
            return self.lease() is not None
        except ServiceProblem as problem:
            if problem.status != 409:
                log.warning("lease_unanswered", holder=self._holder, trouble=str(problem))
                return self.lease() is not None
            self._refused(held, problem)
            return False
        return self._granted(held, reply, sent_at_s)

    def _granted(self, held: Lease | None, reply: LeaseReply, sent_at_s: float) -> bool:
        with self._lock:
            if self._lease is not held:
                return False  # stepped down while the answer was under way
            streams = MappingProxyType(dict(reply.streams)) if held is None else held.streams
            self._lease = Lease(reply.epoch, sent_at_s + reply.ttl_s, reply.ttl_s, streams, reply.door_secret)
        if held is None:
            self.standby_reason = ""
            log.info("lease_taken", holder=self._holder, epoch=reply.epoch)
            self._on_change()
        return True

    def _refused(self, held: Lease | None, problem: ServiceProblem) -> None:
        with self._lock:
            if self._lease is not held:
                return
            self._lease = None
            if held is not None:
                self._begin_again(aside=True)
            first_time = self.standby_reason != problem.code
            self.standby_reason = problem.code
        if held is not None:
            log.warning("lease_lost", holder=self._holder, epoch=held.epoch, code=problem.code)
            self._on_change()
        elif first_time:
            log.info("standby", holder=self._holder, code=problem.code, detail=problem.detail)

    def _begin_again(self, *, aside: bool) -> None:
        # the same instance would only get its old epoch again, with its old batches perhaps still under way
        self._instance = self._new_instance()
        if aside:
            # under the shared holder name a new instance would take the lease straight back
            self._holder = f"{self._own_name}~{self._instance[:8]}"
