"""Everything the core knows, with the indexes that make a cycle cheap. Only `cycle.decide` works on it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import assert_never

from scheduler.core.backfill import Place
from scheduler.core.capping import Ceiling, Pool, cap_of
from scheduler.core.entitlement import Balances, Caps, GrantBook, Remaining, usage_gpu_us
from scheduler.core.fit import Fleet, Shape
from scheduler.core.groups import Group
from scheduler.core.model import (
    Attempt,
    BookedRoom,
    BookedRooms,
    Booking,
    Change,
    Cluster,
    GpuClass,
    Grant,
    Job,
    JobState,
    Kind,
    Node,
    Organization,
    Pace,
    Reason,
    Reservation,
    Reservations,
    Tombstone,
)
from scheduler.core.order import PLAIN, Floor, Standing, Tree, Usage
from scheduler.core.placement import Limits, Room, keep
from scheduler.core.policy import Policy
from scheduler.core.profile import NEVER_MS, Profile
from scheduler.core.reasons import Reach, reach
from scheduler.core.spare import Spare
from scheduler.core.waiting import Queue


class State:
    """What `decide` remembers. It moves into the state that `decide` returns: the old one then raises."""

    __slots__ = ("_knowledge",)

    def __init__(self, knowledge: "Knowledge | None" = None) -> None:
        self._knowledge: Knowledge | None = knowledge or Knowledge()

    def take(self) -> "Knowledge":
        """Hand over what is inside, once."""
        if self._knowledge is None:
            raise ValueError("this state was used already: go on with the one that decide returned")
        knowledge, self._knowledge = self._knowledge, None
        return knowledge


class Knowledge:
    """The objects by id, and per organization which of its jobs wait for what."""

    def __init__(self) -> None:
        self.policy = Policy()
        self.now_ms = 0
        self.spare = Spare()  # opportunistic jobs and attempts: nothing else here knows of them
        self.fleet = Fleet()
        self.jobs: dict[str, Job] = {}
        self.queues: dict[str, Queue] = {}
        self.balances = Balances()
        self.caps = Caps()
        self.pool = Pool()
        self._weights: dict[str, int] = {}  # of the organizations that have one of their own
        self.served: set[str] = set()  # jobs that this cycle started in room that others stop for
        self.by_shape: dict[Shape, dict[Group, None]] = {}  # groups that could pay, an ordered set
        self.reasons: dict[str, Reason] = {}  # as last told, by job
        self.shape_reasons: dict[Shape, Reason] = {}  # as last told
        self.behind: dict[str, tuple[Group, Reason]] = {}  # jobs last told that a pick took their room
        self.gone: set[str] = set()  # jobs that stopped waiting since the last cycle
        self.dirty: set[str] = set()  # organizations to judge anew
        self._rates: dict[str, int] = {}
        self._classes_paused: frozenset[str] = frozenset()
        self._clusters: dict[str, Cluster] = {}
        self._organizations: dict[str, Organization] = {}
        self._books: dict[str, GrantBook] = {}
        self._books_of: dict[str, dict[str, GrantBook]] = {}  # by party
        self._attempts: dict[str, Attempt] = {}
        self._stops_for: dict[str, dict[str, Attempt]] = {}  # by the job that the room is freed for
        self._tree: Tree | None = None  # while the same grants run
        self._tail: list[tuple[int, str]] = []
        self._tail_gone: set[tuple[int, str]] = set()
        self._tail_new: list[tuple[int, str]] = []
        self.profiles: dict[Place, Profile] = {}
        self.reserved: dict[str, Reservation] = {}  # by job, in the order in which they were made
        self.bookings: dict[str, Booking] = {}
        self.booked: dict[str, BookedRoom] = {}  # by booking, as laid out last
        self._expected: set[str] = set()  # jobs that this cycle stops others for
        self._pool_moved = False
        self._remaining: dict[str, Remaining] = {}  # by grant
        self._running_on: dict[str, dict[str, Attempt]] = {}  # by grant: running, and nobody stops them
        self._apply: dict[type, Callable[..., None]] = {
            GpuClass: self._put_class,
            Node: self._put_node,
            Cluster: self._put_cluster,
            Grant: self._put_grant,
            Organization: self._put_organization,
            Job: self._put_job,
            Attempt: self._put_attempt,
            Policy: self._put_policy,
            Reservations: self._put_reservations,
            Booking: self._put_booking,
            BookedRooms: self._put_booked,
            Tombstone: self._bury,
        }

    def after(self, changes: Iterable[Change], now_ms: int) -> set[str]:
        """Take the changes, then judge every organization whose answer may differ. Returns their ids."""
        assert now_ms >= self.now_ms, f"time ran backwards: {self.now_ms} -> {now_ms}"
        self.now_ms = now_ms
        for change in self.spare.sift(changes, now_ms):
            self._apply[type(change)](change)
        if self._pool_moved:
            self._pool_moved = False
            for organization_id in self.queues:
                self._look_at_cap(organization_id)
        due = self.dirty | {id for id, queue in self.queues.items() if queue.until_ms <= now_ms}
        self.dirty = set()
        for organization_id in sorted(due):
            self.judge(organization_id)
        return due

    def judge(self, organization_id: str) -> None:
        """Decide anew which of an organization's jobs could pay, and from what."""
        queue = self.queues.get(organization_id)
        if queue is None:
            return
        for group in [g for g in queue.groups.values() if not g.entries]:
            self._list(group, False)
            del queue.groups[group.key]
        tail = queue.tail
        queue.judge(
            self._organizations.get(organization_id),
            list(self._books_of.get(organization_id, {}).values()),
            self._rates,
            self.balances,
            self.caps,
            self.policy.walltime_step_ms,
            self.now_ms,
            self._ceiling(organization_id),
        )
        for group in queue.groups.values():
            self._list(group, group.book is not None)
        if queue.tail != tail:
            was, now = set(tail), set(queue.tail)
            self._tail_gone |= was - now
            self._tail_new += now - was

    def _ceiling(self, organization_id: str) -> Ceiling | None:
        """Its cap with what is in use below it; None while it has none."""
        organization = self._organizations.get(organization_id)
        cap = cap_of(organization, self.policy, self.pool) if organization else None
        if cap is None:
            return None
        used = self.caps.used_by[organization_id]
        return Ceiling(organization_id, cap, used, self._claims(organization_id))

    def _claims(self, organization_id: str) -> dict[str, int]:
        """Its waiting jobs for which others are stopped, longest waiting first, with their GPUs."""
        found = [
            job
            for id in {*self._stops_for, *self._expected}
            if (job := self.jobs.get(id))
            and job.waits
            and job.organization_id == organization_id
            and id not in self.served
        ]
        return {job.id: job.gpus for job in sorted(found, key=lambda job: (job.submitted_at_ms, job.id))}

    def narrow(self, organization_id: str) -> None:
        """A pick took from an organization's balances alone: judge what it can no longer pay from where it would."""
        queue = self.queues[organization_id]
        books = list(self._books_of.get(organization_id, {}).values())
        step_ms = self.policy.walltime_step_ms
        for group in queue.narrow(books, self._rates, self.balances, self.caps, step_ms, self.now_ms):
            self._list(group, group.book is not None)

    def pace(self) -> tuple[list[GrantBook], dict[str, Pace]]:
        """Bring every running grant's lag to now."""
        books, paces = [], {}
        for grant_id, book in sorted(self._books.items()):
            if book.runs(self.now_ms):
                books.append(book)
                remaining = self._remaining.get(grant_id)
                remaining_gpu_us = remaining.at(self.now_ms) if remaining else 0
                rate = remaining.rate if remaining else 0
                since_ms = self._waiting_since_ms(book)
                paces[grant_id] = book.advance(self.now_ms, since_ms, remaining_gpu_us, rate)
        return books, paces

    def _waiting_since_ms(self, book: GrantBook) -> int | None:
        """When the first job was submitted that would draw on this grant, whichever party's it is."""
        since_ms, grant_id = None, book.grant.id
        for party in book.parties:
            queue = self.queues.get(party)
            leaf = queue.leaves.get(grant_id) if queue else None
            first_ms = leaf.waiting_since_ms if leaf else None
            if first_ms is not None and (since_ms is None or first_ms < since_ms):
                since_ms = first_ms
        return since_ms

    def tree(self, books: list[GrantBook]) -> Tree:
        """The running grants as they rank now."""
        usages = self._usages(books)
        if self._tree is None or self._tree.books != books:
            policy = self.policy
            floor = Floor(policy.floor_share, policy.floor_lag_ms, policy.half_life_ms)
            self._tree = Tree(books, self.queues, policy.ranking, floor if policy.floor_share else None)
        self._tree.begin(usages, self._standings())
        return self._tree

    def _standings(self) -> dict[str, Standing]:
        """What the policy entitles programmes to: their weight, and how far they are below their part of the pool."""
        found: dict[str, Standing] = {}
        for each in self.policy.entitlements:
            part = -(-self.pool.gpus * each.reserved_thousandths // 1000)
            kept = 0
            if part:
                mine = (id for id, book in self._books.items() if book.grant.program_id == each.program_id)
                kept = sum(self.caps.in_use[id] for id in mine)
            found[each.program_id] = Standing(each.weight_thousandths, part - kept)
        return found

    def _usages(self, books: Iterable[GrantBook]) -> dict[str, Usage]:
        """What each party of a running grant used of late and holds."""
        usages: dict[str, Usage] = {}
        for book in books:
            for id, held_gpu_us in book.held_by.items():
                usage = usages.get(id)
                if usage is None:
                    usage = usages[id] = Usage(self._decayed_gpu_us(id), self._weights.get(id, PLAIN))
                    if id not in self.queues:
                        self._queue(id)
                usage.held += held_gpu_us
        return usages

    def _decayed_gpu_us(self, organization_id: str) -> float:
        organization = self._organizations.get(organization_id)
        return usage_gpu_us(organization, self.now_ms, self.policy.half_life_ms) if organization else 0.0

    def reach(self) -> Reach:
        """The clusters and classes that may and may not be used now."""
        known = {
            c for side in (self.fleet.open, self.fleet.shut) for clusters in side.values() for c in clusters
        }
        return reach(self._clusters.values(), known, self._classes_paused, self.policy, self.now_ms)

    def keeps(self, limits_of: Callable[[Job, str], Limits]) -> Iterator[tuple[Job, Room]]:
        """Room kept for jobs that others stop for, longest waiting first; taken till the fleet rolls back.

        `limits_of`: what bookings leave to a job of a class at most, asked when the room before is taken.
        """
        waiting = [self.jobs[id] for id in self._stops_for if id in self.jobs and self.jobs[id].waits]
        for job in sorted(waiting, key=lambda j: (j.submitted_at_ms, j.id)):
            classes = self.queues[job.organization_id].classes_later(job)
            room = keep(job, classes, self._stops_for[job.id].values(), self.fleet, limits_of)
            if room:
                self.fleet.take(room.gpu_class, room.cluster, room.gpus_by_node)
                yield job, room

    def organizations_on(self, grant_id: str, accounts: Sequence[str]) -> list[str]:
        """The grant's parties, and every organization with a grant over one of these accounts."""
        grants = self.balances.grants_on(accounts) | {grant_id}
        return sorted({party for grant in grants for party in self._books[grant].parties})

    def reserve(self, reservation: Reservation) -> None:
        """Keep room for a waiting job from the next cycle on; it waits alone from now on."""
        self.reserved[reservation.job_id] = reservation
        self._requeue(reservation.job_id)

    def drop_reservation(self, job_id: str) -> None:
        """Keep no room for it any more."""
        if self.reserved.pop(job_id, None):
            self._requeue(job_id)

    def drop_reservations(self) -> None:
        """Keep no room for jobs that do not wait, could not pay that class, or for which others are stopped."""
        for job_id, reservation in list(self.reserved.items()):
            job = self.jobs.get(job_id)
            queue = self.queues.get(job.organization_id) if job and job.waits else None
            payable = reservation.gpu_class in queue.classes_kept(job) if queue and job else False
            if not payable or job_id in self._stops_for or not self.policy.reservations:
                del self.reserved[job_id]
                if job and job.waits:
                    self._requeue(job_id)
                    self.judge(job.organization_id)

    def expect(self, job_id: str) -> None:
        """Others are being stopped for this job, if quota agrees: until `expect_nothing` it waits alone."""
        self._expected.add(job_id)
        self._requeue(job_id)

    def expect_nothing(self) -> None:
        """A cycle is over: what it wanted is decided by quota."""
        expected, self._expected = self._expected, set()
        for job_id in sorted(expected):
            self._requeue(job_id)

    def others_stop_for(self, job_id: str) -> bool:
        """Whether attempts are stopped, or are to be, for this job."""
        return job_id in self._stops_for or job_id in self._expected

    def stopped_for(self) -> int:
        """For how many waiting jobs others are stopped, or are to be."""
        return sum(1 for id in {*self._stops_for, *self._expected} if id in self.jobs and self.jobs[id].waits)

    def running_on(self, grant_id: str) -> Mapping[str, Attempt]:
        """The running attempts that draw on a grant and that nobody stops, by id."""
        return self._running_on.get(grant_id, {})

    def attempts(self) -> Iterable[Attempt]:
        """All attempts, ended ones that still matter included."""
        return self._attempts.values()

    def book(self, grant_id: str) -> GrantBook | None:
        """A grant's working copy."""
        return self._books.get(grant_id)

    def tail(self) -> list[tuple[int, str]]:
        """The jobs that may not start for another reason than room, in order of submission, then id."""
        if self._tail_gone or self._tail_new:
            kept = [entry for entry in self._tail if entry not in self._tail_gone]
            self._tail = sorted(kept + self._tail_new)
            self._tail_gone, self._tail_new = set(), []
        return self._tail

    def _list(self, group: Group, payable: bool) -> None:
        if payable and not group.listed:
            self.by_shape.setdefault(group.shape, {})[group] = None
        elif group.listed and not payable:
            groups = self.by_shape[group.shape]
            del groups[group]
            if not groups:
                del self.by_shape[group.shape]
        group.listed = payable

    def _put_class(self, gpu_class: GpuClass) -> None:
        self._classes_paused = (
            self._classes_paused | {gpu_class.id}
            if gpu_class.paused
            else self._classes_paused - {gpu_class.id}
        )
        if self._rates.get(gpu_class.id) != gpu_class.rate_thousandths:
            self._rates[gpu_class.id] = gpu_class.rate_thousandths
            self.dirty.update(self.queues)

    def _put_cluster(self, cluster: Cluster) -> None:
        self._clusters[cluster.id] = cluster

    def _put_node(self, node: Node) -> None:
        self._empty_node(node.id)
        self._pool_moved = self.pool.put(node) or self._pool_moved
        self.fleet.put(node)
        if node.schedulable:
            for gpu_class, capacity in node.capacities.items():
                free = max(0, capacity.total - capacity.foreign - capacity.used)
                self._profile(gpu_class, node.cluster).touch(node.node).free = free

    def _empty_node(self, node_id: str) -> None:
        """Nothing is free on it, whatever its attempts give back."""
        node = self.fleet.node(node_id)
        if node:
            for gpu_class in node.capacities:
                self._profile(gpu_class, node.cluster).touch(node.node).free = 0

    def _profile(self, gpu_class: str, cluster: str) -> Profile:
        profile = self.profiles.get((gpu_class, cluster))
        if profile is None:
            profile = self.profiles[gpu_class, cluster] = Profile()
        return profile

    def _queue(self, organization_id: str) -> Queue:
        queue = self.queues.get(organization_id)
        if queue is None:
            queue = Queue(organization_id, self.policy.gang_first_gpus)
            self.queues[organization_id] = queue
        return queue

    def _put_reservations(self, reservations: Reservations) -> None:
        before, self.reserved = self.reserved, {each.job_id: each for each in reservations.kept}
        for job_id in sorted(before.keys() ^ self.reserved.keys()):
            self._requeue(job_id)

    def _put_booking(self, booking: Booking) -> None:
        self.bookings[booking.id] = booking

    def _put_booked(self, rooms: BookedRooms) -> None:
        self.booked = {room.booking_id: room for room in rooms.kept}

    def _put_policy(self, policy: Policy) -> None:
        before, self.policy = self.policy, policy
        self._weights = dict(policy.organization_weights)
        self._tree = None
        if before.gang_first_gpus != policy.gang_first_gpus:
            self._sort_anew()
        for book in self._books.values():
            book.rewrite(book.grant, policy)
        self.dirty.update(self.queues)

    def _put_grant(self, grant: Grant) -> None:
        book = self._books.get(grant.id)
        before = book.accounts if book else []
        if book:
            if (book.grant.program_id, book.parties) != (grant.program_id, grant.parties):
                self._tree = None
            self._close(book)
            book.rewrite(grant, self.policy)
        else:
            book = self._books[grant.id] = GrantBook(grant, self.policy)
        for party in book.parties:
            self._books_of.setdefault(party, {})[grant.id] = book
        self.balances.put(grant)
        self.dirty.update(self.organizations_on(grant.id, before + book.accounts))

    def _close(self, book: GrantBook) -> None:
        """Nobody may draw on the grant as it was."""
        self.balances.drop(book.grant)
        for party in book.parties:
            del self._books_of[party][book.grant.id]
        self.dirty.update(book.parties)

    def _put_organization(self, organization: Organization) -> None:
        before = self._organizations.get(organization.id)
        self._organizations[organization.id] = organization
        if before is None or _verdict_of(before) != _verdict_of(organization):
            self.dirty.add(organization.id)

    def _put_job(self, job: Job) -> None:
        before = self.jobs.get(job.id)
        if before == job:
            return
        self.jobs[job.id] = job
        if before and before.waits:
            self.queues[before.organization_id].remove(before)
            self.dirty.add(before.organization_id)
            self.gone.add(job.id)
        if job.waits:
            self._queue(job.organization_id).add(job, self._waits_alone(job.id), self.now_ms)
            self.dirty.add(job.organization_id)
            self.gone.discard(job.id)

    def _put_attempt(self, attempt: Attempt) -> None:
        self._forget_stop(attempt.id)
        self._look_at_caps(self.caps.put(attempt))
        self._attempts[attempt.id] = attempt
        self._show(attempt)
        if attempt.stop and attempt.stop.for_job:
            self._stops_for.setdefault(attempt.stop.for_job, {})[attempt.id] = attempt
            self._requeue(attempt.stop.for_job)

    def _drop_attempt(self, attempt_id: str) -> None:
        self._forget_stop(attempt_id)
        self._look_at_caps(self.caps.drop(attempt_id))

    def _look_at_caps(self, counted: Iterable[tuple[str, str, int]]) -> None:
        """The GPUs in use on these grants and of these organizations changed."""
        for grant_id, organization_id, _ in counted:
            book = self._books.get(grant_id)
            if book and book.grant.max_gpus is not None:
                self.dirty.update(book.parties)
            self._look_at_cap(organization_id)

    def _look_at_cap(self, organization_id: str) -> None:
        """What is left below this organization's cap changed: judge it anew if that may bind."""
        queue, organization = self.queues.get(organization_id), self._organizations.get(organization_id)
        if queue is None or organization is None:
            return
        cap = cap_of(organization, self.policy, self.pool)
        if cap is None or queue.gpus_left is None:
            had_none = queue.gpus_left is None
            if (cap is None) != had_none:
                self.dirty.add(organization_id)
        else:
            left = cap - self.caps.used_by[organization_id]
            if queue.is_bound(left):
                self.dirty.add(organization_id)
            queue.gpus_left = left  # what the next pick counts from, judged anew or not

    def _forget_stop(self, attempt_id: str) -> None:
        attempt = self._attempts.pop(attempt_id, None)
        if attempt:
            self._hide(attempt)
        if attempt and attempt.stop and attempt.stop.for_job:
            stops = self._stops_for[attempt.stop.for_job]
            del stops[attempt_id]
            if not stops:
                del self._stops_for[attempt.stop.for_job]
            self._requeue(attempt.stop.for_job)

    def _requeue(self, job_id: str) -> None:
        """Room is, or is no longer, kept for this job: its shape changes."""
        job = self.jobs.get(job_id)
        if job and job.waits:
            queue = self.queues[job.organization_id]
            queue.remove(job)
            queue.add(job, self._waits_alone(job_id), self.now_ms)
            self.dirty.add(job.organization_id)

    def _waits_alone(self, job_id: str) -> bool:
        return job_id in self._stops_for or job_id in self.reserved or job_id in self._expected

    def _sort_anew(self) -> None:
        """Other jobs go first in their grants."""
        waiting = sorted((job for job in self.jobs.values() if job.waits), key=lambda job: job.id)
        gpus = self.policy.gang_first_gpus
        for job in waiting:
            self.queues[job.organization_id].remove(job)
        for queue in self.queues.values():
            queue.gang_first_gpus = gpus
        for job in waiting:
            self.queues[job.organization_id].add(job, self._waits_alone(job.id), self.now_ms)
            self.dirty.add(job.organization_id)

    def _show(self, attempt: Attempt) -> None:
        """Its GPUs come back when it ends."""
        if attempt.state is JobState.RUNNING and attempt.stop is None:
            self._running_on.setdefault(attempt.grant_id, {})[attempt.id] = attempt
        self._remaining.setdefault(attempt.grant_id, Remaining()).add(attempt)
        if attempt.capacity_held:
            ends_ms = NEVER_MS if attempt.ends_at_ms is None else attempt.ends_at_ms
            for (gpu_class, node), gpus in _on_nodes(attempt).items():
                self._profile(gpu_class, attempt.cluster).touch(node).put(attempt.id, ends_ms, gpus)

    def _hide(self, attempt: Attempt) -> None:
        self._remaining[attempt.grant_id].add(attempt, sign=-1)
        self._running_on.get(attempt.grant_id, {}).pop(attempt.id, None)
        for gpu_class, node in _on_nodes(attempt) if attempt.capacity_held else ():
            self._profile(gpu_class, attempt.cluster).touch(node).drop(attempt.id)

    def _bury(self, tombstone: Tombstone) -> None:
        id = tombstone.id
        match tombstone.kind:
            case Kind.GPU_CLASS:
                self._classes_paused -= {id}
                if self._rates.pop(id, None) is not None:
                    self.dirty.update(self.queues)
            case Kind.NODE:
                self._empty_node(id)
                self._pool_moved = self.pool.drop(id) or self._pool_moved
                self.fleet.drop(id)
            case Kind.CLUSTER:
                self._clusters.pop(id, None)
            case Kind.GRANT:
                self._bury_grant(id)
            case Kind.ORGANIZATION:
                self._organizations.pop(id, None)
                self.dirty.add(id)
            case Kind.JOB:
                self._bury_job(id)
            case Kind.ATTEMPT:
                self._drop_attempt(id)
            case Kind.BOOKING:
                self.bookings.pop(id, None)
            case _:
                assert_never(tombstone.kind)

    def _bury_job(self, job_id: str) -> None:
        job = self.jobs.pop(job_id, None)
        if job and job.waits:
            self.queues[job.organization_id].remove(job)
            self.dirty.add(job.organization_id)
            self.gone.add(job_id)

    def _bury_grant(self, grant_id: str) -> None:
        book = self._books.get(grant_id)
        if book is None:
            return
        self._close(book)
        self.dirty.update(self.organizations_on(grant_id, book.accounts))
        del self._books[grant_id]


def _verdict_of(organization: Organization) -> tuple[bool, int | None, int | None]:
    """What may keep all its jobs from starting."""
    return organization.frozen, organization.max_gpus, organization.pool_thousandths


def _on_nodes(attempt: Attempt) -> Counter[tuple[str, str]]:
    """GPUs by (class, node)."""
    found: Counter[tuple[str, str]] = Counter()
    for pod in attempt.pods:
        found[pod.gpu_class, pod.node] += pod.count
    return found
