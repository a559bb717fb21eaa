"""Whether the GPUs of an attempt do any work, judged from what the agents measured. Pure; called by `steps`.

What is work? Monitoring keeps an idle GPU busy for a small steady part of the time, and now and then one sample is
wrong. A GPU works when more busy time lies within some stretch of time than both explain together: more than
`noise_busy_ms` + `noise_thousandths` of the stretch, for whatever stretch that holds. So a checkpoint of fifteen
seconds is work, and so is a server that is busy one per cent of the time, which takes longer to tell. All stretches
that end at a moment are looked at in one sum (`worked_until`), because only the best of them matters.

Time that nobody measured is neither work nor idle: a span counts only if enough of it was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from quota.schemas.idle import IdleRules, IdleSpan, JobKind


class Bin(NamedTuple):
    """What was measured of one GPU in a stretch of time. Milliseconds."""

    from_ms: int
    until_ms: int
    busy_ms: int
    observed_ms: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What is known of one attempt."""

    started_at_ms: int
    """When all its containers had started."""
    kept_since_ms: int
    """Bins before this are forgotten, or were never kept."""
    worked_at_ms: int | None
    """The last work that was known before."""
    gpus: int
    """How many it holds; as many must have been measured."""
    bins: Mapping[str, Sequence[Bin]]
    """By GPU, in order of time, apart from each other."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a timeline."""

    worked_at_ms: int | None
    """When any of its GPUs worked last."""
    idle_since_ms: int
    through_ms: int | None
    """Up to when every GPU was measured; None: fewer were than it holds."""
    from_start: bool
    span: IdleSpan
    step: int
    """0: nothing is due; 1, 2: that warning; 3: the stop."""
    idle_gpus: int
    """How many of its GPUs have done no work for as long as the first warning takes once one has worked."""


def judge(timeline: Timeline, rules: IdleRules, kind: JobKind, now_ms: int) -> Verdict:
    """What an attempt did lately, and which step that makes due; freshness and warnings are looked at in `steps`."""
    worked = {gpu: worked_until(bins, rules) for gpu, bins in timeline.bins.items()}
    moments = [at for at in (*worked.values(), timeline.worked_at_ms) if at is not None]
    last = max(moments, default=None)
    since = timeline.started_at_ms if last is None else max(last, timeline.started_at_ms)
    through = _through(timeline, now_ms)
    spans = rules.of(kind)
    from_start = (
        last is None and through is not None and _seen_since_start(timeline, through, spans.from_start, rules)
    )
    span = spans.from_start if from_start else spans.sliding
    return Verdict(
        worked_at_ms=last,
        idle_since_ms=since,
        through_ms=through,
        from_start=from_start,
        span=span,
        step=0 if through is None else _step(timeline, span, since, through, rules),
        idle_gpus=0 if through is None else _idle_gpus(timeline, worked, spans.sliding, through, rules),
    )


def worked_until(bins: Iterable[Bin], rules: IdleRules) -> int | None:
    """When the GPU worked last; None if all its busy time is noise.

    `beyond` is the most busy time beyond the steady noise that any stretch up to here has, in thousandths of ms.
    """
    enough = max(1, rules.noise_busy_ms * 1000)
    noise = rules.noise_thousandths
    beyond, last = 0, None
    for _, until_ms, busy_ms, observed_ms in bins:
        beyond += busy_ms * 1000 - observed_ms * noise
        if beyond >= enough:
            beyond, last = 0, until_ms
        elif beyond < 0:
            beyond = 0
    return last


def observed_within(bins: Iterable[Bin], from_ms: int, until_ms: int) -> int:
    """Measured milliseconds within a span; of a bin that lies across its edge, in proportion."""
    total = 0
    for starts_ms, ends_ms, _, observed_ms in bins:
        inside = min(ends_ms, until_ms) - max(starts_ms, from_ms)
        if inside <= 0:
            continue
        whole = ends_ms - starts_ms
        total += observed_ms if inside == whole else min(inside, observed_ms * inside // whole)
    return total


def _through(timeline: Timeline, now_ms: int) -> int | None:
    """Of more GPUs than it holds, the latest count: one that was replaced is not measured any more."""
    ends = [
        max((min(part.until_ms, now_ms) for part in bins if part.observed_ms), default=0)
        for bins in timeline.bins.values()
    ]
    ends = sorted((end for end in ends if end), reverse=True)
    return ends[timeline.gpus - 1] if 0 < timeline.gpus <= len(ends) else None


def _seen(timeline: Timeline, from_ms: int, through_ms: int, span: IdleSpan, rules: IdleRules) -> int:
    """How many GPUs were measured for all but the part of the span that may be missing.

    It is the same for warnings and stop, so that an outage that the stop bears does not withdraw its warnings.
    """
    may_miss_ms = span.after_ms(3) * (1000 - rules.observed_thousandths) // 1000
    needed_ms = through_ms - from_ms - may_miss_ms
    return sum(observed_within(bins, from_ms, through_ms) >= needed_ms for bins in timeline.bins.values())


def _seen_since_start(timeline: Timeline, through_ms: int, span: IdleSpan, rules: IdleRules) -> bool:
    """Who was not measured at first may have worked then."""
    from_ms = max(timeline.started_at_ms, timeline.kept_since_ms)
    return through_ms > from_ms and _seen(timeline, from_ms, through_ms, span, rules) >= timeline.gpus


def _step(timeline: Timeline, span: IdleSpan, since_ms: int, through_ms: int, rules: IdleRules) -> int:
    reached = 0
    for step in (1, 2, 3):
        after_ms = span.after_ms(step)
        if through_ms - since_ms < after_ms:
            break
        if _seen(timeline, through_ms - after_ms, through_ms, span, rules) < timeline.gpus:
            break
        reached = step
    return reached


def _idle_gpus(
    timeline: Timeline,
    worked: Mapping[str, int | None],
    span: IdleSpan,
    through_ms: int,
    rules: IdleRules,
) -> int:
    from_ms = through_ms - span.after_ms(1)
    if from_ms < timeline.started_at_ms:
        return 0
    idle = {gpu: bins for gpu, bins in timeline.bins.items() if (worked[gpu] or 0) <= from_ms}
    return _seen(replace(timeline, bins=idle), from_ms, through_ms, span, rules)
