"""The first stages of a cycle: programmes below their reserved part of the pool, then small short jobs."""

from scheduler.core.order import Race
from scheduler.core.picks import Picks
from scheduler.core.policy import Lane


def serve_owed(picks: Picks) -> None:
    """Jobs of programmes that keep less than their reserved part of the pool; reservations do not bind them."""
    live = {shape for shape in picks.fit_now() if not shape.kept_for or shape.kept_for in picks.horizon.seats}
    if live:
        picks.tree.start()
    while live and (turn := picks.tree.next(Race(live, owed_only=True))):
        closed = picks.start(*turn, picks.take(turn[2]))
        live.difference_update(closed)
        picks.look_again(closed)


def serve_lane(picks: Picks, lane: Lane) -> None:
    """Small short jobs, the shortest first, each length in order; reservations do not bind them."""
    live = {
        shape
        for shape in picks.fit_now()
        if (not shape.kept_for or shape.kept_for in picks.horizon.seats)
        and shape.gpus <= lane.gpus
        and shape.gpus * shape.span_ms <= lane.area_gpu_ms
    }
    worst = _worst_behind_share(picks) if live and lane.delivery_weight else 0.0
    shorter_ms = 0
    for longest_ms, _ in lane.tapers:
        here = {shape for shape in live if shorter_ms < shape.span_ms <= longest_ms}
        shorter_ms = longest_ms
        if here:
            picks.tree.start()
        while here and (turn := picks.tree.next(Race(here, lane=lane, worst_behind_share=worst))):
            closed = picks.start(*turn, picks.take(turn[2]))
            here.difference_update(closed)
            live.difference_update(closed)
            picks.look_again(closed)


def _worst_behind_share(picks: Picks) -> float:
    """Of the organizations with waiting jobs, how far the one furthest behind is, as a share of its term."""
    now_ms = picks.known.now_ms
    shares = (leaf.book.behind_share(now_ms) for branch in picks.tree.branches() for leaf in branch.leaves())
    return max(shares, default=0.0)
