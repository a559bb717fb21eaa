"""Play one trace under several policies: one in this process, more side by side in two processes of their own."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from scheduler.core.policy import PRESETS
from scheduler.replay.engine import replay
from scheduler.replay.figures import Figures, figures_of
from scheduler.replay.settings import Settings
from scheduler.replay.traces import TraceJob

AT_ONCE = 2


def play(policies: Sequence[str], jobs: Sequence[TraceJob], settings: Settings) -> list[Figures]:
    """The figures of each policy, a name of PRESETS, in the order given. Jobs are as `arrange` leaves them."""
    if len(policies) == 1:
        return [play_one(policies[0], jobs, settings)]
    # spawned, so that nothing of this process is shared; a fresh one per policy gives its memory back
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn"), max_tasks_per_child=1) as pool:
        tasks = [pool.submit(play_one, policy, jobs, settings) for policy in policies]
        return [task.result() for task in tasks]


def play_one(policy: str, jobs: Sequence[TraceJob], settings: Settings) -> Figures:
    """The figures of one policy; tells standard error how far it is."""
    began = time.monotonic()

    def tell(now_s: int, started: int) -> None:
        sys.stderr.write(progress(policy, now_s, started, len(jobs), settings, time.monotonic() - began))
        sys.stderr.flush()

    return figures_of(replay(policy, PRESETS[policy], jobs, settings, tell))


def progress(policy: str, now_s: int, started: int, jobs: int, settings: Settings, wall_s: float) -> str:
    """One line: how far virtual time is in the term, how many jobs have started, how long it took."""
    return (
        f"{policy}: day {now_s / 86_400:.1f} ({now_s / settings.term_s:.0%} of the term), "
        f"{started:,} of {jobs:,} jobs started, {wall_s:.0f} s\n"
    )
