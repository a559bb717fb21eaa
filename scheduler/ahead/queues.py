"""What waits in each queue, and how long it takes beyond a future to come to whom: at the rate of that future."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from scheduler.ahead.habits import Habits
from scheduler.ahead.outlook import Outlook
from scheduler.core.model import Change, GpuClass, Grant, Job, Node
from scheduler.core.policy import DAY_MS

PACE_SHARE = 0.5
"""An organization is taken to be served at this share of what its pace needs at least: it may wait its turn for a day,
but not for long. The rest goes to those of its jobs that come later and pass."""
LEAST_SHARE = 0.02
"""An organization that was not served at all is taken to get so much of its class's GPUs later."""

LONGEST_MS = 10 * 365 * DAY_MS


class Queues:
    """The jobs that wait for room, by queue (an organization) and class, in order, with the work that each brings."""

    def __init__(
        self,
        order: Sequence[Job],
        habits: Habits,
        gpus: Mapping[str, int],
        paces: Mapping[tuple[str, str], float],
        queue_of: Callable[[Job], str],
    ) -> None:
        self._gpus, self._paces, self._queue_of = gpus, paces, queue_of
        self._queues: dict[tuple[str, str], list[tuple[Job, int]]] = defaultdict(list)
        for job in order:
            key = queue_of(job), job.gpu_class
            self._queues[key].append((job, job.gpus * habits.mean_run_ms(job)))

    def waits_ms(self, outlook: Outlook, horizon_ms: int) -> tuple[dict[str, float], Callable[[Job], float]]:
        """How long each job waits in one future; beyond its horizon at the rate at which its queue was served.

        Also a function that says how long a job that comes after all of its queue waits beyond the horizon.
        """
        waits: dict[str, float] = {}
        tails: dict[tuple[str, str], float] = {}
        for (owner, gpu_class), queue in self._queues.items():
            started = {
                job.id: prospect.start_ms - outlook.now_ms
                for job, _ in queue
                if (prospect := outlook.jobs.get(job.id)) is not None and prospect.start_ms is not None
            }
            waits |= started
            served = sum(work for job, work in queue if job.id in started)
            gpus = self._gpus.get(gpu_class, 0)
            entitled = min(gpus, self._paces.get((owner, gpu_class), 0.0))
            rate = max(served / horizon_ms, entitled * PACE_SHARE, gpus * LEAST_SHARE)
            ahead = 0.0
            for job, work in queue:
                if job.id not in started and job.gpus <= gpus:
                    waits[job.id] = min(LONGEST_MS, horizon_ms + ahead / rate)
                    ahead += work
            tails[owner, gpu_class] = min(LONGEST_MS, ahead / rate) if rate else 0.0
        return waits, lambda job: tails.get((self._queue_of(job), job.gpu_class), 0.0)


def gpus_of(objects: Iterable[Change]) -> dict[str, int]:
    """GPUs of the nodes that take jobs, by class."""
    gpus: dict[str, int] = defaultdict(int)
    for each in objects:
        if isinstance(each, Node) and each.schedulable:
            for gpu_class, capacity in each.capacities.items():
                gpus[gpu_class] += max(0, capacity.total - capacity.foreign)
    return gpus


def paces_of(objects: Iterable[Change], now_ms: int) -> dict[tuple[str, str], float]:
    """GPUs that would use up an organization's grants by the end of their terms, by (organization, class)."""
    rates = {each.id: each.rate_thousandths for each in objects if isinstance(each, GpuClass)}
    needed: dict[str, float] = defaultdict(float)  # thousandths of the reference GPU
    for grant in objects:
        if isinstance(grant, Grant) and grant.starts_at_ms <= now_ms < grant.ends_at_ms:
            own = {path.accounts[-1].id: path.accounts[-1] for path in grant.paths if path.accounts}
            granted = sum(account.granted_gpu_us for account in own.values())
            for party in grant.parties:  # of a consortium's, to each alike
                needed[party] += granted / (grant.ends_at_ms - grant.starts_at_ms) / len(grant.parties)
    return {
        (party, gpu_class): each / rate
        for party, each in needed.items()
        for gpu_class, rate in rates.items()
        if rate > 0
    }
