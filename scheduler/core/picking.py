"""The picks of one cycle: lane, preemption, reservations, and everything that fits around them."""

from collections.abc import Iterable, Mapping

from scheduler.core.backfill import Hole, Horizon, moved
from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import Shape
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import Job, Preempt, Reason, Reservation, Start, WaitReason
from scheduler.core.order import Branch, Race, Tree
from scheduler.core.placement import Room, place, pods_of
from scheduler.core.policy import Lane, Preemption
from scheduler.core.preempt import Victim, choose, victim_of
from scheduler.core.state import Knowledge
from scheduler.core.waiting import Queue

FitKey = tuple[str, int, int, str]
"""Shapes that differ in their span only fit or fail together, reservations aside."""


class Cycle:
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
        self._picked: list[tuple[Group, GrantBook, tuple[str, ...]]] = []  # with the path
        self._fitting: dict[
            str, dict[FitKey, list[Shape]]
        ] = {}  # by class: shapes that fit, reservations aside
        for job_id, room in self.keeps.items():
            self.horizon.pick(room.gpu_class, room.cluster, room.gpus_by_node, known.jobs[job_id].walltime_ms)

    def fill(self) -> None:
        """Serve job after job, each pick counting before the next, until nothing that may start fits."""
        known, policy = self.known, self.known.policy
        for shape in known.by_shape:
            self._fitting.setdefault(shape.gpu_class, {}).setdefault(shape[:4], []).append(shape)
        for by_key in self._fitting.values():
            for key in [key for key, shapes in by_key.items() if not self.fits(shapes[0])]:
                del by_key[key]
        for job_id, reservation in known.reserved.items():
            self.horizon.sit(reservation, known.jobs[job_id].walltime_ms)
        if policy.lane:
            self._serve_lane(policy.lane)
        if policy.preemption:
            self._preempt(policy.preemption)
        if any(self._fitting.values()):
            # while nothing fits at all nothing can be taken from anybody: what was reserved stays as it is
            self._serve_all(self._seat())
        for organization_id in self.touched:
            known.judge(organization_id)

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

    # --- the lane ---

    def _serve_lane(self, lane: Lane) -> None:
        """Small short jobs, the shortest first, each length in order; reservations do not bind them."""
        live = {
            shape
            for shape in self._fit_now()
            if not shape.kept_for
            and shape.gpus <= lane.gpus
            and shape.gpus * shape.span_ms <= lane.area_gpu_ms
        }
        worst = self._worst_behind_share() if live and lane.delivery_weight else 0.0
        shorter_ms = 0
        for longest_ms, _ in lane.tapers:
            here = {shape for shape in live if shorter_ms < shape.span_ms <= longest_ms}
            shorter_ms = longest_ms
            here = self._fit_now(among=here)
            if here:
                self.tree.start()
            while here and (turn := self.tree.next(Race(here, lane=lane, worst_behind_share=worst))):
                self._start(*turn, self._take(turn[2].shape))
                here = self._fit_now(turn[2].shape.gpu_class, here)

    def _worst_behind_share(self) -> float:
        """Of the organizations with waiting jobs, how far the one furthest behind is, as a share of its term."""
        now_ms = self.known.now_ms
        shares = (
            leaf.book.behind_share(now_ms) for branch in self.tree.branches() for leaf in branch.leaves()
        )
        return max(shares, default=0.0)

    # --- preemption ---

    def _preempt(self, rule: Preemption) -> None:
        """Stop small jobs of grants that are further ahead for gangs whose grant is behind."""
        shapes = {s for s in self.known.by_shape if s.gpus >= rule.gang_gpus}
        if not shapes:
            return
        chosen: set[str] = set()
        for leaf in self.tree.order():
            if leaf.book.rank_lag_ms <= 0 or leaf.heads.keys().isdisjoint(shapes):
                continue
            for job in self._gangs(leaf, shapes, rule.gangs):
                # a pick of this cycle may have changed its queue
                group = self.known.queues[job.organization_id].find(job)
                if group is None or group.book is None or self.known.others_stop_for(job.id):
                    continue
                if self.fits(group.shape):
                    self._start_past(group, job)
                    continue
                victims = [v for v in self._victims(group.book, job, rule) if v.attempt.id not in chosen]
                chosen.update(self._stop_for(group, job, victims, rule))

    def _start_past(self, group: Group, job: Job) -> None:
        """Nobody has to be stopped for it: it may pass the reservations of those who are less behind."""
        if group.book is None or group.entries[group.taken][2] != job.id:
            return
        self.horizon.rise(job.id)
        branch = self.tree.branch(group.book.grant.program_id, job.organization_id)
        leaf = branch.queue.leaves[group.book.grant.id]
        self._start(branch, leaf, group, self._take(group.shape))

    def _gangs(self, leaf: Leaf, shapes: set[Shape], count: int) -> list[Job]:
        """Its first large jobs, those counted that others stop for already."""
        groups = [group for shape, heap in leaf.heads.items() if shape in shapes for _, group in heap]
        firsts = sorted(entry for group in groups for entry in group.left[:count])
        return [self.known.jobs[job_id] for _, _, job_id in firsts[:count]]

    def _victims(self, mine: GrantBook, job: Job, rule: Preemption) -> list[Victim]:
        known, found = self.known, list[Victim]()
        for book in self.tree.books:
            if book.rank_lag_ms > mine.rank_lag_ms - rule.lead_ms:
                continue
            for attempt in known.running_on(book.grant.id).values():
                its_job = known.jobs.get(attempt.job_id)
                if its_job and its_job.organization_id != job.organization_id:
                    victim = victim_of(its_job, attempt, job.gpu_class, rule, known.now_ms)
                    if victim:
                        found.append(victim)
        return found

    def _stop_for(self, group: Group, job: Job, victims: list[Victim], rule: Preemption) -> list[str]:
        """Stop the cheapest of them, if that is enough, and keep what is free of the room meanwhile."""
        fleet, clusters = self.known.fleet, self.reach.open_to(job.gpu_class)
        shelves = fleet.shelves(job.gpu_class, clusters)
        eviction = choose(group.shape, shelves, victims, {})
        if eviction is None:
            return []
        stop_at_ms = self.known.now_ms + rule.notice_ms
        self.stops += [
            Preempt(victim.attempt.job_id, victim.attempt.attempt, job.id, stop_at_ms)
            for victim in eviction.victims
        ]
        shelf = shelves[eviction.cluster]
        free = {node: min(gpus, shelf.nodes[node][0]) for node, gpus in eviction.gpus_by_node.items()}
        kept = {node: gpus for node, gpus in free.items() if gpus}
        fleet.take(job.gpu_class, eviction.cluster, kept)
        self.horizon.rise(job.id)
        self.horizon.pick(job.gpu_class, eviction.cluster, kept, job.walltime_ms)
        self.keeps[job.id] = Room(job.gpu_class, eviction.cluster, kept)
        self.known.reserved.pop(job.id, None)
        self.known.expect(job.id)
        self._judge_anew(job.organization_id)
        by_key = self._fitting.get(job.gpu_class, {})
        for key in [key for key, shapes in by_key.items() if not self.fits(shapes[0])]:
            del by_key[key]
        return [victim.attempt.id for victim in eviction.victims]

    # --- reservations ---

    def _seat(self) -> set[Shape]:
        """Start the jobs whose reserved room is there; bring the other reservations to the earliest moment.

        Those of grants that are not behind lose their places, to be given new ones in order: their shapes.
        """
        known, horizon, now_ms = self.known, self.horizon, self.known.now_ms
        loose, late, early = (
            set[Shape](),
            list[tuple[Reservation, Group]](),
            list[tuple[Reservation, Group]](),
        )
        for job_id in list(known.reserved):
            job = known.jobs[job_id]
            group = known.queues[job.organization_id].find(job)
            seat = known.reserved[job_id] if horizon.rise(job_id) else None
            if group is None or group.book is None or seat is None:
                # started in this cycle, or a pick left it without the money
                if seat:
                    self._unreserve(job)
            elif group.book.rank_lag_ms < 0:
                loose.add(group.shape)
            else:
                (late if seat.starts_at_ms <= now_ms else early).append((seat, group))
        # who is late goes first and pushes the others: nobody may be kept out by those who come after him
        for seat, group in sorted(late, key=lambda pair: pair[0].starts_at_ms):
            self._seat_one(seat, group)
        for seat, _ in early:
            horizon.sit(seat, known.jobs[seat.job_id].walltime_ms)
        for seat, group in early:
            horizon.rise(seat.job_id)
            self._seat_one(seat, group)
        return loose

    def _seat_one(self, seat: Reservation, group: Group) -> None:
        """Start it if its room is there, else keep the room it has or an earlier one."""
        known, job = self.known, self.known.jobs[seat.job_id]
        if group.book is None or group.taken or not group.entries:
            self._unreserve(job)
            return
        hole = self._hole(group.shape, job)
        if hole is None:
            self._unreserve(job)
        elif hole.starts_at_ms <= known.now_ms:
            branch = self.tree.branch(group.book.grant.program_id, job.organization_id)
            leaf = branch.queue.leaves[group.book.grant.id]
            self._start(branch, leaf, group, self._use(job.gpu_class, hole))
        else:
            if hole.starts_at_ms < seat.starts_at_ms or not self.horizon.holds(seat, job.walltime_ms):
                seat = moved(seat, hole)
            known.reserved[seat.job_id] = seat
            self.horizon.sit(seat, job.walltime_ms)

    def _unreserve(self, job: Job) -> None:
        self.known.drop_reservation(job.id)
        self._judge_anew(job.organization_id)

    def _hole(self, shape: Shape, job: Job) -> Hole | None:
        return self.horizon.hole(shape, job.walltime_ms, self.reach.open_to(shape.gpu_class))

    def _reserve(self, branch: Branch, leaf: Leaf, group: Group) -> bool:
        """Keep the earliest hole for the group's first job; start it if that is now. False: there is none."""
        known = self.known
        job = known.jobs[group.entries[group.taken][2]]
        hole = self._hole(group.shape, job)
        if hole is None:
            return False
        if hole.starts_at_ms <= known.now_ms:
            self._start(branch, leaf, group, self._use(job.gpu_class, hole))
            return True
        known.reserved.pop(job.id, None)
        number = sum(each.made_at_ms == known.now_ms for each in known.reserved.values())
        seat = Reservation(
            job.id, hole.cluster, job.gpu_class, hole.starts_at_ms, hole.gpus_by_node, known.now_ms, number
        )
        self.horizon.sit(seat, job.walltime_ms)
        if group.shape.kept_for:
            known.reserved[job.id] = seat
        else:
            known.reserve(seat)
            self._judge_anew(job.organization_id)
        return True

    def _use(self, gpu_class: str, hole: Hole) -> Room:
        self.known.fleet.take(gpu_class, hole.cluster, hole.gpus_by_node)
        return Room(gpu_class, hole.cluster, hole.gpus_by_node)

    # --- everything else ---

    def _serve_all(self, loose: set[Shape]) -> None:
        """In order: what fits around the reservations starts; what does not and may have one gets one.

        `loose`: jobs that had one and are to find a new place for it.
        """
        policy, horizon = self.known.policy, self.horizon
        live = {shape for shape in self._fit_now() if shape not in loose and self._may(shape)}
        reservable: set[Shape] = set()
        if len(horizon.seats) < policy.reservations:
            reservable = loose | {s for s in self.known.by_shape if s not in live and self._may_reserve(s)}
        full = self._full()
        if live or reservable:
            self.tree.start()
        while turn := self.tree.next(Race(live, reservable, full)) if live or reservable else None:
            branch, leaf, group = turn
            shape = group.shape
            if shape in live:
                self._start(branch, leaf, group, self._take(shape))
            elif not self._reserve(branch, leaf, group):
                reservable.discard(shape)
                continue
            if shape in loose:
                reservable.discard(shape)
            still = {
                s
                for s in self._fit_now(shape.gpu_class, live)
                if s.gpu_class != shape.gpu_class or self._may(s)
            }
            if len(horizon.seats) < policy.reservations:
                reservable |= {s for s in live - still if self._may_reserve(s)}
            else:
                reservable.clear()
            live &= still
            full = self._full()
        for shape in loose:
            if shape.kept_for in self.known.reserved and shape.kept_for not in horizon.seats:
                self._unreserve(self.known.jobs[shape.kept_for])

    def _may_reserve(self, shape: Shape) -> bool:
        return not shape.kept_for and shape.gpus >= self.known.policy.reservation_gpus

    def _full(self) -> set[str]:
        """Organizations that have as many reservations as one may have."""
        counts: dict[str, int] = {}
        for job_id in self.horizon.seats:
            organization = self.known.jobs[job_id].organization_id
            counts[organization] = counts.get(organization, 0) + 1
        limit = self.known.policy.reservations_per_organization
        return {organization for organization, count in counts.items() if count >= limit}

    def _may(self, shape: Shape) -> bool:
        """Whether a job that fits delays no reservation."""
        if not self.horizon.seats or shape.kept_for in self.keeps:
            return True
        return self.horizon.allows(shape, self.reach.open_to(shape.gpu_class))

    # --- picks ---

    def _start(self, branch: Branch, leaf: Leaf, group: Group, room: Room) -> None:
        """Give the group's first job this room and charge it."""
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
        if len(concerned) > 1 or self._may_change(branch.queue, book, path):
            for organization_id in concerned:
                known.judge(organization_id)
        self.touched.update(concerned)
        for organization_id in concerned:
            self.tree.refresh(organization_id)
        self._close(branch.organization, job)

    def _may_change(self, queue: Queue, book: GrantBook, path: tuple[str, ...]) -> bool:
        """Whether after a pick another of the organization's verdicts could differ."""
        gpus_left = self.known.caps.left(book.grant)
        short = gpus_left is not None and gpus_left < queue.widest_gpus
        return short or self.known.balances.on(path) < queue.dearest_gpu_us

    def _judge_anew(self, organization_id: str) -> None:
        """Its queue changed in the middle of the cycle."""
        self.touched.add(organization_id)
        self.known.judge(organization_id)
        self.tree.refresh(organization_id)

    def _take(self, shape: Shape) -> Room:
        """The room of this shape's next job. Kept room that it leaves over stays kept for this cycle."""
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

    def _fit_now(self, gpu_class: str | None = None, among: Iterable[Shape] | None = None) -> set[Shape]:
        """The shapes that still fit, reservations aside; of other classes than this one all of `among`."""
        if gpu_class is None:
            found = {s for by_key in self._fitting.values() for shapes in by_key.values() for s in shapes}
            return found.intersection(among) if among is not None else found
        here = {s for shapes in self._fitting.get(gpu_class, {}).values() for s in shapes}
        return {s for s in among or () if s.gpu_class != gpu_class or s in here}

    def _close(self, organization_id: str, job: Job) -> None:
        """Take the shapes out of the race that fitted before the last pick and do not any more."""
        by_key = self._fitting.get(job.gpu_class, {})
        numbers: dict[str, int | str] = {
            "position": len(self.starts),
            "organization": organization_id,
            "job": job.id,
        }
        for key in [key for key, shapes in by_key.items() if not self.fits(shapes[0])]:
            for shape in by_key.pop(key):
                self.behind[shape] = Reason(WaitReason.BEHIND_IN_ORDER, numbers)
