"""Everything the core knows, with the indexes that make a cycle cheap. Only `cycle.decide` works on it."""

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from scheduler.core.attempts import Attempts
from scheduler.core.backfill import Place
from scheduler.core.capping import Ceiling, Pool, cap_of
from scheduler.core.entitlement import Balances, Caps, GrantBook, usage_gpu_us
from scheduler.core.fit import FitKey, Fleet, Shape
from scheduler.core.groups import Group
from scheduler.core.model import (
    BookedRoom,
    Booking,
    Cluster,
    Job,
    Organization,
    Pace,
    Reason,
    Reservation,
)
from scheduler.core.order import Tree
from scheduler.core.placement import Limits, Room, keep
from scheduler.core.policy import Policy
from scheduler.core.profile import Profile
from scheduler.core.ranks import PLAIN, Floor, Standing, Usage
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
        self.weights: dict[str, int] = {}  # of the organizations that have one of their own
        self.served: set[str] = set()  # jobs that this cycle started in room that others stop for
        self.by_shape: dict[Shape, dict[Group, None]] = {}  # groups that could pay, an ordered set
        # the same shapes by class and by what fits alike, the shortest first
        self.alike: dict[str, dict[FitKey, list[Shape]]] = {}
        self.choices = 0  # how many of them are of jobs that accept several classes
        self.reasons: dict[str, Reason] = {}  # as last told, by job
        self.shape_reasons: dict[Shape, Reason] = {}  # as last told
        self.behind: dict[str, tuple[Group, Reason]] = {}  # jobs last told that a pick took their room
        self.gone: set[str] = set()  # jobs that stopped waiting since the last cycle
        self.dirty: set[str] = set()  # organizations to judge anew
        self.moved: set[str] = set()  # organizations of which only jobs and money came and went
        self.rates: dict[str, int] = {}
        self.classes_paused: frozenset[str] = frozenset()
        self.clusters: dict[str, Cluster] = {}
        self.organizations: dict[str, Organization] = {}
        self.books: dict[str, GrantBook] = {}
        self.books_of: dict[str, dict[str, GrantBook]] = {}  # by party
        self._in_order: list[tuple[str, GrantBook]] | None = None  # by id
        self._tree: Tree | None = None  # while the same grants run
        self._tail: list[tuple[int, str]] = []
        self._tail_gone: set[tuple[int, str]] = set()
        self._tail_new: list[tuple[int, str]] = []
        self.profiles: dict[Place, Profile] = defaultdict(Profile)
        self.attempts = Attempts(self.profiles)
        self.reserved: dict[str, Reservation] = {}  # by job, in the order in which they were made
        self.has_new_reservations = False
        self.bookings: dict[str, Booking] = {}
        self.booked: dict[str, BookedRoom] = {}  # by booking, as laid out last
        self._expected: set[str] = set()  # jobs that this cycle stops others for
        self.pool_moved = False

    def judge(self, organization_id: str) -> None:
        """Decide anew which of an organization's jobs could pay, and from what."""
        queue = self.queues.get(organization_id)
        if queue is None:
            return
        for group in queue.sweep():
            self._list(group, False)
        tail = queue.tail
        decided = queue.judge(
            self.organizations.get(organization_id),
            list(self.books_of.get(organization_id, {}).values()),
            self.rates,
            self.balances,
            self.caps,
            self.policy.walltime_step_ms,
            self.now_ms,
            self._ceiling(organization_id),
        )
        for group in decided:
            self._list(group, group.book is not None)
        if queue.tail != tail:
            was, now = set(tail), set(queue.tail)
            self._tail_gone |= was - now
            self._tail_new += now - was

    def _ceiling(self, organization_id: str) -> Ceiling | None:
        """Its cap with what is in use below it; None while it has none."""
        organization = self.organizations.get(organization_id)
        cap = cap_of(organization, self.policy, self.pool) if organization else None
        if cap is None:
            return None
        used = self.caps.used_by[organization_id]
        return Ceiling(organization_id, cap, used, self._claims(organization_id))

    def _claims(self, organization_id: str) -> dict[str, int]:
        """Its waiting jobs for which others are stopped, longest waiting first, with their GPUs."""
        found = [
            job
            for id in {*self.attempts.stops_for, *self._expected}
            if (job := self.jobs.get(id))
            and job.waits
            and job.organization_id == organization_id
            and id not in self.served
        ]
        return {job.id: job.gpus for job in sorted(found, key=lambda job: (job.submitted_at_ms, job.id))}

    def narrow(self, organization_id: str) -> None:
        """A pick took from an organization's balances alone: judge what it can no longer pay from where it would."""
        queue = self.queues[organization_id]
        books = list(self.books_of.get(organization_id, {}).values())
        step_ms = self.policy.walltime_step_ms
        for group in queue.narrow(books, self.rates, self.balances, self.caps, step_ms, self.now_ms):
            self._list(group, group.book is not None)

    def pace(self) -> tuple[list[GrantBook], dict[str, Pace]]:
        """Bring every running grant's lag to now."""
        books, paces, now_ms = list[GrantBook](), dict[str, Pace](), self.now_ms
        if self._in_order is None:
            self._in_order = sorted(self.books.items())
        for grant_id, book in self._in_order:
            if book.runs(now_ms):
                books.append(book)
                paces[grant_id] = book.advance(now_ms, self._waiting_since_ms)
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

    def sort_anew(self) -> None:
        """There is a grant more, or one less."""
        self._in_order = None

    def grow_anew(self) -> None:
        """Other grants, or another policy, rank from now on."""
        self._tree = None

    def _standings(self) -> dict[str, Standing]:
        """What the policy entitles programmes to: their weight, and how far they are below their part of the pool."""
        found: dict[str, Standing] = {}
        for each in self.policy.entitlements:
            part = -(-self.pool.gpus * each.reserved_thousandths // 1000)
            kept = 0
            if part:
                mine = (id for id, book in self.books.items() if book.grant.program_id == each.program_id)
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
                    usages[id] = Usage(self._decayed_gpu_us(id), self.weights.get(id, PLAIN), held_gpu_us)
                    if id not in self.queues:
                        self.queue(id)
                else:
                    usage.held += held_gpu_us
        return usages

    def _decayed_gpu_us(self, organization_id: str) -> float:
        organization = self.organizations.get(organization_id)
        return usage_gpu_us(organization, self.now_ms, self.policy.half_life_ms) if organization else 0.0

    def reach(self) -> Reach:
        """The clusters and classes that may and may not be used now."""
        known = {
            c for side in (self.fleet.open, self.fleet.shut) for clusters in side.values() for c in clusters
        }
        return reach(self.clusters.values(), known, self.classes_paused, self.policy, self.now_ms)

    def keeps(self, limits_of: Callable[[Job, str], Limits]) -> Iterator[tuple[Job, Room]]:
        """Room kept for jobs that others stop for, longest waiting first; taken till the fleet rolls back.

        `limits_of`: what bookings leave to a job of a class at most, asked when the room before is taken.
        """
        waiting = [self.jobs[id] for id in self.attempts.stops_for if id in self.jobs and self.jobs[id].waits]
        for job in sorted(waiting, key=lambda j: (j.submitted_at_ms, j.id)):
            classes = self.queues[job.organization_id].classes_later(job)
            room = keep(job, classes, self.attempts.stops_for[job.id].values(), self.fleet, limits_of)
            if room:
                self.fleet.take(room.gpu_class, room.cluster, room.gpus_by_node)
                yield job, room

    def organizations_on(self, grant_id: str, accounts: Sequence[str]) -> list[str]:
        """The grant's parties, and every organization with a grant over one of these accounts."""
        grants = self.balances.grants_on(accounts) | {grant_id}
        return sorted({party for grant in grants for party in self.books[grant].parties})

    def reserve(self, reservation: Reservation) -> None:
        """Keep room for a waiting job from the next cycle on; it waits alone from now on."""
        self.reserved[reservation.job_id] = reservation
        self.requeue(reservation.job_id)

    def drop_reservation(self, job_id: str) -> None:
        """Keep no room for it any more."""
        if self.reserved.pop(job_id, None):
            self.requeue(job_id)

    def drop_reservations(self, judged: Container[str]) -> None:
        """Keep no room for jobs that do not wait, could not pay that class, or for which others are stopped.

        `judged`: the organizations of which that may have changed.
        """
        look_at_all, self.has_new_reservations = self.has_new_reservations, False
        for job_id, reservation in list(self.reserved.items()):
            job = self.jobs.get(job_id)
            if job and job.waits and not look_at_all and job.organization_id not in judged:
                continue
            queue = self.queues.get(job.organization_id) if job and job.waits else None
            payable = reservation.gpu_class in queue.classes_kept(job) if queue and job else False
            if not payable or job_id in self.attempts.stops_for or not self.policy.reservations:
                del self.reserved[job_id]
                if job and job.waits:
                    self.requeue(job_id)
                    self.judge(job.organization_id)

    def expect(self, job_id: str) -> None:
        """Others are being stopped for this job, if quota agrees: until `expect_nothing` it waits alone."""
        self._expected.add(job_id)
        self.requeue(job_id)

    def expect_nothing(self) -> None:
        """A cycle is over: what it wanted is decided by quota."""
        expected, self._expected = self._expected, set()
        for job_id in sorted(expected):
            self.requeue(job_id)

    def others_stop_for(self, job_id: str) -> bool:
        """Whether attempts are stopped, or are to be, for this job."""
        return job_id in self.attempts.stops_for or job_id in self._expected

    def stopped_for(self) -> int:
        """For how many waiting jobs others are stopped, or are to be."""
        return sum(
            1 for id in {*self.attempts.stops_for, *self._expected} if id in self.jobs and self.jobs[id].waits
        )

    def book(self, grant_id: str) -> GrantBook | None:
        """A grant's working copy."""
        return self.books.get(grant_id)

    def tail(self) -> list[tuple[int, str]]:
        """The jobs that may not start for another reason than room, in order of submission, then id."""
        if self._tail_gone or self._tail_new:
            kept = [entry for entry in self._tail if entry not in self._tail_gone]
            self._tail = sorted(kept + self._tail_new)
            self._tail_gone, self._tail_new = set(), []
        return self._tail

    def _list(self, group: Group, payable: bool) -> None:
        shape = group.shape
        if payable and not group.listed:
            if shape not in self.by_shape:
                self.by_shape[shape] = {}
                self.choices += bool(shape.classes)
                insort(self.alike.setdefault(shape.gpu_class, {}).setdefault(shape[:5], []), shape, key=_span)
            self.by_shape[shape][group] = None
        elif group.listed and not payable:
            groups = self.by_shape[shape]
            del groups[group]
            if not groups:
                del self.by_shape[shape]
                self.choices -= bool(shape.classes)
                alike = self.alike[shape.gpu_class]
                alike[shape[:5]].remove(shape)
                if not alike[shape[:5]]:
                    del alike[shape[:5]]
        group.listed = payable

    def queue(self, organization_id: str) -> Queue:
        queue = self.queues.get(organization_id)
        if queue is None:
            queue = Queue(organization_id, self.policy.gang_first_gpus, self.policy.larger_gangs_first)
            self.queues[organization_id] = queue
        return queue

    def requeue(self, job_id: str) -> None:
        """Room is, or is no longer, kept for this job: its shape changes."""
        job = self.jobs.get(job_id)
        if job and job.waits:
            queue = self.queues[job.organization_id]
            queue.remove(job)
            queue.add(job, self.waits_alone(job_id), self.now_ms)
            self.dirty.add(job.organization_id)

    def waits_alone(self, job_id: str) -> bool:
        return job_id in self.attempts.stops_for or job_id in self.reserved or job_id in self._expected


def _span(shape: Shape) -> int:
    return shape.span_ms
