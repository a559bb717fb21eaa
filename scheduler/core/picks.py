"""What one cycle has given away so far, on top of what is known, and what that leaves. The stages work on it."""

from collections.abc import Iterable, Mapping

from scheduler.core.backfill import Hole, Horizon
from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import Shape
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import Job, Preempt, Reason, Start, WaitReason
from scheduler.core.order import Branch, Tree
from scheduler.core.placement import Room, place, pods_of
from scheduler.core.state import Knowledge

FitKey = tuple[str, int, int, str]
"""Shapes that differ in their span only fit or fail together, reservations aside."""


class Picks:
    """The picks of one cycle on top of what is known."""

    def __init__(self, known: Knowledge, tree: Tree) -> None:
        self.known = known
        self.tree = tree
        self.starts: list[Start] = []
        self.stops: list[Preempt] = []
        self.reach = known.reach()
        self.keeps = known.keeps()
        self.behind: dict[Shape, Reason] = {}  # shapes that fitted until a pick of this cycle
        self.touched: set[str] = set()  # organizations whose queues or balances this cycle changed
        self.horizon = Horizon(known.profiles, known.fleet, known.now_ms)
        self._picked: list[tuple[Group, GrantBook, tuple[str, ...], str]] = []  # with path and organization
        self.fitting: dict[
            str, dict[FitKey, list[Shape]]
        ] = {}  # by class: shapes that fit, reservations aside
        for job_id, room in self.keeps.items():
            self.horizon.pick(room.gpu_class, room.cluster, room.gpus_by_node, known.jobs[job_id].walltime_ms)

    def fits(self, shape: Shape) -> bool:
        """Whether it fits on what is free now, its kept room counted, reservations aside."""
        fleet, kept = self.known.fleet, self.keeps.get(shape.kept_for)
        if not kept:
            return fleet.fits(shape, self.reach.open_to(shape.gpu_class))
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        fits = fleet.fits(shape, self.reach.open_to(shape.gpu_class))
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node)
        return fits

    def forget(self) -> None:
        """Undo the picks: only what comes back as changes has happened."""
        known = self.known
        known.fleet.rollback()
        known.served.clear()
        for group, book, path, organization_id in self._picked:
            group.taken = 0
            group.told = None
            book.charge(-group.cost_gpu_us, -group.rate)
            known.balances.charge(path, -group.cost_gpu_us)
            known.caps.charge(book.grant.id, organization_id, -group.gpus)
        self.horizon.close()
        known.expect_nothing()
        known.gone = set()
        known.dirty |= self.touched

    def may(self, shape: Shape) -> bool:
        """Whether a job that fits delays no reservation."""
        if not self.horizon.seats or shape.kept_for in self.keeps:
            return True
        return self.horizon.allows(shape, self.reach.open_to(shape.gpu_class))

    def hole(self, shape: Shape, job: Job) -> Hole | None:
        return self.horizon.hole(shape, job.walltime_ms, self.reach.open_to(shape.gpu_class))

    def use(self, gpu_class: str, hole: Hole) -> Room:
        self.known.fleet.take(gpu_class, hole.cluster, hole.gpus_by_node)
        return Room(gpu_class, hole.cluster, hole.gpus_by_node)

    def start(self, branch: Branch, leaf: Leaf, group: Group, room: Room) -> list[Shape]:
        """Give the group's first job this room and charge it. Returns the shapes that fit no more."""
        known, shape, book, path = self.known, group.shape, leaf.book, group.path
        job = known.jobs[group.entries[group.taken][2]]
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
        self.horizon.pick(room.gpu_class, room.cluster, room.gpus_by_node, job.walltime_ms)
        leaf.take(group)
        self._picked.append((group, book, path, branch.organization))
        known.balances.charge(path, group.cost_gpu_us)
        known.caps.charge(book.grant.id, branch.organization, group.gpus)
        if known.others_stop_for(job.id):
            known.served.add(job.id)
        may_be_capped = branch.queue.take_gpus(group.gpus)
        self.tree.pick(branch, book, group.cost_gpu_us, group.rate, group.gpus)
        concerned = known.organizations_on(book.grant.id, path)
        gpus_left = known.caps.left(book.grant)
        if len(concerned) > 1:
            for organization_id in concerned:
                known.judge(organization_id)
        elif may_be_capped:
            known.judge(branch.organization)
        elif branch.queue.can_narrow:
            known.narrow(branch.organization)
        elif known.balances.on(path) < branch.queue.dearest_gpu_us or (
            gpus_left is not None and gpus_left < branch.queue.widest_gpus
        ):
            known.judge(branch.organization)
        self.touched.update(concerned)
        for organization_id in concerned:
            self.tree.refresh(organization_id)
        return self._close(branch.organization, job)

    def judge_anew(self, organization_id: str) -> None:
        """Its queue changed in the middle of the cycle."""
        self.touched.add(organization_id)
        self.known.judge(organization_id)
        self.tree.refresh(organization_id)

    def take(self, shape: Shape) -> Room:
        """The room of this shape's next job, which needs no reservation any more.

        Kept room that it leaves over stays kept for this cycle.
        """
        self.horizon.rise(shape.kept_for)
        fleet, kept = self.known.fleet, self.keeps.get(shape.kept_for)
        clusters = self.reach.open_to(shape.gpu_class)
        if kept:
            fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        shelves = fleet.shelves(shape.gpu_class, clusters)
        room = place(shape, shelves, self._limits(shape, clusters))
        # in the lane it may take reserved room where there is no other
        room = room or place(shape, shelves)
        assert room, f"{shape} fitted a moment ago"
        fleet.take(room.gpu_class, room.cluster, room.gpus_by_node)
        if kept:
            used = room.gpus_by_node if room.cluster == kept.cluster else {}
            over = {node: gpus - used.get(node, 0) for node, gpus in kept.gpus_by_node.items()}
            over = {node: gpus for node, gpus in over.items() if gpus > 0}
            fleet.take(kept.gpu_class, kept.cluster, over)
            walltime_ms = self.known.jobs[shape.kept_for].walltime_ms
            self.horizon.give_back(kept.gpu_class, kept.cluster, kept.gpus_by_node, walltime_ms)
            self.horizon.pick(kept.gpu_class, kept.cluster, over, walltime_ms)
            self.keeps[shape.kept_for] = Room(kept.gpu_class, kept.cluster, over)
        return room

    def _limits(self, shape: Shape, clusters: Iterable[str]) -> Mapping[str, Mapping[str, int]] | None:
        if not self.horizon.seats or shape.kept_for in self.keeps:
            return None
        return self.horizon.limits(shape, clusters)

    def fit_now(self) -> set[Shape]:
        """The shapes that still fit, reservations aside."""
        return {s for by_key in self.fitting.values() for shapes in by_key.values() for s in shapes}

    def _close(self, organization_id: str, job: Job) -> list[Shape]:
        """Take the shapes out of the race that fitted before the last pick and do not any more."""
        by_key = self.fitting.get(job.gpu_class, {})
        numbers: dict[str, int | str] = {
            "position": len(self.starts),
            "organization": organization_id,
            "job": job.id,
        }
        closed = list[Shape]()
        for key in [key for key, shapes in by_key.items() if not self.fits(shapes[0])]:
            closed += by_key.pop(key)
        for shape in closed:
            self.behind[shape] = Reason(WaitReason.BEHIND_IN_ORDER, numbers)
        return closed
