"""A future of a state, played by the look ahead, and two of them compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quota.schemas import what_if as wire
from quota.schemas.scheduling import AccountBalance, FeedItem, GrantObject, JobObject, JobState
from quota.schemas.snapshots import SchedulerState
from scheduler.ahead.outlook import Outlook, Prospect
from scheduler.ahead.play import Runs, Tell, look_ahead
from scheduler.core.model import Job
from scheduler.core.policy import HOUR_MS
from scheduler.snapshots.decision import translated
from scheduler.translate import job_of
from scheduler.whatif.changing import change
from scheduler.whatif.differing import minus

SIZES: Mapping[str, tuple[int, int]] = {"1-4": (1, 4), "5-31": (5, 31), "32+": (32, 1 << 30)}


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far a future is played, and how long its jobs run."""

    hours: int
    runs_thousandths: int
    """How much of its walltime a job runs, or of what is left of it if it runs already."""


def what_if(state: SchedulerState, request: wire.WhatIfRequest) -> wire.WhatIfReply:
    """Play the state as it is and as the request changes it. Raises BadChange or BadSnapshot."""
    horizon = Horizon(request.horizon_h, request.runs_thousandths)
    changed = change(state, request.changes)
    first = future(state, state.items, horizon)
    second = future(state, changed.items, horizon, changed.arrivals)
    return wire.WhatIfReply(
        taken_at=state.taken_at,
        until=state.taken_at + horizon.hours * HOUR_MS,
        runs_thousandths=horizon.runs_thousandths,
        changed_to=changed.told,
        base=first,
        changed=second,
        difference=minus(second, first),
    )


def future(
    state: SchedulerState, items: Sequence[FeedItem], horizon: Horizon, arrivals: Sequence[JobObject] = ()
) -> wire.Future:
    """What the hub does with these objects from the moment of the state on. Raises BadSnapshot."""
    until_ms = state.taken_at + horizon.hours * HOUR_MS
    return summed(items, played(state, items, horizon, arrivals), until_ms)


def played(
    state: SchedulerState,
    items: Sequence[FeedItem],
    horizon: Horizon,
    arrivals: Sequence[JobObject] = (),
    tell: Tell | None = None,
) -> Outlook:
    """The same, job by job."""
    until_ms = state.taken_at + horizon.hours * HOUR_MS
    return look_ahead(
        translated(state, items),
        state.taken_at,
        _runs(state, items, horizon.runs_thousandths),
        horizon_ms=horizon.hours * HOUR_MS,
        arrivals=[job_of(job, None) for job in arrivals if job.submitted_at <= until_ms],
        tell=tell,
    )


def waiting_of(items: Iterable[FeedItem], outlook: Outlook) -> list[Prospect]:
    """What becomes of those jobs that wait at the beginning or come later."""
    jobs = {item.job.id: item.job for item in items if item.job is not None}
    return [each for each in outlook.jobs.values() if each.job_id not in jobs or _waits(jobs[each.job_id])]


def summed(items: Sequence[FeedItem], outlook: Outlook, until_ms: int) -> wire.Future:
    """An outlook in numbers; what has not started counts as waiting until `until_ms`."""
    waited = waiting_of(items, outlook)
    grants = [item.grant for item in items if item.grant is not None]
    delivered = {grant.id: _delivered(grant, outlook, until_ms) for grant in grants}
    return wire.Future(
        all_jobs=_waits_of(waited, outlook.jobs.values(), until_ms),
        organizations=_organizations(waited, outlook, grants, delivered, until_ms),
        sizes={
            name: _waits_of(
                [each for each in waited if least <= each.gpus <= most],
                [each for each in outlook.jobs.values() if least <= each.gpus <= most],
                until_ms,
            )
            for name, (least, most) in SIZES.items()
        },
        grants=delivered,
        occupied_gpu_ms=outlook.busy_gpu_ms,
    )


def _waits(job: JobObject) -> bool:
    return job.state is JobState.QUEUED and job.cancel_requested_at is None


def _runs(state: SchedulerState, items: Iterable[FeedItem], thousandths: int) -> Runs:
    """How long each job runs: a part of its walltime, or of the rest of it after what it has run by now."""
    ran_ms = {
        item.attempt.job_id: max(0, state.taken_at - item.attempt.last_started_at)
        for item in items
        if item.attempt is not None
        and item.attempt.last_started_at is not None
        and item.attempt.state is not JobState.ENDED
    }

    def run_ms(job: Job) -> int:
        ran = ran_ms.get(job.id, 0)
        return ran + max(0, job.walltime_ms - ran) * thousandths // 1000

    return run_ms


def _organizations(
    waited: Sequence[Prospect],
    outlook: Outlook,
    grants: Sequence[GrantObject],
    delivered: Mapping[str, wire.GrantDelivery],
    until_ms: int,
) -> dict[str, wire.OrganizationWaits]:
    by_waiting, by_job = _by_organization(waited), _by_organization(outlook.jobs.values())
    led: defaultdict[str, list[GrantObject]] = defaultdict(list)
    for grant in grants:
        if grant.organization_id:  # else it is what a programme pays opportunistic jobs from
            led[grant.organization_id].append(grant)
    found: dict[str, wire.OrganizationWaits] = {}
    for name in sorted({*by_job, *led}):
        own = [delivered[grant.id] for grant in led[name]]
        used = sum(each.used_gpu_us for each in own)
        granted = sum(each.granted_gpu_us for each in own)
        found[name] = wire.OrganizationWaits(
            **_waits_of(by_waiting[name], by_job[name], until_ms).model_dump(),
            used_gpu_us=used - sum(_used_by_now(grant) for grant in led[name]),
            delivered_thousandths=1000 * used // granted if granted else 0,
        )
    return found


def _by_organization(prospects: Iterable[Prospect]) -> defaultdict[str, list[Prospect]]:
    found: defaultdict[str, list[Prospect]] = defaultdict(list)
    for each in prospects:
        found[each.organization_id].append(each)
    return found


def _waits_of(waited: Sequence[Prospect], everybody: Iterable[Prospect], until_ms: int) -> wire.Waits:
    waits_ms = sorted(
        (until_ms if each.start_ms is None else each.start_ms) - each.submitted_at_ms for each in waited
    )
    return wire.Waits(
        jobs=len(waits_ms),
        started=sum(each.start_ms is not None for each in waited),
        ended=sum(each.end_ms is not None for each in waited),
        mean_wait_ms=sum(waits_ms) // len(waits_ms) if waits_ms else 0,
        p95_wait_ms=waits_ms[-(-95 * len(waits_ms) // 100) - 1] if waits_ms else 0,
        preemptions=sum(each.preemptions for each in everybody),
    )


def _delivered(grant: GrantObject, outlook: Outlook, until_ms: int) -> wire.GrantDelivery:
    granted = sum(each.granted_gpu_us for each in _own_accounts(grant).values())
    used = outlook.used_gpu_us[grant.id]
    term_ms = max(1, grant.ends_at - grant.starts_at)
    return wire.GrantDelivery(
        granted_gpu_us=granted,
        used_gpu_us=used,
        delivered_thousandths=1000 * used // granted if granted else 0,
        due_thousandths=1000 * min(term_ms, max(0, until_ms - grant.starts_at)) // term_ms,
    )


def _used_by_now(grant: GrantObject) -> int:
    return sum(each.used_gpu_us for each in _own_accounts(grant).values())


def _own_accounts(grant: GrantObject) -> dict[str, AccountBalance]:
    """The grant's own account is the last of each of its paths."""
    return {path.accounts[-1].id: path.accounts[-1] for path in grant.paths if path.accounts}
