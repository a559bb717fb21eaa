"""How much of the GPUs of Alibaba's openb trace gets used: `python -m tests.bench.fragmentation` prints the rows.

Points of allocated GPU milli when 130 % have arrived, over what the FGD paper's authors published for the same mix
(means of 10 seeds each); 17 mixes. No figure of time: the same on any machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scheduler.replay import packing

OPENB = Path(__file__).parents[3] / "shared/traces/openb"
SEEDS = 10
WORST_LIMIT = 0.0
MEAN_LIMIT = 0.3


def run(path: Path = OPENB, seeds: int = SEEDS) -> list[dict[str, object]]:
    """A row by mix, then the worst and the mean margin; nothing where the trace is absent."""
    if not path.is_dir():
        print(f"bench fragmentation: no trace at {path}, nothing measured", file=sys.stderr)
        return []
    results = packing.run(path, seeds=seeds, policies=["gpuhub"])
    margins = [result.margin_over_fgd or 0.0 for result in results]
    return [
        *(
            _row(f"allocated_{result.mix}", result.allocated_at_130_percent, "%", result.fgd_at_130_percent)
            for result in results
        ),
        _row("worst_margin_over_fgd", min(margins), "points", WORST_LIMIT),
        _row("mean_margin_over_fgd", sum(margins) / len(margins), "points", MEAN_LIMIT),
    ]


def _row(metric: str, value: float, unit: str, limit: float | None) -> dict[str, object]:
    return {
        "bench": "fragmentation",
        "metric": metric,
        "value": round(value, 3),
        "unit": unit,
        "limit": limit,
        "ratio": round(value / limit, 4) if limit else None,
    }


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
