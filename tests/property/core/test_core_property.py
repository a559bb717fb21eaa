"""What holds for every plan, whatever the hub looks like."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Change,
    Cluster,
    GpuClass,
    Grant,
    Job,
    Kind,
    Node,
    Plan,
    Start,
    Topology,
    WaitReason,
)
from scheduler.core.policy import Policy
from scheduler.core.state import State
from tests.property.core.core_cap_faults import overtaken, owed, program_of, wrong_caps
from tests.property.core.core_chaos import (
    START_MS,
    World,
    a_random_change,
    a_random_world,
    accept,
    put,
    with_paces,
)
from tests.property.core.core_reference import reference

SEEDS = st.integers(0, 2**48)


def of(world: World, kind: type) -> list[Change]:
    return [each for each in world.values() if isinstance(each, kind)]


def free_after(world: World, plan: Plan) -> dict[tuple[str, str, str], int]:
    """What the plan leaves free, by cluster, node and class; may be negative when it is wrong."""
    free = {}
    for node in of(world, Node):
        assert isinstance(node, Node)
        for gpu_class, c in node.capacities.items():
            free[node.cluster, node.node, gpu_class] = max(0, c.total - c.foreign - c.used)
    for start in plan.starts:
        for pod in start.pods:
            free[start.cluster, pod.node, pod.gpu_class] -= pod.count
    return free


def usable_clusters(world: World, gpu_class: str, now_ms: int) -> set[str]:
    policy = next(each for each in world.values() if isinstance(each, Policy))
    kind = world.get((Kind.GPU_CLASS, gpu_class))
    if policy.placement_paused or (isinstance(kind, GpuClass) and kind.paused):
        return set()
    return {
        c.id
        for c in world.values()
        if isinstance(c, Cluster) and not c.paused and now_ms - c.last_seen_ms <= policy.cluster_unseen_ms
    }


def faults(world: World, plan: Plan, now_ms: int) -> list[str]:
    """Every way in which a plan breaks what must hold. Empty for a good plan."""
    found = [f"over-placed {key}: {left}" for key, left in free_after(world, plan).items() if left < 0]
    grants = {g.id: g for g in world.values() if isinstance(g, Grant)}
    spent: Counter[str] = Counter()
    for start in plan.starts:
        found += [f"{fault}: {start}" for fault in faults_of(start, world, now_ms)]
        spent.update(dict.fromkeys(start.account_path, start.cost_gpu_us))
    for grant in grants.values():
        for path in grant.paths:
            found += [f"overdrawn: {a.id}" for a in path.accounts if 0 < spent[a.id] > a.left_gpu_us]
    found += over_cap(world, plan) + wrong_caps(world, plan) + overtaken(world, plan)
    waiting = Counter(j.id for j in world.values() if isinstance(j, Job) and j.waits)
    told = Counter(start.job_id for start in plan.starts) + Counter(plan.order)
    if told != waiting:
        found.append(f"not exactly a start or a position: {told} of {waiting}")
    if sorted(plan.reasons) != sorted(plan.order):
        found.append("not exactly one reason for each that waits")
    return found


def over_cap(world: World, plan: Plan) -> list[str]:
    """Grants on which this plan starts something though then more GPUs are in use than may be."""
    in_use: Counter[str] = Counter()
    for attempt in world.values():
        if isinstance(attempt, Attempt) and attempt.capacity_held:
            in_use[attempt.grant_id] += sum(pod.count for pod in attempt.pods)
    for start in plan.starts:
        in_use[start.grant_id] += sum(pod.count for pod in start.pods)
    caps = {g.id: g.max_gpus for g in world.values() if isinstance(g, Grant) and g.max_gpus is not None}
    touched = {start.grant_id for start in plan.starts}
    return [
        f"over the cap of {id}: {in_use[id]}" for id in sorted(touched & caps.keys()) if in_use[id] > caps[id]
    ]


def faults_of(start: Start, world: World, now_ms: int) -> list[str]:
    """What is wrong with one start, looked at alone."""
    job, grant = world[Kind.JOB, start.job_id], world[Kind.GRANT, start.grant_id]
    nodes = [world[Kind.NODE, f"{start.cluster}/{pod.node}"] for pod in start.pods]
    assert isinstance(job, Job)
    assert isinstance(grant, Grant)
    gpu_class = start.pods[0].gpu_class
    kind = world.get((Kind.GPU_CLASS, gpu_class))
    rate = kind.rate_thousandths if isinstance(kind, GpuClass) else None
    right = {
        "gang not whole": [(p.gpu_class, p.count) for p in start.pods]
        == [(gpu_class, job.gpus_per_pod)] * job.pods,
        "a class that it does not accept": gpu_class in (job.gpu_class, *job.fallbacks),
        "not the cost of the class": rate is not None
        and start.cost_gpu_us == job.walltime_ms * job.gpus_per_pod * job.pods * rate,
        "not together as required": together(job, [node for node in nodes if isinstance(node, Node)]),
        "cluster out of reach": start.cluster in usable_clusters(world, gpu_class, now_ms),
        "node out of reach": all(isinstance(node, Node) and node.schedulable for node in nodes),
        "no such path": start.account_path
        in [tuple(a.id for a in p.accounts) for p in grant.paths if p.organization_id == job.organization_id],
        "not within the term": grant.starts_at_ms <= now_ms <= grant.ends_at_ms - job.walltime_ms,
        "does not wait": job.waits and (job.not_before_ms or 0) <= now_ms,
        "another's grant": job.organization_id in {path.organization_id for path in grant.paths},
        "not the grant asked for": job.grant_id in (None, grant.id),
    }
    return [fault for fault, good in right.items() if not good]


def with_room_left(world: World, plan: Plan, now_ms: int) -> list[str]:
    """Jobs that wait for room although one usable cluster has it (for worlds where no room is kept)."""
    free = free_after(world, plan)
    room_codes = {WaitReason.NO_FREE_GPU, WaitReason.NO_NODE_FITS, WaitReason.BEHIND_IN_ORDER}
    found = []
    for job in world.values():
        if (
            not isinstance(job, Job)
            or job.id not in plan.order
            or plan.reasons[job.id].code not in room_codes
        ):
            continue
        # of several classes the one whose room it is told to wait for: for another it may lack the money
        gpu_class = str(plan.reasons[job.id].numbers.get("gpu_class", job.gpu_class))
        if job.fallbacks and "gpu_class" not in plan.reasons[job.id].numbers:
            continue
        usable = usable_clusters(world, gpu_class, now_ms)
        nodes = [n for n in world.values() if isinstance(n, Node) and n.cluster in usable and n.schedulable]
        if has_room(job, [(node, free.get((node.cluster, node.node, gpu_class), 0)) for node in nodes]):
            found.append(job.id)
    return found


def has_room(job: Job, free: Iterable[tuple[Node, int]]) -> bool:
    """Whether all pods fit in one cluster, on one node or in one rack of it if that is required."""
    size, pods = job.gpus_per_pod, job.pods
    if job.topology is Topology.SAME_NODE:
        return any(left >= size * pods for _, left in free)
    counts: Counter[tuple[str, str]] = Counter()
    in_rack = job.topology is Topology.SAME_RACK and pods > 1
    for node, left in free:
        if node.rack or not in_rack:
            counts[node.cluster, node.rack if in_rack else ""] += max(0, left) // size
    return any(count >= pods for count in counts.values())


def together(job: Job, nodes: Sequence[Node]) -> bool:
    """Whether these nodes, one per pod or each once, are as near to each other as the job requires."""
    ids, racks = {node.id for node in nodes}, {node.rack for node in nodes}
    if job.pods == 1:
        return True
    if job.topology is Topology.SAME_NODE:
        return len(ids) == 1
    return job.topology is not Topology.SAME_RACK or (len(racks) == 1 and racks != {""})


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.booleans())
def test_no_plan_breaks_what_must_hold(seed: int, stops: bool) -> None:
    world = a_random_world(Random(seed), stops)
    plan, _ = decide(State(), world.values(), START_MS)
    assert faults(world, plan, START_MS) == []


def overlooked(world: World, plan: Plan, now_ms: int) -> list[str]:
    """Jobs of programmes below their reserved part that would fit had only those programmes started something (for
    worlds where no room is kept)."""
    mine = owed(world, plan.starts)
    own = replace(plan, starts=tuple(start for start in plan.starts if program_of(world, start) in mine))
    waiting = set(with_room_left(world, own, now_ms))
    could = {job.id: job for job in world.values() if isinstance(job, Job) and job.id in waiting}
    return [
        id
        for id, job in could.items()
        # of a job that could draw on several programmes nobody says here on which
        if {
            g.program_id
            for g in of(world, Grant)
            if isinstance(g, Grant) and job.organization_id in g.parties
        }
        <= mine
    ]


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_others_take_no_room_that_a_reserved_part_is_owed(seed: int) -> None:
    world = a_random_world(Random(seed))
    plan, _ = decide(State(), world.values(), START_MS)
    assert overlooked(world, plan, START_MS) == []


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_no_job_waits_beside_room_it_could_use(seed: int) -> None:
    world = a_random_world(Random(seed))
    plan, _ = decide(State(), world.values(), START_MS)
    assert with_room_left(world, plan, START_MS) == []


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(0, 1000), st.booleans())
def test_the_order_in_which_objects_arrive_changes_nothing(seed: int, shuffle: int, stops: bool) -> None:
    objects = list(a_random_world(Random(seed), stops).values())
    shuffled = list(objects)
    Random(shuffle).shuffle(shuffled)
    assert decide(State(), objects, START_MS)[0] == decide(State(), shuffled, START_MS)[0]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_the_same_input_gives_the_same_plan_to_the_byte(seed: int, stops: bool) -> None:
    objects = list(a_random_world(Random(seed), stops).values())
    assert repr(decide(State(), objects, START_MS)[0]) == repr(decide(State(), objects, START_MS)[0])


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_the_plan_is_that_of_the_plain_reference(seed: int) -> None:
    world = a_random_world(Random(seed))
    check_against_reference(world, decide(State(), world.values(), START_MS)[0], START_MS)


@settings(max_examples=120, deadline=None)
@given(SEEDS, st.booleans())
def test_going_on_from_a_state_equals_beginning_anew(seed: int, stops: bool) -> None:
    rng = Random(seed)
    world = a_random_world(rng, stops)
    now_ms = START_MS
    plan, state = decide(State(), world.values(), now_ms)
    told = dict(plan.changed_reasons)
    for _ in range(8):
        with_paces(world, plan.paces)
        changes = accept(rng, world, plan) if rng.random() < 0.7 else []
        now_ms += rng.choice((0, 1, 1000, 1000, 3000, 3_600_000, 30 * 3_600_000))
        if rng.random() < 0.7:
            changes += [put(world, Cluster(id, now_ms)) for id in ("c1", "c2")]
        changes += [a_random_change(rng, world, now_ms, stops) for _ in range(rng.choice((0, 1, 2, 8)))]
        plan, state = decide(state, changes, now_ms)
        anew, _ = decide(State(), world.values(), now_ms)
        assert plan == anew
        assert faults(world, plan, now_ms) == []
        told = {
            id: reason for id, reason in (told | dict(plan.changed_reasons)).items() if id in plan.reasons
        }
        assert told == plan.reasons
        if not any(isinstance(each, Attempt) and each.stop for each in world.values()):
            check_against_reference(world, plan, now_ms)


def check_against_reference(world: World, plan: Plan, now_ms: int) -> None:
    answer = reference(world.values(), now_ms)
    starts = []
    for start in plan.starts:
        gpus: Counter[str] = Counter()
        for pod in start.pods:
            gpus[pod.node] += pod.count
        starts.append((start.job_id, start.grant_id, start.account_path, start.cluster, dict(gpus)))
    assert starts == answer.starts
    assert plan.order == answer.order
    assert dict(plan.paces) == answer.paces
    assert {id: reason.code.value for id, reason in plan.reasons.items()} == answer.codes
    assert {id: dict(plan.reasons[id].numbers) for id in answer.money} == answer.money
