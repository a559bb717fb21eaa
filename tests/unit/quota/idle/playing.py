"""Plays a profile through the rules as the service does: bins of five minutes, judged again and again."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from quota.idle.rules import Bin, Timeline, judge
from quota.idle.steps import Warned, decide
from quota.schemas.idle import IdleRules, JobKind
from tests.unit.quota.idle.profiles import MINUTE_MS, Profile

START_MS = 1_800_000_000_000 + 137_000
"""No multiple of anything."""
BIN_MINUTES = 5
KEPT_MINUTES = 360
RULES = IdleRules()


@dataclass(frozen=True)
class Event:
    """What was done, minutes after the start."""

    minute: int
    what: str
    """`warn 1`, `warn 2`, `withdraw`, `stop`."""


def play(profile: Profile, rules: IdleRules = RULES, *, every: int = 5) -> list[Event]:
    """All events up to the stop, or to the end of the profile."""
    kind = JobKind.INTERACTIVE if profile.interactive else JobKind.BATCH
    bins = {f"GPU-{gpu}": _bins(profile, gpu) for gpu in range(len(profile.gpus))}
    events: list[Event] = []
    given: list[Warned] = []
    worked: int | None = None
    for minute in range(every, profile.minutes + 1, every):
        if not given and _just_worked(profile, minute):
            continue  # saves time: no step could be due
        now_ms = START_MS + minute * MINUTE_MS
        timeline = Timeline(
            START_MS, START_MS, worked, len(bins), {gpu: _until(made, minute) for gpu, made in bins.items()}
        )
        timeline = replace(timeline, kept_since_ms=max(START_MS, now_ms - KEPT_MINUTES * MINUTE_MS))
        verdict = judge(timeline, rules, kind, now_ms)
        worked = verdict.worked_at_ms
        step = decide(
            verdict,
            rules,
            given,
            gpus=len(bins),
            exempt=False,
            utilization_thousandths=None,
            now_ms=now_ms,
            fresh_ms=rules.fresh_s * 1000,
        )
        if step.withdraw:
            events.append(Event(minute, "withdraw"))
            given = [each for each in given if each.number not in step.withdraw]
        if step.warn:
            events.append(Event(minute, f"warn {step.warn}"))
            given.append(Warned(len(events), step.warn, now_ms))
        if step.stop:
            events.append(Event(minute, "stop"))
            break
    return events


def stopped_at(events: list[Event]) -> int | None:
    """The minute of the stop."""
    return next((event.minute for event in events if event.what == "stop"), None)


def _bins(profile: Profile, gpu: int) -> list[Bin]:
    made = []
    for begin in range(0, profile.minutes, BIN_MINUTES):
        minutes = [
            at for at in range(begin, min(begin + BIN_MINUTES, profile.minutes)) if profile.seen(gpu, at)
        ]
        if minutes:
            busy = int(sum(profile.gpus[gpu][at] for at in minutes))
            from_ms = START_MS + begin * MINUTE_MS
            made.append(Bin(from_ms, from_ms + BIN_MINUTES * MINUTE_MS, busy, len(minutes) * MINUTE_MS))
    return made


def _until(bins: list[Bin], minute: int) -> list[Bin]:
    """Those of the last hours that are complete by then."""
    now_ms = START_MS + minute * MINUTE_MS
    first = bisect_left(bins, now_ms - KEPT_MINUTES * MINUTE_MS, key=lambda each: each.from_ms)
    return bins[first : bisect_right(bins, now_ms, key=lambda each: each.until_ms)]


def _just_worked(profile: Profile, minute: int) -> bool:
    """Every GPU was seen at a half minute's work within the last twenty minutes."""
    lately = range(max(0, minute - 20), minute - 5)
    return all(
        any(profile.seen(gpu, at) and busy[at] > 30_000 for at in lately)
        for gpu, busy in enumerate(profile.gpus)
    )


def judged(profile: Profile, events: list[Event], rules: IdleRules = RULES) -> Iterator[str]:
    """What is wrong with the events, by the profile alone: nothing here asks the rules' code.

    A stop is false if a GPU worked within the span before it, and if its warnings were not given as they have to be.
    """
    spans = rules.interactive if profile.interactive else rules.batch
    stop = stopped_at(events)
    if stop is None:
        yield from _missed(profile, spans.sliding.stop_s // 60)
        return
    worked = [at for busy in profile.gpus for at, spent in enumerate(busy[:stop]) if spent >= 15_000]
    quiet = stop - (max(worked) + 1 if worked else 0)
    if quiet < (spans.sliding.stop_s if worked else spans.from_start.stop_s) // 60:
        yield f"false: stopped at {stop} after {quiet} minutes without work"
    elif profile.idle_from is None:
        yield f"false: stopped at {stop}, it worked on"
    in_force: list[Event] = []
    for event in events:
        if event.what == "withdraw":
            in_force.clear()
        elif event.what != "stop":
            in_force.append(event)
    gap = rules.warning_gap_s // 60
    if [event.what for event in in_force] != ["warn 1", "warn 2"]:
        yield f"unwarned: stopped after {[event.what for event in in_force]}"
    elif in_force[1].minute - in_force[0].minute < gap or stop - in_force[1].minute < gap:
        yield "unwarned: too soon after a warning"


def _missed(profile: Profile, span: int) -> Iterator[str]:
    """Forty minutes more than the span, and all that was not seen, are enough."""
    if profile.idle_from is None:
        return
    unseen = len(set().union(*profile.unseen)) if profile.unseen else 0
    if profile.minutes - profile.idle_from >= span + 40 + unseen:
        yield f"missed: idle from {profile.idle_from} to {profile.minutes}"
