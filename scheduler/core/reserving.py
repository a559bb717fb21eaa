"""The last stages of a cycle: promised room, then everything in order around the reservations, with new ones."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from scheduler.core.backfill import Hole, moved
from scheduler.core.fit import Shape
from scheduler.core.groups import Group
from scheduler.core.model import Job, Reservation
from scheduler.core.order import Race
from scheduler.core.picks import Picks


def seat(picks: Picks) -> set[Shape]:
    """Start the jobs whose reserved room is there; bring the other reservations to the earliest moment.

    Those that are no promise lose their places, to be given new ones in order: their shapes.
    """
    known, horizon, now_ms = picks.known, picks.horizon, picks.known.now_ms
    promises: Counter[str] = Counter()
    loose, late, early = set[Shape](), list[Reservation](), list[Reservation]()
    for job_id in list(known.reserved):
        job = known.jobs[job_id]
        seat = known.reserved[job_id] if horizon.rise(job_id) else None
        groups = known.queues[job.organization_id].find(job)
        group = _group_for(seat, groups) if seat else None
        if group is None or group.book is None or seat is None:
            # started in this cycle, or a pick left it without the money
            if seat:
                _unreserve(picks, job)
        elif group.book.rank_lag_ms < 0 or not _is_promise(picks, job, promises):
            loose.update(each.shape for each in groups)
        else:
            promises[job.organization_id] += 1
            (late if seat.starts_at_ms <= now_ms else early).append(seat)
    # who is late goes first and pushes the others: nobody may be kept out by those who come after him
    for seat in sorted(late, key=lambda each: each.starts_at_ms):
        _seat_one(picks, seat)
    for seat in early:
        horizon.sit(seat, known.jobs[seat.job_id].walltime_ms)
    for seat in early:
        horizon.rise(seat.job_id)
        _seat_one(picks, seat)
    return loose


def _group_for(seat: Reservation, groups: Iterable[Group]) -> Group | None:
    """Of the groups that could pay the one for the class that is reserved."""
    return next((group for group in groups if group.shape.gpu_class == seat.gpu_class), None)


def _is_promise(picks: Picks, job: Job, promises: Counter[str]) -> bool:
    """Whether the policy lets a reservation keep its place, besides those that the organization has."""
    policy = picks.known.policy
    few = promises[job.organization_id] < policy.promises_per_organization
    return few and job.gpus >= policy.promise_gpus


def _seat_one(picks: Picks, seat: Reservation) -> None:
    """Start it if its room is there, else keep the room it has or an earlier one."""
    known, job = picks.known, picks.known.jobs[seat.job_id]
    groups = known.queues[job.organization_id].find(job)
    if _group_for(seat, groups) is None:
        _unreserve(picks, job)
        return
    hole = _own_hole(picks, seat, job) or picks.hole(groups, job)
    if hole is None:
        _unreserve(picks, job)
    elif hole.starts_at_ms <= known.now_ms:
        picks.use(job, groups, hole)
    else:
        if hole.starts_at_ms < seat.starts_at_ms or not picks.horizon.holds(seat, job.walltime_ms):
            seat = moved(seat, hole)
        known.reserved[seat.job_id] = seat
        picks.horizon.sit(seat, job.walltime_ms)


def _own_hole(picks: Picks, seat: Reservation, job: Job) -> Hole | None:
    """Its own room, once its time has come and it is there: another may be promised to somebody else."""
    now_ms = picks.known.now_ms
    if seat.starts_at_ms > now_ms or seat.cluster not in picks.reach.open_to(seat.gpu_class):
        return None
    if not picks.horizon.holds(replace(seat, starts_at_ms=now_ms), job.walltime_ms):
        return None
    return Hole(now_ms, seat.gpu_class, seat.cluster, seat.gpus_by_node)


def _unreserve(picks: Picks, job: Job) -> None:
    picks.known.drop_reservation(job.id)
    picks.judge_anew(job.organization_id)


def _reserve(picks: Picks, group: Group) -> str | None:
    """Keep the earliest hole for the group's first job; start it if that is now. The hole's class, if there is one."""
    known = picks.known
    job = known.jobs[group.entries[group.taken][2]]
    hole = picks.hole(group.able, job)
    if hole is None:
        return None
    if hole.starts_at_ms <= known.now_ms:
        picks.use(job, group.able, hole)
        return hole.gpu_class
    known.reserved.pop(job.id, None)
    number = sum(each.made_at_ms == known.now_ms for each in known.reserved.values())
    seat = Reservation(
        job.id, hole.cluster, hole.gpu_class, hole.starts_at_ms, hole.gpus_by_node, known.now_ms, number
    )
    picks.horizon.sit(seat, job.walltime_ms)
    if group.shape.kept_for:
        known.reserved[job.id] = seat
    else:
        known.reserve(seat)
        picks.judge_anew(job.organization_id)
    return hole.gpu_class


def serve_all(picks: Picks, loose: set[Shape]) -> None:
    """In order: what fits around the reservations starts; what does not and may have one gets one.

    `loose`: jobs that had one and are to find a new place for it.
    """
    policy, horizon = picks.known.policy, picks.horizon
    live = {shape for shape in picks.fit_now() if picks.may(shape)}
    reservable: set[Shape] = set()
    if len(horizon.seats) < policy.reservations:
        reservable = loose | {s for s in picks.known.by_shape if s not in live and _may_reserve(picks, s)}
    full = _full(picks)
    if live or reservable:
        picks.tree.start()
    while turn := picks.tree.next(Race(live, reservable, full)) if live or reservable else None:
        branch, leaf, group = turn
        shape, used = group.shape, group.shape.gpu_class
        before = set(live) if policy.reservations or picks.has_choices else live
        gave_up = horizon.seats.get(shape.kept_for)
        if shape in live:
            live.difference_update(picks.start(branch, leaf, group, picks.take(group)))
        elif (reserved := _reserve(picks, group)) is None:
            reservable.discard(shape)
            picks.look_again((shape,))
            continue
        else:
            used = reserved
            live.intersection_update(picks.fit_now())
        if shape in loose:
            reservable.difference_update(each.shape for each in group.family or (group,))
        kept_out = _kept_out(picks, live, used)
        live -= kept_out
        if gave_up and shape.kept_for not in horizon.seats:
            # the room that was kept for it is anybody's
            live = {each for each in picks.fit_now() if picks.may(each)}
            picks.tree.start()
        picks.look_again(before - live)
        if len(horizon.seats) < policy.reservations:
            # what lost its room to a pick may reserve as well
            reservable |= {s for s in before - live if _may_reserve(picks, s)}
        else:
            reservable.clear()
        full = _full(picks)
    started = {start.job_id for start in picks.starts}
    for job_id in sorted({shape.kept_for for shape in loose} - started - horizon.seats.keys()):
        _unreserve(picks, picks.known.jobs[job_id])


def _kept_out(picks: Picks, live: set[Shape], gpu_class: str) -> set[Shape]:
    """Of the shapes that fit: those that would now delay a reservation. The longer they run the sooner."""
    found = set[Shape]()
    if picks.horizon.seats:
        for shapes in picks.fitting.get(gpu_class, {}).values():
            for shape in reversed(shapes):
                if shape in live:
                    if picks.may(shape):
                        break
                    found.add(shape)
    return found


def _may_reserve(picks: Picks, shape: Shape) -> bool:
    return not shape.kept_for and shape.gpus >= picks.known.policy.reservation_gpus


def _full(picks: Picks) -> set[str]:
    """Organizations that have as many reservations as one may have."""
    counts: dict[str, int] = {}
    for job_id in picks.horizon.seats:
        organization = picks.known.jobs[job_id].organization_id
        counts[organization] = counts.get(organization, 0) + 1
    limit = picks.known.policy.reservations_per_organization
    return {organization for organization, count in counts.items() if count >= limit}
