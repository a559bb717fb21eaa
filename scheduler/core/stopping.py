"""The second stage of a cycle: gangs that are behind start past reservations, or others are stopped for them."""

from scheduler.core.fit import Shape
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import Job, Preempt
from scheduler.core.picks import Picks
from scheduler.core.placement import Room
from scheduler.core.policy import Preemption
from scheduler.core.preempt import choose
from scheduler.core.profile import NEVER_MS
from scheduler.core.victims import Pool


def preempt(picks: Picks, rule: Preemption) -> None:
    """Stop small jobs of grants that are further ahead for gangs whose grant is behind."""
    shapes = {s for s in picks.known.by_shape if s.gpus >= rule.gang_gpus}
    if not shapes:
        return
    pool = Pool(picks.known, picks.tree.books, rule)
    at_once = rule.gangs_at_once - picks.known.stopped_for()
    beaten: dict[
        tuple[str, int, int], int
    ] = {}  # shapes that no eviction suffices, with the lag of who tried
    for leaf in picks.tree.order():
        if leaf.book.rank_lag_ms <= 0 or leaf.heads.keys().isdisjoint(shapes):
            continue
        for job in _gangs(picks, leaf, shapes, rule.gangs):
            # a pick of this cycle may have changed its queue
            group = picks.known.queues[job.organization_id].find(job)
            if group is None or group.book is None or picks.known.others_stop_for(job.id):
                continue
            key, lag_ms = group.shape[:3], group.book.rank_lag_ms
            if picks.fits(group.shape):
                _start_past(picks, group, job)
            elif at_once > 0 and lag_ms > beaten.get(key, -NEVER_MS):
                if _stop_for(picks, group, job, pool, rule):
                    at_once -= 1
                else:
                    # who is less behind may stop no more than this one
                    beaten[key] = lag_ms


def _start_past(picks: Picks, group: Group, job: Job) -> None:
    """Nobody has to be stopped for it: it may pass the reservations of those who are less behind."""
    if group.book is None or group.entries[group.taken][2] != job.id:
        return
    branch = picks.tree.branch(group.book.grant.program_id, job.organization_id)
    leaf = branch.queue.leaves[group.book.grant.id]
    picks.start(branch, leaf, group, picks.take(group.shape))


def _gangs(picks: Picks, leaf: Leaf, shapes: set[Shape], count: int) -> list[Job]:
    """Its first large jobs, those counted that others stop for already."""
    groups = [group for shape, heap in leaf.heads.items() if shape in shapes for _, group in heap]
    firsts = sorted(entry for group in groups for entry in group.left[:count])
    return [picks.known.jobs[job_id] for _, _, job_id in firsts[:count]]


def _stop_for(picks: Picks, group: Group, job: Job, pool: Pool, rule: Preemption) -> bool:
    """Stop the cheapest jobs, if that is enough, and keep what is free of the room meanwhile."""
    assert group.book is not None
    fleet, clusters = picks.known.fleet, picks.reach.open_to(job.gpu_class)
    shelves = fleet.shelves(job.gpu_class, clusters)
    victims = pool.below(job, group.book.rank_lag_ms - rule.lead_ms)
    if picks.booked:
        booked, until_ms = picks.booked, picks.known.now_ms + rule.notice_ms + group.shape.span_ms
        victims = [
            victim
            for victim in victims
            if not booked.is_booked((job.gpu_class, victim.attempt.cluster), victim.node, until_ms)
        ]
    free = sum(shelf.free for shelf in shelves.values())
    if free + sum(victim.gpus for victim in victims) < job.gpus:
        return False
    eviction = choose(group.shape, shelves, victims, picks.bounds_of(job))
    if eviction is None:
        return False
    pool.drop(eviction.victims)
    stop_at_ms = picks.known.now_ms + rule.notice_ms
    picks.stops += [
        Preempt(victim.attempt.job_id, victim.attempt.attempt, job.id, stop_at_ms)
        for victim in eviction.victims
    ]
    shelf = shelves[eviction.cluster]
    now_free = {node: min(gpus, shelf.nodes[node][0]) for node, gpus in eviction.gpus_by_node.items()}
    kept = {node: gpus for node, gpus in now_free.items() if gpus}
    fleet.take(job.gpu_class, eviction.cluster, kept)
    picks.horizon.rise(job.id)
    picks.horizon.pick(job.gpu_class, eviction.cluster, kept, job.walltime_ms)
    picks.keeps[job.id] = Room(job.gpu_class, eviction.cluster, kept)
    picks.known.reserved.pop(job.id, None)
    picks.known.expect(job.id)
    picks.judge_anew(job.organization_id)
    picks.drop_unfit(job.gpu_class)
    return True
