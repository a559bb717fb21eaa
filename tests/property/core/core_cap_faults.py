"""What a plan may not do about caps of organizations and reserved parts, told from the objects and the plan alone."""

from collections import Counter
from collections.abc import Iterable, Mapping

from scheduler.core.model import (
    Attempt,
    Change,
    Grant,
    Job,
    Kind,
    Node,
    Organization,
    Plan,
    Start,
    WaitReason,
)
from scheduler.core.policy import Policy

World = Mapping[tuple[Kind | None, str], Change]


def caps_of(world: World) -> dict[str, int]:
    """By organization that has one: how many GPUs it may keep."""
    policy = next(each for each in world.values() if isinstance(each, Policy))
    nodes = [each for each in world.values() if isinstance(each, Node) and each.schedulable]
    totals = [capacity.total for node in nodes for capacity in node.capacities.values()]
    found = {}
    for each in world.values():
        if not isinstance(each, Organization):
            continue
        part = each.pool_thousandths
        if part is None and sum(totals) >= policy.organization_pool_from_gpus:
            part = policy.organization_pool_thousandths
        limits = [] if each.max_gpus is None else [each.max_gpus]
        if part is not None and part != 1000 and sum(totals):
            whole, rest = divmod(sum(totals) * part, 1000)
            limits.append(max(whole + (rest > 0), *totals, 0))
        if limits:
            found[each.id] = min(limits)
    return found


def in_use(world: World, plan: Plan) -> Counter[str]:
    """GPUs by organization, those that the plan starts counted."""
    found: Counter[str] = Counter()
    for attempt in world.values():
        if isinstance(attempt, Attempt) and attempt.capacity_held:
            found[attempt.organization_id] += sum(pod.count for pod in attempt.pods)
    for start in plan.starts:
        found[_job(world, start.job_id).organization_id] += sum(pod.count for pod in start.pods)
    return found


def wrong_caps(world: World, plan: Plan) -> list[str]:
    """Starts past a cap, gangs that others are stopped for past it, and jobs that no cap keeps waiting."""
    caps, used = caps_of(world), in_use(world, plan)
    touched = {_job(world, start.job_id).organization_id for start in plan.starts}
    found = [
        f"over the cap of {id}: {used[id]}" for id in sorted(touched & caps.keys()) if used[id] > caps[id]
    ]
    cleared = _gpus(world, {stop.for_job for stop in plan.stops})
    found += [
        f"stops others for {id} past its cap"
        for id in cleared
        if used[id] + cleared[id] > caps.get(id, 1 << 60)
    ]
    named = {each.stop.for_job for each in world.values() if isinstance(each, Attempt) and each.stop}
    clearing = _gpus(world, {id for id in named if id is not None} | {stop.for_job for stop in plan.stops})
    for job_id, reason in plan.reasons.items():
        if reason.code is not WaitReason.ORGANIZATION_CAP:
            continue
        job, numbers = _job(world, job_id), reason.numbers
        mine = job.organization_id
        counted = numbers["in_use"]
        assert isinstance(counted, int)
        right = {
            "another's cap": numbers["organization"] == mine,
            "not its cap": numbers["cap"] == caps.get(mine),
            "not what it needs": numbers["needed"] == job.gpus,
            "not what is in use": used[mine] <= counted <= used[mine] + clearing[mine],
            "below the cap": counted + job.gpus > caps.get(mine, 1 << 60),
        }
        found += [f"{fault}: {job_id} {dict(numbers)}" for fault, good in right.items() if not good]
    return found


def owed(world: World, starts: Iterable[Start]) -> set[str]:
    """Programmes that keep less than their reserved part of the pool once these starts are carried out."""
    policy = next(each for each in world.values() if isinstance(each, Policy))
    nodes = [each for each in world.values() if isinstance(each, Node) and each.schedulable]
    pool = sum(capacity.total for node in nodes for capacity in node.capacities.values())
    kept: Counter[str] = Counter()
    for attempt in world.values():
        grant = world.get((Kind.GRANT, attempt.grant_id)) if isinstance(attempt, Attempt) else None
        if isinstance(attempt, Attempt) and attempt.capacity_held and isinstance(grant, Grant):
            kept[grant.program_id] += sum(pod.count for pod in attempt.pods)
    for start in starts:
        kept[program_of(world, start)] += sum(pod.count for pod in start.pods)
    parts = {each.program_id: each.reserved_thousandths * pool for each in policy.entitlements}
    return {id for id, part in parts.items() if kept[id] * 1000 < part}


def program_of(world: World, start: Start) -> str:
    grant = world[Kind.GRANT, start.grant_id]
    assert isinstance(grant, Grant)
    return grant.program_id


def overtaken(world: World, plan: Plan) -> list[str]:
    """Starts of others that came before one of a programme below its reserved part.

    A job for which others were stopped has its room kept, whoever starts before it.
    """
    found = []
    kept = {each.stop.for_job for each in world.values() if isinstance(each, Attempt) and each.stop}
    for number, start in enumerate(plan.starts):
        before = owed(world, plan.starts[:number])
        if program_of(world, start) not in before:
            late = [
                each
                for each in plan.starts[number + 1 :]
                if each.job_id not in kept and _draws_on(world, each) <= before
            ]
            found += [f"{each.job_id} was owed its room before {start.job_id}" for each in late]
    return found


def _draws_on(world: World, start: Start) -> set[str]:
    """The programmes of all grants that its job may draw on: from a full or capped one it moves on to the next."""
    job = _job(world, start.job_id)
    return {
        each.program_id
        for each in world.values()
        if isinstance(each, Grant) and job.organization_id in each.parties and job.grant_id in (None, each.id)
    }


def _gpus(world: World, job_ids: Iterable[str]) -> Counter[str]:
    """By organization, of those of the jobs that wait."""
    found: Counter[str] = Counter()
    for id in job_ids:
        job = world.get((Kind.JOB, id))
        if isinstance(job, Job) and job.waits:
            found[job.organization_id] += job.gpus
    return found


def _job(world: World, job_id: str) -> Job:
    job = world[Kind.JOB, job_id]
    assert isinstance(job, Job)
    return job
