"""The last stage of a cycle: opportunistic jobs leave what others are entitled to, and get what nobody else can use.

Everything before it went as if their GPUs were free. So a start of the plan may have to wait until some of them have
left, and they are told to leave before anybody else is. What stays idle then is theirs, in turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.leaving import Ground, making_room, real_starts, stops_of
from scheduler.core.model import Preempt, Reason, Start
from scheduler.core.picks import Picks
from scheduler.core.turns import Turns


@dataclass(frozen=True, slots=True)
class Served:
    """What becomes of a cycle's starts, and of the opportunistic jobs."""

    starts: tuple[Start, ...]
    """Those whose room is really free, then the opportunistic ones."""
    stops: tuple[Preempt, ...] = ()
    withheld: Mapping[str, Reason] = field(default_factory=dict)
    """Jobs whose room is being made, in the order in which they would start."""
    order: tuple[str, ...] = ()
    """The opportunistic jobs that wait, who is next first."""
    reasons: Mapping[str, Reason] = field(default_factory=dict)
    changed: Mapping[str, Reason] = field(default_factory=dict)


def serve(cycle: Picks, *, brief: bool = False) -> Served:
    """Settle which starts are real, who leaves for the others, and which opportunistic jobs start. Takes nothing."""
    known, spare = cycle.known, cycle.known.spare
    if not spare:
        return Served(tuple(cycle.starts))
    ground = Ground(cycle, spare)
    starts, withheld = real_starts(cycle, ground)
    stops = stops_of(cycle, spare, ground, withheld)
    turns = Turns(cycle, spare, ground)
    begun = turns.serve()
    ground.give_back()
    waiting = {} if brief else turns.waiting
    changed = {id: reason for id, reason in waiting.items() if spare.told.get(id) != reason}
    held = {} if brief else {start.job_id: making_room(start) for start in withheld}
    changed |= {id: reason for id, reason in held.items() if known.reasons.get(id) != reason}
    spare.told = waiting
    return Served((*starts, *begun), tuple(stops), held, tuple(waiting), waiting, changed)
