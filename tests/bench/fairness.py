"""What the hub's policy makes of two months of real demand: `python -m tests.bench.fairness` prints the rows.

The ten clusters of Microsoft's ITP trace as ten organizations whose grants, in proportion to their demand, are the
whole pool; limits rounded up to 1, 4, 12, 24, 72, 168 hours. Waits count from submission to the first start and
are not censored: every job is played. Figures of virtual time: the same on any machine.

The baselines are played in the same run. `grant-skip` starts whatever fits, in the order of the grants, and looks at
every waiting job; `grant-easy` keeps one reservation, for the first job in order that does not fit.

The figures that the goals were set against come from a `grant-skip` that looks at the oldest 50 jobs of each
organization only, and so makes small jobs wait 9 to 10 hours instead of 3. It is played too, by the plain simulator
that shares no code with the core, and the ratio to it is a row of its own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from scheduler.replay.contest import play
from scheduler.replay.figures import Figures
from scheduler.replay.settings import LedgerKind, Settings, arrange
from scheduler.replay.traces import TraceJob, read_trace
from tests.oracle import replay_reference

ITP = Path(__file__).parents[3] / "shared/traces/ms-itp-elasticflow"
POLICIES = ("grant-skip", "grant-easy", "gpuhub")
GOALS = {
    "worst_delivered_1000": 0.97,
    "small_wait_1000": 0.75,
    "gang_wait_1000": 0.5,
    "mean_wait_1200": 1.0,
    "gang_wait_1200": 1.0,
}


def run(path: Path = ITP) -> list[dict[str, object]]:
    """The figures with goals, then what real nodes and a hard ledger cost; nothing where the trace is absent."""
    if not path.is_dir():
        print(f"bench fairness: no trace at {path}, nothing measured", file=sys.stderr)
        return []
    jobs = read_trace(path)
    skip, easy, hub = played(jobs, POLICIES, Settings(1, 1000))
    rows = [
        _row("worst_delivered_1000", hub.worst_ratio, "of the grant"),
        _row("small_wait_1000", hub.waits["<=4"].mean_h / skip.waits["<=4"].mean_h, "x grant-skip"),
        _row("gang_wait_1000", hub.waits[">=32"].mean_h / easy.waits[">=32"].mean_h, "x grant-easy"),
        _row(
            "small_wait_1000_to_look_ahead_50",
            hub.waits["<=4"].mean_h / look_ahead_small_wait_h(),
            "x grant-skip",
        ),
        *_plain("1000", skip, easy, hub),
    ]
    skip, easy, hub = played(jobs, POLICIES, Settings(1, 1200))
    rows += [
        _row("mean_wait_1200", hub.waits["all"].mean_h / skip.waits["all"].mean_h, "x grant-skip"),
        _row("gang_wait_1200", hub.waits[">=32"].mean_h / easy.waits[">=32"].mean_h, "x grant-easy"),
        *_plain("1200", skip, easy, hub),
    ]
    for gpus in (1000, 1200):
        (nodes,) = played(jobs, ("gpuhub",), Settings(gpus // 8, 8))
        (hard,) = played(jobs, ("gpuhub",), Settings(1, gpus, ledger=LedgerKind.HARD))
        rows += _plain(f"{gpus}_nodes_of_8", nodes) + _plain(f"{gpus}_hard_ledger", hard)
    return rows


def played(jobs: list[TraceJob], policies: tuple[str, ...], settings: Settings) -> list[Figures]:
    """The figures of these policies on one pool."""
    return play(policies, arrange(jobs, settings), settings)


def look_ahead_small_wait_h() -> float:
    """Mean wait of jobs of at most 4 GPUs on 1,000 GPUs, of a grant-skip that looks at 50 jobs per organization."""
    plain = replay_reference.POLICIES["grant-skip"]
    result = replay_reference.simulate(
        replay_reference.read_trace(), 1000, dataclasses.replace(plain, look_ahead=50)
    )
    return result.row()["small"]


def _plain(pool: str, *figures: Figures) -> list[dict[str, object]]:
    rows = []
    for each in figures:
        name = each.policy.replace("-", "_")
        rows += [
            _row(f"{name}_{pool}_worst_delivered", each.worst_ratio, "of the grant"),
            _row(f"{name}_{pool}_wait", each.waits["all"].mean_h, "h"),
            _row(f"{name}_{pool}_wait_small", each.waits["<=4"].mean_h, "h"),
            _row(f"{name}_{pool}_wait_gangs", each.waits[">=32"].mean_h, "h"),
            _row(f"{name}_{pool}_wait_worst_organization", each.worst_wait_h, "h"),
            _row(f"{name}_{pool}_utilization", each.utilization, "of the pool"),
        ]
    return rows


def _row(metric: str, value: float, unit: str) -> dict[str, object]:
    goal = GOALS.get(metric)
    return {
        "bench": "fairness",
        "metric": metric,
        "value": round(value, 4),
        "unit": unit,
        "limit": goal,
        "ratio": round(value / goal, 3) if goal else None,
    }


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
