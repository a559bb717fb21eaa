"""What the service says of itself."""

from __future__ import annotations

from pydantic import Field

from quota.schemas.values import Instant, Reply


class Problem(Reply):
    """RFC 9457 problem document with a stable `code`."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    numbers: dict[str, int | str] = Field(default_factory=dict)
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
