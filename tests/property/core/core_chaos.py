"""Random small hubs and random changes to them, from one source of randomness that Hypothesis can shrink."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from scheduler.core.model import (
    Account,
    Attempt,
    Booking,
    Capacity,
    Change,
    Cluster,
    Fund,
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
    Start,
    Stop,
    Tombstone,
    Topology,
)
from scheduler.core.policy import Entitlement, Policy

HOUR_MS = 3_600_000
GPU_HOUR = HOUR_MS * 1000
START_MS = 1_000 * HOUR_MS
World = dict[tuple[Kind | None, str], Change]
"""The objects by kind and id; the policy stands under (None, "")."""

ORGANIZATIONS = ("o1", "o2", "o3")
RATES = {"h100": 1000, "mig": 250, "a100": 480}
CHOICES = (
    *(("h100",),) * 8,
    *(("mig",),) * 4,
    ("h100", "mig"),
    ("a100", "h100"),
    ("mig", "a100", "h100"),
)
"""What a job accepts: most name one class only."""
TOPOLOGIES = (*(Topology.ANY,) * 5, *Topology)


def a_random_world(rng: Random, stops: bool = False) -> World:
    """Few of everything, so that ties, shared accounts and full nodes are normal."""
    world: World = {}
    for id in RATES:
        put(world, _class(rng, id))
    put(world, _policy(rng))
    for id in ("c1", "c2"):
        put(world, Cluster(id, START_MS))
    for _ in range(rng.randrange(1, 7)):
        put(world, _node(rng))
    for id in ORGANIZATIONS:
        put(world, _organization(rng, id))
    for id in range(rng.randrange(1, 7)):
        put(world, _grant(rng, f"g{id}"))
    for id in range(rng.randrange(1, 17)):
        put(world, _job(rng, f"j{id}", START_MS))
    for id in range(rng.randrange(3)):
        put(world, _running(rng, f"r{id}"))
    if stops:
        for id in range(rng.randrange(3)):
            put(world, _attempt(rng, world, f"v{id}"))
    return world


def put(world: World, each: Change) -> Change:
    """Upsert, or bury by tombstone."""
    if isinstance(each, Tombstone):
        world.pop((each.kind, each.id), None)
    elif isinstance(each, Policy):
        world[None, ""] = each
    else:
        world[KINDS[type(each)], each.id] = each
    return each


KINDS: Mapping[type, Kind] = {
    GpuClass: Kind.GPU_CLASS,
    Node: Kind.NODE,
    Cluster: Kind.CLUSTER,
    Grant: Kind.GRANT,
    Fund: Kind.GRANT,
    Organization: Kind.ORGANIZATION,
    Job: Kind.JOB,
    Attempt: Kind.ATTEMPT,
    Booking: Kind.BOOKING,
}


def with_paces(world: World, paces: Mapping[str, Pace]) -> None:
    """Store the paces that a plan told, as the quota service would."""
    for id, pace in paces.items():
        grant = world[Kind.GRANT, id]
        assert isinstance(grant, Grant)
        world[Kind.GRANT, id] = replace(grant, pace=pace)


def a_random_change(rng: Random, world: World, now_ms: int, stops: bool) -> Change:
    """Any object anew, or gone."""
    roll = rng.randrange(20)
    if roll < 7:
        return put(world, _job(rng, f"j{rng.randrange(18)}", now_ms))
    if roll < 10:
        return put(world, _stale(_grant(rng, f"g{rng.randrange(6)}"), world))
    if roll < 13:
        return put(world, _node(rng))
    if roll < 14:
        return put(world, rng.choice((_organization(rng, rng.choice(ORGANIZATIONS)), _running(rng, "r0"))))
    if roll < 16:
        return put(world, Cluster(rng.choice(("c1", "c2")), now_ms, rng.random() < 0.2))
    if roll < 17 and stops:
        return put(world, _attempt(rng, world, f"v{rng.randrange(3)}"))
    if roll < 18:
        return put(world, rng.choice((_policy(rng), _class(rng, rng.choice(sorted(RATES))))))
    kind, id = rng.choice(sorted((k, i) for k, i in world if k is not None))
    return put(world, Tombstone(kind, id))


def accept(rng: Random, world: World, plan: Plan) -> list[Change]:
    """What the quota service makes of a plan: most starts are accepted, some are refused."""
    changes: list[Change] = []
    for start in plan.starts:
        if rng.random() < 0.3:
            continue
        job = world[Kind.JOB, start.job_id]
        assert isinstance(job, Job)
        changes.append(put(world, replace(job, state=JobState.STARTING, attempt=start.attempt)))
        changes.append(put(world, _claimed(start, job.organization_id)))
        for pod in start.pods:
            node = world[Kind.NODE, f"{start.cluster}/{pod.node}"]
            assert isinstance(node, Node)
            capacity = node.capacities[pod.gpu_class]
            used = replace(capacity, used=capacity.used + pod.count)
            node = replace(node, capacities={**node.capacities, pod.gpu_class: used})
            changes.append(put(world, node))
        for id in sorted(i for k, i in world if k is Kind.GRANT):
            grant = world[Kind.GRANT, id]
            assert isinstance(grant, Grant)
            charged = _charged(grant, start.account_path, start.cost_gpu_us)
            if charged != grant:
                changes.append(put(world, charged))
    return changes


def _claimed(start: Start, organization_id: str) -> Attempt:
    return Attempt(
        start.job_id,
        start.attempt,
        start.grant_id,
        JobState.STARTING,
        start.cluster,
        start.pods,
        start.cost_gpu_us,
        START_MS,
        organization_id=organization_id,
    )


def _charged(grant: Grant, accounts: tuple[str, ...], cost: int) -> Grant:
    paths = tuple(
        Path(
            tuple(
                replace(a, held_gpu_us=a.held_gpu_us + cost) if a.id in accounts else a for a in path.accounts
            ),
            path.organization_id,
        )
        for path in grant.paths
    )
    return replace(grant, paths=paths)


def _stale(grant: Grant, world: World) -> Grant:
    """A grant comes back from the feed with the pace that was stored last."""
    before = world.get((Kind.GRANT, grant.id))
    return replace(grant, pace=before.pace) if isinstance(before, Grant) else grant


def _policy(rng: Random) -> Policy:
    return Policy(
        cluster_unseen_ms=5000,
        lag_bound_share=rng.choice((0.1, 0.5)),
        placement_paused=rng.random() < 0.05,
        organization_pool_thousandths=rng.choice((1000, 1000, 200, 500)),
        organization_pool_from_gpus=rng.choice((0, 0, 12, 24)),
        entitlements=tuple(
            Entitlement(id, rng.choice((1000, 1000, 500, 3000)), rng.choice((0, 0, 100, 400)))
            for id in ("p1", "p2", "p3")
            if rng.random() < 0.3
        ),
        organization_weights=tuple(
            (id, rng.choice((400, 2500))) for id in ("o1", "o2") if rng.random() < 0.3
        ),
    )


def _class(rng: Random, id: str) -> GpuClass:
    return GpuClass(id, RATES[id], rng.random() < 0.1)


def _node(rng: Random) -> Node:
    capacities = {}
    for gpu_class in rng.choice((("h100",), ("h100",), ("mig",), ("h100", "mig"), ("h100", "a100"))):
        total = rng.choice((2, 4, 8))
        foreign = rng.choice((0, 0, 0, 1))
        capacities[gpu_class] = Capacity(total, foreign, rng.choice((0, 0, 0, 1, 2, total)))
    rack = rng.choice(("", "r1", "r1", "r2"))
    return Node(rng.choice(("c1", "c2")), f"n{rng.randrange(4)}", rng.random() < 0.85, capacities, rack)


def _organization(rng: Random, id: str) -> Organization:
    usage = rng.choice((0.0, 0.0, 1e9, 3e9))
    frozen, as_of_ms = rng.random() < 0.05, START_MS - rng.choice((0, HOUR_MS))
    max_gpus, part = rng.choice((None, None, None, 0, 3, 7, 12)), rng.choice((None, None, None, 1000, 300))
    return Organization(id, frozen, usage, as_of_ms, max_gpus, part)


def _grant(rng: Random, id: str) -> Grant:
    starts = START_MS + rng.choice((-100, -100, -50, -50, -10, -10, -10, 1)) * HOUR_MS
    ends = starts + rng.choice((101, 101, 120, 120, 200, 200)) * HOUR_MS
    own = [_account(rng, f"a-{id}"), _account(rng, f"b-{id}")]
    shapes = ([own[0]], [own[0]], [own[1]], [own[1], own[0]], [_account(rng, "shared"), own[0]])
    paths = [rng.choice(shapes) for _ in range(rng.choice((1, 1, 1, 2)))]
    pace = rng.choice(
        (None, None, Pace(rng.randrange(-5, 6) * HOUR_MS, START_MS - HOUR_MS, rng.choice((None, 0))))
    )
    lead = rng.choice(ORGANIZATIONS)
    return Grant(
        id,
        rng.choice(("p1", "p2")),
        lead,
        starts,
        ends,
        _opened(rng, lead, paths),
        pace,
        rng.choice((None, None, None, 0, 2, 5, 12)),
    )


def _opened(rng: Random, lead: str, paths: list[list[Account]]) -> tuple[Path, ...]:
    """Mostly the lead's alone; sometimes a consortium's, with a share for each party; seldom open to nobody."""
    roll = rng.random()
    if roll < 0.05:
        return ()
    if roll < 0.6:
        return tuple(Path(tuple(accounts), lead) for accounts in paths)
    parties = rng.choice((("o1", "o2"), ("o2", "o3"), ORGANIZATIONS))
    shares = {party: _account(rng, f"s-{paths[0][-1].id}-{party}") for party in parties}
    return tuple(
        Path((shares[party], *accounts[: rng.choice((0, 1, 2))]), party)
        for party in parties
        for accounts in paths
    )


def _running(rng: Random, job_id: str) -> Attempt:
    """An attempt that keeps GPUs of a grant, or did."""
    pods = tuple(PodPlacement("n0", "h100", rng.choice((1, 2, 4))) for _ in range(rng.choice((1, 1, 2))))
    grant, state = f"g{rng.randrange(6)}", rng.choice((JobState.RUNNING, JobState.ENDED))
    held, mine = rng.random() < 0.8, rng.choice(ORGANIZATIONS)
    return Attempt(job_id, 1, grant, state, "c1", pods, 0, START_MS, None, held, organization_id=mine)


def _account(rng: Random, id: str) -> Account:
    hours = rng.choice((0, 10, 20, 50, 50, 100))
    return Account(id, hours * GPU_HOUR, rng.choice((0, 0, 3)) * GPU_HOUR, rng.choice((0, 0, 5)) * GPU_HOUR)


def _job(rng: Random, id: str, now_ms: int) -> Job:
    gpus, pods = rng.choice(((1, 1), (1, 1), (2, 1), (4, 1), (8, 1), (1, 3), (2, 3), (4, 2), (8, 2)))
    gpu_class, *fallbacks = rng.choice(CHOICES)
    return Job(
        id,
        rng.choice(ORGANIZATIONS),
        rng.choice((None,) * 6 + ("g0", "g1")),
        gpu_class,
        gpus,
        pods,
        rng.choice((1, 1, 2, 4, 30)) * HOUR_MS // rng.choice((1, 60)),
        now_ms - rng.choice((0, 0, 1, 2)) * HOUR_MS,
        rng.choice((JobState.QUEUED,) * 8 + (JobState.RUNNING,)),
        rng.randrange(3),
        rng.choice((None,) * 5 + (now_ms + rng.choice((-1, 1, 2000, 4000)),)),
        rng.random() < 0.05,
        fallbacks=tuple(fallbacks),
        topology=rng.choice(TOPOLOGIES),
    )


def _attempt(rng: Random, world: World, job_id: str) -> Attempt:
    """A victim: on nodes of the world, stopping for one of its jobs."""
    held = rng.random() < 0.5
    nodes = [each for each in world.values() if isinstance(each, Node)]
    pods = tuple(
        PodPlacement(node.node, "h100", rng.choice((1, 2, 4)))
        for node in nodes
        if node.cluster == "c1" and rng.random() < 0.7
    )
    state = JobState.STOPPING if held else JobState.ENDED
    stop = Stop("preempted", rng.choice((None, f"j{rng.randrange(12)}", f"j{rng.randrange(12)}")))
    grant = f"g{rng.randrange(6)}"
    claimed_ms, mine = START_MS - HOUR_MS, rng.choice(ORGANIZATIONS)
    return Attempt(job_id, 1, grant, state, "c1", pods, 0, claimed_ms, stop, held, organization_id=mine)
