"""What the quota service said last, object by object; the loop reads it and the core is fed from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from quota.schemas.scheduling import (
    AttemptObject,
    BookingObject,
    ClusterObject,
    FeedItem,
    FeedKind,
    GrantObject,
    JobObject,
    NodeObject,
    PolicyObject,
)

Key = tuple[str, str]

TOMBSTONES_KEPT = 50_000
"""Only a reply that is under way while the feed already told of the end can be older than a tombstone."""


class Cache:
    """Objects and tombstones by (kind, id); of two versions the one with the greater `seq` stays.

    Used by one thread. Replies and the feed arrive in any order: the order of `seq` decides.
    """

    def __init__(self) -> None:
        self._items: dict[str, dict[str, FeedItem]] = {kind: {} for kind in get_args(FeedKind)}
        self._gone: dict[Key, int] = {}
        self._changed: dict[Key, FeedItem] = {}
        self.loaded = False

    def apply(self, items: Iterable[FeedItem]) -> None:
        """Take newer versions; ignore what is older than what is known."""
        for item in items:
            self._apply_one(item)
        if len(self._gone) > TOMBSTONES_KEPT:
            oldest_first = sorted(self._gone.items(), key=lambda pair: pair[1])
            self._gone = dict(oldest_first[len(oldest_first) // 2 :])

    def replace(self, cursor: int, items: Iterable[FeedItem]) -> None:
        """Take a whole snapshot: what it does not list and was last seen at or before its cursor is gone."""
        listed = {(item.kind, item.id): item for item in items}
        for item in self.everything():
            if (item.kind, item.id) not in listed and item.seq <= cursor:
                self._apply_one(FeedItem(kind=item.kind, id=item.id, seq=cursor, gone=True))
        self.apply(listed.values())
        self.loaded = True

    def changes(self) -> list[FeedItem]:
        """What changed since the last call, each object once in its newest version."""
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    def everything(self) -> list[FeedItem]:
        """All objects."""
        return [item for objects in self._items.values() for item in objects.values()]

    def repeat(self, kind: FeedKind, ident: str) -> None:
        """Let the next `changes` contain this object again."""
        item = self._items[kind].get(ident)
        if item is not None:
            self._changed[kind, ident] = item

    def attempts(self) -> list[AttemptObject]:
        """All attempts that have not ended or still keep capacity."""
        return [item.attempt for item in self._items["attempt"].values() if item.attempt is not None]

    def attempt(self, ident: str) -> AttemptObject | None:
        """One attempt; None if it ended."""
        item = self._items["attempt"].get(ident)
        return None if item is None else item.attempt

    def jobs(self) -> list[JobObject]:
        """All jobs that have not ended."""
        return [item.job for item in self._items["job"].values() if item.job is not None]

    def job(self, ident: str) -> JobObject | None:
        """One job; None if it ended."""
        item = self._items["job"].get(ident)
        return None if item is None else item.job

    def grants(self) -> list[GrantObject]:
        """All grants that have not ended."""
        return [item.grant for item in self._items["grant"].values() if item.grant is not None]

    def nodes(self) -> list[NodeObject]:
        """All nodes with what the hub has given on them."""
        return [item.node for item in self._items["node"].values() if item.node is not None]

    def rates(self) -> dict[str, int]:
        """The present rate of every GPU class, in thousandths."""
        found = (item.gpu_class for item in self._items["gpu_class"].values())
        return {one.id: one.rate_thousandths for one in found if one is not None}

    def booking(self, ident: str) -> BookingObject | None:
        """One time of a booking; None if it was cancelled."""
        item = self._items["booking"].get(ident)
        return None if item is None else item.booking

    def cluster(self, ident: str) -> ClusterObject | None:
        """One cluster as quota knows it."""
        item = self._items["cluster"].get(ident)
        return None if item is None else item.cluster

    def policy(self) -> PolicyObject | None:
        """The one policy object."""
        return next((item.policy for item in self._items["policy"].values()), None)

    def _apply_one(self, item: FeedItem) -> None:
        key = (item.kind, item.id)
        objects = self._items[item.kind]
        known = objects.get(item.id)
        if known is not None:
            if item.seq < known.seq or item == known:
                return
        elif item.seq <= self._gone.get(key, -1):
            return
        if item.gone:
            objects.pop(item.id, None)
            self._gone[key] = item.seq
        else:
            objects[item.id] = item
            self._gone.pop(key, None)
        self._changed[key] = item
