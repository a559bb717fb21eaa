"""Idle GPUs: when a job that holds GPUs without using them is warned and stopped, and what was found of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from quota.schemas.values import Instant, Reason, Reply, Request, Slug, wrong

Span = Annotated[int, Field(strict=True, ge=60, le=86_400)]
Share = Annotated[int, Field(strict=True, ge=0, le=1000)]


class JobKind(StrEnum):
    """What a job is for, as its idle rules have it."""

    BATCH = "batch"
    INTERACTIVE = "interactive"
    """Somebody works in it, as in a notebook: it may pause, but not for long."""


class IdleMode(StrEnum):
    """What follows from what was found."""

    OFF = "off"
    """Nothing is judged."""
    OBSERVE = "observe"
    """It is shown, and nobody is warned."""
    WARN = "warn"
    """Warnings are recorded, and nothing is stopped."""
    STOP = "stop"


class IdleState(StrEnum):
    """What was found of a running attempt."""

    ACTIVE = "active"
    LOW_UTILIZATION = "low_utilization"
    """It works, but little for what it holds; never stopped for that."""
    PARTLY_IDLE = "partly_idle"
    """Some of its GPUs work and some do not; never stopped for that."""
    IDLE = "idle"
    """None of its GPUs has worked for as long as the first warning takes, but the mode or an exemption keeps it from
    being warned."""
    WARNED = "warned"
    WARNED_TWICE = "warned_twice"
    STOPPING = "stopping"
    """The scheduler was asked to stop it."""
    UNOBSERVED = "unobserved"
    """The agents have said too little lately; nothing follows from that."""


class IdleSpan(Request):
    """How long without work until each step. Seconds of the hub's clock."""

    first_warning_s: Span
    second_warning_s: Span
    stop_s: Span

    @model_validator(mode="after")
    def _in_order(self) -> IdleSpan:
        if not self.first_warning_s < self.second_warning_s < self.stop_s:
            raise wrong("the first warning comes before the second, and that before the stop")
        return self

    def after_ms(self, step: int) -> int:
        """When step 1, 2 (the warnings) or 3 (the stop) is due, after the last work."""
        return (self.first_warning_s, self.second_warning_s, self.stop_s)[step - 1] * 1000


class KindRules(Request):
    """The spans of one kind of job."""

    from_start: IdleSpan
    """Of an attempt that has done no work at all since all its containers started."""
    sliding: IdleSpan
    """Of one that has worked, counted anew from each time that it works."""

    @model_validator(mode="after")
    def _start_is_shorter(self) -> KindRules:
        if self.from_start.stop_s > self.sliding.stop_s:
            raise wrong("from_start.stop_s is at most sliding.stop_s")
        return self


class IdleRules(Request):
    """When a job counts as idle, and what follows."""

    mode: IdleMode = IdleMode.STOP
    batch: KindRules = KindRules(
        from_start=IdleSpan(first_warning_s=3600, second_warning_s=6300, stop_s=7200),
        sliding=IdleSpan(first_warning_s=9000, second_warning_s=14_400, stop_s=18_000),
    )
    interactive: KindRules = KindRules(
        from_start=IdleSpan(first_warning_s=1800, second_warning_s=2880, stop_s=3600),
        sliding=IdleSpan(first_warning_s=1800, second_warning_s=2880, stop_s=3600),
    )
    noise_thousandths: Annotated[int, Field(strict=True, ge=0, le=200)] = 6
    """Busy time up to this part of the observed time is not work: monitoring has it, too."""
    noise_busy_ms: Annotated[int, Field(strict=True, ge=0, le=600_000)] = 10_000
    """Nor is so much beyond that: one stray sample. More within any stretch of time, however short or long, is work."""
    observed_thousandths: Annotated[int, Field(strict=True, ge=500, le=1000)] = 900
    """A span counts only if at most the rest of its `stop_s` was not measured, on each GPU."""
    warning_gap_s: Span = 600
    """The second warning comes at least so long after the first, the stop at least so long after the second."""
    fresh_s: Span = 900
    """Nothing follows from evidence that ended longer ago."""
    low_utilization_thousandths: Share = 200
    """An attempt whose GPUs are used less than this is flagged; 0: none is."""
    low_utilization_window_s: Annotated[int, Field(strict=True, ge=3600, le=30 * 86_400)] = 86_400
    """Over so long, or since it started; not before two hours were measured."""

    def of(self, kind: JobKind) -> KindRules:
        """The spans of this kind of job."""
        return self.interactive if kind is JobKind.INTERACTIVE else self.batch


class IdlePolicy(IdleRules):
    """The hub's rules, and those of programmes that have their own, whole."""

    programs: Annotated[dict[Slug, IdleRules], Field(max_length=1000)] = Field(default_factory=dict)

    def for_program(self, program_id: str) -> IdleRules:
        """The rules that a programme's jobs are judged by."""
        return self.programs.get(program_id, self)

    def longest_ms(self) -> int:
        """The longest span that any job is judged by."""
        every = (self, *self.programs.values())
        return 1000 * max(
            max(rules.batch.sliding.stop_s, rules.interactive.sliding.stop_s) for rules in every
        )


class IdlePolicyPut(Request):
    """Set the idle rules, whole: what is left out is the default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "policy": {"mode": "warn", "low_utilization_thousandths": 100},
                    "reason": "only warnings until the end of the pilot",
                }
            ]
        }
    )

    policy: IdlePolicy
    reason: Reason


class IdlePolicyDocument(Reply):
    """The idle rules, and how often they were changed."""

    version: int
    policy: IdlePolicy
    changed_at: Instant
    etag: str
    """What `If-Match` takes."""


class ExemptionKind(StrEnum):
    """Whose jobs an exemption is for."""

    JOB = "job"
    ORGANIZATION = "organization"
    PROGRAM = "program"
    GRANT = "grant"


ExemptId = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9-]{0,58}[a-z0-9]$",
        description="The id of the job, organization, programme or grant.",
        examples=["alpha-lab"],
    ),
]


class NewExemption(Request):
    """Keep one job, or those of an organization, a programme or a grant, from being warned and stopped for a while."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "organization",
                    "subject": "alpha-lab",
                    "expires_at": "2027-05-22T15:00:00.000Z",
                    "reason": "a demonstration that has to answer at once",
                }
            ]
        }
    )

    kind: ExemptionKind
    subject: ExemptId
    expires_at: Instant
    reason: Reason


class ExemptionEnd(Request):
    """End an exemption before its time."""

    reason: Reason


class Exemption(Reply):
    """An exemption from the idle rules."""

    id: str
    kind: ExemptionKind
    subject: str
    reason: str
    created_at: Instant
    created_by: str
    expires_at: Instant
    ended_at: Instant | None
    """When it was ended before its time."""


class ExemptionList(Reply):
    """Exemptions, newest first; pass `next` as `after` for the following page."""

    items: tuple[Exemption, ...]
    next: str | None = None


class JobIdle(Reply):
    """What was found of the attempt that runs."""

    state: IdleState
    since: Instant | None
    """Since when none of its GPUs has worked; null while they do."""
    rule: Literal["from_start", "sliding"] | None
    stop_at: Instant | None
    """When it is stopped if that stays so; null: never."""
    idle_gpus: int
    gpus: int
    utilization_thousandths: int | None
    """Of its GPUs when it was flagged, over the window of that flag; null: it is not flagged for that."""
    evidence_through: Instant | None
    """Of one that is unobserved: up to when all of its GPUs were measured; null: never, or it is measured."""
    exempt_until: Instant | None
    changed_at: Instant


class IdleWarning(Reply):
    """A warning that was recorded before a stop, or was withdrawn."""

    attempt: int
    number: int
    """Counts the warnings of an attempt."""
    step: Literal[1, 2]
    at: Instant
    idle_since: Instant
    rule: Literal["from_start", "sliding"]
    stop_at: Instant | None
    """When the stop was due then; null where the policy only warns."""
    withdrawn_at: Instant | None
    """Its GPUs worked again, were not measured, or need not be warned any more."""


class IdleJob(JobIdle):
    """A running attempt that is not simply active."""

    job_id: str
    attempt: int
    organization_id: str
    grant_id: str


class IdleJobList(Reply):
    """Running attempts that are not simply active, in order of job; pass `next` as `after` for the following page."""

    items: tuple[IdleJob, ...]
    next: str | None = None
