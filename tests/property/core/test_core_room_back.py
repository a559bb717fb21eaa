"""By when running jobs have made room, and the numbers beside every reason: what holds whatever the hub looks like."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from quota.schemas import scheduling as wire
from quota.wording.waits import WAITS
from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Change,
    Grant,
    Job,
    JobState,
    Node,
    Path,
    Plan,
    PodPlacement,
    Reason,
    Topology,
    WaitReason,
)
from scheduler.core.policy import PRESETS, Policy
from scheduler.core.state import State
from tests.property.core.core_chaos import START_MS, World, a_random_world, put
from tests.property.core.test_core_property import free_after, of, usable_clusters

SEEDS = st.integers(0, 2**48)
HOUR_MS = 3_600_000
ROOM_CODES = (WaitReason.NO_FREE_GPU, WaitReason.NO_NODE_FITS)


def a_busy_world(seed: int) -> World:
    """A random hub, mostly full: what is used is used by attempts that end at few different moments, or are late."""
    rng = Random(seed)
    world = a_random_world(rng)
    for node in of(world, Node):
        assert isinstance(node, Node)
        full = {
            gpu_class: replace(capacity, used=rng.choice((capacity.used, capacity.total - capacity.foreign)))
            for gpu_class, capacity in node.capacities.items()
        }
        put(world, replace(node, capacities=full))
        for gpu_class, capacity in full.items():
            left = min(capacity.used, capacity.total - capacity.foreign)
            while left > 0:
                gpus = rng.randint(1, left)
                left -= gpus
                put(world, _attempt(rng, node, gpu_class, gpus, len(world)))
    return world


def _attempt(rng: Random, node: Node, gpu_class: str, gpus: int, number: int) -> Attempt:
    ends_ms = START_MS + rng.choice((-2, 0, 1, 1, 2, 3)) * HOUR_MS
    return Attempt(
        job_id=f"busy-{number}",
        attempt=1,
        grant_id="g0",
        state=JobState.RUNNING,
        cluster=node.cluster,
        pods=(PodPlacement(node.node, gpu_class, gpus),),
        cost_gpu_us=0,
        claimed_at_ms=START_MS - 9 * HOUR_MS,
        started_at_ms=START_MS - 9 * HOUR_MS,
        ends_at_ms=rng.choice((ends_ms, ends_ms, ends_ms, None)),
    )


def room_back(world: World, plan: Plan, job: Job) -> tuple[int, set[str]] | None:
    """Plainly: hand back one end after the other, and count pods; with the jobs of which one may be named."""
    free, spare = free_after(world, plan), dict[tuple[str, str], int]()
    usable = usable_clusters(world, job.gpu_class, START_MS)
    for node in of(world, Node):
        assert isinstance(node, Node)
        if node.cluster in usable and node.schedulable and job.gpu_class in node.capacities:
            spare[node.cluster, node.node] = free[node.cluster, node.node, job.gpu_class]
    ends: dict[int, list[Attempt]] = {}
    for attempt in of(world, Attempt):
        assert isinstance(attempt, Attempt)
        if attempt.capacity_held and attempt.ends_at_ms is not None:
            ends.setdefault(attempt.ends_at_ms, []).append(attempt)
    for at_ms, ending in sorted(ends.items()):
        _hand_back(ending, job.gpu_class, spare)
        pods: Counter[str] = Counter()
        for (cluster, _), gpus in spare.items():
            pods[cluster] += gpus // job.gpus_per_pod
        if any(count >= job.pods for count in pods.values()):
            return at_ms, {attempt.job_id for attempt in ending}
    return None


def _hand_back(ending: list[Attempt], gpu_class: str, spare: dict[tuple[str, str], int]) -> None:
    for attempt in ending:
        for pod in attempt.pods:
            if pod.gpu_class == gpu_class and (attempt.cluster, pod.node) in spare:
                spare[attempt.cluster, pod.node] += pod.count


def check_room(world: World, plan: Plan) -> int:
    """Every job that waits for room is told the plain moment. Answers how many were told one."""
    told = 0
    for job in of(world, Job):
        reason = plan.reasons.get(job.id) if isinstance(job, Job) else None
        if reason is None or reason.code not in ROOM_CODES:
            continue
        assert isinstance(job, Job)
        expected = room_back(world, plan, _as_told(job, reason))
        if expected is None or (job.pods > 1 and job.topology is Topology.SAME_RACK):
            assert "room_at_ms" not in reason.numbers
            continue
        told += 1
        assert reason.numbers["room_at_ms"] == expected[0]
        assert reason.numbers["ending_job"] in expected[1]
    return told


SPANS_MS = [60_000 * each for each in (5, 15, 30)] + [
    HOUR_MS * each for each in (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 48)
]
"""Up to which walltimes are rounded up (facts: few kinds of many jobs)."""


def room_beside(world: World, plan: Plan, job: Job) -> int | None:
    """Plainly: at every moment at which something ends, whether so many pods fit for all of the walltime."""
    span_ms = next((span for span in SPANS_MS if job.walltime_ms <= span), 0)
    assert span_ms, "the worlds have no longer jobs"
    free, usable = free_after(world, plan), usable_clusters(world, job.gpu_class, START_MS)
    nodes = [
        node
        for node in of(world, Node)
        if isinstance(node, Node)
        and node.cluster in usable
        and node.schedulable
        and job.gpu_class in node.capacities
    ]
    comes = [
        (attempt.ends_at_ms, attempt.cluster, pod.node, pod.count)
        for attempt in of(world, Attempt)
        if isinstance(attempt, Attempt) and attempt.capacity_held and attempt.ends_at_ms is not None
        for pod in attempt.pods
        if pod.gpu_class == job.gpu_class
    ]
    walltimes = {each.id: each.walltime_ms for each in of(world, Job) if isinstance(each, Job)}
    kept = [
        (each.starts_at_ms, each.starts_at_ms + walltimes[each.job_id], each.cluster, node, gpus)
        for each in plan.reservations
        if each.gpu_class == job.gpu_class
        for node, gpus in each.gpus_by_node.items()
    ]

    def least(node: Node, from_ms: int) -> int:
        moments = [from_ms, *(begin for begin, *_ in kept if from_ms < begin < from_ms + span_ms)]
        return min(
            free[node.cluster, node.node, job.gpu_class]
            + sum(
                gpus
                for at, cluster, name, gpus in comes
                if at <= moment and (cluster, name) == (node.cluster, node.node)
            )
            - sum(
                gpus
                for begin, end, cluster, name, gpus in kept
                if begin <= moment < end and (cluster, name) == (node.cluster, node.node)
            )
            for moment in moments
        )

    for moment in sorted({START_MS, *(at for at, *_ in comes), *(end for _, end, *_ in kept)}):
        if moment < START_MS:
            continue
        pods: Counter[str] = Counter()
        for node in nodes:
            pods[node.cluster] += max(0, least(node, moment)) // job.gpus_per_pod
        if any(count >= job.pods for count in pods.values()):
            return moment
    return None


def check_beside(world: World, plan: Plan) -> tuple[int, int]:
    """As `check_room`, beside reservations. Answers how many were told a moment, and of how many they moved it."""
    told = later = 0
    for job in of(world, Job):
        reason = plan.reasons.get(job.id) if isinstance(job, Job) else None
        if reason is None or reason.code not in ROOM_CODES:
            continue
        assert isinstance(job, Job)
        if job.pods > 1 and job.topology is Topology.SAME_RACK:
            continue
        alone = _as_told(job, reason)
        expected, found = room_beside(world, plan, alone), reason.numbers.get("room_at_ms")
        plain = room_back(world, plan, alone)
        if expected is None:
            assert found is None or plain is None
            continue
        if expected == START_MS:
            assert isinstance(found, int)
            assert found <= START_MS, "who should have ended"
            continue
        assert found == expected
        told += 1
        assert plain is not None
        later += expected > max(START_MS, plain[0])
    return told, later


def a_promising_world(seed: int) -> tuple[World, Plan]:
    """Many jobs, as much money as they need, and reservations for a few of any size."""
    world, rng = a_busy_world(seed), Random(seed)
    for job in list(of(world, Job)):
        assert isinstance(job, Job)
        for copy in range(5):
            walltime_ms = rng.choice((1, 2, 5)) * HOUR_MS // 2
            gpus = rng.choice((1, 2, job.gpus_per_pod))
            more = replace(job, id=f"{job.id}-{copy}", gpus_per_pod=gpus, walltime_ms=walltime_ms)
            put(world, replace(more, state=JobState.QUEUED, cancel_requested=False, not_before_ms=None))
    for grant in list(of(world, Grant)):
        assert isinstance(grant, Grant)
        paths = tuple(
            Path(
                tuple(replace(account, granted_gpu_us=1 << 60) for account in path.accounts),
                path.organization_id,
            )
            for path in grant.paths
        )
        put(world, replace(grant, paths=paths, max_gpus=None))
    policy = replace(PRESETS["grant-easy"], reservation_gpus=1, promise_gpus=1, reservations=4)
    return world, decide(State(), [*world.values(), policy], START_MS)[0]


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_room_is_back_beside_reservations_when_a_plain_search_says_so(seed: int) -> None:
    check_beside(*a_promising_world(seed))


def test_reservations_move_the_moment_often() -> None:
    found = [check_beside(*a_promising_world(seed)) for seed in range(200)]
    assert sum(told for told, _ in found) > 100
    assert sum(later for _, later in found) > 30


def _as_told(job: Job, reason: Reason) -> Job:
    """As if it accepted only the class that the reason tells of; all pods that have to share a node are one pod."""
    gpu_class = str(reason.numbers["gpu_class"])
    assert gpu_class in job.classes
    gpus, pods = job.gpus_per_pod, job.pods
    if job.topology is Topology.SAME_NODE:
        gpus, pods = gpus * pods, 1
    return replace(job, gpu_class=gpu_class, fallbacks=(), gpus_per_pod=gpus, pods=pods)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_room_is_back_when_a_plain_count_says_so(seed: int) -> None:
    world = a_busy_world(seed)
    check_room(world, decide(State(), world.values(), START_MS)[0])


def test_the_plain_count_is_reached_often() -> None:
    worlds = [a_busy_world(seed) for seed in range(200)]
    told = [check_room(world, decide(State(), world.values(), START_MS)[0]) for world in worlds]
    assert sum(count > 0 for count in told) > 30


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 48 * HOUR_MS))
def test_the_moment_does_not_move_with_the_clock(seed: int, later_ms: int) -> None:
    """Nothing changes but the time: who waits for room is told the same, or something else binds."""
    world = a_busy_world(seed)
    plan, state = decide(State(), [*world.values(), Policy(cluster_unseen_ms=1 << 50)], START_MS)
    if plan.starts:
        return
    then, _ = decide(state, (), START_MS + later_ms)
    if then.starts:
        return  # a cooldown was over, or a grant began
    for job_id, reason in plan.reasons.items():
        after = then.reasons.get(job_id)
        if reason.code in ROOM_CODES and after is not None and after.code in ROOM_CODES:
            if after.numbers["gpu_class"] != reason.numbers["gpu_class"]:
                continue  # a grant came too near its end to pay for the class that it prefers
            assert after == reason


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.sampled_from(sorted(PRESETS)), st.booleans())
def test_every_number_has_its_words(seed: int, preset: str, stops: bool) -> None:
    world = a_busy_world(seed) | a_random_world(Random(seed + 1), stops)
    policy = replace(PRESETS[preset], reservation_gpus=2, promise_gpus=2)
    changes: list[Change] = [*world.values(), policy]
    plan, _ = decide(State(), changes, START_MS)
    for reason in plan.reasons.values():
        wording = WAITS[wire.WaitReason(reason.code)]
        assert reason.numbers.keys() <= wording.numbers, f"{reason}: quota/wording/waits.py does not tell it"
