"""Operators' switches: what each asks for, and whom it would touch or touched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quota.schemas.fleet import Node
from quota.schemas.identity import Organization
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.values import (
    AttemptNumber,
    Flag,
    GpuHoursOut,
    GpuUs,
    Instant,
    Reason,
    Reply,
    Request,
    wrong,
)

SHOWN_IDS = 20
"""How many ids of what a switch touches are named; the count is of all."""

PlacementKind = Literal["hub", "cluster", "gpu_class"]


class FreezeChange(Request):
    """Let an organization start nothing more, or let it start again."""

    frozen: Flag
    reason: Reason
    stop_running: Flag = False
    """Cancel what it runs, too; else that goes on to its end."""

    @model_validator(mode="after")
    def _stops_only_with_freezing(self) -> FreezeChange:
        if self.stop_running and not self.frozen:
            raise wrong("stop_running goes with frozen: true")
        return self


class PlacementChange(Request):
    """Let nothing start on the hub, on a cluster or on a GPU class, or let it start again."""

    paused: Flag
    reason: Reason


class GrantEdit(Request):
    """Change a grant's end or its cap on GPUs in use; what is left out stays as it is."""

    ends_at: Instant | None = None
    max_gpus: int | None = Field(default=None, strict=True, ge=1, le=1_000_000)
    """How many GPUs its attempts may keep at once; null: no cap."""
    reason: Reason

    @model_validator(mode="after")
    def _changes_something(self) -> GrantEdit:
        if not self.model_fields_set & {"ends_at", "max_gpus"}:
            raise wrong("name ends_at, max_gpus or both")
        if "ends_at" in self.model_fields_set and self.ends_at is None:
            raise wrong("a grant always has an end; leave ends_at out to keep it")
        return self


class RequeueRequest(Request):
    """Send a placed job back into the queue."""

    reason: Reason
    attempt: AttemptNumber | None = None
    """The attempt that is meant, so that a request that is sent again never stops the next one; absent: the present."""


class Affected(Reply):
    """How many, and the first of them in order of id."""

    count: int
    ids: tuple[str, ...]


class Reach(Reply):
    """Whom a switch touches."""

    waiting: Affected
    """Jobs that this switch keeps, or kept, from starting."""
    running: Affected
    """Attempts that have their GPUs now, as `<job>-<attempt>`."""
    held_gpu_us: GpuUs
    """What those attempts hold and have not settled."""
    held_gpu_hours: GpuHoursOut


class SwitchReply(Reply):
    """What a switch did, or with `dry_run` would do; else the two answers are equal."""

    dry_run: bool
    changed: bool
    """False: it stood so already, and nothing was written."""


class FreezeReply(SwitchReply):
    """An organization frozen or let go on."""

    organization: Organization
    reach: Reach
    stopped: Affected
    """Jobs that are cancelled with it."""


class PlacementSwitch(Reply):
    """Whether anything may start on the hub, a cluster or a GPU class."""

    kind: PlacementKind
    id: str
    paused: bool
    since: Instant | None = None
    """When it was paused last; null while it is open."""
    by: str | None = None
    """The token that paused it."""
    reason: str = ""


class PlacementList(Reply):
    """The hub's switch, then the clusters', then the GPU classes', in order of id."""

    items: tuple[PlacementSwitch, ...]


class PlacementReply(SwitchReply):
    """Placement paused or let go on."""

    placement: PlacementSwitch
    reach: Reach


class NodeReply(Node):
    """A node cordoned or let go on; with `dry_run` as it would be."""

    dry_run: bool
    changed: bool
    """False: it stood so already, and nothing was written."""
    reach: Reach


class GrantEditReply(SwitchReply):
    """A grant with another end or another cap."""

    grant: Grant
    past_the_end: Affected
    """Attempts whose time limit reaches past the end."""
    no_longer_fit: Affected
    """Waiting jobs that this grant could pay for before, and cannot in time or under the cap after."""
    expires_gpu_us: GpuUs
    """Neither used nor held now: what would expire if the end came now."""
    expires_gpu_hours: GpuHoursOut


class LostWork(Reply):
    """What an attempt did since its last checkpoint mark, or since it started."""

    since: Instant | None
    """Null: it has not started, and nothing is lost."""
    milliseconds: int
    gpus: int
    gpu_us: GpuUs
    gpu_hours: GpuHoursOut


class RequeueReply(SwitchReply):
    """A job asked back into the queue; the scheduler stops its attempt."""

    job: Job
    attempt: int
    lost: LostWork
    charged_gpu_us: GpuUs
    """What the attempt used until now: it stays charged, the next attempt is charged anew."""
    charged_gpu_hours: GpuHoursOut
