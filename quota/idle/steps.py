"""What to do about an attempt: warn, stop, withdraw warnings, or nothing. Pure; called by the periodic task.

A stop needs two warnings that still hold: each was given no sooner than the idle time it tells of, the second
`warning_gap_s` after the first, the stop as long after the second. Evidence that came late and shows work moves the
beginning of the idle time, and warnings that were given too soon by what is known now are withdrawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quota.idle.rules import Verdict
from quota.schemas.idle import IdleMode, IdleRules, IdleState


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning that was given and not withdrawn."""

    number: int
    step: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now."""

    state: IdleState
    stop_at_ms: int | None
    """When the stop is due if nothing changes; None: never."""
    withdraw: tuple[int, ...] = ()
    """Numbers of the warnings that do not hold any more."""
    warn: int = 0
    """1, 2: give that warning."""
    stop: bool = False
    blind: bool = False
    """The stop would be due, but the evidence has ended: a finding instead."""


def decide(
    verdict: Verdict,
    rules: IdleRules,
    given: Sequence[Warned],
    *,
    gpus: int,
    exempt: bool,
    utilization_thousandths: int | None,
    now_ms: int,
    fresh_ms: int,
) -> Step:
    """The next step. `given` are the warnings in force, in order; `fresh_ms` how old evidence may be."""
    if rules.mode is IdleMode.OFF:
        return Step(IdleState.ACTIVE, None, tuple(each.number for each in given))
    due_ms = _due_ms(verdict, rules, given)
    if verdict.through_ms is None or now_ms - verdict.through_ms > fresh_ms:
        blind = len(given) == 2 and now_ms >= due_ms and rules.mode is IdleMode.STOP and not exempt
        just_begun = not given and now_ms - verdict.idle_since_ms <= fresh_ms
        return Step(IdleState.ACTIVE if just_begun else IdleState.UNOBSERVED, None, blind=blind)
    warns = rules.mode in (IdleMode.WARN, IdleMode.STOP) and not exempt
    holding = _holding(verdict, given) if warns else []
    withdrawn = tuple(each.number for each in given if each not in holding)
    warn = _warning(verdict, rules, holding, now_ms) if warns else 0
    stops = rules.mode is IdleMode.STOP and warns
    stop = stops and not warn and _may_stop(verdict, rules, holding, now_ms)
    state = _state(verdict, rules, len(holding) + bool(warn), gpus, utilization_thousandths, stop)
    told = state in (IdleState.WARNED, IdleState.WARNED_TWICE)
    if stops and told:
        now_given = [*holding, *([Warned(0, warn, now_ms)] if warn else [])]
        return Step(state, _due_ms(verdict, rules, now_given), withdrawn, warn)
    return Step(state, now_ms if stop else None, withdrawn, warn, stop)


def _holding(verdict: Verdict, given: Sequence[Warned]) -> list[Warned]:
    """Those that would be given again by what is known now; the second does not hold without the first."""
    held: list[Warned] = []
    for each in given:
        soonest_ms = verdict.idle_since_ms + verdict.span.after_ms(each.step)
        if each.step > verdict.step or each.at_ms < soonest_ms or each.step != len(held) + 1:
            break
        held.append(each)
    return held


def _warning(verdict: Verdict, rules: IdleRules, holding: Sequence[Warned], now_ms: int) -> int:
    if not holding:
        return 1 if verdict.step >= 1 else 0
    late = now_ms - holding[0].at_ms >= rules.warning_gap_s * 1000
    return 2 if len(holding) == 1 and verdict.step >= 2 and late else 0


def _may_stop(verdict: Verdict, rules: IdleRules, holding: Sequence[Warned], now_ms: int) -> bool:
    if len(holding) < 2 or verdict.step < 3:
        return False
    gap_ms = rules.warning_gap_s * 1000
    return holding[1].at_ms - holding[0].at_ms >= gap_ms and now_ms - holding[1].at_ms >= gap_ms


def _due_ms(verdict: Verdict, rules: IdleRules, given: Sequence[Warned]) -> int:
    """When the stop comes at the soonest."""
    gap_ms, since_ms = rules.warning_gap_s * 1000, verdict.idle_since_ms
    due_ms = since_ms + verdict.span.after_ms(3)
    if len(given) == 2:
        return max(due_ms, given[1].at_ms + gap_ms)
    if given:
        second_ms = max(since_ms + verdict.span.after_ms(2), given[0].at_ms + gap_ms)
        return max(due_ms, second_ms + gap_ms)
    return due_ms


def _state(
    verdict: Verdict,
    rules: IdleRules,
    warnings: int,
    gpus: int,
    utilization_thousandths: int | None,
    stop: bool,
) -> IdleState:
    if stop:
        return IdleState.STOPPING
    if warnings:
        return IdleState.WARNED if warnings == 1 else IdleState.WARNED_TWICE
    if verdict.step:
        return IdleState.IDLE
    if 0 < verdict.idle_gpus < gpus:
        return IdleState.PARTLY_IDLE
    if utilization_thousandths is not None and utilization_thousandths < rules.low_utilization_thousandths:
        return IdleState.LOW_UTILIZATION
    return IdleState.ACTIVE
