"""Small hubs that live with bookings, and what a plan may not do to them, told without the core."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from random import Random

from scheduler.core.model import (
    Attempt,
    BookedRoom,
    BookedRooms,
    Booking,
    Change,
    Grant,
    Job,
    Kind,
    Node,
    Plan,
    Tombstone,
    WaitReason,
)
from scheduler.core.policy import DAY_MS, MINUTE_MS, Policy
from tests.property.core.core_choices import of_class, payable
from tests.property.core.core_promise_faults import ROOM, fits, free_at, gathering, walltime_for
from tests.property.core.core_promises import ORGANIZATIONS, Hub, a_random_hub
from tests.property.core.test_core_property import faults, free_after, usable_clusters

OVERDUE_MS = 60_000


@dataclass
class BookedHub(Hub):
    """A hub in which people book room, use it or not, and cancel."""

    booked: tuple[BookedRoom, ...] = ()
    whole: set[str] = field(default_factory=set)
    """Bookings whose room was, or was to be, there, and to which nothing happened since."""
    numbered: int = 0

    def snapshot(self) -> list[Change]:
        return [*super().snapshot(), BookedRooms(self.booked)]

    def carry_out(self, plan: Plan, refuse: float = 0.0) -> None:
        super().carry_out(plan, refuse)
        self.booked = plan.booked
        self.whole = {room.booking_id for room in plan.booked if not room.released and self._is_whole(room)}

    def _is_whole(self, room: BookedRoom) -> bool:
        nodes = [self.world[Kind.NODE, f"{room.cluster}/{node}"] for node in room.gpus_by_node]
        return not room.short_gpus and all(isinstance(each, Node) and each.schedulable for each in nodes)

    def bookings(self) -> list[Booking]:
        found = [each for each in self.world.values() if isinstance(each, Booking)]
        return sorted(found, key=lambda each: (each.from_ms, each.id))

    def book(self, **given: object) -> Booking:
        rng, self.numbered = self.rng, self.numbered + 1
        gpus, pods = rng.choice(((1, 3), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)))
        from_ms = self.now_ms + rng.choice((0, 10, 60, 120, 300, 1440)) * MINUTE_MS
        booking = Booking(
            id=f"b{self.numbered:02d}",
            organization_id=rng.choice(ORGANIZATIONS),
            gpu_class="h100",
            gpus_per_pod=gpus,
            pods=pods,
            from_ms=from_ms,
            until_ms=from_ms + rng.choice((60, 120, 180, 480)) * MINUTE_MS,
            cluster=rng.choice((None, None, "c1")),
            hold=rng.random() < 0.3,
        )
        if rng.random() < 0.2:
            grants = [g.id for g in self.of(Grant) if g.organization_id == booking.organization_id]
            booking = change(booking, grant_id=rng.choice(grants))
        booking = change(booking, **given)
        self.put(booking)
        return booking

    def disturb(self) -> None:
        roll = self.rng.random()
        if roll < 0.3:
            self.book()
        elif roll < 0.35 and self.bookings():
            self.put(Tombstone(Kind.BOOKING, self.rng.choice(self.bookings()).id))
        elif roll < 0.65:
            for booking in self.bookings():
                if booking.from_ms <= self.now_ms < booking.until_ms:
                    self.submit(booking.organization_id, (booking.gpus_per_pod, 1))
        else:
            super().disturb()

    def next_ms(self) -> int:
        lead_ms = self.policy.booking_lead_ms
        dues = [
            at_ms
            for each in self.bookings()
            for at_ms in (
                each.from_ms - lead_ms,
                each.from_ms,
                each.from_ms + self.policy.booking_unused_ms,
                each.until_ms,
            )
            if at_ms > self.now_ms
        ]
        return min([super().next_ms(), *dues])


def change(booking: Booking, **given: object) -> Booking:
    values: dict[str, object] = {each.name: getattr(booking, each.name) for each in fields(Booking)}
    return Booking(**(values | given))  # type: ignore[arg-type]


def a_booked_hub(rng: Random, policy: Policy | None = None) -> BookedHub:
    """One of the hubs without, and a few bookings."""
    plain = a_random_hub(rng, policy)
    hub = BookedHub(**{each.name: getattr(plain, each.name) for each in fields(Hub)})
    for _ in range(rng.randrange(1, 5)):
        hub.book()
    return hub


# --- what is kept, and for whom ---------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """GPUs on nodes of one cluster that an attempt has, or a start of this plan gets."""

    id: str
    organization: str
    grant: str
    cluster: str
    gpus_by_node: Mapping[str, int]
    begun_ms: int
    ends_ms: int
    walltime_ms: int


def runs(hub: BookedHub, plan: Plan) -> list[Run]:
    found = []
    for attempt in hub.world.values():
        if isinstance(attempt, Attempt) and attempt.capacity_held:
            job = hub.world[Kind.JOB, attempt.job_id]
            assert isinstance(job, Job)
            assert attempt.ends_at_ms is not None
            ends_ms = max(attempt.ends_at_ms, hub.now_ms + OVERDUE_MS)
            walltime_ms = attempt.ends_at_ms - attempt.claimed_at_ms
            found.append(run(attempt.id, job, attempt, attempt.claimed_at_ms, ends_ms, walltime_ms))
    found.sort(key=lambda each: (each.begun_ms, each.id))
    # in the plan's order: whoever is started first takes booked room first
    for start in plan.starts:
        job = hub.world[Kind.JOB, start.job_id]
        assert isinstance(job, Job)
        id, ends_ms = f"{job.id}-{start.attempt}", hub.now_ms + job.walltime_ms
        found.append(run(id, job, start, hub.now_ms, ends_ms, job.walltime_ms))
    return found


def run(id: str, job: Job, of: object, begun_ms: int, ends_ms: int, walltime_ms: int) -> Run:
    gpus: Counter[str] = Counter()
    for pod in of.pods:  # type: ignore[attr-defined]
        if pod.gpu_class == "h100":
            gpus[pod.node] += pod.count
    return Run(
        id, job.organization_id, of.grant_id, of.cluster, gpus, begun_ms, ends_ms, walltime_ms  # type: ignore[attr-defined]
    )  # fmt: skip


def may_be_in(
    hub: BookedHub, booking: Booking, organization: str, grant: str, begun_ms: int, walltime_ms: int
) -> bool:
    return (
        booking.organization_id == organization
        and booking.grant_id in (None, grant)
        and booking.from_ms <= begun_ms
        and begun_ms + walltime_ms <= booking.until_ms + hub.policy.booking_over_ms
    )


FreeAt = Callable[[int], Mapping[tuple[str, str, str], int]]
Spot = tuple[str, str]
"""(cluster, node)"""


class Kept:
    """What rooms leave to others at a moment."""

    def __init__(self, hub: BookedHub, plan: Plan) -> None:
        self.hub = hub
        rooms = {room.booking_id: room for room in plan.booked}
        self.pairs = [(each, rooms[each.id]) for each in hub.bookings() if each.id in rooms]
        self.own: dict[
            tuple[str, str], list[tuple[Run, int]]
        ] = {}  # (booking, node): what each run has of it
        left = {(each.id, node): gpus for each in runs(hub, plan) for node, gpus in each.gpus_by_node.items()}
        every = runs(hub, plan)
        # of several of one organization those that are whole are used first
        for booking, room in sorted(self.pairs, key=lambda pair: pair[1].short_gpus > 0):
            for node, gpus in room.gpus_by_node.items():
                spare = gpus
                for each in every:
                    if each.cluster != room.cluster or not may_be_in(
                        hub, booking, each.organization, each.grant, each.begun_ms, each.walltime_ms
                    ):
                        continue
                    here = min(spare, left.get((each.id, node), 0))
                    if here:
                        spare -= here
                        left[each.id, node] -= here
                        self.own.setdefault((booking.id, node), []).append((each, here))

    def spots(self) -> set[Spot]:
        return {(room.cluster, node) for _, room in self.pairs for node in room.gpus_by_node}

    def promised(self, spot: Spot, at_ms: int, *, whole: bool = False) -> int:
        """What is booked there then; `whole`: leaving out the rooms that are short of something."""
        return sum(
            room.gpus_by_node.get(spot[1], 0)
            for booking, room in self.pairs
            if room.cluster == spot[0] and booking.from_ms <= at_ms < booking.until_ms
            if not (whole and room.short_gpus)
        )

    def used(self, spot: Spot, at_ms: int, *, whole: bool = False) -> int:
        """What of it its own jobs have then."""
        return sum(
            gpus
            for booking, room in self.pairs
            if room.cluster == spot[0] and at_ms < booking.until_ms
            if not (whole and room.short_gpus)
            for each, gpus in self.own.get((booking.id, spot[1]), ())
            if at_ms < each.ends_ms
        )

    def needed(self, spot: Spot, at_ms: int) -> int:
        """What others must leave then, so that they are out in time."""
        lead_ms = self.hub.policy.booking_lead_ms
        begins = [b.from_ms for b, _ in self.pairs if at_ms < b.from_ms <= at_ms + lead_ms]
        return max(self.promised(spot, at) for at in (at_ms, *begins)) - self.used(spot, at_ms)

    def moments(self, from_ms: int, until_ms: int) -> list[int]:
        """From when on more may be needed."""
        lead_ms = self.hub.policy.booking_lead_ms
        begins = {at for b, _ in self.pairs for at in (b.from_ms, b.from_ms - lead_ms)}
        begins |= {each.ends_ms for own in self.own.values() for each, _ in own}
        return [from_ms, *sorted(at for at in begins if from_ms < at < until_ms)]


# --- faults -----------------------------------------------------------------------------------------


def booking_faults(hub: BookedHub, plan: Plan, plain: bool) -> list[str]:
    """Of one plan before it is carried out. `plain`: of a policy without reservations and preemption."""
    kept = Kept(hub, plan)
    return [
        *general(hub, plan, kept),
        *trespassers(hub, plan, kept),
        *wrong_rooms(hub, plan, kept),
        *lost_rooms(hub, plan),
        *wrong_releases(hub, plan, kept),
        *own_jobs_out(hub, plan, kept),
        *reserved_over(hub, plan, kept),
        *(idle_beside(hub, plan, kept) if plain else ()),
    ]


def general(hub: BookedHub, plan: Plan, kept: Kept) -> list[str]:
    """Faults of any plan; into booked room its own jobs go before those of programmes below their reserved part."""
    own = {each.id.rpartition("-")[0] for pairs in kept.own.values() for each, _ in pairs}
    first = tuple(f" was owed its room before {id}" for id in own)
    return [fault for fault in faults(hub.world, plan, hub.now_ms) if not fault.endswith(first)]


def trespassers(hub: BookedHub, plan: Plan, kept: Kept) -> list[str]:
    """Starts of others that run into booked room."""
    found = []
    free = memo(lambda at_ms: free_at(hub, plan, (), at_ms))
    own = {each.id for pairs in kept.own.values() for each, _ in pairs}
    for start in plan.starts:
        job = hub.world[Kind.JOB, start.job_id]
        assert isinstance(job, Job)
        if start.pods[0].gpu_class != "h100" or f"{job.id}-{start.attempt}" in own:
            continue
        for node in {pod.node for pod in start.pods}:
            spot = start.cluster, node
            moments = kept.moments(hub.now_ms, hub.now_ms + job.walltime_ms)
            found += [
                f"{job.id} is in booked room on {spot} at {at_ms}"
                for at_ms in moments
                if free(at_ms)[(*spot, "h100")] < kept.needed(spot, at_ms)
            ]
    return found


def wrong_rooms(hub: BookedHub, plan: Plan, kept: Kept) -> list[str]:
    """Rooms of the wrong size or in the wrong place, and those said to be whole that will not be there."""
    now_ms, rooms = hub.now_ms, Counter(room.booking_id for room in plan.booked)
    found = [f"{n} rooms for {id}" for id, n in rooms.items() if n > 1]
    for booking in hub.bookings():
        near = now_ms < booking.until_ms and booking.from_ms < now_ms + 28 * DAY_MS
        if near and booking.id not in rooms:
            found.append(f"no room for {booking.id}")
    free = memo(lambda at_ms: free_at(hub, plan, (), at_ms))
    for booking, room in kept.pairs:
        if room.released:
            found += [f"released and kept: {room}"] if room.gpus_by_node else []
            continue
        used = {node for id, node in kept.own if id == booking.id}
        wrong = {
            "in another cluster": bool(room.gpus_by_node) and booking.cluster not in (None, room.cluster),
            "too large": sum(room.gpus_by_node.values()) > booking.gpus,
            "pods do not fit": any(
                gpus % booking.gpus_per_pod for node, gpus in room.gpus_by_node.items() if node not in used
            ),
            "not whole": not room.short_gpus and not used and sum(room.gpus_by_node.values()) != booking.gpus,
        }
        found += [f"{fault}: {room}" for fault, is_so in wrong.items() if is_so]
        found += not_there(hub, kept, booking, room, used, free) if not room.short_gpus else []
    return found


def not_there(
    hub: BookedHub, kept: Kept, booking: Booking, room: BookedRoom, used: set[str], free: FreeAt
) -> list[str]:
    """Nodes that will not have what this whole room says, those on which its own jobs run let be."""
    found = []
    for node in room.gpus_by_node:
        there, spot = hub.world[Kind.NODE, f"{room.cluster}/{node}"], (room.cluster, node)
        assert isinstance(there, Node)
        if not there.schedulable:
            found += [] if node in used else [f"on a lost node: {room}"]
            continue
        for at_ms in kept.moments(max(hub.now_ms, booking.from_ms), booking.until_ms):
            needed = kept.promised(spot, at_ms, whole=True) - kept.used(spot, at_ms, whole=True)
            if free(at_ms)[(*spot, "h100")] < needed:
                found.append(f"not there at {at_ms}: {room}")
    return found


def lost_rooms(hub: BookedHub, plan: Plan) -> list[str]:
    """Rooms that were whole and are not, although no node went and nobody overran."""
    overran = [
        each
        for each in hub.world.values()
        if isinstance(each, Attempt) and each.capacity_held and (each.ends_at_ms or 0) <= hub.now_ms
    ]
    if hub.disturbed or overran:
        return []
    return [f"lost: {room}" for room in plan.booked if room.short_gpus and room.booking_id in hub.whole]


def wrong_releases(hub: BookedHub, plan: Plan, kept: Kept) -> list[str]:
    """Rooms released too early, though used or to be held, and those that should be."""
    found = []
    before = {room.booking_id: room for room in hub.booked}
    for booking, room in kept.pairs:
        was = before.get(booking.id)
        due = hub.now_ms >= booking.from_ms + hub.policy.booking_unused_ms and not booking.hold
        used = (was is not None and was.used) or room.used
        if room.released and not (was and was.released) and (used or not due):
            found.append(f"released: {room}")
        if not room.released and ((was and was.released) or (due and not used)):
            found.append(f"not released: {room}")
        if was and was.used and not room.used:
            found.append(f"forgot that it was used: {room}")
        nodes = was.gpus_by_node if was and was.cluster == room.cluster else {}
        mine = [
            each
            for (id, node), pairs in kept.own.items()
            if id == booking.id and node in nodes
            for each, _ in pairs
        ]
        if any(each.begun_ms < hub.now_ms for each in mine) and not room.used:
            found.append(f"in use and not said so: {room}")
    return found


def own_jobs_out(hub: BookedHub, plan: Plan, kept: Kept) -> list[str]:
    """Jobs that wait for room while that booked for them is whole, in its time, and has enough left."""
    found = []
    free = free_after(hub.world, plan)
    for booking, room in kept.pairs:
        open_to = usable_clusters(hub.world, "h100", hub.now_ms)
        is_open = booking.from_ms <= hub.now_ms < booking.until_ms and not room.short_gpus
        if not is_open or room.cluster not in open_to:
            continue
        left = {}
        for node, gpus in room.gpus_by_node.items():
            there = hub.world[Kind.NODE, f"{room.cluster}/{node}"]
            assert isinstance(there, Node)
            used = sum(here for _, here in kept.own.get((booking.id, node), ()))
            if there.schedulable:
                key = room.cluster, node, "h100"
                left[key] = max(0, min(gpus - used, free[key]))
        for id, reason in plan.reasons.items():
            job = hub.world[Kind.JOB, id]
            assert isinstance(job, Job)
            mine = job.organization_id == booking.organization_id and booking.grant_id is None
            able = [each for each in payable(hub, plan, job) if each.gpu_class == "h100"]
            if not mine or reason.code not in {*ROOM, WaitReason.BOOKED} or not able:
                continue
            stopping = {stop.for_job for stop in plan.stops} | gathering(hub, plan)
            ends_in_time = hub.now_ms + job.walltime_ms <= booking.until_ms
            if ends_in_time and id not in stopping and fits(hub, able[0], left):
                found.append(f"{id} waits beside its booked room: {reason}")
    return found


def reserved_over(hub: BookedHub, plan: Plan, kept: Kept) -> list[str]:
    """New reservations in booked room."""
    found, started = [], {start.job_id for start in plan.starts}
    waiting = [each for each in plan.reservations if each.job_id not in started]
    free = memo(lambda at_ms: free_at(hub, plan, waiting, at_ms))
    for each in plan.reservations:
        job = hub.world[Kind.JOB, each.job_id]
        assert isinstance(job, Job)
        if each in hub.reservations or each.job_id in started or each.gpu_class != "h100":
            continue
        for node in each.gpus_by_node:
            spot = each.cluster, node
            moments = kept.moments(each.starts_at_ms, each.starts_at_ms + job.walltime_ms)
            found += [
                f"reserved in booked room at {at_ms}: {each}"
                for at_ms in moments
                if free(at_ms).get((*spot, each.gpu_class), 0) < kept.needed(spot, at_ms)
            ]
    return found


def idle_beside(hub: BookedHub, plan: Plan, kept: Kept) -> list[str]:
    """Jobs that wait beside room that they may use, and those told of a booking that is in nobody's way."""
    found, now = [], free_after(hub.world, plan)
    for id, reason in plan.reasons.items():
        job = hub.world[Kind.JOB, id]
        assert isinstance(job, Job)
        able = payable(hub, plan, job)
        told = of_class(job, str(reason.numbers.get("gpu_class", job.gpu_class)))
        if reason.code is WaitReason.BOOKED and (told is None or not fits(hub, told, now)):
            found.append(f"{id} would not fit without bookings: {reason}")
        elif reason.code in (WaitReason.BOOKED, WaitReason.BEHIND_IN_ORDER) or job.fallbacks:
            # of what bookings leave, the start that it is behind may have taken the rest; of several classes it is
            # told of one, and another may be booked
            room = reason.code in ROOM or reason.code is WaitReason.BOOKED
            if room and any(fits(hub, each, beside(hub, plan, kept, each)) for each in able):
                found.append(f"{id} would be in no booking's way: {reason}")
        elif reason.code in ROOM and fits(hub, job, now):
            found.append(f"{id} waits beside room: {reason}")
    return found


def beside(hub: BookedHub, plan: Plan, kept: Kept, job: Job) -> dict[tuple[str, str, str], int]:
    """What the bookings leave to a job over its walltime."""
    left = dict(free_after(hub.world, plan))
    if job.gpu_class == "h100":
        for at_ms in kept.moments(hub.now_ms, hub.now_ms + walltime_for(job, now=True)):
            then = free_at(hub, plan, (), at_ms)
            for spot in kept.spots():
                key = (*spot, "h100")
                left[key] = min(left.get(key, 0), then.get(key, 0) - kept.needed(spot, at_ms))
    return left


def memo(ask: FreeAt) -> FreeAt:
    known: dict[int, Mapping[tuple[str, str, str], int]] = {}

    def asked(at_ms: int) -> Mapping[tuple[str, str, str], int]:
        if at_ms not in known:
            known[at_ms] = ask(at_ms)
        return known[at_ms]

    return asked


def events(plan: Plan, hub: BookedHub) -> Iterator[str]:
    """What happened, for the test that says that something did."""
    kept = Kept(hub, plan)
    started = {f"{start.job_id}-{start.attempt}" for start in plan.starts}
    for room in plan.booked:
        yield from (name for name in ("used", "released", "short_gpus") if getattr(room, name))
    yield from ("own start" for pairs in kept.own.values() for each, _ in pairs if each.id in started)
    yield from ("kept out" for each in plan.reasons.values() if each.code is WaitReason.BOOKED)
