"""What each change does to what is known, and whom it lets be judged anew."""

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from scheduler.core.capping import cap_of
from scheduler.core.entitlement import GrantBook
from scheduler.core.model import (
    Attempt,
    BookedRooms,
    Booking,
    Change,
    Cluster,
    GpuClass,
    Grant,
    Job,
    Kind,
    Node,
    Organization,
    Reservations,
    Tombstone,
)
from scheduler.core.policy import Policy
from scheduler.core.state import Knowledge


def take_in(known: Knowledge, changes: Iterable[Change], now_ms: int) -> set[str]:
    """Take the changes, then judge every organization whose answer may differ. Returns their ids."""
    assert now_ms >= known.now_ms, f"time ran backwards: {known.now_ms} -> {now_ms}"
    known.now_ms = now_ms
    for change in known.spare.sift(changes, now_ms):
        _PUT[type(change)](known, change)
    if known.pool_moved:
        known.pool_moved = False
        for organization_id in known.queues:
            _look_at_cap(known, organization_id)
    due = known.dirty | {id for id, queue in known.queues.items() if queue.until_ms <= now_ms}
    # where only jobs and money came and went most verdicts stand
    for organization_id in known.moved - due:
        queue = known.queues.get(organization_id)
        if queue and not queue.settle(known.balances):
            due.add(organization_id)
    for organization_id in sorted(due):
        known.judge(organization_id)
    judged = due | known.moved
    known.dirty, known.moved = set(), set()
    return judged


def _put_class(known: Knowledge, gpu_class: GpuClass) -> None:
    known.classes_paused = (
        known.classes_paused | {gpu_class.id} if gpu_class.paused else known.classes_paused - {gpu_class.id}
    )
    if known.rates.get(gpu_class.id) != gpu_class.rate_thousandths:
        known.rates[gpu_class.id] = gpu_class.rate_thousandths
        known.dirty.update(known.queues)


def _put_cluster(known: Knowledge, cluster: Cluster) -> None:
    known.clusters[cluster.id] = cluster


def _put_node(known: Knowledge, node: Node) -> None:
    _empty_node(known, node.id)
    known.pool_moved = known.pool.put(node) or known.pool_moved
    known.fleet.put(node)
    if node.schedulable:
        for gpu_class, capacity in node.capacities.items():
            free = max(0, capacity.total - capacity.foreign - capacity.used)
            known.profiles[gpu_class, node.cluster].touch(node.node).free = free


def _empty_node(known: Knowledge, node_id: str) -> None:
    """Nothing is free on it, whatever its attempts give back."""
    node = known.fleet.node(node_id)
    if node:
        for gpu_class in node.capacities:
            known.profiles[gpu_class, node.cluster].touch(node.node).free = 0


def _put_reservations(known: Knowledge, reservations: Reservations) -> None:
    before, known.reserved = known.reserved, {each.job_id: each for each in reservations.kept}
    known.has_new_reservations = True
    for job_id in sorted(before.keys() ^ known.reserved.keys()):
        known.requeue(job_id)


def _put_booking(known: Knowledge, booking: Booking) -> None:
    known.bookings[booking.id] = booking


def _put_booked(known: Knowledge, rooms: BookedRooms) -> None:
    known.booked = {room.booking_id: room for room in rooms.kept}


def _put_policy(known: Knowledge, policy: Policy) -> None:
    before, known.policy = known.policy, policy
    known.weights = dict(policy.organization_weights)
    known.grow_anew()
    was, now = ((each.gang_first_gpus, each.larger_gangs_first) for each in (before, policy))
    if was != now:
        _sort_anew(known)
    for book in known.books.values():
        book.rewrite(book.grant, policy)
    known.dirty.update(known.queues)


def _sort_anew(known: Knowledge) -> None:
    """Other jobs go first in their grants."""
    waiting = sorted((job for job in known.jobs.values() if job.waits), key=lambda job: job.id)
    gpus, larger_first = known.policy.gang_first_gpus, known.policy.larger_gangs_first
    for job in waiting:
        known.queues[job.organization_id].remove(job)
    for queue in known.queues.values():
        queue.gang_first_gpus, queue.larger_gangs_first = gpus, larger_first
    for job in waiting:
        known.queues[job.organization_id].add(job, known.waits_alone(job.id), known.now_ms)
        known.dirty.add(job.organization_id)


def _put_grant(known: Knowledge, grant: Grant) -> None:
    book = known.books.get(grant.id)
    if book and book.differs_in_amounts(grant):
        book.rewrite_amounts(grant)
        known.balances.put(grant)
        known.moved.update(known.organizations_on(grant.id, book.accounts))
        return
    before = book.accounts if book else []
    if book:
        if (book.grant.program_id, book.parties) != (grant.program_id, grant.parties):
            known.grow_anew()
        _close(known, book)
        book.rewrite(grant, known.policy)
    else:
        remaining = known.attempts.remaining_on(grant.id)
        book = known.books[grant.id] = GrantBook(grant, known.policy, remaining)
        known.sort_anew()
    for party in book.parties:
        known.books_of.setdefault(party, {})[grant.id] = book
    known.balances.put(grant)
    known.dirty.update(known.organizations_on(grant.id, before + book.accounts))


def _close(known: Knowledge, book: GrantBook) -> None:
    """Nobody may draw on the grant as it was."""
    known.balances.drop(book.grant)
    for party in book.parties:
        del known.books_of[party][book.grant.id]
    known.dirty.update(book.parties)


def _put_organization(known: Knowledge, organization: Organization) -> None:
    before = known.organizations.get(organization.id)
    known.organizations[organization.id] = organization
    if before is None or _verdict_of(before) != _verdict_of(organization):
        known.dirty.add(organization.id)


def _put_job(known: Knowledge, job: Job) -> None:
    before = known.jobs.get(job.id)
    if before == job:
        return
    known.jobs[job.id] = job
    if before and before.waits:
        known.queues[before.organization_id].remove(before)
        _look_at_jobs(known, before)
        known.gone.add(job.id)
    if job.waits:
        known.queue(job.organization_id).add(job, known.waits_alone(job.id), known.now_ms)
        _look_at_jobs(known, job)
        known.gone.discard(job.id)


def _look_at_jobs(known: Knowledge, job: Job) -> None:
    """This job waits, or does no longer; if room is kept for it, that matters to others below the same cap."""
    organizations = known.dirty if known.waits_alone(job.id) else known.moved
    organizations.add(job.organization_id)


def _put_attempt(known: Knowledge, attempt: Attempt) -> None:
    before = known.attempts.put(attempt)
    _look_at_caps(known, known.caps.put(attempt))
    _look_at_room(known, before)
    _look_at_room(known, attempt)


def _drop_attempt(known: Knowledge, attempt_id: str) -> None:
    before = known.attempts.drop(attempt_id)
    _look_at_caps(known, known.caps.drop(attempt_id))
    _look_at_room(known, before)


def _look_at_room(known: Knowledge, attempt: Attempt | None) -> None:
    """This attempt is, or was, stopped for a job."""
    if attempt and attempt.stop and attempt.stop.for_job:
        known.requeue(attempt.stop.for_job)


def _look_at_caps(known: Knowledge, counted: Iterable[tuple[str, str, int]]) -> None:
    """The GPUs in use on these grants and of these organizations changed."""
    for grant_id, organization_id, _ in counted:
        book = known.books.get(grant_id)
        if book and book.grant.max_gpus is not None:
            known.dirty.update(book.parties)
        _look_at_cap(known, organization_id)


def _look_at_cap(known: Knowledge, organization_id: str) -> None:
    """What is left below this organization's cap changed: judge it anew if that may bind."""
    queue, organization = known.queues.get(organization_id), known.organizations.get(organization_id)
    if queue is None or organization is None:
        return
    cap = cap_of(organization, known.policy, known.pool)
    if cap is None or queue.gpus_left is None:
        had_none = queue.gpus_left is None
        if (cap is None) != had_none:
            known.dirty.add(organization_id)
    else:
        left = cap - known.caps.used_by[organization_id]
        if queue.is_bound(left):
            known.dirty.add(organization_id)
        queue.gpus_left = left  # what the next pick counts from, judged anew or not


def _bury(known: Knowledge, tombstone: Tombstone) -> None:
    id = tombstone.id
    match tombstone.kind:
        case Kind.GPU_CLASS:
            known.classes_paused -= {id}
            if known.rates.pop(id, None) is not None:
                known.dirty.update(known.queues)
        case Kind.NODE:
            _empty_node(known, id)
            known.pool_moved = known.pool.drop(id) or known.pool_moved
            known.fleet.drop(id)
        case Kind.CLUSTER:
            known.clusters.pop(id, None)
        case Kind.GRANT:
            _bury_grant(known, id)
        case Kind.ORGANIZATION:
            known.organizations.pop(id, None)
            known.dirty.add(id)
        case Kind.JOB:
            _bury_job(known, id)
        case Kind.ATTEMPT:
            _drop_attempt(known, id)
        case Kind.BOOKING:
            known.bookings.pop(id, None)
        case _:
            assert_never(tombstone.kind)


def _bury_job(known: Knowledge, job_id: str) -> None:
    job = known.jobs.pop(job_id, None)
    if job and job.waits:
        known.queues[job.organization_id].remove(job)
        _look_at_jobs(known, job)
        known.gone.add(job_id)


def _bury_grant(known: Knowledge, grant_id: str) -> None:
    book = known.books.get(grant_id)
    if book is None:
        return
    _close(known, book)
    known.dirty.update(known.organizations_on(grant_id, book.accounts))
    del known.books[grant_id]
    known.sort_anew()


def _verdict_of(organization: Organization) -> tuple[bool, int | None, int | None]:
    """What may keep all its jobs from starting."""
    return organization.frozen, organization.max_gpus, organization.pool_thousandths


_PUT: Mapping[type, Callable[..., None]] = {
    GpuClass: _put_class,
    Node: _put_node,
    Cluster: _put_cluster,
    Grant: _put_grant,
    Organization: _put_organization,
    Job: _put_job,
    Attempt: _put_attempt,
    Policy: _put_policy,
    Reservations: _put_reservations,
    Booking: _put_booking,
    BookedRooms: _put_booked,
    Tombstone: _bury,
}
