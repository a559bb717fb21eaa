"""How well starts are foretold: `python -m tests.bench.eta [POOL …]` prints the rows.

A real trace is replayed under the hub's own policy. At 12 moments, drawn evenly over the middle of the trace, the
state is taken as a live hub knows it (no run times, nothing of what comes later; of the past what had ended by then)
and forecast as the scheduler does it. Every job that waited then and had never started is compared with what the
replay did with it.

- `median_error`: the median of |foretold median start - start| / (start - submission): how wrong, in terms of the
  whole wait.
- `median_error_of_the_rest`: the same over (start - moment of the forecast), the part of the wait that was foretold.
- `coverage`: the share of starts within the band, which is to hold 80 % of them.
- `quoted_share`, `quoted_coverage`, `quoted_median_off`: of the jobs that are submitted within the hour after such a
  moment, how many the forecast had a quote for, how many of those started within its band, and the median of
  |quoted median wait - wait|.

The widths of `Method` and the shares of the rate were chosen while looking at the first three pools, at other moments;
`philly4_64` tests them. Figures of virtual time: the same on any machine, but for the seconds.
"""

from __future__ import annotations

import json
import random
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scheduler.ahead.forecast import Basis, Eta, Forecast, Method, forecast
from scheduler.ahead.habits import Past
from scheduler.core.model import Job
from scheduler.core.policy import PRESETS
from scheduler.replay.engine import replay
from scheduler.replay.history import Record
from scheduler.replay.scene import Scene
from scheduler.replay.settings import Settings, arrange, gang
from scheduler.replay.traces import TraceJob, read_trace

TRACES = Path(__file__).parents[3] / "shared/traces"
POOLS = (
    ("itp_1000", TRACES / "ms-itp-elasticflow", Settings(1, 1000)),
    ("itp_1200", TRACES / "ms-itp-elasticflow", Settings(1, 1200)),
    ("philly3_64", TRACES / "philly-muri/trace3.csv.gz", Settings(8, 8)),
    ("philly4_64", TRACES / "philly-muri/trace4.csv.gz", Settings(8, 8)),
)
MOMENTS = 12
QUOTED_MS = 3_600_000
PAST_JOBS = 20_000
ERROR_GOAL, COVERAGE_GOAL = 0.30, (0.75, 0.90)


@dataclass(frozen=True, slots=True)
class Foretold:
    """One job at one moment, and what came."""

    at_ms: int
    submitted_ms: int
    start_ms: int
    eta: Eta

    @property
    def covered(self) -> bool:
        return self.eta.low_ms <= self.start_ms <= self.eta.high_ms

    def error(self, since_ms: int) -> float:
        """How wrong, in terms of the wait since then."""
        return abs(self.eta.median_ms - self.start_ms) / max(1, self.start_ms - since_ms)


@dataclass(frozen=True, slots=True)
class Quoted:
    """One job that came after a moment, and what its quote would have said; None: nothing."""

    wait_ms: int
    band_ms: tuple[int, int, int] | None
    """Low, median, high."""

    @property
    def covered(self) -> bool:
        return self.band_ms is not None and self.band_ms[0] <= self.wait_ms <= self.band_ms[2]


def run(only: Sequence[str] = ()) -> list[dict[str, object]]:
    """The figures of each pool, or of some; nothing where a trace is absent."""
    rows: list[dict[str, object]] = []
    for name, path, settings in POOLS:
        if only and name not in only:
            continue
        if not path.exists():
            print(f"bench eta: no trace at {path}, nothing measured", file=sys.stderr)
            continue
        rows += _rows(name, *foretold(path, settings))
    return rows


def foretold(
    path: Path, settings: Settings, moments: int = MOMENTS, method: Method | None = None
) -> tuple[list[Foretold], list[Quoted], float]:
    """Every (moment, waiting job) of a replay, the jobs that came after, and the mean CPU seconds of a forecast."""
    jobs = arrange(read_trace(path), settings)
    scenes, records = _played(jobs, settings, moments)
    method = method or Method(walltime_shrinks=True)
    found: list[Foretold] = []
    quoted: list[Quoted] = []
    began_s = time.process_time()
    for scene in scenes:
        past = list(_past(jobs, records, settings, scene.now_ms))
        told = forecast(scene.objects, scene.now_ms, past, method)
        etas = told.etas
        quoted += _quoted(told, jobs, records, settings)
        new = {each.id for each in scene.objects if isinstance(each, Job) and each.attempt == 0}
        for id in scene.order:
            start_s = records[id].first_start_s
            if id in new and start_s is not None:
                found.append(Foretold(scene.now_ms, records[id].submit_s * 1000, start_s * 1000, etas[id]))
    return found, quoted, (time.process_time() - began_s) / max(1, len(scenes))


def _quoted(
    told: Forecast, jobs: Sequence[TraceJob], records: dict[str, Record], settings: Settings
) -> Iterator[Quoted]:
    """The jobs of the next hour."""
    now_s = told.as_of_ms // 1000
    first = bisect_right(jobs, now_s, key=lambda job: job.submit_s)
    last = bisect_right(jobs, now_s + QUOTED_MS // 1000, key=lambda job: job.submit_s)
    for job in jobs[first:last]:
        start_s = records[job.id].first_start_s
        if start_s is not None:
            pods, gpus_per_pod = gang(job.gpus, settings.gpus_per_node)
            yield Quoted((start_s - job.submit_s) * 1000, _quote(told, job, pods * gpus_per_pod))


def _quote(told: Forecast, job: TraceJob, gpus: int) -> tuple[int, int, int] | None:
    for alike, eta, _ in told.newcomers:
        if (
            alike.organization_id == job.organization
            and alike.gpus_over < gpus <= (alike.gpus_to or gpus)
            and alike.walltime_over_ms < job.limit_s * 1000 <= (alike.walltime_to_ms or job.limit_s * 1000)
        ):
            low, median_ms, high = (at - told.as_of_ms for at in (eta.low_ms, eta.median_ms, eta.high_ms))
            return low, median_ms, high
    return None


def _played(
    jobs: Sequence[TraceJob], settings: Settings, moments: int
) -> tuple[list[Scene], dict[str, Record]]:
    span_ms = jobs[-1].submit_s * 1000
    rng = random.Random(1)
    due = sorted(rng.uniform(0.15, 0.95) * span_ms for _ in range(moments))
    scenes: list[Scene] = []

    def look(now_ms: int, scene: Callable[[], Scene]) -> None:
        if due and now_ms >= due[0]:
            while due and now_ms >= due[0]:
                due.pop(0)
            scenes.append(scene())

    history = replay("gpuhub", PRESETS["gpuhub"], jobs, settings, look=look)
    return scenes, {record.id: record for record in history.records}


def _past(
    jobs: Sequence[TraceJob], records: dict[str, Record], settings: Settings, now_ms: int
) -> Iterator[Past]:
    """The newest jobs, as the quota service would tell them at that moment."""
    submitted = bisect_right(jobs, now_ms, key=lambda job: job.submit_s * 1000)
    for job in jobs[max(0, submitted - PAST_JOBS) : submitted]:
        record = records[job.id]
        ended = record.end_s is not None and record.end_s * 1000 <= now_ms and record.preemptions == 0
        pods, gpus_per_pod = gang(job.gpus, settings.gpus_per_node)
        yield Past(
            organization_id=job.organization,
            grant_id=None,
            gpu_class="gpu",
            gpus_per_pod=gpus_per_pod,
            pods=pods,
            walltime_ms=job.limit_s * 1000,
            restartable=True,
            submitted_at_ms=job.submit_s * 1000,
            ran_ms=record.run_s * 1000 if ended else None,
        )


def _rows(
    name: str, found: Sequence[Foretold], quoted: Sequence[Quoted], took_s: float
) -> Iterator[dict[str, object]]:
    yield _row(f"{name}_median_error", _error(found), "of the wait", ERROR_GOAL)
    yield _row(
        f"{name}_median_error_of_the_rest", median(each.error(each.at_ms) for each in found), "of the rest"
    )
    low, high = COVERAGE_GOAL
    coverage = sum(each.covered for each in found) / len(found)
    yield _row(f"{name}_coverage", coverage, f"{low:g} to {high:g}")
    for basis in Basis:
        some = [each for each in found if each.eta.basis is basis]
        if some:
            yield _row(f"{name}_{basis}_median_error", _error(some), "of the wait")
            yield _row(
                f"{name}_{basis}_coverage", sum(each.covered for each in some) / len(some), "of starts"
            )
            yield _row(f"{name}_{basis}_forecasts", len(some), "jobs")
    yield _row(f"{name}_quoted_jobs", len(quoted), "jobs")
    known = [(each, each.band_ms) for each in quoted if each.band_ms is not None]
    if known:
        off_s = [abs(band[1] - each.wait_ms) / 1000 for each, band in known]
        yield _row(f"{name}_quoted_share", len(known) / len(quoted), "of jobs")
        yield _row(
            f"{name}_quoted_coverage", sum(each.covered for each, _ in known) / len(known), "of starts"
        )
        yield _row(f"{name}_quoted_median_off", median(off_s), "s")
    yield _row(f"{name}_cpu", took_s, "s")


def _error(found: Sequence[Foretold]) -> float:
    return median(each.error(each.submitted_ms) for each in found)


def _row(metric: str, value: float, unit: str, goal: float | None = None) -> dict[str, object]:
    return {
        "bench": "eta",
        "metric": metric,
        "value": round(value, 4),
        "unit": unit,
        "limit": goal,
        "ratio": round(value / goal, 3) if goal else None,
    }


if __name__ == "__main__":
    for row in run(sys.argv[1:]):
        print(json.dumps(row), flush=True)
