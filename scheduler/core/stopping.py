"""The second stage of a cycle: gangs that are behind start past reservations, or others are stopped for them."""

from collections.abc import Iterable

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
    at_once = rule.gangs_at_once - picks.known.stopped_for()
    if _presses(picks, shapes) and (at_once > 0 or any(map(picks.fits, shapes))):
        _serve_gangs(picks, rule, shapes, at_once)


def _presses(picks: Picks, shapes: Iterable[Shape]) -> bool:
    """Whether a grant that is behind would pay for one of these."""
    by_shape = picks.known.by_shape
    return any([group.book and group.book.rank_lag_ms > 0 for shape in shapes for group in by_shape[shape]])


def _serve_gangs(picks: Picks, rule: Preemption, shapes: set[Shape], at_once: int) -> None:
    """The first gangs of each grant that is behind, others being stopped for at most so many of them."""
    pool = Pool(picks.known, picks.books, rule)
    beaten: dict[Shape, int] = {}  # shapes that no eviction suffices, with the lag of who tried
    for leaf in picks.tree.order():
        if leaf.book.rank_lag_ms <= 0 or leaf.heads.keys().isdisjoint(shapes):
            continue
        for job in _gangs(picks, leaf, shapes, rule.gangs):
            # a pick of this cycle may have changed its queue
            if picks.known.others_stop_for(job.id):
                continue
            groups = [g for g in picks.known.queues[job.organization_id].find(job) if _may_press(g)]
            fitting = next((group for group in groups if picks.fits(group.shape)), None)
            if fitting:
                _start_past(picks, fitting, job)
                continue
            for group in groups:
                assert group.book is not None
                # beside bookings it matters how long it runs
                span_ms = group.shape.span_ms if picks.booked else 0
                key = group.shape._replace(kept_for="", span_ms=span_ms, classes=())
                lag_ms = group.book.rank_lag_ms
                if at_once > 0 and lag_ms > beaten.get(key, -NEVER_MS):
                    if _stop_for(picks, group, job, pool, rule):
                        at_once -= 1
                        break
                    # who is less behind may stop no more than this one
                    beaten[key] = lag_ms


def _may_press(group: Group) -> bool:
    """A class that another grant would pay, which is ahead, is none to start past others with."""
    return not group.family or (group.book is not None and group.book.rank_lag_ms > 0)


def _start_past(picks: Picks, group: Group, job: Job) -> None:
    """Nobody has to be stopped for it: it may pass the reservations of those who are less behind."""
    if group.entries[group.taken][2] == job.id:
        picks.start_past(job, group, picks.take(group))


def _gangs(picks: Picks, leaf: Leaf, shapes: set[Shape], count: int) -> list[Job]:
    """Its first large jobs, those counted that others stop for already."""
    groups = [group for shape, heap in leaf.heads.items() if shape in shapes for _, group in heap]
    # a set: who accepts several classes stands here once for each
    firsts = sorted({entry for group in groups for entry in group.left[:count]})
    return [picks.known.jobs[job_id] for _, _, job_id in firsts[:count]]


def _stop_for(picks: Picks, group: Group, job: Job, pool: Pool, rule: Preemption) -> bool:
    """Stop the cheapest jobs, if that is enough, and keep what is free of the room meanwhile."""
    assert group.book is not None
    fleet, gpu_class = picks.known.fleet, group.shape.gpu_class
    shelves = fleet.shelves(gpu_class, picks.reach.open_to(gpu_class))
    victims = pool.below(job, gpu_class, group.book.rank_lag_ms - rule.lead_ms)
    if picks.booked:
        booked, until_ms = picks.booked, picks.known.now_ms + rule.notice_ms + group.shape.span_ms
        victims = [
            victim
            for victim in victims
            if not booked.is_booked((gpu_class, victim.attempt.cluster), victim.node, until_ms)
        ]
    free = sum(shelf.free for shelf in shelves.values())
    if free + sum(victim.gpus for victim in victims) < job.gpus:
        return False
    domains = fleet.domains(group.shape, picks.reach.open_to(gpu_class))
    eviction = choose(group.shape, domains, victims, picks.bounds_of(job, gpu_class))
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
    fleet.take(gpu_class, eviction.cluster, kept)
    picks.horizon.rise(job.id)
    picks.horizon.pick(gpu_class, eviction.cluster, kept, job.walltime_ms)
    picks.keeps[job.id] = Room(gpu_class, eviction.cluster, kept)
    picks.known.reserved.pop(job.id, None)
    picks.known.expect(job.id)
    picks.judge_anew(job.organization_id)
    picks.drop_unfit(gpu_class)
    return True
