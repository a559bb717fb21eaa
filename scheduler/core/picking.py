"""The picks of one cycle, stage by stage: booked room, lane, preemption, promised room, and all that fits around it."""

from scheduler.core.lane import serve_lane
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
    for shape in known.by_shape:
        picks.fitting.setdefault(shape.gpu_class, {}).setdefault(shape[:4], []).append(shape)
    for gpu_class, by_key in picks.fitting.items():
        for shapes in by_key.values():
            shapes.sort(key=lambda shape: shape.span_ms)
        picks.drop_unfit(gpu_class)
    if policy.lane:
        serve_lane(picks, policy.lane)
    if policy.preemption:
        preempt(picks, policy.preemption)
    if any(picks.fitting.values()):
        # while nothing fits at all nothing can be taken from anybody: what was reserved stays as it is
        serve_all(picks, seat(picks))
    for organization_id in picks.touched:
        known.judge(organization_id)
