"""Why every job that still waits does so, as far as it changed since the last cycle."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from scheduler.core.comeback import Comeback, Moment
from scheduler.core.fit import FitKey, Shape
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import RACK, Reason, WaitReason
from scheduler.core.picks import Picks
from scheduler.core.reasons import explain, with_others
from scheduler.core.waiting import Queue


@dataclass(frozen=True, slots=True)
class Told:
    """The queue in order, and the reasons that changed."""

    order: tuple[str, ...]
    changed: Mapping[str, Reason]


class Teller:
    """Brings the reasons of a cycle's knowledge up to date."""

    def __init__(self, cycle: Picks) -> None:
        self._cycle, self._known = cycle, cycle.known
        self._explained: dict[FitKey, Reason] = {}
        self._roomy: dict[tuple[FitKey, int], Reason] = {}  # with the moment of room, by span
        self._beside: dict[FitKey, bool] = {}  # whether the span matters for it
        self._moments: dict[tuple[FitKey, Moment | None], Reason] = {}
        self._comeback = Comeback(cycle.horizon, cycle.known.fleet)
        self._fitting: dict[FitKey, bool] = {}

    def tell(self, judged: Iterable[str]) -> Told:
        """After the picks. `judged`: the organizations whose verdicts may have changed before them."""
        known, cycle, changed = self._known, self._cycle, dict[str, Reason]()
        for organization_id in cycle.touched:
            known.judge(organization_id)  # what its picks left it
        leaves = cycle.tree.order()
        for job_id in known.gone.union(start.job_id for start in cycle.starts):
            known.reasons.pop(job_id, None)
        before, known.shape_reasons = known.shape_reasons, self._shape_reasons()
        for shape, reason in known.shape_reasons.items():
            if reason is not before.get(shape):
                for group in known.by_shape[shape]:
                    if group.speaks:
                        _say(known.reasons, changed, group, reason)
        for organization_id in sorted(cycle.touched.union(judged)):
            if organization_id in known.queues:
                self._tell_queue(known.queues[organization_id], changed)
        self._tell_behind(changed, leaves)
        ids = chain.from_iterable(leaf.ids for leaf in leaves)
        order = (*ids, *(job_id for _, job_id in known.tail()))
        if len(order) > len(known.reasons):
            # who would draw on one grant for one class and on another for the next stands where its turn comes first
            order = tuple(dict.fromkeys(order))
        return Told(order, changed)

    def _tell_queue(self, queue: Queue, changed: dict[str, Reason]) -> None:
        known = self._known
        for job_id, reason in queue.cooling():
            if known.reasons.get(job_id) != reason:
                known.reasons[job_id] = changed[job_id] = reason
        untold, queue.untold = queue.untold, {}
        for group in untold:
            if not group.speaks:
                group.told = None
            elif group.taken < len(group.entries):
                _say(known.reasons, changed, group, group.reason or known.shape_reasons[group.shape])

    def _tell_behind(self, changed: dict[str, Reason], leaves: Sequence[Leaf]) -> None:
        """Only the first job of each shape that lost its room to a pick hears so: the others were not next.

        That also keeps a hub where something starts every second from telling everybody something new as often.
        """
        known, behind = self._known, self._cycle.behind
        before, known.behind = known.behind, {}
        for group, _ in before.values():
            if group.book and group.speaks and group.taken < len(group.entries):
                _say(known.reasons, changed, group, known.shape_reasons[group.shape])
        missing = dict[FitKey, set[Shape]]()
        for shape in behind:
            missing.setdefault(shape[:5], set()).add(shape)
        for leaf in leaves:
            if not missing:
                break
            for key in missing.keys() & {shape[:5] for shape in leaf.heads}:
                # of jobs that need the same room only the first was next, whatever their walltimes
                (_, _, job_id), group = min(heap[0] for s, heap in leaf.heads.items() if s[:5] == key)
                if group.shape in missing.pop(key) and group.speaks:
                    group.told = None
                    known.behind[job_id] = group, behind[group.shape]
                    known.reasons[job_id] = changed[job_id] = behind[group.shape]
        for job_id, (_, reason) in before.items():
            if changed.get(job_id) == reason:
                del changed[job_id]

    def _shape_reasons(self) -> dict[Shape, Reason]:
        """Why each shape that jobs wait for does not start. An equal reason stays the same object."""
        known, cycle, found = self._known, self._cycle, dict[Shape, Reason]()
        for shape, groups in known.by_shape.items():
            if _waits(groups):
                reason = self._reserved(shape) or self._explain(shape)
                if shape.classes and reason.code is not WaitReason.RESERVED:
                    reason = Reason(reason.code, with_others(shape, reason.numbers))
                found[shape] = reason
        if cycle.keeps:
            self._look_at_keeps(found)
        before = known.shape_reasons
        return {shape: before[shape] if before.get(shape) == r else r for shape, r in found.items()}

    def _look_at_keeps(self, found: dict[Shape, Reason]) -> None:
        """Say so where only room that is kept for a job lets a shape wait; the kept room is given back."""
        known, cycle, given = self._known, self._cycle, list[str]()
        alike = dict[str, dict[FitKey, list[Shape]]]()
        for shape, reason in found.items():
            if reason.code not in (WaitReason.ROOM_RESERVED, WaitReason.RESERVED, WaitReason.BOOKED):
                alike.setdefault(shape.gpu_class, {}).setdefault(shape[:5], []).append(shape)
        for job_id, room in cycle.keeps.items():
            known.fleet.take(room.gpu_class, room.cluster, room.gpus_by_node, sign=-1)
            given.append(job_id)
            by_key, clusters = alike.get(room.gpu_class, {}), cycle.reach.open_to(room.gpu_class)
            for key in [key for key, shapes in by_key.items() if known.fleet.fits(shapes[0], clusters)]:
                for shape in by_key.pop(key):
                    others = [id for id in reversed(given) if id != shape.kept_for]
                    assert others, f"{shape} fits and was not started"
                    numbers = with_others(shape, {"job": others[0]})
                    found[shape] = Reason(WaitReason.ROOM_RESERVED, numbers)

    def _reserved(self, shape: Shape) -> Reason | None:
        """It has a reservation, or would fit and keep a reservation or a booking from its room."""
        cycle = self._cycle
        seat = cycle.horizon.seats.get(shape.kept_for)
        if seat:
            gpu_class = seat[0].gpu_class
            shelves = self._known.fleet.shelves(gpu_class, cycle.reach.open_to(gpu_class))
            numbers: dict[str, int | str] = {
                "starts_at_ms": seat[0].starts_at_ms,
                "gpu_class": gpu_class,
                "needed": shape.gpus,
                "free": sum(shelf.free for shelf in shelves.values()),
            }
            if shape.within:
                numbers["within"] = shape.within
            return Reason(WaitReason.RESERVED, numbers)
        if cycle.horizon.seats and self._fits(shape):
            return Reason(WaitReason.ROOM_RESERVED, {"job": cycle.horizon.in_the_way(shape)})
        if cycle.booked and cycle.fits_but_for_bookings(shape):
            return cycle.booked.reason(shape, cycle.reach.open_to(shape.gpu_class))
        return None

    def _fits(self, shape: Shape) -> bool:
        if self._cycle.horizon.is_booked:
            return self._cycle.fits(shape)
        fits = self._fitting.get(shape[:5])
        if fits is None:
            fits = self._fitting[shape[:5]] = self._cycle.fits(shape)
        return fits

    def _explain(self, shape: Shape) -> Reason:
        reason = self._explained.get(shape[:5])
        if reason is None:
            cycle = self._cycle
            fleet, kept = self._known.fleet, cycle.keeps.get(shape.kept_for)
            if kept:
                fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
            reason = self._explained[shape[:5]] = explain(shape, fleet, cycle.reach)
            if kept:
                fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node)
        if shape.within == RACK or reason.code not in (WaitReason.NO_FREE_GPU, WaitReason.NO_NODE_FITS):
            return reason
        if shape.kept_for in self._cycle.keeps:
            return reason
        return self._with_room(shape, reason)

    def _with_room(self, shape: Shape, reason: Reason) -> Reason:
        """The same with the moment at which room has come back at the latest, if that is in sight."""
        key, clusters = shape[:5], self._cycle.reach.open_to(shape.gpu_class)
        beside = self._beside.get(key)
        if beside is None:
            beside = self._beside[key] = self._comeback.depends_on_span(shape, clusters)
        spanned = key, shape.span_ms if beside else 0
        if spanned not in self._roomy:
            room = self._comeback.room_back(shape, clusters)
            # most spans are told the same: then by the same object
            told = self._moments.get((key, room))
            if told is None:
                told = self._moments[key, room] = reason if room is None else _back_at(reason, room)
            self._roomy[spanned] = told
        return self._roomy[spanned]


def _back_at(reason: Reason, room: Moment) -> Reason:
    at_ms, attempt_id = room
    numbers = {**reason.numbers, "room_at_ms": at_ms}
    if attempt_id:
        numbers["ending_job"], _, _ = attempt_id.rpartition("-")
    return Reason(reason.code, numbers)


def _say(reasons: dict[str, Reason], changed: dict[str, Reason], group: Group, reason: Reason) -> None:
    """Tell every waiting job of the group, unless it was told."""
    if group.told is reason:
        return
    group.told = reason
    before: Reason | None = reason
    is_news = False
    for _, _, job_id in group.left:
        told = reasons.get(job_id)
        if told is not before:  # most were told the same
            before, is_news = told, told is not reason and told != reason
        if is_news:
            reasons[job_id] = changed[job_id] = reason


def _waits(groups: Iterable[Group]) -> bool:
    """Whether a job of these was not picked."""
    for group in groups:  # noqa: SIM110 - a generator would take three times as long
        if group.taken < len(group.entries):
            return True
    return False
