"""The state of scheduling as one document: what is left out of it, and at which moment it is true."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from quota.audit import service as audit
from quota.clock import instant_text
from quota.db import Database, head
from quota.dispatch import objects
from quota.dispatch.pseudonyms import with_pseudonyms
from quota.dispatch.ranking import read_booked, read_reservations
from quota.dispatch.tables import ranking
from quota.schemas.identity import Caller
from quota.schemas.scheduling import FeedItem, FeedKind
from quota.schemas.snapshots import FORMAT, VERSION, fingerprint

PAGE = 5000
KEPT: Mapping[FeedKind, frozenset[str]] = {
    "job": frozenset(
        {
            *(
                "id",
                "organization_id",
                "grant_id",
                "gpu_class",
                "gpus_per_pod",
                "pods",
                "walltime_ms",
                "grace_ms",
            ),
            *("restartable", "submitted_at", "state", "attempt", "not_before", "cancel_requested_at"),
            *("preempted_at", "gpu_classes", "topology", "program_id"),
        }
    ),
    "attempt": frozenset(
        {
            *(
                "id",
                "job_id",
                "organization_id",
                "attempt",
                "state",
                "cluster",
                "pods",
                "grant_id",
                "hold_id",
            ),
            *("cost_gpu_us", "walltime_ms", "grace_ms", "claimed_at", "first_started_at", "last_started_at"),
            *("ended_at", "capacity_held", "stop", "stop_asked", "opportunistic"),
        }
    ),
}
"""Of objects that a cluster is told of, too, only what decides who runs when; all other kinds are kept whole.

What a firm wrote for its job may hold passwords, and what a cluster said may repeat it.
"""
WITHHELD = frozenset({"image", "command", "environment", "annotations", "detail"})
"""What they have besides. A test sees to it that each of their fields is named here or there."""


def take_state(database: Database, clock_speed: int, *, pseudonyms: bool = False) -> dict[str, Any]:
    """The whole state at one moment, as the JSON object of a `SchedulerState`. Blocks."""
    with database.read() as connection:
        now_ms, seq = database.clock.now_ms(), head(connection)
        # the wire's own type writes moments and amounts; it is put together here because it knows no default
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "taken_at": instant_text(now_ms),
            "clock_speed": clock_speed,
            "cursor": seq,
            "pseudonyms": pseudonyms,
            "items": [
                _written(item) for kind in objects.KINDS for item in _all(connection, kind, seq, now_ms)
            ],
            "reservations": [each.model_dump(mode="json") for each in read_reservations(connection)],
            "booked": [each.model_dump(mode="json") for each in read_booked(connection)],
            "shown": _shown(connection),
        }
    if pseudonyms:
        document = with_pseudonyms(document)
    return document | {"sha256": fingerprint(document)}


def record_taken(database: Database, caller: Caller, state: Mapping[str, Any]) -> None:
    """Write down who took it; call it before answering. Blocks."""
    detail = {
        "objects": len(state["items"]),
        "pseudonyms": state["pseudonyms"],
        "sha256": state["sha256"],
        "taken_at": state["taken_at"],
    }
    database.write(lambda tx: audit.record(tx, caller, "scheduler_state.read", "scheduler", detail=detail))


def _all(connection: Connection, kind: FeedKind, seq: int, now_ms: int) -> list[FeedItem]:
    found: list[FeedItem] = []
    while True:
        page = objects.page(connection, kind, found[-1].id if found else "", PAGE, seq, now_ms)
        found += page
        if len(page) < PAGE:
            return found


def _written(item: FeedItem) -> dict[str, Any]:
    body = getattr(item, item.kind)
    kept = KEPT.get(item.kind)
    return {
        "kind": item.kind,
        "id": item.id,
        "seq": item.seq,
        item.kind: body.model_dump(mode="json", include=kept),
    }


def _shown(connection: Connection) -> dict[str, Any] | None:
    row = connection.execute(select(ranking).where(ranking.c.id == 1)).one_or_none()
    if row is None:
        return None
    stored = json.loads(zlib.decompress(row.body))
    return {
        "cycle": row.cycle,
        "at": instant_text(row.at_ms),
        "order": stored["order"],
        "reasons": stored["reasons"],
    }
