"""What one cycle has given away so far, on top of what is known, and what that leaves. The stages work on it."""

from collections.abc import Iterable, Mapping

from scheduler.core.backfill import Hole, Horizon
from scheduler.core.booked import Booked
from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import Shape, span_of
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import Job, Preempt, Reason, Start, WaitReason
from scheduler.core.order import Branch, Tree
from scheduler.core.placement import Limits, Room, place, pods_of
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
        self.behind: dict[Shape, Reason] = {}  # shapes that fitted until a pick of this cycle
        self.touched: set[str] = set()  # organizations whose queues or balances this cycle changed
        self.horizon = Horizon(known.profiles, known.fleet, known.now_ms)
        self.booked = Booked(known, self.horizon) if known.bookings or known.booked else None
        self.keeps: dict[str, Room] = {}
        self._picked: list[tuple[Group, GrantBook, tuple[str, ...]]] = []  # with the path
        self.fitting: dict[
            str, dict[FitKey, list[Shape]]
        ] = {}  # by class: shapes that fit, reservations aside
        for job, room in known.keeps(self.bounds_of):
            self.keeps[job.id] = room
            self.horizon.pick(room.gpu_class, room.cluster, room.gpus_by_node, job.walltime_ms)

    def fits(self, shape: Shape) -> bool:
        """Whether it fits on what is free now, its kept room counted, reservations aside.

        Of what is booked nothing counts. Of equal pods who runs longer fits no better.
        """
        if self.horizon.is_booked:
            return self._fits_beside_bookings(shape)
        fleet, kept = self.known.fleet, self.keeps.get(shape.kept_for)
        if not kept:
            return fleet.fits(shape, self.reach.open_to(shape.gpu_class))
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        fits = fleet.fits(shape, self.reach.open_to(shape.gpu_class))
        fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node)
        return fits

    def fits_but_for_bookings(self, shape: Shape) -> bool:
        """Whether it would fit if nothing were booked."""
        if not self.horizon.is_booked:
            return False
        fleet, kept = self.known.fleet, self.keeps.get(shape.kept_for)
        if kept:
            fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        fits = fleet.fits(shape, self.reach.open_to(shape.gpu_class))
        if kept:
            fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node)
        return fits and not self.fits(shape)

    def drop_unfit(self, gpu_class: str) -> list[Shape]:
        """Take the shapes out of `fitting` that fit no more; returns them."""
        dropped, by_key = list[Shape](), self.fitting.get(gpu_class, {})
        if not self.horizon.is_booked:
            for key in [key for key, shapes in by_key.items() if not self.fits(shapes[0])]:
                dropped += by_key.pop(key)
            return dropped
        for key, shapes in list(by_key.items()):
            while shapes and not self.fits(shapes[-1]):
                dropped.append(shapes.pop())
            if not shapes:
                del by_key[key]
        return dropped

    def forget(self) -> None:
        """Undo the picks: only what comes back as changes has happened."""
        known = self.known
        known.fleet.rollback()
        for group, book, path in self._picked:
            group.taken = 0
            group.told = None
            book.charge(-group.cost_gpu_us, -group.rate)
            known.balances.charge(path, -group.cost_gpu_us)
            known.caps.charge(book.grant.id, -group.gpus)
        self.horizon.close()
        known.expect_nothing()
        known.gone = set()
        known.dirty |= self.touched

    def may(self, shape: Shape) -> bool:
        """Whether a job that fits delays no reservation."""
        if not self.horizon.seats or shape.kept_for in self.keeps:
            return True
        return self.horizon.allows(shape, self.reach.open_to(shape.gpu_class))

    def bounds_of(self, job: Job) -> Limits:
        """What bookings leave to a job that would start now, by cluster and node."""
        if not self.horizon.is_booked:
            return {}
        shape = Shape(job.gpu_class, job.gpus_per_pod, job.pods, "", span_of(job.walltime_ms))
        return self.horizon.bounds(shape, self.reach.open_to(job.gpu_class))

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
        self._picked.append((group, book, path))
        known.balances.charge(path, group.cost_gpu_us)
        known.caps.charge(book.grant.id, group.gpus)
        self.tree.pick(branch, book, group.cost_gpu_us, group.rate)
        concerned = known.organizations_on(book.grant.id, path)
        gpus_left = known.caps.left(book.grant)
        if len(concerned) > 1:
            for organization_id in concerned:
                known.judge(organization_id)
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
            self._return(kept, shape.kept_for)
        shelves = fleet.shelves(shape.gpu_class, clusters)
        bounds = self.horizon.bounds(shape, clusters) if self.horizon.is_booked else None
        room = place(shape, shelves, self._limits(shape, clusters) or bounds)
        # in the lane it may take reserved room where there is no other
        room = room or place(shape, shelves, bounds)
        assert room, f"{shape} fitted a moment ago"
        fleet.take(room.gpu_class, room.cluster, room.gpus_by_node)
        if kept:
            used = room.gpus_by_node if room.cluster == kept.cluster else {}
            over = {node: gpus - used.get(node, 0) for node, gpus in kept.gpus_by_node.items()}
            over = {node: gpus for node, gpus in over.items() if gpus > 0}
            self.keeps[shape.kept_for] = Room(kept.gpu_class, kept.cluster, over)
            self._keep(self.keeps[shape.kept_for], shape.kept_for)
        return room

    def _fits_beside_bookings(self, shape: Shape) -> bool:
        clusters, kept = self.reach.open_to(shape.gpu_class), self.keeps.get(shape.kept_for)
        if not kept:
            return self.horizon.leaves_room(shape, clusters)
        self._return(kept, shape.kept_for)
        fits = self.horizon.leaves_room(shape, clusters)
        self._keep(kept, shape.kept_for)
        return fits

    def _return(self, kept: Room, job_id: str) -> None:
        """Room kept for a job is free again."""
        self.known.fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node, sign=-1)
        walltime_ms = self.known.jobs[job_id].walltime_ms
        self.horizon.give_back(kept.gpu_class, kept.cluster, kept.gpus_by_node, walltime_ms)

    def _keep(self, kept: Room, job_id: str) -> None:
        self.known.fleet.take(kept.gpu_class, kept.cluster, kept.gpus_by_node)
        walltime_ms = self.known.jobs[job_id].walltime_ms
        self.horizon.pick(kept.gpu_class, kept.cluster, kept.gpus_by_node, walltime_ms)

    def _limits(self, shape: Shape, clusters: Iterable[str]) -> Mapping[str, Mapping[str, int]] | None:
        if not self.horizon.seats or shape.kept_for in self.keeps:
            return None
        return self.horizon.limits(shape, clusters)

    def fit_now(self) -> set[Shape]:
        """The shapes that still fit, reservations aside."""
        return {s for by_key in self.fitting.values() for shapes in by_key.values() for s in shapes}

    def _close(self, organization_id: str, job: Job) -> list[Shape]:
        """Take the shapes out of the race that fitted before the last pick and do not any more."""
        numbers: dict[str, int | str] = {
            "position": len(self.starts),
            "organization": organization_id,
            "job": job.id,
        }
        closed = self.drop_unfit(job.gpu_class)
        for shape in closed:
            self.behind[shape] = Reason(WaitReason.BEHIND_IN_ORDER, numbers)
        return closed
