"""Follows what the quota service knows: a snapshot in pages, then the feed; each page goes to the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from quota.client import ServiceProblem
from quota.schemas.scheduling import BookedRoom, FeedItem, Reservation
from scheduler.gateway import Quota

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """Everything, as of a cursor that was read before the first page."""

    epoch: int
    cursor: int
    items: tuple[FeedItem, ...]
    reservations: tuple[Reservation, ...] = ()
    booked: tuple[BookedRoom, ...] = ()
    """What room the last ranking promised."""


@dataclass(frozen=True, slots=True)
class FeedRead:
    """What changed since the page before."""

    epoch: int
    cursor: int
    """Up to here it was read."""
    items: tuple[FeedItem, ...]


FeedNews = SnapshotTaken | FeedRead


class FeedFollower:
    """One epoch's reader of snapshot and feed; a cursor that has expired means a new snapshot."""

    def __init__(self, quota: Quota, epoch: int, tell: Callable[[FeedNews], None], wait_s: float) -> None:
        self._quota = quota
        self._epoch = epoch
        self._tell = tell
        self._wait_s = wait_s
        self._cursor: int | None = None

    def follow_once(self) -> None:
        """Read the snapshot, or the next page of the feed. Raises ServiceUnavailable or ServiceProblem."""
        if self._cursor is None:
            self._cursor = self._take_snapshot()
            return
        try:
            page = self._quota.follow_feed(self._cursor, self._wait_s)
        except ServiceProblem as problem:
            if problem.status != 410:
                raise
            log.info("cursor_expired", cursor=self._cursor)
            self._cursor = None
            return
        if page.cursor != self._cursor:
            self._tell(FeedRead(self._epoch, page.cursor, page.items))
        self._cursor = page.cursor

    def _take_snapshot(self) -> int:
        page = self._quota.read_snapshot()
        first, cursor, items = page, page.cursor, list(page.items)
        while page.next is not None:
            page = self._quota.read_snapshot(after=page.next)
            items.extend(page.items)
        self._tell(SnapshotTaken(self._epoch, cursor, tuple(items), first.reservations, first.booked))
        log.info("snapshot_taken", epoch=self._epoch, cursor=cursor, objects=len(items))
        return cursor
