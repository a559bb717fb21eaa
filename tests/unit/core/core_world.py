"""Builders of what the core knows: every argument has a dull default, a test names only what it is about."""

from collections.abc import Iterable, Mapping

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
    Node,
    Organization,
    Pace,
    Path,
    Plan,
    PodPlacement,
    Stop,
    Topology,
)
from scheduler.core.state import State

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TERM_MS = 100 * DAY_MS
NOW_MS = 50 * DAY_MS
GPU_HOUR = HOUR_MS * 1000
"""One hour of the reference GPU, in GPU-microseconds."""


def a_class(id: str = "h100", rate: int = 1000, paused: bool = False) -> GpuClass:
    return GpuClass(id, rate, paused)


def a_cluster(id: str = "c1", seen_ms: int = NOW_MS, paused: bool = False) -> Cluster:
    return Cluster(id, seen_ms, paused)


def a_node(
    name: str = "n1",
    gpus: int = 8,
    used: int = 0,
    foreign: int = 0,
    cluster: str = "c1",
    gpu_class: str = "h100",
    schedulable: bool = True,
    more: Mapping[str, Capacity] | None = None,
    rack: str = "",
) -> Node:
    return Node(cluster, name, schedulable, {gpu_class: Capacity(gpus, foreign, used), **(more or {})}, rack)


def an_account(id: str = "acc", hours: float = 10_000, held: float = 0, used: float = 0) -> Account:
    return Account(id, int(hours * GPU_HOUR), int(held * GPU_HOUR), int(used * GPU_HOUR))


def a_grant(
    organization: str = "o1",
    id: str | None = None,
    program: str = "p1",
    hours: float = 10_000,
    held: float = 0,
    used: float = 0,
    starts: int = 0,
    ends: int = TERM_MS,
    pace: Pace | None = None,
    lag_ms: int = 0,
    paths: tuple[tuple[Account, ...], ...] | None = None,
    max_gpus: int | None = None,
) -> Grant:
    """A grant half way through its term; `lag_ms` is its lag now."""
    id = id or f"g-{organization}"
    accounts = ((an_account(f"a-{id}", hours, held, used),),) if paths is None else paths
    pace = pace or Pace(lag_ms, NOW_MS)
    own = tuple(Path(p, organization) for p in accounts)
    return Grant(id, program, organization, starts, ends, own, pace, max_gpus)


def a_consortium(
    shares: Mapping[str, float],
    hours: float = 1000,
    used: float = 0,
    held: Mapping[str, float] | None = None,
    lag_ms: int = 0,
    max_gpus: int | None = None,
) -> Grant:
    """The grant `c` of several parties, led by "lead": a share of so many hours each, on top the grant's own."""
    held = held or {}
    own = an_account("a-c", hours, sum(held.values()), used)
    paths = tuple(
        Path((an_account(f"s-{party}", share, held.get(party, 0)), own), party)
        for party, share in shares.items()
    )
    return Grant("c", "p1", "lead", 0, TERM_MS, paths, Pace(lag_ms, NOW_MS), max_gpus)


def an_attempt(
    job: str = "running",
    grant: str = "g-o1",
    gpus: int = 4,
    held: bool = True,
    number: int = 1,
    organization: str = "o1",
) -> Attempt:
    """An attempt that runs, or ended and keeps its GPUs or not."""
    state = JobState.RUNNING if held else JobState.ENDED
    pods = (PodPlacement("n9", "h100", gpus),)
    claimed_ms = NOW_MS - HOUR_MS
    return Attempt(
        job, number, grant, state, "c1", pods, 0, claimed_ms, None, held, organization_id=organization
    )


def an_organization(
    id: str = "o1",
    frozen: bool = False,
    usage: float = 0.0,
    as_of: int = NOW_MS,
    max_gpus: int | None = None,
    pool: int | None = None,
) -> Organization:
    return Organization(id, frozen, usage, as_of, max_gpus, pool)


def a_job(
    id: str = "j1",
    organization: str = "o1",
    gpus: int = 1,
    pods: int = 1,
    hours: float = 1,
    submitted: int = NOW_MS - HOUR_MS,
    grant: str | None = None,
    gpu_class: str = "h100",
    state: JobState = JobState.QUEUED,
    attempt: int = 0,
    not_before: int | None = None,
    cancel: bool = False,
    fallbacks: tuple[str, ...] = (),
    topology: Topology = Topology.ANY,
) -> Job:
    walltime_ms = int(hours * HOUR_MS)
    return Job(
        id,
        organization,
        grant,
        gpu_class,
        gpus,
        pods,
        walltime_ms,
        submitted,
        state,
        attempt,
        not_before,
        cancel,
        fallbacks=fallbacks,
        topology=topology,
    )


def a_stopping_attempt(
    job: str = "victim",
    for_job: str | None = None,
    on: Mapping[str, int] | None = None,
    cluster: str = "c1",
    held: bool = True,
    gpu_class: str = "h100",
) -> Attempt:
    pods = tuple(PodPlacement(node, gpu_class, count) for node, count in (on or {"n1": 8}).items())
    state = JobState.STOPPING if held else JobState.ENDED
    stop = Stop("preempted", for_job)
    return Attempt(job, 1, "g-victim", state, cluster, pods, 0, NOW_MS - HOUR_MS, stop, held)


def a_world(*changes: Change, organizations: Iterable[str] = ("o1",)) -> list[Change]:
    """One class, one cluster and organizations with a grant each; `changes` replace these or come on top."""
    world: list[Change] = [a_class(), a_cluster()]
    for id in organizations:
        world += [an_organization(id), a_grant(id)]
    return list({(type(change), getattr(change, "id", "")): change for change in [*world, *changes]}.values())


def plan_of(*changes: Change, organizations: Iterable[str] = ("o1",), now_ms: int = NOW_MS) -> Plan:
    """What a fresh core decides about `a_world`."""
    return decide(State(), a_world(*changes, organizations=organizations), now_ms)[0]


def started(plan: Plan) -> list[str]:
    """The jobs that start, in the order decided."""
    return [start.job_id for start in plan.starts]


def nodes_of(plan: Plan, job: str) -> list[str]:
    """The node of each pod of a started job."""
    return [pod.node for start in plan.starts if start.job_id == job for pod in start.pods]
