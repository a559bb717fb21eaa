"""A saved state of the hub's scheduling: everything that decides who runs next, and nothing that runs.

The objects are those of the scheduler's own snapshot, so what is decided on a file is what the hub would have decided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from quota.schemas.scheduling import BookedRoom, FeedItem, Reservation, Waiting
from quota.schemas.values import Instant, Reply

FORMAT = "gpuhub-scheduler-state"
VERSION = 1
"""Grows when an older program could no longer understand a file; a field that may be left out does not count."""


class ShownQueue(Reply):
    """The waiting jobs in order, and why each waits, as the hub showed them when the state was saved."""

    cycle: int
    at: Instant
    order: tuple[str, ...]
    reasons: dict[str, Waiting]


class SchedulerState(Reply):
    """Everything that the scheduler's core needs, at one moment of the database; without what only a cluster needs.

    Images, commands, environments, annotations and the cluster's own words are not in it.
    """

    format: str
    version: int
    taken_at: Instant
    clock_speed: int
    """How many business seconds pass in a second of the wall: some limits are in wall time."""
    cursor: int
    """The head of the feed at that moment."""
    pseudonyms: bool
    """Whether organizations, programmes, grants and accounts have numbers for names."""
    items: tuple[FeedItem, ...]
    reservations: tuple[Reservation, ...] = ()
    """What room the last ranking promised."""
    booked: tuple[BookedRoom, ...] = ()
    """Where the last ranking had the room of bookings. Their coming times are among the items."""
    shown: ShownQueue | None = None
    """None: no scheduler has ranked anything yet."""
    sha256: str
    """Of all the other fields as JSON with sorted keys, no spaces, and text as it is; see `fingerprint`."""


def fingerprint(document: Mapping[str, Any]) -> str:
    """SHA-256 in hex of a state's JSON object without its `sha256`, however it was written down."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
