"""What the core decides on a saved state: the same objects, the same moment, the same function as in the live hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quota.clock import Clock
from quota.schemas import scheduling as wire
from quota.schemas.snapshots import SchedulerState
from scheduler.core import model
from scheduler.core.cycle import decide
from scheduler.core.state import State
from scheduler.snapshots.file import BadSnapshot
from scheduler.translate import Moment, booked_of, changes_of, reservations_of, waiting_of


def clock_of(state: SchedulerState) -> Clock:
    """A clock that runs as the hub's and stands at the moment of the state when the wall's is at 0."""
    return Clock(state.taken_at, 0, state.clock_speed)


def objects_of(state: SchedulerState) -> list[model.Change]:
    """Everything as a fresh `State` of the core is given it. Raises BadSnapshot for one without a policy."""
    return translated(state, state.items)


def translated(state: SchedulerState, items: Iterable[wire.FeedItem]) -> list[model.Change]:
    """The same of other items at the same moment: what if. Raises BadSnapshot where there is no policy."""
    found = list(items)
    policy = next((item.policy for item in found if item.policy is not None), None)
    if policy is None:
        raise BadSnapshot("the state has no policy: nothing can be decided on it")
    clock = clock_of(state)
    moment = Moment(
        held_back=_held_back(state),
        last_seen={
            item.cluster.id: item.cluster.observed_through
            for item in found
            if item.cluster is not None and item.cluster.observed_through is not None
        },
        start_limit_ms=policy.start_limit_wall_s * 1000 * clock.speed,
    )
    kept = (reservations_of(state.reservations), booked_of(state.booked))
    return [*kept, *changes_of(found, clock, moment)]


def _held_back(state: SchedulerState) -> Mapping[str, int]:
    """Until when the scheduler would not try a job again whose start was refused: it said so in its reasons."""
    if state.shown is None:
        return {}
    return {
        job_id: until_ms
        for job_id, why in state.shown.reasons.items()
        if why.code is wire.WaitReason.START_REFUSED
        and isinstance(until_ms := why.numbers.get("until_ms"), int)
    }


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan, and the objects it was made on."""

    plan: model.Plan
    objects: tuple[model.Change, ...]
    now_ms: int

    def waiting(self, state: SchedulerState) -> dict[str, wire.Waiting]:
        """Why each job waits, as the hub shows it: what was answered to a start says more than the pause after it."""
        told = {job_id: waiting_of(reason) for job_id, reason in self.plan.reasons.items()}
        for job_id in _held_back(state):
            if job_id in told and told[job_id].code is wire.WaitReason.COOLDOWN and state.shown is not None:
                told[job_id] = state.shown.reasons[job_id]
        return told


def decide_on(state: SchedulerState) -> Decision:
    """What would start now, and why everything else waits. Raises BadSnapshot."""
    objects = objects_of(state)
    plan, _ = decide(State(), objects, state.taken_at)
    return Decision(plan, tuple(objects), state.taken_at)
