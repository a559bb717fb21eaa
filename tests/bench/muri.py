"""Average completion time and makespan on Muri's Philly traces beside what its authors published.

`python -m tests.bench.muri` prints the rows; `python -m tests.bench.muri trace3 trace4` only those. Eight nodes of
eight GPUs, as published. The limit of each row is the published figure of SRSF, the best of theirs in which no two jobs
share a GPU: it knows every run time and stops any job at any moment, which ours do not (`scheduler/replay/published.py`
says what else differs), so a ratio above 1 is what is to be expected. `fifo-skip` is played to tell what the order of
service is worth. Figures of virtual time: the same on any machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from scheduler.replay.contest import play
from scheduler.replay.published import TRACES, published
from scheduler.replay.settings import Settings, arrange
from scheduler.replay.traces import HOUR_S, read_trace

MURI = Path(__file__).parents[3] / "shared/traces/philly-muri"
POLICIES = ("fifo-skip", "grant-easy", "gpuhub")
LIMIT = "SRSF"


def run(folder: Path = MURI, traces: Sequence[str] = TRACES) -> list[dict[str, object]]:
    """Two rows per policy and trace; nothing where the traces are absent."""
    if not folder.is_dir():
        print(f"bench muri: no traces at {folder}, nothing measured", file=sys.stderr)
        return []
    settings = Settings(8, 8)
    rows: list[dict[str, object]] = []
    for trace in traces:
        jobs = arrange(read_trace(folder / f"{trace}.csv.gz"), settings)
        limit = next(each for each in published(trace) if each.policy == LIMIT)
        for figures in play(POLICIES, jobs, settings):
            name = f"{trace}_{figures.policy.replace('-', '_')}"
            rows.append(_row(f"{name}_completion", figures.mean_jct_h * HOUR_S, limit.jct_s))
            rows.append(_row(f"{name}_makespan", figures.makespan_h * HOUR_S, limit.makespan_s))
    return rows


def _row(metric: str, value_s: float, limit_s: int) -> dict[str, object]:
    return {
        "bench": "muri",
        "metric": metric,
        "value": round(value_s),
        "unit": "s",
        "limit": limit_s,
        "ratio": round(value_s / limit_s, 3),
    }


if __name__ == "__main__":
    for row in run(traces=sys.argv[1:] or TRACES):
        print(json.dumps(row))
