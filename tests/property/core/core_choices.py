"""Jobs that accept several GPU classes, as the checkers of promises see them."""

from collections.abc import Iterable
from dataclasses import replace

from scheduler.core.model import Attempt, Grant, Job, Plan
from tests.property.core.core_promises import RATES, Hub


def choices(job: Job) -> list[Job]:
    """The same job as it would be if it accepted one class only, once for each, the preferred one first."""
    return [replace(job, gpu_class=name, fallbacks=()) for name in (job.gpu_class, *job.fallbacks)]


def payable(hub: Hub, plan: Plan, job: Job) -> list[Job]:
    """Of its choices those that it could pay after the starts of this plan; its only one is not asked."""
    if not job.fallbacks:
        return [job]
    return [each for each in choices(job) if any(_pays(hub, plan, each, g) for g in hub.of(Grant))]


def of_class(job: Job, gpu_class: str) -> Job | None:
    """As it would be if it accepted that one only; None if it does not."""
    return next((each for each in choices(job) if each.gpu_class == gpu_class), None)


def _pays(hub: Hub, plan: Plan, job: Job, grant: Grant) -> bool:
    if grant.organization_id != job.organization_id or grant.id not in plan.paces:
        return False
    if hub.now_ms + job.walltime_ms > grant.ends_at_ms:
        return False
    cost = job.walltime_ms * job.gpus * RATES[job.gpu_class]
    mine = [start for start in plan.starts if start.grant_id == grant.id]
    held = [
        pod.count for a in hub.of(Attempt) if a.grant_id == grant.id and a.capacity_held for pod in a.pods
    ]
    in_use = sum(held) + sum(pod.count for start in mine for pod in start.pods)
    if grant.max_gpus is not None and in_use + job.gpus > grant.max_gpus:
        return False
    return any(all(_left(hub, plan, account.id) >= cost for account in path.accounts) for path in grant.paths)


def _left(hub: Hub, plan: Plan, account_id: str) -> int:
    copies: Iterable[int] = (
        account.left_gpu_us
        for grant in hub.of(Grant)
        for path in grant.paths
        for account in path.accounts
        if account.id == account_id
    )
    spent = sum(start.cost_gpu_us for start in plan.starts if account_id in start.account_path)
    return min(copies) - spent
