"""One cycle: changes in, plan out. For the reconciler's ticks, `gpuhub replay` and what-if questions."""

from collections.abc import Iterable, Sequence
from itertools import chain

from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import Shape
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import Change, Plan, Reason, Start, WaitReason
from scheduler.core.order import Branch, Tree
from scheduler.core.placement import Room, place, pods_of
from scheduler.core.reasons import explain
from scheduler.core.state import Knowledge, State
from scheduler.core.waiting import Queue


def decide(state: State, changes: Iterable[Change], now_ms: int) -> tuple[Plan, State]:
    """What starts now, and why everything else waits.

    `now_ms` never falls from call to call. The old state is used up. The plan's starts are not remembered:
    hand in what became of them (job, nodes and grant as they are afterwards) before deciding again.
    """
    known = state.take()
    judged = known.after(changes, now_ms)
    books, paces = known.pace()
    cycle = _Cycle(known, known.tree(books))
    cycle.fill()
    leaves = cycle.tree.order()
    changed = cycle.tell(judged, leaves)
    order = (*chain.from_iterable(leaf.ids for leaf in leaves), *(job_id for _, job_id in known.tail()))
    plan = Plan(tuple(cycle.starts), dict(known.reasons), order, paces, changed)
    assert len(order) == len(known.reasons), f"{len(order)} jobs in order, {len(known.reasons)} with a reason"
    cycle.forget()
    return plan, State(known)


class _Cycle:
    """The picks of one cycle on top of what is known."""

    def __init__(self, known: Knowledge, tree: Tree) -> None:
        self.known = known
        self.tree = tree
        self.starts: list[Start] = []
        self._reach = known.reach()
        self._keeps = known.keeps()
        self._behind: dict[Shape, Reason] = {}  # shapes that fitted until a pick of this cycle
        self._picked: list[tuple[Group, GrantBook, tuple[str, ...]]] = []  # with the path
        self._touched: set[str] = set()  # organizations whose balances this cycle changed

    def fill(self) -> None:
        """Serve job after job, each pick counting before the next, until nothing that may start fits."""
        live = {shape for shape in self.known.by_shape if self._fits(shape)}
        if not live:
            return
        self.tree.start()
        while turn := self.tree.next(live):
            branch, leaf, group = turn
            self._start(branch, leaf, group)
            self._close(live, branch.organization, group.shape.gpu_class)
        for organization_id in self._touched:
            self.known.judge(organization_id)

    def tell(self, judged: Iterable[str], leaves: Sequence[Leaf]) -> dict[str, Reason]:
        """Bring every waiting job's reason up to date; returns those that changed. `leaves` are in order."""
        known, changed = self.known, dict[str, Reason]()
        for job_id in known.gone.union(start.job_id for start in self.starts):
            known.reasons.pop(job_id, None)
        before, known.shape_reasons = known.shape_reasons, self._shape_reasons()
        for shape, reason in known.shape_reasons.items():
            if reason is not before.get(shape):
                for group in known.by_shape[shape]:
                    _say(known.reasons, changed, group, reason)
        queues = [known.queues[id] for id in sorted(self._touched.union(judged)) if id in known.queues]
        for queue in queues:
            for job_id, reason in queue.cooling():
                if known.reasons.get(job_id) != reason:
                    known.reasons[job_id] = changed[job_id] = reason
            for group in queue.groups.values():
                if group.taken < len(group.entries):
                    _say(known.reasons, changed, group, group.reason or known.shape_reasons[group.shape])
        self._tell_behind(changed, leaves)
        return changed

    def _tell_behind(self, changed: dict[str, Reason], leaves: Sequence[Leaf]) -> None:
        """Only the first job of each shape that lost its room to a pick hears so: the others were not next.

        That also keeps a hub where something starts every second from telling everybody something new as often.
        """
        known = self.known
        before, known.behind = known.behind, {}
        for group, _ in before.values():
            if group.book and group.taken < len(group.entries):
                _say(known.reasons, changed, group, known.shape_reasons[group.shape])
        missing = set(self._behind)
        for leaf in leaves:
            here = () if missing.isdisjoint(leaf.heads) else sorted(missing & leaf.heads.keys())
            for shape in here:
                (_, job_id), group = leaf.heads[shape][0]
                group.told = None
                known.behind[job_id] = group, self._behind[shape]
                known.reasons[job_id] = changed[job_id] = self._behind[shape]
                missing.discard(shape)
        for job_id, (_, reason) in before.items():
            if changed.get(job_id) == reason:
                del changed[job_id]

    def forget(self) -> None:
        """Undo the picks: only what comes back as changes has happened."""
        known = self.known
        known.fleet.rollback()
        for group, book, path in self._picked:
            group.taken = 0
            group.told = None
            book.charge(-group.cost_gpu_us)
            known.balances.charge(path, -group.cost_gpu_us)
            known.caps.charge(book.grant.id, -group.gpus)
        known.gone = set()
        known.dirty |= self._touched

    def _start(self, branch: Branch, leaf: Leaf, group: Group) -> None:
        """Give the group's first job its room and charge it."""
        known, shape, book, path = self.known, group.shape, leaf.book, group.path
        job = known.jobs[group.entries[group.taken][1]]
        room = self._take(shape)
        self.starts.append(
            Start(
                job_id=job.id,
                attempt=job.attempt + 1,
                grant_id=book.grant.id,
                account_path=path,
                cluster=room.cluster,
                pods=pods_of(room, shape.gpus_per_pod),
                cost_gpu_us=group.cost_gpu_us,
            )
        )
        leaf.take(group)
        self._picked.append((group, book, path))
        known.balances.charge(path, group.cost_gpu_us)
        known.caps.charge(book.grant.id, group.gpus)
        self.tree.pick(branch, book, group.cost_gpu_us)
        concerned = known.organizations_on(book.grant.id, path)
        if len(concerned) > 1 or self._may_change(branch.queue, book, path):
            for organization_id in concerned:
                known.judge(organization_id)
        self._touched.update(concerned)
        for organization_id in concerned:
            self.tree.refresh(organization_id)

    def _may_change(self, queue: Queue, book: GrantBook, path: tuple[str, ...]) -> bool:
        """Whether after a pick another of the organization's verdicts could differ."""
        gpus_left = self.known.caps.left(book.grant)
        short = gpus_left is not None and gpus_left < queue.widest_gpus
        return short or self.known.balances.on(path) < queue.dearest_gpu_us

    def _take(self, shape: Shape) -> Room:
        """The room of this shape's next job. Kept room that it leaves over stays kept for this cycle."""
        fleet, kept = self.known.fleet, self._keeps.get(shape.kept_for)
        if kept:
            fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        room = place(shape, fleet.shelves(shape.gpu_class, self._reach.open_to(shape.gpu_class)))
        assert room, f"{shape} fitted a moment ago"
        fleet.take(room.gpu_class, room.cluster, room.gpus_by_node)
        if kept:
            used = room.gpus_by_node if room.cluster == kept.cluster else {}
            over = {node: gpus - used.get(node, 0) for node, gpus in kept.gpus_by_node.items()}
            over = {node: gpus for node, gpus in over.items() if gpus > 0}
            fleet.take(kept.gpu_class, kept.cluster, over)
            self._keeps[shape.kept_for] = Room(kept.gpu_class, kept.cluster, over)
        return room

    def _close(self, live: set[Shape], organization_id: str, gpu_class: str) -> None:
        """Take the shapes out of the race that fitted before the last pick and do not any more."""
        for shape in [s for s in live if s.gpu_class == gpu_class and not self._fits(s)]:
            live.discard(shape)
            numbers: dict[str, int | str] = {
                "position": len(self.starts),
                "organization": organization_id,
                "job": self.starts[-1].job_id,
            }
            self._behind[shape] = Reason(WaitReason.BEHIND_IN_ORDER, numbers)

    def _fits(self, shape: Shape) -> bool:
        fleet, kept = self.known.fleet, self._keeps.get(shape.kept_for)
        if not kept:
            return fleet.fits(shape, self._reach.open_to(shape.gpu_class))
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        fits = fleet.fits(shape, self._reach.open_to(shape.gpu_class))
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node)
        return fits

    def _shape_reasons(self) -> dict[Shape, Reason]:
        """Why each shape that jobs wait for does not fit. An equal reason stays the same object."""
        known, found = self.known, dict[Shape, Reason]()
        for shape, groups in known.by_shape.items():
            if any(group.taken < len(group.entries) for group in groups):
                found[shape] = self._explain(shape)
        given: list[str] = []
        for job_id, room in self._keeps.items():
            known.fleet.take(room.gpu_class, room.cluster, room.gpus_by_node, sign=-1)
            given.append(job_id)
            for shape, reason in found.items():
                if reason.code is WaitReason.ROOM_RESERVED:
                    continue
                if known.fleet.fits(shape, self._reach.open_to(shape.gpu_class)):
                    others = [id for id in reversed(given) if id != shape.kept_for]
                    assert others, f"{shape} fits and was not started"
                    found[shape] = Reason(WaitReason.ROOM_RESERVED, {"job": others[0]})
        before = known.shape_reasons
        return {shape: before[shape] if before.get(shape) == r else r for shape, r in found.items()}

    def _explain(self, shape: Shape) -> Reason:
        fleet, kept = self.known.fleet, self._keeps.get(shape.kept_for)
        if not kept:
            return explain(shape, fleet, self._reach)
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        reason = explain(shape, fleet, self._reach)
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node)
        return reason


def _say(reasons: dict[str, Reason], changed: dict[str, Reason], group: Group, reason: Reason) -> None:
    """Tell every waiting job of the group, unless it was told."""
    if group.told is reason:
        return
    group.told = reason
    for _, job_id in group.left:
        told = reasons.get(job_id)
        if told is not reason and told != reason:
            reasons[job_id] = changed[job_id] = reason
