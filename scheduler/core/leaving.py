"""Which starts of a plan are real, and which opportunistic jobs leave for the others. For `opportunistic`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from scheduler.core.fit import Shape, span_of
from scheduler.core.model import Attempt, Job, JobState, Preempt, Reason, Start, WaitReason
from scheduler.core.picks import Picks
from scheduler.core.placement import Room, choose_room, pods_of
from scheduler.core.policy import DAY_MS, Policy, Preemption
from scheduler.core.preempt import lost_ms
from scheduler.core.spare import Spare, Spot

Loss = tuple[int, int]
"""(GPU-milliseconds of work, how often the job was stopped for others of late)"""


class Ground:
    """What is really there: node by node what is idle, wanted by the plan, and about to come free."""

    def __init__(self, cycle: Picks, spare: Spare) -> None:
        self._cycle, self._spare = cycle, spare
        self.wanted: Counter[Spot] = Counter()
        self.leaving: Counter[Spot] = Counter()  # GPUs of those that were told before
        self._taken: list[tuple[Room, int, int]] = []  # (room, walltime_ms, sign): undone by `give_back`
        for attempt in spare.yielding_attempts():
            if attempt.state is JobState.STOPPING:
                for pod in attempt.pods:
                    self.leaving[pod.gpu_class, attempt.cluster, pod.node] += pod.count
        for room in cycle.keeps.values():
            self.want(room)

    def want(self, room: Room, sign: int = 1) -> None:
        """The plan gives this room to somebody, or (-1) does not after all."""
        for node, gpus in room.gpus_by_node.items():
            self.wanted[room.gpu_class, room.cluster, node] += sign * gpus

    def has(self, room: Room) -> bool:
        """Whether all of it is really free beside what is wanted already."""
        spots = {(room.gpu_class, room.cluster, node): gpus for node, gpus in room.gpus_by_node.items()}
        return all(self.short(spot) + gpus <= 0 for spot, gpus in spots.items())

    def short(self, spot: Spot) -> int:
        """How many GPUs more are wanted there than are really free."""
        return self.wanted[spot] - self._spare.idle(spot)

    def elsewhere(self, job: Job, start: Start, *, soon: bool) -> Room | None:
        """Other room of the same class for a start of the plan that keeps nobody from his: really free, or (`soon`)
        free once those have left that were told before."""
        cycle, planned = self._cycle, _room_of(start)
        gpu_class = planned.gpu_class
        shape = shape_of(job, gpu_class)
        clusters = cycle.reach.open_to(gpu_class)
        self.take(planned, job.walltime_ms, sign=-1)
        limits: dict[str, dict[str, int]] = {
            cluster: dict(nodes) for cluster, nodes in cycle.horizon.limits(shape, clusters).items()
        }
        for spot, gpus in self._spare.yielding.items():
            if spot[0] == gpu_class and spot[1] in clusters:
                free = self._free(spot) - gpus + (self.leaving[spot] if soon else 0)
                nodes = limits.setdefault(spot[1], {})
                nodes[spot[2]] = max(0, min(free, nodes.get(spot[2], free)))
        room = choose_room(shape, job.topology, cycle.known.fleet, clusters, limits)
        self.take(room or planned, job.walltime_ms)
        return room

    def take(self, room: Room, walltime_ms: int, sign: int = 1) -> None:
        """Give room away, until `give_back`."""
        self._move(room, walltime_ms, sign)
        self._taken.append((room, walltime_ms, sign))

    def give_back(self) -> None:
        """Undo what was taken here: the others are told as if nothing of this had happened."""
        while self._taken:
            room, walltime_ms, sign = self._taken.pop()
            self._move(room, walltime_ms, -sign)

    def _move(self, room: Room, walltime_ms: int, sign: int) -> None:
        self._cycle.known.fleet.take(room.gpu_class, room.cluster, room.gpus_by_node, sign=sign)
        horizon = self._cycle.horizon
        (horizon.pick if sign > 0 else horizon.give_back)(
            room.gpu_class, room.cluster, room.gpus_by_node, walltime_ms
        )

    def _free(self, spot: Spot) -> int:
        gpu_class, cluster, node = spot
        shelf = self._cycle.known.fleet.open.get(gpu_class, {}).get(cluster)
        return shelf.nodes.get(node, (0, 0))[0] if shelf else 0


def real_starts(cycle: Picks, ground: Ground) -> tuple[list[Start], list[Start]]:
    """The starts of the plan that can be made now, and those whose room has to be made first, both in order."""
    late: dict[int, Start] = {}
    done: dict[int, Start] = {}
    for number, start in enumerate(cycle.starts):
        planned = _room_of(start)
        (done if ground.has(planned) else late)[number] = start
        ground.want(planned)
    for number, start in list(late.items()):
        job = cycle.known.jobs[start.job_id]
        for soon in (False, True):
            ground.want(_room_of(start), -1)
            room = ground.elsewhere(job, start, soon=soon)
            moved = (
                replace(start, cluster=room.cluster, pods=pods_of(room, job.gpus_per_pod)) if room else start
            )
            if room and ground.has(room):
                ground.want(room)
                done[number] = moved
                del late[number]
                break
            ground.want(_room_of(moved))
            if room:
                late[number] = moved
                break
    return [done[number] for number in sorted(done)], [late[number] for number in sorted(late)]


def stops_of(cycle: Picks, spare: Spare, ground: Ground, withheld: Iterable[Start]) -> list[Preempt]:
    """Of those in the way the fewest; of equally few those that lose least, have lost least, are youngest."""
    for_job: dict[Spot, str] = {}
    wishes = [(start.job_id, _room_of(start)) for start in withheld] + list(cycle.keeps.items())
    for job_id, room in wishes:
        for node in room.gpus_by_node:
            for_job.setdefault((room.gpu_class, room.cluster, node), job_id)
    there: dict[Spot, list[tuple[Attempt, Loss]]] = {}
    for attempt in spare.yielding_attempts():
        if attempt.state is not JobState.STOPPING:
            loss = loss_of(spare.jobs.get(attempt.job_id), attempt, cycle.known.policy, cycle.known.now_ms)
            for spot in _gpus_of(attempt):
                there.setdefault(spot, []).append((attempt, loss))
    missing = Counter({spot: ground.short(spot) - ground.leaving[spot] for spot in for_job})
    chosen: dict[str, tuple[Attempt, str]] = {}
    losses = {attempt.id: loss for found in there.values() for attempt, loss in found}
    for spot in sorted(for_job):
        left = [(each, _gpus_of(each)[spot], loss) for each, loss in there.get(spot, ())]
        for attempt in fewest_cheapest([each for each in left if each[0].id not in chosen], missing[spot]):
            chosen[attempt.id] = attempt, for_job[spot]
            missing.subtract(_gpus_of(attempt))
    for id, (attempt, _) in sorted(
        chosen.items(), key=lambda item: (*(-each for each in losses[item[0]]), *_age(item[1][0]))
    ):
        # a gang stopped for one node may have made another one's stop needless
        gpus = _gpus_of(attempt)
        if all(missing[spot] + count <= 0 for spot, count in gpus.items() if spot in for_job):
            missing.update(gpus)
            del chosen[id]
    now_ms, notice_ms = cycle.known.now_ms, cycle.known.policy.opportunistic_notice_ms
    return [
        # what does not run yet has nothing to save
        Preempt(
            each.job_id, each.attempt, job_id, now_ms + (notice_ms if each.started_at_ms is not None else 0)
        )
        for _, (each, job_id) in sorted(chosen.items())
    ]


def loss_of(job: Job | None, attempt: Attempt, policy: Policy, now_ms: int) -> Loss:
    """What a stop that is told now would lose, and how often the job was stopped for others within the last day.

    One that comes again loses what it did since its last checkpoint and its restart, any other all that it did; what
    does not run yet, or ends before the stop comes, loses nothing. On all its GPUs.
    """
    times = len([at_ms for at_ms in job.preempted_at_ms if now_ms - at_ms < DAY_MS]) if job else 0
    stop_ms = now_ms + policy.opportunistic_notice_ms
    if attempt.started_at_ms is None or (attempt.ends_at_ms is not None and attempt.ends_at_ms <= stop_ms):
        return 0, times
    ran_ms = stop_ms - attempt.started_at_ms
    if job is not None and job.restartable:
        ran_ms = lost_ms(policy.preemption or Preemption(), ran_ms)
    return ran_ms * attempt.gpus_held, times


def fewest_cheapest(there: list[tuple[Attempt, int, Loss]], missing: int) -> list[Attempt]:
    """The fewest of these attempts (each with its GPUs on a node) that free so many GPUs; of equally few those that
    lose least together, then those that were stopped least often, then the youngest, then by id. All of them when even
    that is too little."""
    if missing <= 0:
        return []
    there = sorted(there, key=lambda each: _age(each[0]), reverse=True)
    sizes = sorted((gpus for _, gpus, _ in there), reverse=True)
    count = next((n for n in range(1, len(sizes) + 1) if sum(sizes[:n]) >= missing), len(sizes))
    # by (how many, GPUs freed, more than enough is enough): the cheapest, and who that is, the youngest first
    best: dict[tuple[int, int], tuple[int, int, tuple[int, ...]]] = {(0, 0): (0, 0, ())}
    for rank, (_, gpus, (lost, times)) in enumerate(there):
        for (number, freed), (all_lost, all_times, ranks) in list(best.items()):
            if number < count:
                key = number + 1, min(missing, freed + gpus)
                found = all_lost + lost, all_times + times, (*ranks, rank)
                best[key] = min(found, best.get(key, found))
    if (count, missing) not in best:
        return [attempt for attempt, _, _ in there]
    return [there[rank][0] for rank in best[count, missing][2]]


def _age(attempt: Attempt) -> tuple[int, str]:
    return attempt.claimed_at_ms, attempt.id


def _gpus_of(attempt: Attempt) -> Counter[Spot]:
    found: Counter[Spot] = Counter()
    for pod in attempt.pods:
        found[pod.gpu_class, attempt.cluster, pod.node] += pod.count
    return found


def _room_of(start: Start) -> Room:
    gpus: Counter[str] = Counter()
    for pod in start.pods:
        gpus[pod.node] += pod.count
    return Room(start.pods[0].gpu_class, start.cluster, gpus)


def making_room(start: Start) -> Reason:
    needed = sum(pod.count for pod in start.pods)
    return Reason(WaitReason.MAKING_ROOM, {"gpu_class": start.pods[0].gpu_class, "needed": needed})


def shape_of(job: Job, gpu_class: str) -> Shape:
    size, pods, within = job.unit
    classes = job.classes if job.fallbacks else ()
    return Shape(gpu_class, size, pods, "", within, span_of(job.walltime_ms), classes)
