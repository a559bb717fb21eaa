"""How long jobs wait that are submitted soon: read from the imagined jobs of the futures, for quotes.

A future holds what each organization may submit in the next hours. How long those jobs wait in it says how long a job
like them would wait that is submitted now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from scheduler.ahead.habits import ENOUGH_RUNS, LENGTHS_MS, WIDTHS
from scheduler.ahead.outlook import Outlook
from scheduler.core.model import Job, Topology
from scheduler.core.policy import HOUR_MS

SOON_MS = 6 * HOUR_MS
"""Jobs of the futures that are submitted within this are like one that is submitted now."""
ENOUGH_WAITS = ENOUGH_RUNS
"""Fewer of them say nothing."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Jobs that a quote may be compared with: all of these are the same, the bounds hold it."""

    organization_id: str
    program_id: str
    """Of opportunistic jobs; "" of others."""
    gpu_classes: tuple[str, ...]
    """All that are accepted, the preferred one first."""
    topology: Topology
    """What is required of a gang; preferences are ANY."""
    gpus_over: int
    gpus_to: int | None
    walltime_over_ms: int
    walltime_to_ms: int | None


class Newcomers:
    """The waits of the imagined jobs of all futures, by likeness."""

    def __init__(self, every_ms: int) -> None:
        """`every_ms`: the futures decide so often only."""
        self._every_ms = every_ms
        self._waits: dict[Alike, list[float]] = defaultdict(list)

    def note(self, outlook: Outlook, jobs: Iterable[Job], beyond_ms: Callable[[Job], float]) -> None:
        """Take the waits of a future's newcomers; `beyond_ms`: how long one that did not start waits after its end."""
        for job in jobs:
            prospect = outlook.jobs.get(job.id)
            if prospect is None:
                continue  # a short future ended before the job came
            if prospect.start_ms is None:
                wait_ms = outlook.until_ms - job.submitted_at_ms + beyond_ms(job)
            else:
                wait_ms = float(prospect.start_ms - job.submitted_at_ms)
                if wait_ms < self._every_ms:
                    wait_ms = 0.0  # it starts at the first decision; the hub decides at once
            for alike in likenesses(job):
                self._waits[alike].append(wait_ms)

    def told(self) -> Iterator[tuple[Alike, list[float]]]:
        """Each likeness of which there are enough waits, with them in order; the closest likenesses first."""
        for alike in sorted(self._waits, key=_order):
            waits = self._waits[alike]
            if len(waits) >= ENOUGH_WAITS:
                yield alike, sorted(waits)


def newcomers(arrivals: Iterable[Job], now_ms: int) -> list[Job]:
    """Those of a future's arrivals that are like a job that is submitted now."""
    return [job for job in arrivals if job.submitted_at_ms <= now_ms + SOON_MS]


def likenesses(job: Job) -> Iterator[Alike]:
    """From the most alike: as large and as long, then as large."""
    required = job.pods > 1 and job.topology in (Topology.SAME_NODE, Topology.SAME_RACK)
    gpus = _between(job.gpus, WIDTHS)
    for length in (_between(job.walltime_ms, LENGTHS_MS), (0, None)):
        yield Alike(
            job.organization_id,
            job.program_id,
            job.classes,
            job.topology if required else Topology.ANY,
            *gpus,
            *length,
        )


def _between(value: int, bounds: Sequence[int]) -> tuple[int, int | None]:
    """The bounds that it lies between: over the first, up to the second."""
    over = max((bound for bound in bounds if bound < value), default=0)
    return over, next((bound for bound in bounds if value <= bound), None)


def _order(alike: Alike) -> tuple[object, ...]:
    any_length = (alike.walltime_over_ms, alike.walltime_to_ms) == (0, None)
    return (
        alike.organization_id,
        alike.program_id,
        alike.gpu_classes,
        alike.topology.value,
        alike.gpus_over,
        any_length,
        alike.walltime_over_ms,
    )
