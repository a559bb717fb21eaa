"""The picks of one cycle: lane, preemption, reservations, and everything that fits around them."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from scheduler.core.backfill import Hole, Horizon, moved
from scheduler.core.entitlement import GrantBook
from scheduler.core.fit import Shape
from scheduler.core.groups import Group, Leaf
from scheduler.core.model import Job, Preempt, Reason, Reservation, Start, WaitReason
from scheduler.core.order import Branch, Race, Tree
from scheduler.core.placement import Room, place, pods_of
from scheduler.core.policy import Lane, Preemption
from scheduler.core.preempt import Victim, choose, victim_of
from scheduler.core.profile import NEVER_MS
from scheduler.core.state import Knowledge

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
            for shapes in by_key.values():
                shapes.sort(key=lambda shape: shape.span_ms)
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
            if (not shape.kept_for or shape.kept_for in self.horizon.seats)
            and shape.gpus <= lane.gpus
            and shape.gpus * shape.span_ms <= lane.area_gpu_ms
        }
        worst = self._worst_behind_share() if live and lane.delivery_weight else 0.0
        shorter_ms = 0
        for longest_ms, _ in lane.tapers:
            here = {shape for shape in live if shorter_ms < shape.span_ms <= longest_ms}
            shorter_ms = longest_ms
            if here:
                self.tree.start()
            while here and (turn := self.tree.next(Race(here, lane=lane, worst_behind_share=worst))):
                closed = self._start(*turn, self._take(turn[2].shape))
                here.difference_update(closed)
                live.difference_update(closed)

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
        pool, at_once = (
            _Pool(self.known, self.tree.books, rule),
            rule.gangs_at_once - self.known.stopped_for(),
        )
        beaten: dict[
            tuple[str, int, int], int
        ] = {}  # shapes for which no eviction was enough, with the lag that it was tried for
        for leaf in self.tree.order():
            if leaf.book.rank_lag_ms <= 0 or leaf.heads.keys().isdisjoint(shapes):
                continue
            for job in self._gangs(leaf, shapes, rule.gangs):
                # a pick of this cycle may have changed its queue
                group = self.known.queues[job.organization_id].find(job)
                if group is None or group.book is None or self.known.others_stop_for(job.id):
                    continue
                key, lag_ms = group.shape[:3], group.book.rank_lag_ms
                if self.fits(group.shape):
                    self._start_past(group, job)
                elif at_once > 0 and lag_ms > beaten.get(key, -NEVER_MS):
                    if self._stop_for(group, job, pool, rule):
                        at_once -= 1
                    else:
                        # who is less behind may stop no more than this one
                        beaten[key] = lag_ms

    def _start_past(self, group: Group, job: Job) -> None:
        """Nobody has to be stopped for it: it may pass the reservations of those who are less behind."""
        if group.book is None or group.entries[group.taken][2] != job.id:
            return
        branch = self.tree.branch(group.book.grant.program_id, job.organization_id)
        leaf = branch.queue.leaves[group.book.grant.id]
        self._start(branch, leaf, group, self._take(group.shape))

    def _gangs(self, leaf: Leaf, shapes: set[Shape], count: int) -> list[Job]:
        """Its first large jobs, those counted that others stop for already."""
        groups = [group for shape, heap in leaf.heads.items() if shape in shapes for _, group in heap]
        firsts = sorted(entry for group in groups for entry in group.left[:count])
        return [self.known.jobs[job_id] for _, _, job_id in firsts[:count]]

    def _stop_for(self, group: Group, job: Job, pool: "_Pool", rule: Preemption) -> bool:
        """Stop the cheapest jobs, if that is enough, and keep what is free of the room meanwhile."""
        assert group.book is not None
        fleet, clusters = self.known.fleet, self.reach.open_to(job.gpu_class)
        shelves = fleet.shelves(job.gpu_class, clusters)
        victims = pool.below(job, group.book.rank_lag_ms - rule.lead_ms)
        free = sum(shelf.free for shelf in shelves.values())
        if free + sum(victim.gpus for victim in victims) < job.gpus:
            return False
        eviction = choose(group.shape, shelves, victims, {})
        if eviction is None:
            return False
        pool.drop(eviction.victims)
        stop_at_ms = self.known.now_ms + rule.notice_ms
        self.stops += [
            Preempt(victim.attempt.job_id, victim.attempt.attempt, job.id, stop_at_ms)
            for victim in eviction.victims
        ]
        shelf = shelves[eviction.cluster]
        now_free = {node: min(gpus, shelf.nodes[node][0]) for node, gpus in eviction.gpus_by_node.items()}
        kept = {node: gpus for node, gpus in now_free.items() if gpus}
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
        return True

    # --- reservations ---

    def _seat(self) -> set[Shape]:
        """Start the jobs whose reserved room is there; bring the other reservations to the earliest moment.

        Those that are no promise lose their places, to be given new ones in order: their shapes.
        """
        known, horizon, now_ms = self.known, self.horizon, self.known.now_ms
        promises: Counter[str] = Counter()
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
            elif group.book.rank_lag_ms < 0 or not self._is_promise(job, promises):
                loose.add(group.shape)
            else:
                promises[job.organization_id] += 1
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

    def _is_promise(self, job: Job, promises: Counter[str]) -> bool:
        """Whether the policy lets a reservation keep its place, besides those that the organization has."""
        policy = self.known.policy
        few = promises[job.organization_id] < policy.promises_per_organization
        return few and job.gpus >= policy.promise_gpus

    def _seat_one(self, seat: Reservation, group: Group) -> None:
        """Start it if its room is there, else keep the room it has or an earlier one."""
        known, job = self.known, self.known.jobs[seat.job_id]
        if group.book is None or group.taken or not group.entries:
            self._unreserve(job)
            return
        hole = self._own_hole(seat, job) or self._hole(group.shape, job)
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

    def _own_hole(self, seat: Reservation, job: Job) -> Hole | None:
        """Its own room, once its time has come and it is there: another may be promised to somebody else."""
        now_ms = self.known.now_ms
        if seat.starts_at_ms > now_ms or seat.cluster not in self.reach.open_to(seat.gpu_class):
            return None
        if not self.horizon.holds(replace(seat, starts_at_ms=now_ms), job.walltime_ms):
            return None
        return Hole(now_ms, seat.cluster, seat.gpus_by_node)

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
        live = {shape for shape in self._fit_now() if self._may(shape)}
        reservable: set[Shape] = set()
        if len(horizon.seats) < policy.reservations:
            reservable = loose | {s for s in self.known.by_shape if s not in live and self._may_reserve(s)}
        full = self._full()
        if live or reservable:
            self.tree.start()
        while turn := self.tree.next(Race(live, reservable, full)) if live or reservable else None:
            branch, leaf, group = turn
            shape, before = group.shape, set(live) if policy.reservations else live
            if shape in live:
                live.difference_update(self._start(branch, leaf, group, self._take(shape)))
            elif not self._reserve(branch, leaf, group):
                reservable.discard(shape)
                continue
            else:
                live.intersection_update(self._fit_now())
            if shape in loose:
                reservable.discard(shape)
            kept_out = self._kept_out(live, shape.gpu_class)
            live -= kept_out
            if len(horizon.seats) < policy.reservations:
                # what lost its room to a pick may reserve as well
                reservable |= {s for s in before - live if self._may_reserve(s)}
            else:
                reservable.clear()
            full = self._full()
        started = {start.job_id for start in self.starts}
        for shape in loose:
            if shape.kept_for not in started and shape.kept_for not in horizon.seats:
                self._unreserve(self.known.jobs[shape.kept_for])

    def _kept_out(self, live: set[Shape], gpu_class: str) -> set[Shape]:
        """Of the shapes that fit: those that would now delay a reservation. The longer they run the sooner."""
        found = set[Shape]()
        if self.horizon.seats:
            for shapes in self._fitting.get(gpu_class, {}).values():
                for shape in reversed(shapes):
                    if shape in live:
                        if self._may(shape):
                            break
                        found.add(shape)
        return found

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

    def _start(self, branch: Branch, leaf: Leaf, group: Group, room: Room) -> list[Shape]:
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

    def _judge_anew(self, organization_id: str) -> None:
        """Its queue changed in the middle of the cycle."""
        self.touched.add(organization_id)
        self.known.judge(organization_id)
        self.tree.refresh(organization_id)

    def _take(self, shape: Shape) -> Room:
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

    def _fit_now(self) -> set[Shape]:
        """The shapes that still fit, reservations aside."""
        return {s for by_key in self._fitting.values() for shapes in by_key.values() for s in shapes}

    def _close(self, organization_id: str, job: Job) -> list[Shape]:
        """Take the shapes out of the race that fitted before the last pick and do not any more."""
        by_key = self._fitting.get(job.gpu_class, {})
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


class _Pool:
    """The attempts that may be stopped now, by class, those furthest ahead of their pace first."""

    def __init__(self, known: Knowledge, books: Iterable[GrantBook], rule: Preemption) -> None:
        self._known, self._rule = known, rule
        self._books = sorted(books, key=lambda book: (book.rank_lag_ms, book.grant.id))
        self._lags = [book.rank_lag_ms for book in self._books]
        self._by_class: dict[str, list[list[tuple[str, Victim]]]] = {}
        self._chosen: set[str] = set()

    def below(self, job: Job, lag_ms: int) -> list[Victim]:
        """Of other organizations, drawing on grants that are at most so far behind."""
        count = bisect_right(self._lags, lag_ms)
        return [
            victim
            for found in self._of(job.gpu_class)[:count]
            for organization, victim in found
            if organization != job.organization_id and victim.attempt.id not in self._chosen
        ]

    def drop(self, victims: Iterable[Victim]) -> None:
        """These are being stopped."""
        self._chosen.update(victim.attempt.id for victim in victims)

    def _of(self, gpu_class: str) -> list[list[tuple[str, Victim]]]:
        found = self._by_class.get(gpu_class)
        if found is None:
            found = self._by_class[gpu_class] = [self._on(book, gpu_class) for book in self._books]
        return found

    def _on(self, book: GrantBook, gpu_class: str) -> list[tuple[str, Victim]]:
        known, found = self._known, list[tuple[str, Victim]]()
        for attempt in known.running_on(book.grant.id).values():
            job = known.jobs.get(attempt.job_id)
            if job and attempt.pods[0].gpu_class == gpu_class:
                victim = victim_of(job, attempt, gpu_class, self._rule, known.now_ms)
                if victim:
                    found.append((job.organization_id, victim))
        return found
