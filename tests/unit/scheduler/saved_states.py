"""Saved states for tests: a small hub as its quota service would write it down."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from quota.schemas.scheduling import (
    AccountBalance,
    ClusterObject,
    FeedItem,
    GrantObject,
    JobState,
    NodeCapacityObject,
    NodeObject,
    Reservation,
)
from quota.schemas.snapshots import FORMAT, VERSION, SchedulerState, ShownQueue, fingerprint
from scheduler.snapshots.file import parse_state
from tests.unit.scheduler.quota_objects import (
    YEAR_MS,
    a_class,
    a_grant,
    a_job,
    a_path,
    a_policy,
    an_attempt,
    an_organization,
)

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
GPU_HOUR_US = 3_600_000_000


def an_item(kind: str, ident: str, body: BaseModel) -> FeedItem:
    return FeedItem.model_validate({"kind": kind, "id": ident, "seq": 1, kind: body})


def a_node(name: str = "n0", total: int = 8, used: int = 0, **changes: Any) -> FeedItem:
    words: dict[str, Any] = {"cluster": "sim", "node": name, "schedulable": True}
    capacity = NodeCapacityObject(gpu_class="h100", total=total, foreign=0, used=used)
    body = NodeObject.model_validate(words | {"capacities": (capacity,)} | changes)
    return an_item("node", f"{body.cluster}/{name}", body)


def a_firm(
    name: str, granted_gpu_h: int = 100_000, used_gpu_h: int = 0, held_gpu_us: int = 0
) -> list[FeedItem]:
    """An organization and its grant `g-NAME`, half-way through its term."""
    account = AccountBalance(
        id=f"grant:g-{name}",
        granted_gpu_us=granted_gpu_h * GPU_HOUR_US,
        held_gpu_us=held_gpu_us,
        used_gpu_us=used_gpu_h * GPU_HOUR_US,
    )
    path = a_path(name).model_copy(update={"accounts": (account,)})
    grant = a_grant(NOW_MS, id=f"g-{name}", organization_id=name, paths=(path,))
    return [
        an_item("organization", name, an_organization(name, NOW_MS)),
        an_item("grant", grant.id, grant),
    ]


def a_waiting(job_id: str, organization: str = "alpha", **changes: Any) -> FeedItem:
    words: dict[str, Any] = {"organization_id": organization, "submitted_at": NOW_MS - HOUR_MS}
    return an_item("job", job_id, a_job(job_id, **(words | changes)))


def a_running(
    job_id: str, node: str, gpus: int, *, organization: str = "alpha", left_ms: int = 2 * HOUR_MS
) -> list[FeedItem]:
    """A job and its attempt, half of whose walltime is over."""
    held = {"organization_id": organization, "walltime_ms": 2 * left_ms}
    job = a_job(
        job_id, state=JobState.RUNNING, attempt=1, gpus_per_pod=gpus, submitted_at=NOW_MS - YEAR_MS, **held
    )
    attempt = an_attempt(
        job_id,
        state=JobState.RUNNING,
        grant_id=f"g-{organization}",
        pods=({"index": 0, "node": node, "gpu_class": "h100", "count": gpus},),
        cost_gpu_us=2 * left_ms * gpus * 1000,
        claimed_at=NOW_MS - left_ms,
        first_started_at=NOW_MS - left_ms,
        last_started_at=NOW_MS - left_ms,
        **held,
    )
    return [an_item("job", job_id, job), an_item("attempt", attempt.id, attempt)]


def a_small_hub(*more: FeedItem, nodes: Iterable[FeedItem] | None = None) -> SchedulerState:
    """Policy, cluster, class, firms alpha and beta, one node with 8 GPUs unless others are given."""
    cluster = ClusterObject(id="sim", paused=False, observed_through=NOW_MS)
    return a_state(
        an_item("policy", "default", a_policy()),
        an_item("cluster", "sim", cluster),
        an_item("gpu_class", "h100", a_class()),
        *(nodes if nodes is not None else [a_node()]),
        *(part for firm in ("alpha", "beta") for part in a_firm(firm, held_gpu_us=_held_by(firm, more))),
        *more,
    )


def _held_by(firm: str, items: Iterable[FeedItem]) -> int:
    """What the attempts among these hold of this firm's grant."""
    attempts = [item.attempt for item in items if item.attempt is not None]
    return sum(attempt.cost_gpu_us for attempt in attempts if attempt.grant_id == f"g-{firm}")


def a_document(
    *items: FeedItem, shown: ShownQueue | None = None, reservations: Iterable[Reservation] = ()
) -> dict[str, Any]:
    """As the quota service writes it."""
    unsigned = SchedulerState(
        format=FORMAT,
        version=VERSION,
        taken_at=NOW_MS,
        clock_speed=1,
        cursor=9,
        pseudonyms=False,
        items=items,
        reservations=tuple(reservations),
        shown=shown,
        sha256="",
    )
    document: dict[str, Any] = unsigned.model_dump(mode="json")
    return document | {"sha256": fingerprint(document)}


def a_state(*items: FeedItem, **more: Any) -> SchedulerState:
    return parse_state(json.dumps(a_document(*items, **more)).encode(), "the test's")


def a_saved(state: SchedulerState) -> bytes:
    """A state as the bytes of a file."""
    return json.dumps(a_document(*state.items, shown=state.shown)).encode()


def the_grant(state_items: Iterable[FeedItem], ident: str) -> GrantObject:
    """One grant among items."""
    return next(item.grant for item in state_items if item.grant is not None and item.id == ident)
