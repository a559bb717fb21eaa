"""What a programme grants under: the rules that its grants take a copy of when they are awarded."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from quota.schemas.values import Instant, Milliseconds, Reason, Reply, Request, Slug


class WhenGrantEnds(StrEnum):
    """What happens to attempts that still run when their grant ends."""

    FINISH_IF_STARTED = "finish_if_started"
    """They run on; what they hold expires when it comes free."""
    STOP_AT_END = "stop_at_end"
    """They are told before, and stopped at the end."""


class GrantPolicy(Request):
    """The rules of a grant. A grant keeps those that it was awarded under."""

    overdraft_thousandths: Annotated[int, Field(strict=True, ge=0, le=1000)] = 0
    """How much more than granted may be held and used: 0 denies, 250 allows 125 %."""
    when_grant_ends: WhenGrantEnds = WhenGrantEnds.FINISH_IF_STARTED
    stop_notice_s: Annotated[int, Field(strict=True, ge=0, le=2_592_000)] = 86_400
    """How long before the end of a `stop_at_end` grant its running attempts are told."""
    carry_over_thousandths: Annotated[int, Field(strict=True, ge=0, le=1000)] = 1000
    """The part of what expired that an operator may carry over to another grant of the programme."""
    refund_cap_ms: Milliseconds = 14_400_000
    """Most lost time given back per job after faults of the platform."""


class PolicyPut(Request):
    """Set a policy, whole."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "policy": {"overdraft_thousandths": 250, "when_grant_ends": "stop_at_end"},
                    "reason": "the PoC call of 2027",
                }
            ]
        }
    )

    policy: GrantPolicy
    reason: Reason


class PolicyDocument(Reply):
    """A policy by its name, and how often it was changed."""

    id: Slug
    version: int
    policy: GrantPolicy
    changed_at: Instant


class PolicyList(Reply):
    """Policies in order of id; pass `next` as `after` for the following page."""

    items: tuple[PolicyDocument, ...]
    next: str | None = None
