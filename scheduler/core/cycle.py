"""One cycle: changes in, plan out. For the reconciler's ticks, `gpuhub replay` and what-if questions."""

from collections.abc import Iterable

from scheduler.core.changes import take_in
from scheduler.core.model import Change, Plan
from scheduler.core.opportunistic import serve
from scheduler.core.picking import fill
from scheduler.core.picks import Picks
from scheduler.core.state import State
from scheduler.core.telling import Teller


def decide(
    state: State, changes: Iterable[Change], now_ms: int, *, brief: bool = False
) -> tuple[Plan, State]:
    """What starts now, what is stopped or kept for whom, and why everything else waits.

    `now_ms` never falls from call to call. The old state is used up. The plan's starts and stops are not
    remembered: hand in what became of them (job, attempt, nodes and grant as they are afterwards) before deciding
    again. `brief`, the same for all calls of one state: leave out `order` and `reasons`.
    """
    known = state.take()
    judged = take_in(known, changes, now_ms)
    known.drop_reservations(judged)
    books, paces = known.pace()
    cycle = Picks(known, books)
    fill(cycle)
    spare = serve(cycle, brief=brief)
    told = Teller(cycle).tell(judged) if not brief else None
    known.reasons.update(spare.withheld)
    plan = Plan(
        starts=spare.starts,
        reasons={**known.reasons, **spare.reasons},
        order=() if told is None else (*spare.withheld, *told.order, *spare.order),
        paces=paces,
        stops=(*cycle.stops, *spare.stops),
        reservations=tuple(known.reserved.values()),
        booked=tuple(known.booked.values()),
        changed_reasons={} if told is None else {**told.changed, **spare.changed},
    )
    assert len(plan.order) == len(plan.reasons), (
        f"{len(plan.order)} in order, {len(plan.reasons)} with a reason"
    )
    cycle.forget()
    return plan, State(known)
