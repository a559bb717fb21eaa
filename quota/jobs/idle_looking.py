"""What is known of running attempts at one moment, judged by the idle rules. Reads only; called by `idling`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, tuple_

from quota.clock import HOUR_MS
from quota.idle import activity
from quota.idle.policy import read_policy
from quota.idle.rules import Timeline, Verdict, judge
from quota.idle.steps import Step, Warned, decide
from quota.idle.tables import activity as bins
from quota.idle.tables import exemptions, found, warnings
from quota.jobs.tables import attempts, jobs
from quota.ledger.tables import holds
from quota.programs.tables import grants
from quota.schemas.idle import ExemptionKind, IdleMode, IdlePolicy, IdleRules, IdleState, JobKind
from quota.schemas.scheduling import JobState
from quota.usage.tables import evidence

LATE_WALL_MS = 90_000
"""Agents deliver every minute of the wall: on a fast clock evidence is older than a policy would have it."""
KEPT_BEYOND_MS = HOUR_MS
MEASURED_MS = 2 * HOUR_MS
"""How much of a GPU must be measured before its utilization is told."""
_LATELY_MS = 1_200_000
_PART = 500

Attempt = tuple[str, int]

RUNNING = (
    select(
        attempts.c.job_id,
        attempts.c.attempt,
        attempts.c.organization_id,
        attempts.c.grant_id,
        attempts.c.last_started_at_ms,
        grants.c.program_id,
        holds.c.gpus,
        jobs.c.kind,
    )
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .join(grants, grants.c.id == attempts.c.grant_id)
    .join(holds, holds.c.id == attempts.c.hold_id)
    .where(
        attempts.c.capacity_held.is_(True),
        attempts.c.state == JobState.RUNNING.value,
        attempts.c.last_started_at_ms.is_not(None),
        attempts.c.stop_asked.is_(None),
        jobs.c.cancel_requested_at_ms.is_(None),
    )
    .order_by(attempts.c.job_id)
)


@dataclass(frozen=True, slots=True)
class Look:
    """One attempt as it was judged."""

    job_id: str
    attempt: int
    gpus: int
    verdict: Verdict
    step: Step
    utilization_thousandths: int | None
    exempt_until_ms: int | None
    given: tuple[Warned, ...]

    def row(self) -> dict[str, Any]:
        """As `idle_found` keeps it, without its key and the moment; what changes by itself is left out."""
        idles = self.step.state in (
            IdleState.IDLE,
            IdleState.WARNED,
            IdleState.WARNED_TWICE,
            IdleState.STOPPING,
        )
        shows_use = self.step.state in (IdleState.LOW_UTILIZATION, IdleState.PARTLY_IDLE)
        return {
            "state": self.step.state.value,
            "idle_since_ms": self.verdict.idle_since_ms if idles else None,
            "rule": ("from_start" if self.verdict.from_start else "sliding") if idles else None,
            "stop_at_ms": self.step.stop_at_ms,
            "worked_at_ms": self.verdict.worked_at_ms,
            "idle_gpus": self.gpus if idles else self.verdict.idle_gpus,
            "gpus": self.gpus,
            "utilization_thousandths": self.utilization_thousandths if shows_use else None,
            "through_ms": self.verdict.through_ms if self.step.state is IdleState.UNOBSERVED else None,
            "exempt_until_ms": self.exempt_until_ms,
        }


def look(connection: Connection, now_ms: int, speed: int, only: str | None = None) -> list[Look]:
    """Every running attempt, or that of one job, judged as of now."""
    policy = read_policy(connection).policy
    statement = RUNNING if only is None else RUNNING.where(attempts.c.job_id == only)
    rows = list(connection.execute(statement))
    keys = [(row.job_id, row.attempt) for row in rows]
    memory = _memory(connection, keys)
    given = _given(connection, keys)
    used = _used(connection, rows, policy, now_ms)
    exempt = _exempt(connection, now_ms)
    busy = _busy_lately(connection, policy, now_ms) if only is None else {}
    quiet = [
        key
        for row, key in zip(rows, keys, strict=True)
        if policy.for_program(row.program_id).mode is not IdleMode.OFF
        and (given.get(key) or busy.get(key, 0) < row.gpus)
    ]
    kept_since_ms = now_ms - kept_ms(policy)
    measured = activity.read(connection, quiet, kept_since_ms, now_ms)
    looks = []
    for row, key in zip(rows, keys, strict=True):
        rules, kind = policy.for_program(row.program_id), JobKind(row.kind)
        worked = memory.get(key)
        if key in measured:
            timeline = Timeline(row.last_started_at_ms, kept_since_ms, worked, row.gpus, measured[key])
            verdict = judge(timeline, rules, kind, now_ms)
        else:
            # all its GPUs worked a moment ago, or the rules are off: no step can be due
            verdict = Verdict(worked, now_ms, now_ms, False, rules.of(kind).sliding, 0, 0)
        looks.append(
            _looked(row, verdict, rules, tuple(given.get(key, ())), used.get(key), exempt, (now_ms, speed))
        )
    return looks


def kept_ms(policy: IdlePolicy) -> int:
    """How long activity is kept."""
    return policy.longest_ms() + KEPT_BEYOND_MS


def _looked(
    row: Any,
    verdict: Verdict,
    rules: IdleRules,
    given: tuple[Warned, ...],
    utilization: int | None,
    exempt: dict[tuple[str, str], int],
    moment: tuple[int, int],
) -> Look:
    now_ms, speed = moment
    names = {
        ExemptionKind.JOB: row.job_id,
        ExemptionKind.ORGANIZATION: row.organization_id,
        ExemptionKind.PROGRAM: row.program_id,
        ExemptionKind.GRANT: row.grant_id,
    }
    untils = [exempt[(kind.value, name)] for kind, name in names.items() if (kind.value, name) in exempt]
    until_ms = max(untils, default=None)
    step = decide(
        verdict,
        rules,
        given,
        gpus=row.gpus,
        exempt=until_ms is not None,
        utilization_thousandths=utilization,
        now_ms=now_ms,
        fresh_ms=max(rules.fresh_s * 1000, LATE_WALL_MS * speed),
    )
    return Look(row.job_id, row.attempt, row.gpus, verdict, step, utilization, until_ms, given)


def _memory(connection: Connection, keys: Sequence[Attempt]) -> dict[Attempt, int]:
    """When each worked last, as far as it was written down before its bins were forgotten."""
    kept: dict[Attempt, int] = {}
    for part in _parts(keys):
        rows = connection.execute(
            select(found.c.job_id, found.c.attempt, found.c.worked_at_ms).where(
                found.c.job_id.in_([job_id for job_id, _ in part]),
                tuple_(found.c.job_id, found.c.attempt).in_(part),
                found.c.worked_at_ms.is_not(None),
            )
        )
        kept |= {(row.job_id, row.attempt): row.worked_at_ms for row in rows}
    return kept


def _given(connection: Connection, keys: Sequence[Attempt]) -> dict[Attempt, list[Warned]]:
    """The warnings in force."""
    given: dict[Attempt, list[Warned]] = defaultdict(list)
    for part in _parts(keys):
        rows = connection.execute(
            select(warnings)
            .where(
                warnings.c.job_id.in_([job_id for job_id, _ in part]),
                tuple_(warnings.c.job_id, warnings.c.attempt).in_(part),
                warnings.c.withdrawn_at_ms.is_(None),
            )
            .order_by(warnings.c.number)
        )
        for row in rows:
            given[(row.job_id, row.attempt)].append(Warned(row.number, row.step, row.at_ms))
    return given


def _used(connection: Connection, rows: Sequence[Any], policy: IdlePolicy, now_ms: int) -> dict[Attempt, int]:
    """Utilization in thousandths of those that were measured for long enough."""
    windows = {
        (row.job_id, row.attempt): policy.for_program(row.program_id).low_utilization_window_s * 1000
        for row in rows
        if now_ms - row.last_started_at_ms >= MEASURED_MS
    }
    gpus = {(row.job_id, row.attempt): row.gpus for row in rows}
    sums: dict[Attempt, list[int]] = defaultdict(lambda: [0, 0])
    for part in _parts(list(windows)):
        hours = connection.execute(
            select(
                evidence.c.job_id,
                evidence.c.attempt,
                evidence.c.hour_ms,
                func.sum(evidence.c.busy_ms).label("busy"),
                func.sum(evidence.c.observed_ms).label("observed"),
            )
            .where(
                evidence.c.job_id.in_([job_id for job_id, _ in part]),
                tuple_(evidence.c.job_id, evidence.c.attempt).in_(part),
                evidence.c.hour_ms > now_ms - HOUR_MS - max(windows[key] for key in part),
            )
            .group_by(evidence.c.job_id, evidence.c.attempt, evidence.c.hour_ms)
        )
        for row in hours:
            key = (row.job_id, row.attempt)
            if row.hour_ms > now_ms - HOUR_MS - windows[key]:
                sums[key][0] += int(row.busy)
                sums[key][1] += int(row.observed)
    return {
        key: busy * 1000 // observed
        for key, (busy, observed) in sums.items()
        if observed >= MEASURED_MS * gpus[key]
    }


def _exempt(connection: Connection, now_ms: int) -> dict[tuple[str, str], int]:
    """Until when, by kind and subject."""
    rows = connection.execute(
        select(exemptions.c.kind, exemptions.c.subject, func.max(exemptions.c.expires_at_ms).label("until"))
        .where(exemptions.c.expires_at_ms > now_ms, exemptions.c.ended_at_ms.is_(None))
        .group_by(exemptions.c.kind, exemptions.c.subject)
    )
    return {(row.kind, row.subject): int(row.until) for row in rows}


def _busy_lately(connection: Connection, policy: IdlePolicy, now_ms: int) -> dict[Attempt, int]:
    """How many GPUs of each attempt did more than noise in one bin of the last minutes, by anybody's rules.

    Most attempts are among them, and their bins need not be read.
    """
    every = (policy, *policy.programs.values())
    spans = [
        span
        for rules in every
        for kind in (rules.batch, rules.interactive)
        for span in (kind.from_start, kind.sliding)
    ]
    lately_ms = min(_LATELY_MS, *(span.after_ms(1) for span in spans))
    work_ms = max(
        rules.noise_busy_ms + rules.noise_thousandths * activity.BIN_MS // 1000 + 1 for rules in every
    )
    rows = connection.execute(
        select(bins.c.job_id, bins.c.attempt, func.count(bins.c.gpu_uuid.distinct()).label("gpus"))
        .where(bins.c.from_ms > now_ms - lately_ms, bins.c.busy_ms >= work_ms)
        .group_by(bins.c.job_id, bins.c.attempt)
    )
    return {(row.job_id, row.attempt): int(row.gpus) for row in rows}


def _parts(keys: Sequence[Attempt]) -> list[Sequence[Attempt]]:
    return [keys[start : start + _PART] for start in range(0, len(keys), _PART)]


def stored(connection: Connection, keys: Collection[Attempt]) -> dict[Attempt, dict[str, Any]]:
    """What is written down of these attempts."""
    kept: dict[Attempt, dict[str, Any]] = {}
    for part in _parts(list(keys)):
        rows = connection.execute(
            select(found).where(
                found.c.job_id.in_([job_id for job_id, _ in part]),
                tuple_(found.c.job_id, found.c.attempt).in_(part),
            )
        )
        for row in rows:
            values = dict(row._mapping)
            del values["changed_at_ms"]
            kept[(values.pop("job_id"), values.pop("attempt"))] = values
    return kept
