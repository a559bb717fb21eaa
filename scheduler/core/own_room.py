"""The first stage of a cycle: jobs start in the room that is booked for their organization.

What does not fit into it, or would outlast it, gets room in order like everybody else's jobs.
"""

from collections.abc import Iterator

from scheduler.core.booked import Booked
from scheduler.core.bookings import Laid, may_use
from scheduler.core.groups import Entry, Group
from scheduler.core.picks import Picks
from scheduler.core.placement import Room, choose_room
from scheduler.core.profile import Taken, least_free


def serve_booked(picks: Picks, booked: Booked) -> None:
    """For each booking whose time it is: its organization's jobs, in the order of their submission."""
    now_ms = picks.known.now_ms
    for laid in booked.laid:
        open_to = picks.reach.open_to(laid.booking.gpu_class)
        if laid.is_open(now_ms) and laid.room.gpus_by_node and laid.room.cluster in open_to:
            while _start_next(picks, booked, laid):
                pass


def _start_next(picks: Picks, booked: Booked, laid: Laid) -> bool:
    """Start the first job that fits."""
    for _, group in sorted(_candidates(picks, laid), key=lambda pair: pair[0]):
        room = _room(picks, booked, laid, group)
        if room is None or group.book is None:
            continue
        organization_id = laid.booking.organization_id
        branch = picks.tree.branch(group.book.grant.program_id, organization_id)
        leaf = branch.queue.leaves[group.book.grant.id]
        picks.horizon.rise(group.shape.kept_for)
        picks.known.fleet.take(room.gpu_class, room.cluster, room.gpus_by_node)
        picks.start(branch, leaf, group, room)
        for node, gpus in room.gpus_by_node.items():
            booked.take(laid, node, gpus, group.walltime_ms)
        return True
    return False


def _candidates(picks: Picks, laid: Laid) -> Iterator[tuple[Entry, Group]]:
    """The first job of every group that could pay and may use the room."""
    known, booking = picks.known, laid.booking
    queue = known.queues.get(booking.organization_id)
    over_ms = known.policy.booking_over_ms
    for group in queue.groups.values() if queue else ():
        shape = group.shape
        if group.book is None or group.taken >= len(group.entries) or shape.gpu_class != booking.gpu_class:
            continue
        grant_id = group.book.grant.id
        inside = may_use(booking, grant_id, known.now_ms, group.walltime_ms, over_ms)
        if inside and shape.kept_for not in picks.keeps:
            yield group.entries[group.taken], group


def _room(picks: Picks, booked: Booked, laid: Laid, group: Group) -> Room | None:
    """All its pods on what is left of the booked room, lying to each other as the job says, the fullest nodes first."""
    known, place = picks.known, laid.place
    shelf = known.fleet.open.get(place[0], {}).get(place[1])
    if shelf is None:
        return None
    # of the other nodes it may use nothing
    now_ms, left = known.now_ms, dict.fromkeys(shelf.nodes, 0)
    for node, gpus in laid.room.gpus_by_node.items():
        spare = gpus - laid.used.get(node, 0)
        if node in shelf.nodes and spare > 0:
            taken = Taken([*booked.beside(laid, node), *picks.horizon.picked(place, node)])
            profile = known.profiles[place].nodes[node]
            free = least_free(profile, taken, now_ms, now_ms + group.walltime_ms, now_ms)
            left[node] = max(0, min(spare, free))
    topology = known.jobs[group.entries[group.taken][2]].topology
    return choose_room(group.shape, topology, known.fleet, (place[1],), {place[1]: left})
