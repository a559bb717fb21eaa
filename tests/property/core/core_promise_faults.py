"""What a plan of the whole policy may not do, told from the objects and the plan alone, without the core."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from scheduler.core.model import (
    Attempt,
    Grant,
    Job,
    JobState,
    Kind,
    Node,
    Plan,
    PodPlacement,
    Preempt,
    Reservation,
    Start,
    WaitReason,
)
from scheduler.core.policy import DAY_MS, HOUR_MS, Lane, Preemption
from tests.property.core.core_cap_faults import owed, program_of
from tests.property.core.core_choices import of_class, payable
from tests.property.core.core_promises import HOURS, Hub
from tests.property.core.test_core_property import faults, free_after, together, usable_clusters
from tests.property.core.test_core_property import has_room as has_room_on

OVERDUE_MS = 60_000
ROOM = {
    WaitReason.NO_FREE_GPU,
    WaitReason.NO_NODE_FITS,
    WaitReason.BEHIND_IN_ORDER,
    WaitReason.ROOM_RESERVED,
    WaitReason.RESERVED,
}
BEHIND = {WaitReason.BEHIND_IN_ORDER}
Free = Mapping[tuple[str, str, str], int]
"""GPUs by (cluster, node, class)."""


def all_faults(hub: Hub, plan: Plan) -> list[str]:
    """Of one plan, before it is carried out; `hub.reservations` are those of the plan before."""
    return [
        *faults(hub.world, plan, hub.now_ms),
        *idle(hub, plan),
        *wrong_reservations(hub, plan),
        *broken_promises(hub, plan),
        *wrong_stops(hub, plan),
        *blocked_in_lane(hub, plan),
    ]


# --- work conserving ------------------------------------------------------------------------------


def idle(hub: Hub, plan: Plan) -> list[str]:
    """Jobs that wait beside room they may use, and no promise to the job that they name."""
    found, free = [], free_after(hub.world, plan)
    promised = {each.job_id for each in plan.reservations} | gathering(hub, plan)
    for job, reason in ((hub.world[Kind.JOB, id], reason) for id, reason in plan.reasons.items()):
        assert isinstance(job, Job)
        if reason.code is WaitReason.ROOM_RESERVED and reason.numbers["job"] not in promised - {job.id}:
            found.append(f"{job.id} waits for {reason.numbers['job']}, to whom nothing is promised")
        if reason.code is WaitReason.RESERVED and job.id not in promised:
            found.append(f"{job.id} has no reservation")
        beside = [each for each in payable(hub, plan, job) if fits(hub, each, free)]
        if reason.code not in ROOM or not beside:
            continue
        # of the room that is not kept for a gang others may have taken the rest
        told = {WaitReason.ROOM_RESERVED, WaitReason.RESERVED} | (BEHIND if gathering(hub, plan) else set())
        # of several classes it is told of one: the room may be reserved on another
        if (reason.code not in told and not job.fallbacks) or not promised - {job.id}:
            found.append(f"{job.id} waits beside room: {reason}")
        elif (
            job.id not in promised
            and not gathering(hub, plan)
            and any(fits(hub, each, spared(hub, plan, each)) for each in beside)
        ):
            found.append(f"{job.id} would be in nobody's way: {reason}")
    return found


def gathering(hub: Hub, plan: Plan) -> set[str]:
    """Jobs for which others stop, or are to."""
    waiting = {job.id for job in hub.of(Job) if job.waits}
    named = {attempt.stop.for_job for attempt in hub.of(Attempt) if attempt.stop}
    return {id for id in named if id in waiting} | {stop.for_job for stop in plan.stops}


def fits(hub: Hub, job: Job, free: Free) -> bool:
    """Whether one usable cluster has room for all pods, as near to each other as they have to be."""
    usable = usable_clusters(hub.world, job.gpu_class, hub.now_ms)
    nodes = [node for node in hub.of(Node) if node.cluster in usable and node.schedulable]
    return has_room_on(job, [(node, free.get((node.cluster, node.node, job.gpu_class), 0)) for node in nodes])


def spared(hub: Hub, plan: Plan, job: Job, from_ms: int | None = None) -> Free:
    """What stays free for all of the job's walltime from a moment on, everybody else's reservations counted."""
    from_ms = hub.now_ms if from_ms is None else from_ms
    until_ms = from_ms + walltime_for(job, from_ms == hub.now_ms)
    others = [
        each for each in plan.reservations if each.job_id not in {job.id, *(s.job_id for s in plan.starts)}
    ]
    moments = {from_ms, *(each.starts_at_ms for each in others if from_ms < each.starts_at_ms < until_ms)}
    found: dict[tuple[str, str, str], int] = {}
    for at_ms in moments:
        for key, gpus in free_at(hub, plan, others, at_ms).items():
            found[key] = min(gpus, found.get(key, gpus))
    return found


def walltime_for(job: Job, now: bool) -> int:
    """A job that starts now has to be out of the way for its walltime rounded up; what it gives up is not ours."""
    whole = next((h * HOUR_MS for h in HOURS if job.walltime_ms <= h * HOUR_MS), job.walltime_ms)
    return whole if now else job.walltime_ms


def free_at(hub: Hub, plan: Plan, reservations: Iterable[Reservation], at_ms: int) -> Free:
    """What attempts, this plan's starts and reservations leave at a moment."""
    free = dict(free_after(hub.world, plan))
    for attempt in hub.of(Attempt):
        ends_ms = attempt.ends_at_ms
        if ends_ms is None or not attempt.capacity_held:
            continue
        if at_ms >= (ends_ms if ends_ms > hub.now_ms else max(ends_ms, hub.now_ms + OVERDUE_MS)):
            for pod in attempt.pods:
                free[attempt.cluster, pod.node, pod.gpu_class] += pod.count
    for start in plan.starts:
        job = hub.world[Kind.JOB, start.job_id]
        assert isinstance(job, Job)
        for pod in start.pods if at_ms >= hub.now_ms + job.walltime_ms else ():
            free[start.cluster, pod.node, pod.gpu_class] += pod.count
    for each in reservations:
        job = hub.world[Kind.JOB, each.job_id]
        assert isinstance(job, Job)
        if each.starts_at_ms <= at_ms < each.starts_at_ms + job.walltime_ms:
            for node, gpus in each.gpus_by_node.items():
                key = (each.cluster, node, each.gpu_class)
                free[key] = free.get(key, 0) - gpus
    return free


# --- reservations ---------------------------------------------------------------------------------


def wrong_reservations(hub: Hub, plan: Plan) -> list[str]:
    """Of nobody who waits, too many, not the job's size, or made later than the earliest hole."""
    found, policy = [], hub.policy
    before = {each.job_id for each in hub.reservations}
    told = {*plan.order, *(start.job_id for start in plan.starts)}
    open_ones = [each for each in plan.reservations if each.job_id in plan.order]
    of_organization: Counter[str] = Counter()
    for each in open_ones:
        job = hub.world[Kind.JOB, each.job_id]
        assert isinstance(job, Job)
        # one whose start was decided and then refused keeps its place, whatever was reserved meanwhile
        of_organization[job.organization_id] += each.starts_at_ms > hub.now_ms
        able = payable(hub, plan, job)
        if of_class(job, each.gpu_class) is None or sum(each.gpus_by_node.values()) != job.gpus:
            found.append(f"not the size of {job.id}: {each}")
        nodes = [hub.world[Kind.NODE, f"{each.cluster}/{node}"] for node in each.gpus_by_node]
        if not together(job, [node for node in nodes if isinstance(node, Node)]):
            found.append(f"not together as required: {each}")
        if job.gpus < policy.reservation_gpus:
            found.append(f"too small for a reservation: {job.id}")
        # what a later start of the same plan left without the money is taken away by the next one
        could_pay = each.gpu_class in {choice.gpu_class for choice in able}
        if each.job_id not in before and not gathering(hub, plan) and could_pay:
            earlier = [(earliest_ms(hub, plan, choice), choice.gpu_class) for choice in able]
            first_ms = min((at_ms for at_ms, _ in earlier if at_ms is not None), default=None)
            wanted = next((name for at_ms, name in earlier if at_ms == first_ms), None)
            if (each.starts_at_ms, each.gpu_class) != (first_ms, wanted):
                found.append(f"{job.id} could start at {first_ms} on {wanted}: {each}")
    found += [f"for nobody who waits: {each}" for each in plan.reservations if each.job_id not in told]
    if of_organization.total() > policy.reservations:
        found.append(f"{of_organization.total()} reservations")
    if max(of_organization.values(), default=0) > policy.reservations_per_organization:
        found.append(f"too many of one organization: {of_organization}")
    return found


def earliest_ms(hub: Hub, plan: Plan, job: Job) -> int | None:
    """The first moment from which the job has room for its walltime, by trying all that could be it."""
    now_ms = hub.now_ms
    moments = {now_ms + OVERDUE_MS}
    moments |= {a.ends_at_ms for a in hub.of(Attempt) if a.capacity_held and a.ends_at_ms is not None}
    for id in (*(start.job_id for start in plan.starts), *(each.job_id for each in plan.reservations)):
        waits = hub.world[Kind.JOB, id]
        assert isinstance(waits, Job)
        starts = [each.starts_at_ms for each in plan.reservations if each.job_id == id] or [now_ms]
        moments |= {at + waits.walltime_ms for at in (*starts, now_ms)}
    for at_ms in sorted(at for at in moments if at > now_ms):
        if fits(hub, job, spared(hub, plan, job, at_ms)):
            return at_ms
    return None


def broken_promises(hub: Hub, plan: Plan) -> list[str]:
    """Reservations that a decision delayed or took away, although nothing else had happened."""
    if is_excused(hub, plan):
        return []
    kept = {(each.job_id, each.made_at_ms, each.number): each for each in plan.reservations}
    started = {start.job_id for start in plan.starts}
    found = []
    promises: Counter[str] = Counter()
    for each in hub.reservations:
        job = hub.world.get((Kind.JOB, each.job_id))
        if not isinstance(job, Job) or not job.waits or job.gpus < hub.policy.promise_gpus:
            continue
        promises[job.organization_id] += 1
        many = promises[job.organization_id] > hub.policy.promises_per_organization
        if many or job.id in started or may_be_ahead(hub, plan, job):
            continue
        if job.fallbacks and each.gpu_class not in {c.gpu_class for c in payable(hub, plan, job)}:
            continue
        after = kept.get((each.job_id, each.made_at_ms, each.number))
        if after and not has_room(hub, plan, after):
            found.append(f"hollow: {after}")
        if after and after.starts_at_ms > each.starts_at_ms:
            found.append(f"delayed by {after.starts_at_ms - each.starts_at_ms} ms: {each}")
        if after is None and plan.reasons[job.id].code in ROOM:
            found.append(f"taken away: {each}")
    return found


def is_excused(hub: Hub, plan: Plan) -> bool:
    """Whether something happened after which a reservation may be late."""
    now_ms, policy = hub.now_ms, hub.policy
    late = [each for each in hub.reservations if each.starts_at_ms < now_ms]
    alive = tuple(each for each in hub.reservations if (Kind.JOB, each.job_id) in hub.world)
    before = replace(plan, starts=(), reservations=alive)
    overran = [
        a for a in hub.of(Attempt) if a.capacity_held and a.ends_at_ms is not None and a.ends_at_ms <= now_ms
    ]
    lost = [each for each in hub.reservations if not has_nodes(hub, each) or not has_room(hub, before, each)]
    if hub.disturbed or late or overran or lost or gathering(hub, plan):
        return True
    for number, start in enumerate(plan.starts):
        job = hub.world[Kind.JOB, start.job_id]
        assert isinstance(job, Job)
        if program_of(hub.world, start) in owed(hub.world, plan.starts[:number]):
            return True
        if policy.preemption and job.gpus >= policy.preemption.gang_gpus:
            return True
        if policy.lane and may_pass(
            hub, plan, job, start.grant_id, plan.starts[:number], policy.lane, generous=True
        ):
            return True
    return False


def has_room(hub: Hub, plan: Plan, reservation: Reservation) -> bool:
    """Whether at its time its room will be there for all its walltime, whatever else is promised."""
    job = hub.world.get((Kind.JOB, reservation.job_id))
    if not isinstance(job, Job):
        return True
    free, place = (
        spared(hub, plan, job, reservation.starts_at_ms),
        (reservation.cluster, reservation.gpu_class),
    )
    return all(
        free.get((place[0], node, place[1]), 0) >= gpus for node, gpus in reservation.gpus_by_node.items()
    )


def has_nodes(hub: Hub, reservation: Reservation) -> bool:
    usable = usable_clusters(hub.world, reservation.gpu_class, hub.now_ms)
    nodes = [hub.world[Kind.NODE, f"{reservation.cluster}/{node}"] for node in reservation.gpus_by_node]
    return reservation.cluster in usable and all(isinstance(n, Node) and n.schedulable for n in nodes)


# --- what grants have spent, how far they are behind ------------------------------------------------


def spent_us(hub: Hub, grant: Grant, starts: Iterable[Start]) -> tuple[float, float]:
    """The least and the most of what counts as spent: used, and the policy's share of what is held."""
    accounts = {path.accounts[-1].id: path.accounts[-1] for path in grant.paths}.values()
    committed = sum(account.held_gpu_us + account.used_gpu_us for account in accounts)
    picked = sum(start.cost_gpu_us for start in starts if start.grant_id == grant.id)
    promised = [remaining_us(hub, grant.id, stopped) for stopped in (False, True)]
    share = hub.policy.hold_share
    sums = [committed - left + left * share + picked * share for left in promised]
    return min(sums), max(sums)


def remaining_us(hub: Hub, grant_id: str, stopped: bool) -> int:
    """What the grant's attempts may still use; of a stopped one, by its walltime or by the end it was told."""
    found = 0
    for attempt in hub.of(Attempt):
        if attempt.grant_id != grant_id or attempt.state is JobState.ENDED:
            continue
        job = hub.world[Kind.JOB, attempt.job_id]
        assert isinstance(job, Job)
        assert attempt.started_at_ms is not None
        assert attempt.ends_at_ms is not None
        span_ms = attempt.ends_at_ms - attempt.started_at_ms if stopped else job.walltime_ms
        if span_ms > 0:
            ran_ms = hub.now_ms - attempt.started_at_ms
            found += attempt.cost_gpu_us // span_ms * (span_ms - ran_ms)
        else:
            found += attempt.cost_gpu_us
    return found


def lag_ms(hub: Hub, plan: Plan, grant_id: str, starts: Iterable[Start] = ()) -> tuple[float, float]:
    """The least and the most that the grant is behind by what it used and holds, after these starts."""
    grant = hub.world[Kind.GRANT, grant_id]
    assert isinstance(grant, Grant)
    granted = max(1, grant.paths[0].accounts[-1].granted_gpu_us)
    term_ms = grant.ends_at_ms - grant.starts_at_ms
    picked = sum(start.cost_gpu_us for start in starts if start.grant_id == grant_id)
    share, bound_ms = hub.policy.hold_share, term_ms * hub.policy.lag_bound_share
    held = [(remaining_us(hub, grant_id, stopped) + picked) * share for stopped in (False, True)]
    lags = [max(plan.paces[grant_id].lag_ms - each / granted * term_ms, -bound_ms) for each in held]
    return min(lags) - 3, max(lags) + 3


def running(hub: Hub, plan: Plan, organization_id: str) -> list[str]:
    return [g.id for g in hub.of(Grant) if g.organization_id == organization_id and g.id in plan.paces]


def may_be_ahead(hub: Hub, plan: Plan, job: Job) -> bool:
    """Whether one of the grants that it could draw on is ahead of its pace."""
    grants = running(hub, plan, job.organization_id)
    return any(lag_ms(hub, plan, grant, plan.starts)[0] < 0 for grant in grants)


# --- the lane -------------------------------------------------------------------------------------


def blocked_in_lane(hub: Hub, plan: Plan) -> list[str]:
    """Jobs of the lane that wait beside room which is only reserved."""
    lane, free, found = hub.policy.lane, free_after(hub.world, plan), list[str]()
    if lane is None or gathering(hub, plan):
        return found
    for id, reason in plan.reasons.items():
        job = hub.world[Kind.JOB, id]
        assert isinstance(job, Job)
        grants = running(hub, plan, job.organization_id)
        if reason.code in ROOM and any(fits(hub, each, free) for each in payable(hub, plan, job)):
            may = [may_pass(hub, plan, job, grant, plan.starts, lane, generous=False) for grant in grants]
            if may and all(may):
                found.append(f"{id} is kept out of the lane: {reason}")
    return found


def may_pass(
    hub: Hub, plan: Plan, job: Job, grant_id: str, starts: Iterable[Start], lane: Lane, *, generous: bool
) -> bool:
    """Whether the job is small and short enough and little enough of its grant is spent; in doubt `generous`."""
    grant = hub.world[Kind.GRANT, grant_id]
    assert isinstance(grant, Grant)
    span_ms = walltime_for(job, True)
    if job.gpus > lane.gpus or job.gpus * (job.walltime_ms if generous else span_ms) > lane.area_gpu_ms:
        return False
    granted = grant.paths[0].accounts[-1].granted_gpu_us
    spent = spent_us(hub, grant, starts)[0 if generous else 1] / max(1, granted)
    if generous and hub.policy.floor_share:
        return any(job.walltime_ms <= walltime_ms for walltime_ms, _ in lane.tapers)
    worst = 0.0 if generous else max(0.0, *(behind(hub, plan, each) for each in plan.paces))
    room = 1.0 - lane.delivery_weight * worst - spent + (1e-9 if generous else -1e-9)
    return any(span_ms <= walltime_ms and room + z > 0 for walltime_ms, z in lane.tapers)


def behind(hub: Hub, plan: Plan, grant_id: str) -> float:
    grant = hub.world[Kind.GRANT, grant_id]
    assert isinstance(grant, Grant)
    granted = max(1, grant.paths[0].accounts[-1].granted_gpu_us)
    elapsed = (hub.now_ms - grant.starts_at_ms) / (grant.ends_at_ms - grant.starts_at_ms)
    return elapsed - spent_us(hub, grant, ())[0] / granted


# --- preemption -----------------------------------------------------------------------------------


def wrong_stops(hub: Hub, plan: Plan) -> list[str]:
    """Attempts that may not be stopped, and stops that do not help."""
    rule, found = hub.policy.preemption, list[str]()
    if rule is None:
        return [f"nobody may be stopped: {plan.stops}"] if plan.stops else []
    for stop in plan.stops:
        found += [f"{fault}: {stop}" for fault in faults_of_stop(hub, plan, stop, rule)]
    if plan.stops and len(gathering(hub, plan)) > rule.gangs_at_once:
        found.append(f"too many gangs at once: {gathering(hub, plan)}")
    if len({stop.job_id for stop in plan.stops}) < len(plan.stops):
        found.append("stopped twice")
    for gang_id in {stop.for_job for stop in plan.stops}:
        found += _useless_stops(hub, plan, gang_id)
    return found


def _useless_stops(hub: Hub, plan: Plan, gang_id: str) -> list[str]:
    """A gang that had room, or has none once they are gone."""
    found = list[str]()
    gang, free = hub.world[Kind.JOB, gang_id], dict(free_after(hub.world, plan))
    assert isinstance(gang, Job)
    grants = running(hub, plan, gang.organization_id)
    behind_all = not gang.fallbacks or all(lag_ms(hub, plan, g, plan.starts)[0] > 0 for g in grants)
    with_room = [each for each in payable(hub, plan, gang) if fits(hub, each, free)]
    if with_room and behind_all and gathering(hub, plan) == {gang_id}:
        found.append(f"{gang_id} had room")
    classes = {pod.gpu_class for stop in plan.stops if stop.for_job == gang_id for pod in _pods(hub, stop)}
    gang = of_class(gang, next(iter(classes)))
    if gang is None or len(classes) > 1:
        return [*found, f"{gang_id} does not accept {classes}"]
    for stop in (each for each in plan.stops if each.for_job == gang_id):
        attempt = hub.world[Kind.ATTEMPT, f"{stop.job_id}-{stop.attempt}"]
        assert isinstance(attempt, Attempt)
        for pod in attempt.pods:
            free[attempt.cluster, pod.node, pod.gpu_class] += pod.count
    if not fits(hub, gang, free):
        found.append(f"{gang_id} does not fit once they are gone")
    return found


def _pods(hub: Hub, stop: Preempt) -> tuple[PodPlacement, ...]:
    attempt = hub.world[Kind.ATTEMPT, f"{stop.job_id}-{stop.attempt}"]
    assert isinstance(attempt, Attempt)
    return attempt.pods


def faults_of_stop(hub: Hub, plan: Plan, stop: Preempt, rule: Preemption) -> list[str]:
    """What is wrong with one of them, looked at alone."""
    attempt, now_ms = hub.world[Kind.ATTEMPT, f"{stop.job_id}-{stop.attempt}"], hub.now_ms
    job, gang = hub.world[Kind.JOB, stop.job_id], hub.world[Kind.JOB, stop.for_job]
    assert isinstance(attempt, Attempt)
    assert isinstance(job, Job)
    assert isinstance(gang, Job)
    recent = [at for at in job.preempted_at_ms if now_ms - at < DAY_MS]
    lags = [lag_ms(hub, plan, grant)[1] for grant in running(hub, plan, gang.organization_id)]
    mine_ms, its_ms = max(lags, default=-HOUR_MS), lag_ms(hub, plan, attempt.grant_id, plan.starts)[0]
    right = {
        "not running": attempt.state is JobState.RUNNING and attempt.stop is None and attempt.capacity_held,
        "not restartable": job.restartable,
        "too large": job.gpus <= rule.victim_gpus,
        "protected": now_ms - (attempt.started_at_ms or now_ms) >= rule.protected_ms,
        "cooldown": all(now_ms - at >= rule.cooldown_ms for at in recent),
        "too often": len(recent) < rule.times_per_day,
        "for no gang": gang.id in plan.order and gang.gpus >= rule.gang_gpus,
        "its own": job.organization_id != gang.organization_id,
        "not far enough behind": mine_ms > 0 and its_ms <= mine_ms - rule.lead_ms,
        "not after the notice": stop.stop_at_ms == now_ms + rule.notice_ms,
        "ends anyway": attempt.ends_at_ms is None or attempt.ends_at_ms > stop.stop_at_ms,
    }
    return [fault for fault, good in right.items() if not good]
