"""What is idle goes to opportunistic jobs, organization by organization in turns. For `opportunistic`."""

from collections import Counter
from collections.abc import Mapping

from scheduler.core.entitlement import decayed
from scheduler.core.fit import Shape, Shelf
from scheduler.core.leaving import Ground, shape_of
from scheduler.core.model import Fund, Job, Reason, Start, Topology, WaitReason
from scheduler.core.picks import Picks
from scheduler.core.placement import Room, pods_of, wishes_of
from scheduler.core.reasons import explain, with_others
from scheduler.core.spare import Spare, Spot

_ROOM = frozenset({WaitReason.NO_FREE_GPU, WaitReason.NO_NODE_FITS})


class Turns:
    """The opportunistic jobs of a cycle: whose organization used least of late goes first, each pick counts."""

    def __init__(self, cycle: Picks, spare: Spare, ground: Ground) -> None:
        self._cycle, self._spare, self._ground = cycle, spare, ground
        self.waiting: dict[str, Reason] = {}
        self._left: dict[str, int] = {id: fund.account.left_gpu_us for id, fund in spare.funds.items()}
        self._in_use: Counter[str] = Counter()
        self._usage: dict[str, float] = {}
        self._held: Counter[str] = Counter()  # by organization, of open attempts and this cycle's picks
        self._full: dict[Shape, Reason] = {}
        self._unmet: set[Shape] = set()  # preferences for which there is no room any more
        self._given: Counter[Spot] = Counter()  # by this cycle's picks
        now_ms, half_life_ms = cycle.known.now_ms, cycle.known.policy.half_life_ms
        for each in spare.organizations.values():
            since_ms, used = each.opportunistic_as_of_ms, each.opportunistic_usage_gpu_us
            self._usage[each.id] = decayed(used, since_ms, now_ms, half_life_ms)
        for attempt in spare.attempts.values():
            self._in_use[attempt.grant_id] += attempt.gpus_held
            self._held[attempt.organization_id] += attempt.cost_gpu_us

    def serve(self) -> list[Start]:
        """Start job after job. What it takes counts for the next one."""
        starts: list[Start] = []
        queues: dict[str, list[Job]] = {}
        for job in sorted(
            self._spare.jobs.values(), key=lambda job: (job.submitted_at_ms, job.id), reverse=True
        ):
            if job.waits:
                queues.setdefault(job.organization_id, []).append(job)
        told: dict[str, tuple[Job, Reason]] = {}
        while queues:
            organization_id = min(queues, key=lambda id: (self._of_late(id), _next(queues[id])))
            job = queues[organization_id].pop()
            if not queues[organization_id]:
                del queues[organization_id]
            found = self._start(job)
            if isinstance(found, Start):
                starts.append(found)
            else:
                told[job.id] = job, found
        order = sorted(
            told.values(),
            key=lambda each: (self._of_late(each[0].organization_id), each[0].submitted_at_ms, each[0].id),
        )
        self.waiting = {job.id: reason for job, reason in order}
        return starts

    def _start(self, job: Job) -> Start | Reason:
        """Start it on the first of its classes on which that is possible; else why it waits."""
        known = self._cycle.known
        organization = self._spare.organizations.get(job.organization_id)
        if organization is not None and organization.frozen:
            return Reason(WaitReason.ORGANIZATION_FROZEN, {"organization": job.organization_id})
        if job.not_before_ms is not None and known.now_ms < job.not_before_ms:
            return Reason(WaitReason.COOLDOWN, {"until_ms": job.not_before_ms})
        fund = self._fund(job)
        if fund is None:
            return Reason(WaitReason.OPPORTUNISTIC_OFF, {"program": job.program_id})
        first: tuple[bool, Reason] | None = None
        for gpu_class in job.classes:
            shape = shape_of(job, gpu_class)
            cost = job.walltime_ms * job.gpus * self._spare.rates.get(gpu_class, 0)
            unpaid = self._unpaid(job, fund, cost)
            found = unpaid or self._place(job, shape)
            if isinstance(found, Room):
                return self._begin(job, fund, found, cost)
            if first is None or (first[0] and not unpaid):
                first = unpaid is not None, Reason(found.code, with_others(shape, found.numbers))
        assert first is not None, f"{job.id} accepts no class"
        return first[1]

    def _fund(self, job: Job) -> Fund | None:
        """Of its programme's funds the one that pays now: that which ends first."""
        now_ms = self._cycle.known.now_ms
        funds = [
            fund
            for fund in self._spare.funds.values()
            if fund.program_id == job.program_id
            and fund.pays
            and fund.starts_at_ms <= now_ms < fund.ends_at_ms
        ]
        return min(funds, key=lambda fund: (fund.ends_at_ms, fund.id), default=None)

    def _unpaid(self, job: Job, fund: Fund, cost_gpu_us: int) -> Reason | None:
        """Why the fund does not pay for it now."""
        known = self._cycle.known
        program: dict[str, int | str] = {"program": fund.program_id}
        left_ms, step_ms = fund.ends_at_ms - known.now_ms, known.policy.walltime_step_ms
        if job.walltime_ms > left_ms:
            fitting = {"walltime_ms": left_ms - left_ms % step_ms}
            return Reason(
                WaitReason.GRANT_ENDS_FIRST, {"grant": fund.id, "ends_at_ms": fund.ends_at_ms, **fitting}
            )
        left = self._left[fund.id]
        if cost_gpu_us > left:
            program |= {"needed_gpu_us": cost_gpu_us, "left_gpu_us": max(0, left)}
            return Reason(WaitReason.OPPORTUNISTIC_SPENT, program)
        in_use = self._in_use[fund.id]
        if fund.max_gpus is not None and in_use + job.gpus > fund.max_gpus:
            program |= {"cap": fund.max_gpus, "in_use": in_use, "needed": job.gpus}
            return Reason(WaitReason.OPPORTUNISTIC_CAP, program)
        return None

    def _place(self, job: Job, shape: Shape) -> Room | Reason:
        """Idle room, in the reverse of the order in which others take it; else why there is none.

        Where there is room as the job prefers its pods to lie it gets that.
        """
        full = self._full.get(shape)
        if full is not None:
            return full
        for wish in wishes_of(shape, job.topology):
            if wish not in self._unmet:
                room, _ = self._room(wish)
                if room is not None:
                    return room
                self._unmet.add(wish)
        room, idle = self._room(shape, spread=job.topology is Topology.SPREAD)
        if room is not None:
            return room
        full = self._full[shape] = self._no_room(shape, idle)
        return full

    def _room(self, shape: Shape, *, spread: bool = False) -> tuple[Room | None, int]:
        """The first domain (cluster or rack) that takes all pods; else None and how many GPUs are idle in all."""
        cycle, clusters = self._cycle, self._cycle.reach.open_to(shape.gpu_class)
        limits = cycle.horizon.limits(shape, clusters)
        idle = 0
        for cluster, shelf in cycle.known.fleet.domains(shape, clusters):
            free = self._idle(shape.gpu_class, cluster, shelf, limits.get(cluster, {}))
            idle += sum(free.values())
            room = self._pack(shape, cluster, shelf, free, spread=spread)
            if room is not None:
                return room, idle
        return None, idle

    def _no_room(self, shape: Shape, idle: int) -> Reason:
        """Paused, out of sight, or in use."""
        known = self._cycle.known
        if shape.gpu_class not in self._spare.rates:
            return Reason(WaitReason.NODES_UNAVAILABLE, {"gpu_class": shape.gpu_class, "gpus": shape.gpus})
        fits = known.fleet.fits(shape, self._cycle.reach.open_to(shape.gpu_class))
        reason = None if fits else explain(shape, known.fleet, self._cycle.reach)
        if reason is not None and reason.code not in _ROOM:
            return reason
        return Reason(
            WaitReason.NO_IDLE_GPU, {"gpu_class": shape.gpu_class, "needed": shape.gpus, "idle": idle}
        )

    def _idle(self, gpu_class: str, cluster: str, shelf: Shelf, limits: Mapping[str, int]) -> dict[str, int]:
        """By node: what nobody uses, could use or was promised."""
        yielding = self._spare.yielding
        found = {
            name: min(free, limits.get(name, free)) - yielding[gpu_class, cluster, name]
            for name, (free, _) in shelf.nodes.items()
        }
        return {name: gpus for name, gpus in found.items() if gpus > 0}

    def _pack(
        self, shape: Shape, cluster: str, shelf: Shelf, free: Mapping[str, int], *, spread: bool
    ) -> Room | None:
        """The emptiest nodes first, and of these where opportunistic jobs are already: others come there last.

        `spread`: pod by pod onto these nodes in turn.
        """
        size = shape.gpus_per_pod
        if sum(gpus // size for gpus in free.values()) < shape.pods:
            return None

        def last_place(name: str) -> tuple[int, int, str]:
            spot = shape.gpu_class, cluster, name
            given = self._given[spot]
            return shelf.nodes[name][0] + given, self._spare.yielding[spot] + given, name

        names = sorted((name for name, gpus in free.items() if gpus >= size), key=last_place, reverse=True)
        chosen = Counter[str]()
        missing = shape.pods
        while missing:
            for name in names:
                here = min(missing, (free[name] - chosen[name]) // size, 1 if spread else missing)
                if here:
                    chosen[name] += here * size
                    missing -= here
        return Room(shape.gpu_class, cluster, chosen)

    def _begin(self, job: Job, fund: Fund, room: Room, cost_gpu_us: int) -> Start:
        self._ground.take(room, job.walltime_ms)
        for node, gpus in room.gpus_by_node.items():
            self._given[room.gpu_class, room.cluster, node] += gpus
        self._left[fund.id] -= cost_gpu_us
        self._in_use[fund.id] += job.gpus
        self._held[job.organization_id] += cost_gpu_us
        path, pods = (fund.account.id,), pods_of(room, job.gpus_per_pod)
        return Start(job.id, job.attempt + 1, fund.id, path, room.cluster, pods, cost_gpu_us)

    def _of_late(self, organization_id: str) -> float:
        """What it used of late and may still use."""
        return self._usage.get(organization_id, 0.0) + self._held[organization_id]


def _next(queue: list[Job]) -> tuple[int, str]:
    return queue[-1].submitted_at_ms, queue[-1].id
