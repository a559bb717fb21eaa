"""The objects of the quota service in memory, with the snapshot and the feed that show them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from quota.client import ServiceProblem
from quota.schemas.scheduling import (
    AttemptObject,
    BookedRoom,
    FeedItem,
    FeedKind,
    FeedPage,
    JobObject,
    Reservation,
    SnapshotPage,
)
from quota.schemas.service import Problem
from tests.unit.scheduler.cluster_model import Time

Touched = dict[tuple[FeedKind, str], None]
"""What one batch changed, in order."""


def problem(status: int, code: str, detail: str = "") -> ServiceProblem:
    """A refusal as the client raises it."""
    return ServiceProblem(Problem(type="about:blank", title=code, status=status, code=code, detail=detail))


@dataclass
class QuotaBook:
    """Whole objects and tombstones; every change moves the head."""

    time: Time
    head: int = 0
    oldest: int = 0
    objects: dict[tuple[FeedKind, str], FeedItem] = field(default_factory=dict)
    feed: dict[tuple[FeedKind, str], int] = field(default_factory=dict)

    def job(self, job_id: str) -> JobObject | None:
        """A job that has not ended."""
        item = self.objects.get(("job", job_id))
        return None if item is None else item.job

    def attempt(self, ident: str) -> AttemptObject | None:
        """An attempt that has not ended or keeps its capacity."""
        item = self.objects.get(("attempt", ident))
        return None if item is None else item.attempt

    def used(self) -> int:
        """GPUs given away."""
        nodes = [item.node for item in self.objects.values() if item.node is not None]
        return sum(capacity.used for node in nodes for capacity in node.capacities)

    def expire_cursors(self) -> None:
        """The feed no longer reaches back."""
        self.oldest = self.head
        self.put(("organization", "alpha", self.objects["organization", "alpha"].organization))

    def read_snapshot(self, after: str | None = None, limit: int = 3) -> SnapshotPage:
        """Small pages, so that several are needed."""
        cursor, start = (self.head, 0) if after is None else map(int, after.split("|"))
        items = sorted(self.objects.values(), key=lambda item: (item.kind, item.id))
        page = tuple(self._as_read(item) for item in items[start : start + 3])
        more = start + 3 < len(items)
        return SnapshotPage(
            cursor=cursor,
            items=page,
            next=f"{cursor}|{start + 3}" if more else None,
            reservations=self.promised() if after is None else (),
            booked=self.booked() if after is None else (),
        )

    def promised(self) -> tuple[Reservation, ...]:
        """What room the last ranking promised."""
        return ()

    def booked(self) -> tuple[BookedRoom, ...]:
        """Where the last ranking had the room of bookings."""
        return ()

    def follow_feed(self, after: int, wait_s: float = 25.0, limit: int = 2000) -> FeedPage:
        """Everything that changed after the cursor."""
        if not self.oldest <= after <= self.head:
            raise problem(410, "cursor_expired")
        changed = [key for key, seq in self.feed.items() if seq > after]
        return FeedPage(cursor=self.head, items=tuple(self._read(*key) for key in changed))

    def put(self, *changes: tuple[FeedKind, str, BaseModel | None]) -> None:
        """Somebody changed these; None: it is no more."""
        for kind, ident, found in changes:
            self._put({}, kind, ident, found)

    def _put(
        self,
        touched: Touched,
        kind: FeedKind,
        ident: str,
        found: BaseModel | None,
    ) -> None:
        self.head += 1
        touched[kind, ident] = None
        self.feed[kind, ident] = self.head
        if found is None:
            self.objects.pop((kind, ident), None)
        else:
            self.objects[kind, ident] = FeedItem.model_validate(
                {"kind": kind, "id": ident, "seq": self.head, kind: found}
            )

    def _read(self, kind: FeedKind, ident: str) -> FeedItem:
        item = self.objects.get((kind, ident))
        return (
            FeedItem(kind=kind, id=ident, seq=self.head, gone=True) if item is None else self._as_read(item)
        )

    def _as_read(self, item: FeedItem) -> FeedItem:
        return item.model_copy(update={"seq": self.head})
