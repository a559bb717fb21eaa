"""What one cycle has given away so far, on top of what is known, and what that leaves. The stages work on it."""

from collections.abc import Iterable, Mapping

from scheduler.core.backfill import Hole, Horizon
from scheduler.core.booked import Booked
from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import FitKey, Shape, span_of
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import Job, Preempt, Reason, Start, WaitReason
from scheduler.core.order import Tree
from scheduler.core.placement import Limits, Room, choose_room, pods_of
from scheduler.core.ranks import Branch
from scheduler.core.reasons import with_others
from scheduler.core.state import Knowledge


class Picks:
    """The picks of one cycle on top of what is known."""

    def __init__(self, known: Knowledge, books: list[GrantBook]) -> None:
        self.known = known
        self.books = books  # the running grants
        self._tree: Tree | None = None
        self.starts: list[Start] = []
        self.stops: list[Preempt] = []
        self.reach = known.reach()
        self.behind: dict[Shape, Reason] = {}  # shapes that fitted until a pick of this cycle
        self.touched: set[str] = set()  # organizations whose queues or balances this cycle changed
        self.horizon = Horizon(known.profiles, known.fleet, known.now_ms)
        self.booked = Booked(known, self.horizon) if known.bookings or known.booked else None
        self.keeps: dict[str, Room] = {}
        self._picked: list[tuple[Group, GrantBook, tuple[str, ...], str]] = []  # with path and organization
        self.fitting: dict[
            str, dict[FitKey, list[Shape]]
        ] = {}  # by class: shapes that fit, reservations aside
        self.has_choices = known.choices > 0
        for job, room in known.keeps(self.bounds_of):
            self.keeps[job.id] = room
            self.horizon.pick(room.gpu_class, room.cluster, room.gpus_by_node, job.walltime_ms)

    @property
    def tree(self) -> Tree:
        """The running grants as they rank, this cycle's picks counted; a cycle in which nothing fits may need none."""
        if self._tree is None:
            self._tree = self.known.tree(self.books)
        return self._tree

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
        known.served.clear()
        for group, book, path, organization_id in self._picked:
            known.queues[organization_id].give_back(group)
            book.charge(-group.cost_gpu_us, -group.rate)
            known.balances.charge(path, -group.cost_gpu_us)
            known.caps.charge(book.grant.id, organization_id, -group.gpus)
        self.horizon.close()
        known.expect_nothing()
        known.gone = set()
        known.moved |= self.touched

    def may(self, shape: Shape) -> bool:
        """Whether a job that fits delays no reservation."""
        if not self.horizon.seats or self._has_kept_room(shape):
            return True
        return self.horizon.allows(shape, self.reach.open_to(shape.gpu_class))

    def bounds_of(self, job: Job, gpu_class: str) -> Limits:
        """What bookings leave to a job that would start now on this class, by cluster and node."""
        if not self.horizon.is_booked:
            return {}
        shape = Shape(gpu_class, job.gpus_per_pod, job.pods, span_ms=span_of(job.walltime_ms))
        return self.horizon.bounds(shape, self.reach.open_to(gpu_class))

    def hole(self, groups: Iterable[Group], job: Job) -> Hole | None:
        """The earliest of these groups' classes, of equal ones the first."""
        best: Hole | None = None
        for shape in (group.shape for group in groups):
            found = self.horizon.hole(shape, job.walltime_ms, self.reach.open_to(shape.gpu_class))
            if found and (best is None or found.starts_at_ms < best.starts_at_ms):
                best = found
        return best

    def use(self, job: Job, groups: Iterable[Group], hole: Hole) -> None:
        """Start the job in a hole that begins now, whatever its turn."""
        group = next(group for group in groups if group.shape.gpu_class == hole.gpu_class)
        self.known.fleet.take(hole.gpu_class, hole.cluster, hole.gpus_by_node)
        self.start_past(job, group, Room(hole.gpu_class, hole.cluster, hole.gpus_by_node))

    def start_past(self, job: Job, group: Group, room: Room) -> None:
        """Start the first job of a group, whatever its turn."""
        assert group.book, f"started without a grant: {group.key}"
        branch = self.tree.branch(group.book.grant.program_id, job.organization_id)
        self.start(branch, branch.queue.leaves[group.book.grant.id], group, room)

    def start(self, branch: Branch, leaf: Leaf, group: Group, room: Room) -> list[Shape]:
        """Give the group's first job this room and charge it. Returns the shapes that fit no more."""
        known, book, path = self.known, leaf.book, group.path
        job = known.jobs[group.entries[group.taken][2]]
        self.starts.append(
            Start(
                job_id=job.id,
                attempt=job.attempt + 1,
                grant_id=book.grant.id,
                account_path=path,
                cluster=room.cluster,
                pods=pods_of(room, job.gpus_per_pod),
                cost_gpu_us=group.cost_gpu_us,
            )
        )
        self.horizon.pick(room.gpu_class, room.cluster, room.gpus_by_node, job.walltime_ms)
        lag_thousandths = book.rank_lag_ms * 1000 // book.term_ms  # before the pick counts
        branch.queue.take(group)
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
        return self._close(branch.organization, job, room.gpu_class, lag_thousandths)

    def judge_anew(self, organization_id: str) -> None:
        """Its queue changed in the middle of the cycle."""
        self.touched.add(organization_id)
        self.known.judge(organization_id)
        self.tree.refresh(organization_id)

    def take(self, group: Group) -> Room:
        """The room of this group's next job, which needs no reservation any more.

        Kept room that it leaves over stays kept for this cycle.
        """
        shape, topology = group.shape, self.known.jobs[group.entries[group.taken][2]].topology
        self.horizon.rise(shape.kept_for)
        fleet, kept = self.known.fleet, self.keeps.get(shape.kept_for)
        clusters = self.reach.open_to(shape.gpu_class)
        if kept:
            self._return(kept, shape.kept_for)
        bounds = self.horizon.bounds(shape, clusters) if self.horizon.is_booked else None
        room = choose_room(shape, topology, fleet, clusters, self._limits(shape, clusters) or bounds)
        # in the lane, or with some room kept, it may take reserved room where there is no other
        room = room or choose_room(shape, topology, fleet, clusters, bounds)
        assert room, f"{shape} fitted a moment ago"
        fleet.take(room.gpu_class, room.cluster, room.gpus_by_node)
        if kept:
            same = (room.gpu_class, room.cluster) == (kept.gpu_class, kept.cluster)
            used = room.gpus_by_node if same else {}
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
        """What reservations leave to it, and the room that is kept for it while others stop, whatever lies over that.

        It may start elsewhere, too, but not in the way of a reservation.
        """
        if not self.horizon.seats:
            return None
        limits, kept = self.horizon.limits(shape, clusters), self.keeps.get(shape.kept_for)
        if kept and kept.gpu_class == shape.gpu_class and kept.cluster in limits:
            most = limits[kept.cluster]
            limits[kept.cluster] = {node: max(most[node], kept.gpus_by_node.get(node, 0)) for node in most}
        return limits

    def _has_kept_room(self, shape: Shape) -> bool:
        """Whether room of this class is kept for it while others stop."""
        kept = self.keeps.get(shape.kept_for)
        return kept is not None and kept.gpu_class == shape.gpu_class

    def fit_now(self) -> set[Shape]:
        """The shapes that still fit, reservations aside."""
        return {s for by_key in self.fitting.values() for shapes in by_key.values() for s in shapes}

    def look_again(self, lost: Iterable[Shape]) -> None:
        """These take part no more: jobs that accept several classes may now be served by another one."""
        if not self.has_choices:
            return
        groups = [group for s in lost if s.classes for group in self.known.by_shape.get(s, ())]
        firsts = [self.known.jobs[g.entries[g.taken][2]] for g in groups if g.taken < len(g.entries)]
        for organization_id in sorted({job.organization_id for job in firsts}):
            self.tree.refresh(organization_id)

    def _close(self, organization_id: str, job: Job, gpu_class: str, lag_thousandths: int) -> list[Shape]:
        """Take the shapes out of the race that fitted before the last pick and do not any more."""
        numbers: dict[str, int | str] = {
            "position": len(self.starts),
            "organization": organization_id,
            "job": job.id,
            "lag_thousandths": lag_thousandths,
        }
        closed = self.drop_unfit(gpu_class)
        for shape in closed:
            self.behind[shape] = Reason(WaitReason.BEHIND_IN_ORDER, with_others(shape, numbers))
        return closed
