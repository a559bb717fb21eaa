"""What counts as work, as measured, and as due; and what is done about it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from quota.idle.rules import Bin, Timeline, Verdict, judge, observed_within, worked_until
from quota.idle.steps import Step, Warned, decide
from quota.schemas.idle import IdleMode, IdleRules, IdleState, JobKind

MINUTE = 60_000
BIN = 5 * MINUTE
RULES = IdleRules()
START = 1_000_000 * MINUTE


def _bins(*busy_s: float, observed: float = 1.0, since: int = START) -> list[Bin]:
    """Bins of five minutes one after the other, with so many busy seconds."""
    return [
        Bin(since + at * BIN, since + (at + 1) * BIN, round(busy * 1000), round(BIN * observed))
        for at, busy in enumerate(busy_s)
    ]


def _judged(
    *gpus: Sequence[Bin], held: int | None = None, worked: int | None = None, kind: JobKind = JobKind.BATCH
) -> Verdict:
    bins = {f"GPU-{at}": each for at, each in enumerate(gpus)}
    now = max(part.until_ms for each in gpus for part in each)
    return judge(Timeline(START, START, worked, held or len(gpus), bins), RULES, kind, now)


# --- work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("busy_s", "worked"),
    [
        ([0, 0, 0], None),
        ([0, 9, 0], None),  # one stray sample
        ([0, 13, 0], 2),  # a short burst
        ([300, 300, 0], 2),
        ([300, 5, 0], 1),
        ([1.5] * 36, None),  # half a per cent: monitoring
        ([3.6] * 12, 12),  # more than one per cent
        ([9, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0], None),  # stray samples far apart
        ([9, 9, 0], 2),  # near to each other they are work
    ],
)
def test_work_is_more_than_noise_and_one_stray_sample(busy_s: list[float], worked: int | None) -> None:
    assert worked_until(_bins(*busy_s), RULES) == (None if worked is None else START + worked * BIN)


def test_what_nobody_measured_does_not_thin_work_out() -> None:
    halves = _bins(7, observed=0.2) + _bins(7, observed=0.2, since=START + 20 * BIN)
    assert worked_until(halves, RULES) == halves[-1].until_ms


@pytest.mark.parametrize(
    ("from_min", "until_min", "expected"), [(0, 10, 10), (2, 4, 2), (5, 30, 5), (20, 30, 0)]
)
def test_bins_across_an_edge_count_in_proportion(from_min: int, until_min: int, expected: int) -> None:
    bins = _bins(0, 0)
    assert observed_within(bins, START + from_min * MINUTE, START + until_min * MINUTE) == expected * MINUTE


# --- spans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("minutes", "step"), [(55, 0), (60, 1), (105, 2), (115, 2), (120, 3)])
def test_spans_from_the_start(minutes: int, step: int) -> None:
    found = _judged(_bins(*[0] * (minutes // 5)))
    assert (found.step, found.from_start) == (step, True)


@pytest.mark.parametrize(("minutes", "step"), [(145, 0), (150, 1), (240, 2), (295, 2), (300, 3)])
def test_spans_after_work(minutes: int, step: int) -> None:
    found = _judged(_bins(200, *[0] * (minutes // 5)))
    assert (found.step, found.from_start, found.idle_since_ms) == (step, False, START + BIN)


@pytest.mark.parametrize(("minutes", "step"), [(25, 0), (30, 1), (50, 2), (60, 3)])
def test_somebody_who_works_in_it_is_waited_for_less_long(minutes: int, step: int) -> None:
    assert _judged(_bins(200, *[0] * (minutes // 5)), kind=JobKind.INTERACTIVE).step == step


def test_a_gang_is_idle_when_all_its_gpus_are() -> None:
    idle, busy = _bins(*[0] * 60), _bins(*[0] * 59, 100)
    assert _judged(idle, idle).step == 3
    found = _judged(idle, busy)
    assert (found.step, found.idle_gpus) == (0, 1)


def test_a_gang_of_which_a_gpu_was_not_measured_is_not_idle() -> None:
    idle = _bins(*[0] * 60)
    assert _judged(idle, held=2).through_ms is None
    assert _judged(idle, _bins(*[0] * 30, observed=0.5) + idle[30:]).step == 1  # not 3


def test_a_gpu_that_was_replaced_need_not_be_measured_any_more() -> None:
    gone = _bins(*[0] * 3)
    assert _judged(gone, _bins(*[0] * 60), held=1).step == 3


def test_who_was_not_measured_at_first_has_not_idled_from_the_start() -> None:
    late = _bins(*[0] * 24, since=START + 12 * BIN)
    found = _judged(late)
    assert (found.from_start, found.step) == (False, 1)  # it would be 3


def test_an_outage_longer_than_a_tenth_of_a_span_ends_it() -> None:
    bins = _bins(200, *[0] * 72)
    assert _judged(bins[:40] + bins[45:61]).step == 3  # 25 minutes of 300
    assert _judged(bins[:40] + bins[48:61]).step == 0  # 40 minutes


def test_earlier_work_is_remembered_when_its_bins_are_forgotten() -> None:
    found = _judged(_bins(*[0] * 70), worked=START + 2 * MINUTE)
    assert (found.from_start, found.idle_since_ms) == (False, START + 2 * MINUTE)


# --- steps ---------------------------------------------------------------------------------------------


def _step(
    verdict: Verdict,
    given: Sequence[Warned] = (),
    now: int | None = None,
    rules: IdleRules = RULES,
    **more: bool,
) -> Step:
    now_ms = verdict.through_ms if now is None else now
    assert now_ms is not None
    return decide(
        verdict,
        rules,
        given,
        gpus=1,
        exempt=more.get("exempt", False),
        utilization_thousandths=100 if more.get("low") else None,
        now_ms=now_ms,
        fresh_ms=900_000,
    )


NEVER = {minutes: _judged(_bins(*[0] * (minutes // 5))) for minutes in (60, 105, 120, 200)}
BOTH = (Warned(1, 1, START + 60 * MINUTE), Warned(2, 2, START + 105 * MINUTE))


def test_the_first_warning_tells_when_the_stop_is_due() -> None:
    step = _step(NEVER[60])
    assert (step.state, step.warn, step.stop_at_ms) == (IdleState.WARNED, 1, START + 120 * MINUTE)


def test_a_stop_needs_two_warnings_that_are_far_enough_apart() -> None:
    assert _step(NEVER[120], BOTH).stop
    assert not _step(NEVER[120], BOTH[:1]).stop
    assert not _step(NEVER[120]).stop
    near = (BOTH[0], Warned(2, 2, START + 115 * MINUTE))
    assert not _step(NEVER[120], near).stop


def test_a_hub_that_was_down_warns_late_and_stops_later() -> None:
    """At 200 minutes nobody was warned yet: both warnings still come, each in its time."""
    first = _step(NEVER[200])
    assert (first.warn, first.stop) == (1, False)
    assert first.stop_at_ms == START + 220 * MINUTE
    given = Warned(1, 1, START + 200 * MINUTE)
    assert _step(NEVER[200], [given], now=START + 209 * MINUTE).warn == 0
    assert _step(NEVER[200], [given], now=START + 210 * MINUTE).warn == 2


def test_work_withdraws_the_warnings() -> None:
    again = _judged(_bins(*[0] * 22, 100))
    step = _step(again, BOTH)
    assert (step.state, step.withdraw, step.stop_at_ms) == (IdleState.ACTIVE, (1, 2), None)


def test_late_evidence_of_work_withdraws_what_was_given_too_soon() -> None:
    """Warned at 60 and 105 minutes; now it is known that it worked until 25 minutes."""
    late = _judged(_bins(*[0] * 4, 100, *[0] * 60))
    step = _step(late, BOTH)
    assert late.step == 3
    assert (step.withdraw, step.warn, step.stop) == ((1, 2), 1, False)


def test_stale_evidence_stops_nothing_and_is_found_when_the_stop_is_due() -> None:
    stale = NEVER[120].through_ms
    assert stale is not None
    step = _step(NEVER[120], BOTH, now=stale + 901_000)
    assert (step.state, step.stop, step.withdraw, step.blind) == (IdleState.UNOBSERVED, False, (), True)
    assert not _step(NEVER[60], BOTH[:1], now=stale + 901_000).blind


@pytest.mark.parametrize(("mode", "warns"), [(IdleMode.OBSERVE, False), (IdleMode.WARN, True)])
def test_modes_that_do_not_stop(mode: IdleMode, warns: bool) -> None:
    rules = RULES.model_copy(update={"mode": mode})
    first, last = _step(NEVER[60], rules=rules), _step(NEVER[120], BOTH, rules=rules)
    assert (first.warn == 1, first.stop_at_ms) == (warns, None)
    assert (last.stop, last.withdraw == ()) == (False, warns)
    assert last.state == (IdleState.WARNED_TWICE if warns else IdleState.IDLE)


def test_an_exemption_withdraws_and_keeps_from_warnings() -> None:
    step = _step(NEVER[120], BOTH, exempt=True)
    assert (step.state, step.withdraw, step.warn, step.stop) == (IdleState.IDLE, (1, 2), 0, False)


def test_little_use_is_told_and_never_stopped() -> None:
    low = _judged(_bins(*[30] * 80))
    assert _step(low, low=True).state is IdleState.LOW_UTILIZATION
    assert _step(low).state is IdleState.ACTIVE


def test_spans_stand_in_order() -> None:
    with pytest.raises(ValueError, match="first warning comes before"):
        IdleRules.model_validate(
            {"batch": {"from_start": {"first_warning_s": 600, "second_warning_s": 600, "stop_s": 900}}}
        )
