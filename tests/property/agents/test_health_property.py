"""The health of a GPU over any history of readings, against a checker that knows only the history.

The checker looks at the whole past at every moment; it shares nothing with the machine but the names of the states.
That it can fail is shown on machines with a planted error each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.health import Judgement, Memory, Signs, Timing, judge
from quota.schemas.gpus import GpuHealth

HOLD_MS, GAP_MS = 600_000, 120_000
TIMING = Timing(HOLD_MS, GAP_MS)
UNHEALTHY_XIDS, DEGRADED_XIDS = (48, 79, 119), (94,)
Judge = Callable[[Memory, Signs, Timing], Judgement]

_STEP = st.sampled_from([5_000, 30_000, 60_000, 119_000, 121_000, 400_000, 900_000])
_XIDS = st.one_of(st.just(None), st.sampled_from([48, 79, 119, 94, 31, 45, 63]))
_READING = st.tuples(
    _STEP,
    st.sampled_from([True] * 4 + [False]),
    st.sampled_from([False] * 14 + [True]),
    _XIDS,
    st.sampled_from([None] * 6 + [0, 0, 0, 1]),
    st.sampled_from([True, True, False]),
)
_Step = tuple[int, bool, bool, int | None, int | None, bool]


def _history(steps: list[_Step]) -> list[Signs]:
    at_ms, xids, history = 10_000_000, {}, []
    silent = False
    for step_ms, read, lost, xid, action, others in steps:
        # silence goes on for a while: else nothing would ever hang
        silent = not read if not silent else not (read and step_ms > 60_000)
        readable = not silent
        at_ms += step_ms
        if xid is not None:
            xids = {**xids, xid: at_ms - min(step_ms, 3_000)}
        history.append(
            Signs(
                at_ms,
                readable and not lost,
                others,
                lost,
                dict(xids),
                None if lost or not readable else action,
            )
        )
    return history


def _expected(history: list[Signs], last: int) -> GpuHealth:
    """From the history alone: the worst whose hold-down was not watched to its end since it was last seen."""
    if history[last].lost:
        return GpuHealth.LOST
    for health, xids in ((GpuHealth.UNHEALTHY, UNHEALTHY_XIDS), (GpuHealth.DEGRADED, DEGRADED_XIDS)):
        if _open(history, last, health, xids):
            return health
    return GpuHealth.HEALTHY


def _open(history: list[Signs], last: int, health: GpuHealth, xids: tuple[int, ...]) -> bool:
    is_open, since_ms, unread_since, hung = False, 0, history[0].at_ms, False
    for place, signs in enumerate(history[: last + 1]):
        before = history[place - 1] if place else None
        broken = before is None or signs.at_ms - before.at_ms > GAP_MS
        if signs.readable:
            unread_since = signs.at_ms
        hung = (
            not signs.lost
            and not signs.readable
            and signs.at_ms - unread_since >= 600_000
            and (signs.others_readable or hung)
        )
        struck = any(
            signs.xids[xid] > signs.at_ms - HOLD_MS
            and (before is None or signs.xids[xid] != before.xids.get(xid))
            for xid in xids
            if xid in signs.xids
        )
        if health is GpuHealth.UNHEALTHY:
            struck = struck or signs.lost or bool(signs.recovery_action) or hung
        else:
            struck = struck or (
                not signs.lost and not signs.readable and signs.at_ms - unread_since >= 120_000
            )
        if struck:
            is_open, since_ms = True, signs.at_ms
        elif is_open and (broken or not signs.readable):
            since_ms = signs.at_ms
        elif is_open and signs.at_ms - since_ms >= HOLD_MS:
            is_open = False
    return is_open


def _first_difference(judged_by: Judge, history: list[Signs]) -> int | None:
    memory = Memory()
    for place, signs in enumerate(history):
        found = judged_by(memory, signs, TIMING)
        if found.memory.health is not _expected(history, place):
            return place
        assert found.changed == (found.memory.health is not memory.health)
        if found.proven:
            clean = [each for each in history[: place + 1] if each.at_ms > signs.at_ms - HOLD_MS]
            assert not any(each.lost or each.recovery_action or not each.readable for each in clean)
        memory = found.memory
    return None


@given(st.lists(_READING, min_size=1, max_size=60))
@settings(max_examples=300, deadline=None)
def test_health_is_what_the_history_says(steps: list[_Step]) -> None:
    assert _first_difference(judge, _history(steps)) is None


@given(st.lists(_READING, min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_restart_never_calls_a_gpu_well_earlier(steps: list[_Step]) -> None:
    """At every moment the agent may forget all that a file does not keep; the GPU is at least as bad as without."""
    history = _history(steps)
    order = list(GpuHealth)
    kept = lived = Memory()
    for place, signs in enumerate(history):
        lived = judge(lived, signs, TIMING).memory
        if place % 7 == 3:
            kept = replace(
                kept, seen_ms=None, sound_ms=None, readable_ms=None, throttle_mark=None, throttled=False
            )
        kept = judge(kept, signs, TIMING).memory
        if kept.health is GpuHealth.HEALTHY or kept.health is GpuHealth.DEGRADED:
            assert order.index(lived.health) <= order.index(GpuHealth.DEGRADED)


def _forgets_breaks(memory: Memory, signs: Signs, timing: Timing) -> Judgement:
    return judge(memory, signs, Timing(timing.hold_down_ms, 10**12))


def _heals_too_early(memory: Memory, signs: Signs, timing: Timing) -> Judgement:
    return judge(memory, signs, Timing(timing.hold_down_ms - 60_000, timing.gap_ms))


def _takes_application_xids(memory: Memory, signs: Signs, timing: Timing) -> Judgement:
    if 45 in signs.xids:
        signs = replace(signs, xids={**signs.xids, 79: signs.xids[45]})
    return judge(memory, signs, timing)


def _takes_a_silent_driver_for_a_hanging_gpu(memory: Memory, signs: Signs, timing: Timing) -> Judgement:
    return judge(memory, replace(signs, others_readable=True), timing)


def _does_not_see_actions(memory: Memory, signs: Signs, timing: Timing) -> Judgement:
    return judge(memory, replace(signs, recovery_action=None), timing)


@pytest.mark.parametrize(
    "planted",
    [
        _forgets_breaks,
        _heals_too_early,
        _takes_application_xids,
        _does_not_see_actions,
        _takes_a_silent_driver_for_a_hanging_gpu,
    ],
)
def test_the_checker_finds_planted_errors(planted: Judge) -> None:
    step, well, told = 60_000, (True, False), (None, None, True)
    struck = [(5_000, *well, None, None, True), (5_000, *well, 79, None, True)]
    histories = {
        _forgets_breaks: [*struck, (900_000, *well, *told)],
        _heals_too_early: [*struck, *[(step, *well, *told)] * 9],
        _takes_application_xids: [(5_000, *well, 45, None, True)],
        _does_not_see_actions: [(5_000, *well, None, 1, True)],
        _takes_a_silent_driver_for_a_hanging_gpu: [
            (5_000, *well, *told),
            *[(step, False, False, None, None, False)] * 12,
        ],
    }
    history = _history(histories[planted])  # type: ignore[index]
    assert _first_difference(judge, history) is None
    assert _first_difference(planted, history) is not None
