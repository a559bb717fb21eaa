"""Small hubs that live with opportunistic jobs, and what a plan may not do with them, told without the core's rooms
for them: from plans of the same hub without them, and from the nodes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from random import Random

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Account,
    Attempt,
    Fund,
    Job,
    JobState,
    Kind,
    Node,
    Organization,
    Plan,
    PodPlacement,
    Start,
    Tombstone,
    WaitReason,
)
from scheduler.core.policy import HOUR_MS, Policy
from scheduler.core.state import State
from tests.property.core.core_bookings import BookedHub
from tests.property.core.core_chaos import World
from tests.property.core.core_promises import GPU_HOUR, ORGANIZATIONS, RATES, START_MS, Hub, a_random_hub

SHAPES = ((1, 1), (1, 1), (2, 1), (4, 1), (8, 1), (1, 3), (4, 2), (8, 2))
FUND = "fund"


@dataclass
class SpareHub(BookedHub):
    """A hub in which firms submit opportunistic jobs beside the others, and nodes that they run on are lost."""

    lost: set[str] = field(default_factory=set)
    """Opportunistic attempts that ended out of sight and keep their GPUs."""
    books: bool = True
    """Whether people book room."""

    def submit_spare(self) -> None:
        rng, self.submitted = self.rng, self.submitted + 1
        gpus, pods = rng.choice(SHAPES)
        gpu_class, *fallbacks = rng.choice((("h100",), ("h100",), ("h100",), ("mig",), ("a100", "h100")))
        self.put(
            Job(
                id=f"s{self.submitted:03d}",
                organization_id=rng.choice(ORGANIZATIONS),
                grant_id=None,
                gpu_class=gpu_class,
                gpus_per_pod=gpus,
                pods=pods,
                walltime_ms=rng.choice((1, 2, 4, 24)) * HOUR_MS,
                submitted_at_ms=self.now_ms - rng.choice((0, 0, 1)) * HOUR_MS,
                not_before_ms=rng.choice((None,) * 9 + (self.now_ms + HOUR_MS,)),
                restartable=rng.random() < 0.7,
                fallbacks=tuple(fallbacks),
                program_id=rng.choice(("p1",) * 9 + ("p2",)),
            )
        )

    def occupy_spare(self, number: int) -> None:
        """An opportunistic job that has run, or starts, where there is room."""
        rng, node = self.rng, self.rng.choice(self.of(Node))
        gpu_class, gpus = rng.choice(sorted(node.capacities)), rng.choice((1, 2, 4))
        capacity = node.capacities[gpu_class]
        if not node.schedulable or capacity.total - capacity.foreign - capacity.used < gpus:
            return
        id, walltime_ms, ago_ms = f"q{number}", rng.choice((6, 24)) * HOUR_MS, rng.randrange(5) * HOUR_MS
        job = Job(
            id, rng.choice(ORGANIZATIONS), None, gpu_class, gpus, 1, walltime_ms, self.now_ms - ago_ms,
            restartable=rng.random() < 0.7, program_id="p1",
        )  # fmt: skip
        pods = (PodPlacement(node.node, gpu_class, gpus),)
        self.put(job)
        cost = walltime_ms * gpus * RATES[gpu_class]
        self._begin(Start(id, 1, FUND, (FUND,), node.cluster, pods, cost), self.now_ms - ago_ms)

    def disturb(self) -> None:
        roll, fund = self.rng.random(), self.world[Kind.GRANT, FUND]
        assert isinstance(fund, Fund)
        if roll < 0.45:
            self.submit_spare()
        elif roll < 0.5:
            self.put(replace(fund, pays=not fund.pays))
        elif roll < 0.55:
            self.put(replace(fund, max_gpus=self.rng.choice((None, None, 2, 8))))
        elif roll < 0.6:
            self._lose()
        elif roll < 0.65:
            for attempt in [each for each in self.of(Attempt) if each.id in self.lost]:
                self._free(attempt)
        elif self.books:
            super().disturb()
        else:
            Hub.disturb(self)

    def _begin(self, start: Start, at_ms: int) -> None:
        super()._begin(start, at_ms)
        attempt = self.world[Kind.ATTEMPT, f"{start.job_id}-{start.attempt}"]
        job = self.world[Kind.JOB, start.job_id]
        assert isinstance(attempt, Attempt)
        assert isinstance(job, Job)
        if job.program_id:
            self._pay(start.cost_gpu_us, 0)
            self.changes = [each for each in self.changes if each is not attempt]
            if self.rng.random() < 0.2:
                attempt = replace(attempt, state=JobState.STARTING, started_at_ms=None)
            self.put(replace(attempt, opportunistic=True))

    def _end(self, id: str, at_ms: int) -> None:
        attempt = self.world[Kind.ATTEMPT, id]
        assert isinstance(attempt, Attempt)
        if not attempt.opportunistic:
            super()._end(id, at_ms)
            return
        stopped = self.stopped.pop(id, 1 << 62) < self.really_end.pop(id)
        ran_ms = at_ms - (attempt.started_at_ms or at_ms)
        used = sum(ran_ms * pod.count * RATES[pod.gpu_class] for pod in attempt.pods)
        self._pay(-attempt.cost_gpu_us, used)
        organization = self.world[Kind.ORGANIZATION, attempt.organization_id]
        assert isinstance(organization, Organization)
        usage = organization.opportunistic_usage_gpu_us + used
        self.put(replace(organization, opportunistic_usage_gpu_us=usage, opportunistic_as_of_ms=at_ms))
        if stopped:
            self._change_job(attempt.job_id, state=JobState.QUEUED)
        else:
            self.put(Tombstone(Kind.JOB, attempt.job_id))
        self._free(attempt)

    def _lose(self) -> None:
        """A node goes out of sight: its attempt ends and keeps its GPUs."""
        running = [each for each in self.of(Attempt) if each.opportunistic and each.id not in self.lost]
        if running:
            attempt = self.rng.choice(running)
            self.really_end.pop(attempt.id)
            self.stopped.pop(attempt.id, None)
            self._pay(-attempt.cost_gpu_us, 0)
            self.put(replace(attempt, state=JobState.ENDED, ends_at_ms=None))
            self.put(Tombstone(Kind.JOB, attempt.job_id))
            self.lost.add(attempt.id)

    def _free(self, attempt: Attempt) -> None:
        self.lost.discard(attempt.id)
        self._shift(attempt, -1)
        self.put(Tombstone(Kind.ATTEMPT, attempt.id))

    def _pay(self, held: int, used: int) -> None:
        fund = self.world[Kind.GRANT, FUND]
        assert isinstance(fund, Fund)
        account = fund.account
        sums = account.held_gpu_us + held, account.used_gpu_us + used
        self.put(replace(fund, account=replace(account, held_gpu_us=sums[0], used_gpu_us=sums[1])))


def a_spare_hub(rng: Random, policy: Policy | None = None, bookings: bool = True) -> SpareHub:
    """One of the hubs without, with opportunistic jobs that run and wait."""
    plain = a_random_hub(rng, policy)
    hub = SpareHub(**{each.name: getattr(plain, each.name) for each in fields(Hub)}, books=bookings)
    hours = rng.choice((20, 1_000, 1_000))
    hub.put(Fund(FUND, "p1", Account(FUND, hours * GPU_HOUR), 0, START_MS + 1_000 * HOUR_MS))
    for number in range(rng.randrange(4, 20)):
        hub.occupy_spare(number)
    for _ in range(rng.randrange(1, 8)):
        hub.submit_spare()
    for _ in range(rng.choice((0, 0, 2)) if bookings else 0):
        hub.book()
    return hub


# --- the same hub without them --------------------------------------------------------------------


def leaves(attempt: Attempt) -> bool:
    """Whether an opportunistic attempt goes when it is told; these hubs' never go late."""
    return attempt.opportunistic and attempt.state is not JobState.ENDED


def without(hub: Hub, gone: Iterable[Attempt], *, jobs: bool = True) -> Hub:
    """The hub after these attempts have left; without the opportunistic jobs, too, unless `jobs`."""
    world: World = dict(hub.world)
    for attempt in gone:
        del world[Kind.ATTEMPT, attempt.id]
        for pod in attempt.pods:
            key = Kind.NODE, f"{attempt.cluster}/{pod.node}"
            node = world[key]
            assert isinstance(node, Node)
            capacity = node.capacities[pod.gpu_class]
            less = replace(capacity, used=capacity.used - pod.count)
            world[key] = replace(node, capacities={**node.capacities, pod.gpu_class: less})
    if not jobs:
        for key, each in list(world.items()):
            if isinstance(each, Fund) or (isinstance(each, Job) and each.program_id):
                del world[key]
            elif isinstance(each, Attempt) and each.opportunistic:
                # lost: it is in everybody's way, and below nobody's cap
                world[key] = replace(each, opportunistic=False, organization_id="", stop=None)
    return replace(hub, world=world, changes=[])


def bare(hub: Hub) -> Hub:
    """The hub as if there were nothing opportunistic."""
    return without(hub, [each for each in hub.of(Attempt) if leaves(each)], jobs=False)


def plan_of(hub: Hub) -> Plan:
    return decide(State(), hub.snapshot(), hub.now_ms)[0]


# --- what a plan may not do -----------------------------------------------------------------------


def spare_faults(hub: SpareHub, plan: Plan) -> list[str]:
    """Of one plan, before it is carried out."""
    return [*meddled(hub, plan), *overfull(hub, plan), *not_cleared(hub, plan), *idle_beside(hub, plan)]


def is_spare(hub: Hub, job_id: str) -> bool:
    job = hub.world[Kind.JOB, job_id]
    assert isinstance(job, Job)
    return job.program_id != ""


def meddled(hub: SpareHub, plan: Plan) -> list[str]:
    """What differs for the others from the same hub without anything opportunistic, but for the wait for room."""
    found, alone = [], plan_of(bare(hub))
    own = [start for start in plan.starts if not is_spare(hub, start.job_id)]
    held = [id for id, reason in plan.reasons.items() if reason.code is WaitReason.MAKING_ROOM]
    if sorted([start.job_id for start in own] + held) != sorted(start.job_id for start in alone.starts):
        found.append(f"starts {[s.job_id for s in own]} and {held}, not {[s.job_id for s in alone.starts]}")
    places = {start.job_id: number for number, start in enumerate(alone.starts)}
    if sorted(own, key=lambda start: places.get(start.job_id, -1)) != own:
        found.append("others start in another order")
    for start in own:
        there = next((each for each in alone.starts if each.job_id == start.job_id), None)
        if there and (_paid(start) != _paid(there)):
            found.append(f"{start.job_id} would be paid and laid out otherwise: {start}")
    others = tuple(id for id in plan.order if not is_spare(hub, id) and id not in held)
    reasons = {id: plan.reasons[id] for id in others}
    same = (others, reasons, plan.paces, plan.reservations, plan.booked)
    if same != (alone.order, dict(alone.reasons), alone.paces, alone.reservations, alone.booked):
        found.append("others are told otherwise")
    if [stop for stop in plan.stops if not _is_spare_attempt(hub, stop.job_id, stop.attempt)] != list(
        alone.stops
    ):
        found.append("others are stopped otherwise")
    return found


def _paid(start: Start) -> tuple[object, ...]:
    classes = sorted((pod.gpu_class, pod.count) for pod in start.pods)
    return start.attempt, start.grant_id, start.account_path, start.cost_gpu_us, classes


def _is_spare_attempt(hub: Hub, job_id: str, number: int) -> bool:
    attempt = hub.world[Kind.ATTEMPT, f"{job_id}-{number}"]
    return isinstance(attempt, Attempt) and attempt.opportunistic


def overfull(hub: Hub, plan: Plan) -> list[str]:
    """Nodes that really have less than all starts take, and funds that pay more than they have or may."""
    taken: Counter[tuple[str, str]] = Counter()
    for start in plan.starts:
        for pod in start.pods:
            taken[f"{start.cluster}/{pod.node}", pod.gpu_class] += pod.count
    found = []
    for (node_id, gpu_class), gpus in taken.items():
        node = hub.world[Kind.NODE, node_id]
        assert isinstance(node, Node)
        capacity = node.capacities[gpu_class]
        if not node.schedulable or capacity.used + capacity.foreign + gpus > capacity.total:
            found.append(f"{gpus} {gpu_class} started on {node}")
    fund = hub.world[Kind.GRANT, FUND]
    assert isinstance(fund, Fund)
    spare = [start for start in plan.starts if is_spare(hub, start.job_id)]
    in_use = sum(each.gpus_held for each in hub.of(Attempt) if each.opportunistic)
    in_use += sum(pod.count for start in spare for pod in start.pods)
    if spare and (not fund.pays or sum(start.cost_gpu_us for start in spare) > fund.account.left_gpu_us):
        found.append(f"{fund} does not pay for {spare}")
    if spare and fund.max_gpus is not None and in_use > fund.max_gpus:
        found.append(f"{in_use} GPUs in use of {fund.max_gpus}")
    return found


def not_cleared(hub: SpareHub, plan: Plan) -> list[str]:
    """Once those have left who are told, or were, whoever waited for that starts; and without one of them not."""
    held = {id for id, reason in plan.reasons.items() if reason.code is WaitReason.MAKING_ROOM}
    told = [
        attempt
        for stop in plan.stops
        if isinstance(attempt := hub.world[Kind.ATTEMPT, f"{stop.job_id}-{stop.attempt}"], Attempt)
        and attempt.opportunistic
    ]
    going = [each for each in hub.of(Attempt) if leaves(each) and each.state is JobState.STOPPING]
    if any(each.state is JobState.STOPPING for each in told):
        return ["somebody is told twice"]
    kept = any(stop.job_id not in {each.job_id for each in told} for stop in plan.stops)
    if any(each.stop and each.stop.for_job for each in hub.of(Attempt) if not each.opportunistic) or kept:
        return []  # room is kept for gangs: who is told may leave for them
    if not held:
        return [f"{[each.id for each in told]} leave for nobody"] if told else []
    later = after_starts(hub, plan)
    left = without(later, [*told, *going])
    starting = _starting(left)
    # by then others may be entitled to the room, as after a start that was refused, or the job to other room
    then, cleared = _nodes(plan_of(bare(left))), {stop.for_job for stop in plan.stops}
    sure = {id for id, nodes in _nodes(plan_of(bare(hub))).items() if id in cleared and then.get(id) == nodes}
    found = [f"{id} still waits for room" for id in sorted(sure - starting)]
    if held - starting:
        return found
    whole = [
        job for job in (hub.world[Kind.JOB, id] for id in held) if isinstance(job, Job) and job.pods == 1
    ]
    # of several, or of a gang, one may do on what another one's leaving frees: each node is cleared by itself
    for attempt in told if len(held) == len(whole) == 1 else ():
        rest = [each for each in told if each is not attempt]
        if held <= _starting(without(later, [*rest, *going])):
            found.append(f"{attempt.id} leaves for nothing")
    return found


def _nodes(plan: Plan) -> dict[str, set[str]]:
    """By job that starts: where."""
    return {start.job_id: {pod.node for pod in start.pods} for start in plan.starts}


def after_starts(hub: SpareHub, plan: Plan) -> SpareHub:
    """The hub once everybody's starts of this plan are carried out, and nothing else has happened."""
    later = replace(
        hub,
        rng=Random(0),
        world=dict(hub.world),
        changes=[],
        really_end=dict(hub.really_end),
        reservations=plan.reservations,
        booked=plan.booked,
    )
    for start in plan.starts:
        later._begin(start, hub.now_ms)
    return later


def _starting(hub: Hub) -> set[str]:
    return {start.job_id for start in plan_of(hub).starts}


def idle_beside(hub: SpareHub, plan: Plan) -> list[str]:
    """Opportunistic jobs of one pod that wait beside idle GPUs, where nothing is promised to anybody."""
    held = any(reason.code is WaitReason.MAKING_ROOM for reason in plan.reasons.values())
    promised = plan.reservations or hub.bookings() or plan.stops or held
    if promised or any(each.stop and each.stop.for_job for each in hub.of(Attempt)):
        return []
    free: Counter[tuple[str, str]] = Counter()
    clusters = {each.id for each in hub.world.values() if getattr(each, "paused", None) is False}
    for node in hub.of(Node):
        if node.schedulable and node.cluster in clusters:
            for gpu_class, capacity in node.capacities.items():
                free[node.id, gpu_class] = capacity.total - capacity.foreign - capacity.used
    for start in plan.starts:
        for pod in start.pods:
            free[f"{start.cluster}/{pod.node}", pod.gpu_class] -= pod.count
    found = []
    for id, reason in plan.reasons.items():
        job = hub.world[Kind.JOB, id]
        assert isinstance(job, Job)
        if reason.code is WaitReason.NO_IDLE_GPU and job.pods == 1 and not job.fallbacks:
            most = max((gpus for (_, name), gpus in free.items() if name == job.gpu_class), default=0)
            if most >= job.gpus_per_pod:
                found.append(f"{id} waits beside {most} idle {job.gpu_class}")
    return found


def events(hub: SpareHub, plan: Plan) -> Counter[str]:
    """What of interest happens in this plan."""
    seen: Counter[str] = Counter()
    seen["spare start"] = sum(is_spare(hub, start.job_id) for start in plan.starts)
    seen["held"] = sum(reason.code is WaitReason.MAKING_ROOM for reason in plan.reasons.values())
    seen["told"] = sum(_is_spare_attempt(hub, stop.job_id, stop.attempt) for stop in plan.stops)
    if seen["spare start"]:
        seen["beside a promise"] = len(plan.reservations)
    seen["lost"] = len(hub.lost)
    alone = {start.job_id: start for start in plan_of(bare(hub)).starts}
    own = [start for start in plan.starts if start.job_id in alone]
    seen["moved"] = sum(start.pods != alone[start.job_id].pods for start in own)
    return seen
