"""Firms that sleep through their term and wake at its end do not push aside those who used theirs on pace."""

from __future__ import annotations

import pytest

from scheduler.core.policy import PRESETS
from scheduler.replay.engine import replay
from scheduler.replay.history import History
from scheduler.replay.settings import HOUR_S, Settings, arrange
from scheduler.replay.traces import TraceJob

TERM_DAYS = 30
DAY_S = 24 * HOUR_S
WAKE_S = 27 * DAY_S
FIRMS = 20
GPUS = 80
RUN_S = 6 * HOUR_S
JOBS = TERM_DAYS * DAY_S * GPUS // (2 * FIRMS) // RUN_S
"""So many jobs of one GPU are a firm's whole grant: all grants together are the pool."""


def trace(limit_s: int, gpus: int) -> list[TraceJob]:
    jobs = []
    for firm in range(FIRMS):
        for number in range(JOBS // gpus):
            at_s = TERM_DAYS * DAY_S * number * gpus // JOBS
            jobs.append(TraceJob(f"a{firm}-{number}", f"active-{firm}", at_s, gpus, RUN_S, limit_s))
            jobs.append(TraceJob(f"d{firm}-{number}", f"dormant-{firm}", WAKE_S, gpus, RUN_S, limit_s))
    return jobs


def useful_gpu_s(history: History, who: str, begin_s: int, end_s: int) -> int:
    return sum(
        stretch.gpus * max(0, min(stretch.end_s, end_s) - max(stretch.begin_s, begin_s))
        for stretch in history.stretches
        if stretch.useful and stretch.organization.startswith(who)
    )


@pytest.mark.parametrize(("limit_s", "gpus"), [(4 * HOUR_S * 2, 1), (100 * HOUR_S, 1), (100 * HOUR_S, 8)])
def test_twenty_dormant_grants_that_wake_leave_the_active_firms_half_of_their_rate(
    limit_s: int, gpus: int
) -> None:
    settings = Settings(nodes=1, gpus_per_node=GPUS, days=TERM_DAYS, until_days=TERM_DAYS)
    history = replay("gpuhub", PRESETS["gpuhub"], arrange(trace(limit_s, gpus), settings), settings)
    before = useful_gpu_s(history, "active", WAKE_S - 3 * DAY_S, WAKE_S)
    after = useful_gpu_s(history, "active", WAKE_S, TERM_DAYS * DAY_S)
    assert after >= before / 2
    # and those who woke are not left out: their money is worth something to the end
    assert useful_gpu_s(history, "dormant", WAKE_S, TERM_DAYS * DAY_S) >= before / 2
