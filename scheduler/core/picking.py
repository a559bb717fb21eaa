"""The picks of one cycle, stage by stage: booked room, parts of the pool, lane, preemption, promised room, the rest."""

from scheduler.core.lane import serve_lane, serve_owed
from scheduler.core.own_room import serve_booked
from scheduler.core.picks import Picks
from scheduler.core.reserving import seat, serve_all
from scheduler.core.stopping import preempt


def fill(picks: Picks) -> None:
    """Serve job after job, each pick counting before the next, until nothing that may start fits."""
    known, policy = picks.known, picks.known.policy
    for job_id, reservation in known.reserved.items():
        picks.horizon.sit(reservation, known.jobs[job_id].walltime_ms)
    if picks.booked:
        serve_booked(picks, picks.booked)
    _find_fitting(picks)
    if policy.entitlements and picks.tree.owes:
        serve_owed(picks)
    if policy.lane:
        serve_lane(picks, policy.lane)
    if policy.preemption:
        preempt(picks, policy.preemption)
    if any(picks.fitting.values()):
        # while nothing fits at all nothing can be taken from anybody: what was reserved stays as it is
        serve_all(picks, seat(picks))


def _find_fitting(picks: Picks) -> None:
    """The shapes that fit on what is free before the first pick outside booked room."""
    known = picks.known
    for gpu_class, alike in known.alike.items():
        shelves = known.fleet.open.get(gpu_class, {}).values()
        if picks.keeps or any(shelf.free for shelf in shelves):
            picks.fitting[gpu_class] = {key: list(shapes) for key, shapes in alike.items()}
            picks.drop_unfit(gpu_class)
