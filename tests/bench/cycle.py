"""How long a scheduling cycle takes at the size of a city, under the hub's own policy: `python -m tests.bench.cycle`.

Every figure stands beside a floor measured in the same run, what any cycle of that size must do at least: sort
the waiting jobs, pass once over the table of nodes. On a shared machine the ratio says more than the seconds,
which are CPU seconds. Memory is what `decide` adds to the objects handed in.
"""

import gc
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Account,
    Attempt,
    Capacity,
    Change,
    Cluster,
    GpuClass,
    Grant,
    Job,
    JobState,
    Kind,
    Node,
    Organization,
    Pace,
    Path,
    Plan,
    PodPlacement,
    Stop,
    Tombstone,
)
from scheduler.core.policy import PRESETS
from scheduler.core.state import State

HOUR_MS = 3_600_000
NOW_MS = 1_800_000_000_000
TERM_MS = 180 * 24 * HOUR_MS
LIMIT_MIB = 300.0
CLASSES = {"h100": 1000, "a100": 480, "h200": 1250}


@dataclass(frozen=True)
class Size:
    """How large a hub is measured. `free_share`: of the nodes that are empty when the first cycle starts."""

    organizations: int = 1000
    waiting: int = 50_000
    running: int = 5000
    nodes: int = 1250
    free_share: float = 0.02


def run(size: Size | None = None) -> list[dict[str, object]]:
    """Full and incremental cycles, and the memory that the state takes."""
    size = size or Size()
    floor_s = _floor(size)
    world = _world(size)
    full_s = min(_time(lambda: decide(State(), world, NOW_MS)) for _ in range(3))
    empty = _world(replace(size, free_share=0.9))
    filling_s = min(_time(lambda: decide(State(), empty, NOW_MS)) for _ in range(3))
    tracemalloc.start()
    plan, state = decide(State(), world, NOW_MS)
    memory_mib = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    incremental_s = _incremental(world, plan, state, size)
    median_s = sorted(incremental_s)[len(incremental_s) // 2]
    return [
        _row("full", full_s, floor_s),
        _row("full_with_90_percent_free", filling_s, floor_s),
        _row("incremental_median", median_s, floor_s),
        _row("incremental_worst", max(incremental_s), floor_s),
        {
            "bench": "cycle",
            "metric": "memory_peak",
            "value": round(memory_mib, 1),
            "unit": "MiB",
            "limit": LIMIT_MIB,
            "ratio": round(memory_mib / LIMIT_MIB, 3),
        },
    ]


def _row(metric: str, value_s: float, floor_s: float) -> dict[str, object]:
    return {
        "bench": "cycle",
        "metric": metric,
        "value": round(value_s, 5),
        "unit": "s",
        "limit": round(floor_s, 5),
        "ratio": round(value_s / floor_s, 2),
    }


def _time(work: Callable[[], object]) -> float:
    gc.collect()
    before = time.process_time()
    work()
    return time.process_time() - before


def _floor(size: Size) -> float:
    """Sort as many keys as jobs wait, then one numpy pass over the table of nodes."""
    rng = random.Random(7)
    keys = [
        (rng.random(), rng.random(), NOW_MS - rng.randrange(10**9), f"job-{i}") for i in range(size.waiting)
    ]
    free = np.asarray([rng.randrange(9) for _ in range(size.nodes)])

    def least() -> None:
        sorted(keys)
        int((free // 4).sum())

    return min(_time(least) for _ in range(5))


def _incremental(world: list[Change], plan: Plan, state: State, size: Size) -> list[float]:
    """Cycles a second apart: what started is fed back, a few jobs end, come and are cancelled."""
    rng = random.Random(11)
    jobs = {c.id: c for c in world if isinstance(c, Job)}
    nodes = {c.node: c for c in world if isinstance(c, Node)}
    grants = {c.id: c for c in world if isinstance(c, Grant)}
    attempts = [c for c in world if isinstance(c, Attempt)]
    now_ms, times = NOW_MS, []
    for cycle in range(21):
        now_ms += 1000
        changes: list[Change] = [Cluster(f"c{i}", now_ms) for i in range(2)]
        for start in plan.starts:
            job = jobs[start.job_id] = replace(
                jobs[start.job_id], state=JobState.STARTING, attempt=start.attempt
            )
            grant = grants[start.grant_id] = _charged(grants[start.grant_id], start.cost_gpu_us)
            for pod in start.pods:
                nodes[pod.node] = _used(nodes[pod.node], pod.gpu_class, pod.count)
            changes += [job, grant, *(nodes[pod.node] for pod in start.pods)]
        for stop in plan.stops:
            at, found = next((i, a) for i, a in enumerate(attempts) if a.job_id == stop.job_id)
            attempts[at] = replace(found, state=JobState.STOPPING, stop=Stop("preempted", stop.for_job))
            changes.append(attempts[at])
        for _ in range(2):
            ended = attempts.pop(rng.randrange(len(attempts)))
            pod = ended.pods[0]
            nodes[pod.node] = _used(nodes[pod.node], pod.gpu_class, -pod.count)
            changes += [Tombstone(Kind.JOB, ended.job_id), Tombstone(Kind.ATTEMPT, ended.id), nodes[pod.node]]
        for i in range(3):
            job = _job(rng, f"new-{cycle}-{i}", size, now_ms)
            jobs[job.id] = job
            changes.append(job)
        before = time.process_time()
        plan, state = decide(state, changes, now_ms)
        times.append(time.process_time() - before)
    return times[1:]  # the first takes in all that the full cycle started


def _charged(grant: Grant, cost: int) -> Grant:
    account = grant.paths[0].accounts[0]
    charged = replace(account, held_gpu_us=account.held_gpu_us + cost)
    return replace(grant, paths=(Path((charged,), grant.organization_id),))


def _used(node: Node, gpu_class: str, gpus: int) -> Node:
    capacity = node.capacities[gpu_class]
    return replace(node, capacities={gpu_class: replace(capacity, used=capacity.used + gpus)})


def _world(size: Size) -> list[Change]:
    """A hub from a fixed seed: a few large organizations and many small ones, jobs of every usual shape."""
    rng = random.Random(3)
    world: list[Change] = [PRESETS["gpuhub"], *(GpuClass(id, rate) for id, rate in CLASSES.items())]
    world += [Cluster(f"c{i}", NOW_MS) for i in range(2)]
    for i in range(size.organizations):
        usage = rng.choice((0.0, rng.random() * 1e12))
        world.append(Organization(f"o{i}", False, usage, NOW_MS - rng.randrange(HOUR_MS)))
        for j in range(1 + (i % 3 == 0)):
            granted = rng.randrange(500, 50_000) * HOUR_MS * 1000
            account = Account(f"a{i}-{j}", granted, 0, int(granted * rng.random() * 0.8))
            starts = NOW_MS - rng.randrange(TERM_MS - 1000)
            pace = Pace(rng.randrange(-TERM_MS // 10, TERM_MS // 10), NOW_MS - 1000, account.used_gpu_us)
            world.append(
                Grant(
                    f"g{i}-{j}",
                    f"p{(i + j) % 8}",
                    f"o{i}",
                    starts,
                    starts + TERM_MS,
                    (Path((account,), f"o{i}"),),
                    pace,
                )
            )
    world += _nodes_and_attempts(rng, size)
    world += [_job(rng, f"job-{i}", size, NOW_MS - rng.randrange(10**9)) for i in range(size.waiting)]
    return world


def _nodes_and_attempts(rng: random.Random, size: Size) -> list[Change]:
    found: list[Change] = []
    running = 0
    for i in range(size.nodes):
        gpu_class = ("h100", "a100", "h200")[i % 3]
        used = 0
        while rng.random() >= size.free_share and used < 8 and running < size.running:
            gpus = min(8 - used, rng.choice((1, 1, 1, 2, 2, 4)))
            used += gpus
            job_id = f"run-{running}"
            organization = f"o{rng.randrange(size.organizations)}"
            running += 1
            found.append(
                Job(
                    job_id,
                    organization,
                    None,
                    gpu_class,
                    gpus,
                    1,
                    HOUR_MS,
                    NOW_MS,
                    JobState.RUNNING,
                    1,
                    restartable=True,
                )
            )
            started_ms = NOW_MS - rng.randrange(20 * HOUR_MS)
            pods = (PodPlacement(f"n{i}", gpu_class, gpus),)
            found.append(
                Attempt(
                    job_id,
                    1,
                    f"g{organization[1:]}-0",
                    JobState.RUNNING,
                    f"c{i % 2}",
                    pods,
                    HOUR_MS * gpus * 1000,
                    started_ms,
                    started_at_ms=started_ms,
                    ends_at_ms=NOW_MS + rng.randrange(1, 48 * HOUR_MS),
                    organization_id=organization,
                )
            )
        found.append(Node(f"c{i % 2}", f"n{i}", True, {gpu_class: Capacity(8, 0, used)}))
    return found


def _job(rng: random.Random, id: str, size: Size, submitted_ms: int) -> Job:
    organization = min(int(rng.paretovariate(0.6)) - 1, rng.randrange(size.organizations))
    gpus, pods = rng.choice(((1, 1),) * 6 + ((2, 1), (4, 1), (8, 1), (8, 2), (8, 4), (8, 8), (4, 4)))
    hours = rng.choice((1, 1, 4, 4, 12, 24, 72, rng.randrange(1, 100)))
    gpu_class = rng.choice(("h100", "h100", "a100", "h200"))
    grant = f"g{organization}-0" if rng.random() < 0.3 else None
    return Job(id, f"o{organization}", grant, gpu_class, gpus, pods, hours * HOUR_MS, submitted_ms)


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
