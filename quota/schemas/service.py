"""What the service says of itself."""

from __future__ import annotations

from pydantic import Field

from quota.schemas.values import Instant, Numbers, Reply


class Problem(Reply):
    """RFC 9457 problem document with a stable `code`."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    numbers: Numbers = Field(default_factory=dict)
    """What the code is about, for programs; amounts (`*_gpu_us`) are decimal strings in JSON."""
    errors: list[dict[str, str]] = Field(default_factory=list)


class ClockReply(Reply):
    """The hub's clock: business time = business_at + (wall - wall_at) x speed."""

    business_at: Instant
    wall_at: Instant
    speed: int
    now: Instant


class Health(Reply):
    """Alive, or ready with what was checked."""

    status: str
    checks: dict[str, str] = Field(default_factory=dict)


class TaskState(Reply):
    """A periodic task: what it did last, `running` while it does it, `failed: …` when it could not."""

    name: str
    period_s: int
    last_run_at: Instant | None
    result: str | None


class TaskList(Reply):
    """All periodic tasks."""

    items: tuple[TaskState, ...]
