"""What a simulated pod writes follows from its life."""

from __future__ import annotations

import pytest

from scheduler.simulator.events import EndReason, PodSpec
from scheduler.simulator.logs import STEP_MS, Part, Written
from scheduler.simulator.state import Pod

START_MS = 1_700_000_000_000
ALL = Part(tail_lines=1000, since_ms=None, timestamps=False)


def a_log(ran_ms: int, *, over: bool = False) -> Written:
    pod = Pod(PodSpec(0, "n-0", "h100", 2), started_ms=START_MS)
    if over:
        pod.ended_ms, pod.exit_code, pod.reason = START_MS + ran_ms, 0, EndReason.COMPLETED
    return Written("job-1-1", pod, START_MS, START_MS + ran_ms)


def lines(log: Written, **part: object) -> list[str]:
    asked = Part(**({"tail_lines": 1000, "since_ms": None, "timestamps": False} | part))
    return [line.rstrip("\n") for line in log.lines(log.first(asked), asked.timestamps)]


def test_a_pod_tells_its_start_every_step_and_its_end() -> None:
    assert lines(a_log(0)) == ["job-1-1 pod 0 started on n-0: 2 h100"]
    assert lines(a_log(2 * STEP_MS))[1:] == ["step 1 loss 0.9091", "step 2 loss 0.8333"]
    assert lines(a_log(2 * STEP_MS, over=True))[1:] == [
        "step 1 loss 0.9091",
        "ended with exit code 0 (completed)",
    ]


def test_what_was_written_is_never_written_otherwise() -> None:
    whole = lines(a_log(10 * STEP_MS + 1, over=True))
    for ran_ms in range(0, 10 * STEP_MS, STEP_MS // 2):
        shown = lines(a_log(ran_ms))
        assert shown == whole[: len(shown)]


@pytest.mark.parametrize("over", [False, True])
def test_the_tail_and_the_time_since_choose_lines(over: bool) -> None:
    log = a_log(5 * STEP_MS + 1, over=over)
    whole, timed = lines(log), lines(log, timestamps=True)
    assert len(whole) == 6 + over
    for tail in range(9):
        assert lines(log, tail_lines=tail) == whole[max(0, len(whole) - tail) :]
    for since_ms in range(START_MS - STEP_MS, START_MS + 7 * STEP_MS, STEP_MS // 4):
        expected = [line for line, at_ms in zip(whole, _times(log), strict=True) if at_ms >= since_ms]
        assert lines(log, since_ms=since_ms) == expected, since_ms - START_MS
    assert [line.split(" ", 1)[1] for line in timed] == whole


def _times(log: Written) -> list[int]:
    steps = [START_MS + number * STEP_MS for number in range(1 + log.steps)]
    return [*steps, log.until_ms] if log.is_over else steps


def test_a_month_is_not_walked_through_for_its_last_line() -> None:
    assert lines(a_log(30 * 24 * 3_600_000), tail_lines=1) == ["step 259200 loss 0.0000"]
