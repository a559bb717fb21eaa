"""Small hubs that live: what a plan decides is carried out, attempts end early or late, nodes go and come."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

from scheduler.core.model import (
    Account,
    Attempt,
    Capacity,
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
    Path,
    Plan,
    PodPlacement,
    Preempt,
    Reservation,
    Reservations,
    Start,
    Stop,
    Tombstone,
    Topology,
)
from scheduler.core.policy import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    PRESETS,
    Entitlement,
    Lane,
    Policy,
    Preemption,
    Ranking,
)
from tests.property.core.core_chaos import TOPOLOGIES, World, put

Kept = TypeVar("Kept", Node, Cluster, Grant, Job, Attempt)
START_MS = 1_000 * HOUR_MS
GPU_HOUR = HOUR_MS * 1000
ALWAYS_MS = 1 << 62
ORGANIZATIONS = ("o1", "o2", "o3")
RATES = {"h100": 1000, "mig": 250, "a100": 480}
SHAPES = ((1, 1), (1, 1), (2, 1), (4, 1), (8, 1), (1, 3), (4, 2), (8, 2), (4, 4), (8, 4))
FAMILIES = (("a100", "h100"), ("h100", "a100"))
GANG_CHOICES = (("h100",),) * 6 + FAMILIES
CHOICES = (*(("h100",),) * 4, *FAMILIES, ("mig",), ("mig", "h100"), ("h100", "mig", "a100"))
"""What a job accepts."""
HOURS = (1, 1, 2, 4, 8, 24)
"""Walltimes that are whole steps of the core's rounding, so that what fits by the minute fits for the core."""


def a_random_policy(rng: Random) -> Policy:
    """Every knob at random, in the world's own measure: gangs of 8 GPUs are large here."""
    if rng.random() < 0.2:
        return PRESETS["gpuhub"]
    return Policy(
        half_life_ms=rng.choice((DAY_MS, 7 * DAY_MS)),
        lag_bound_share=rng.choice((0.1, 0.5, 1.0)),
        idle_lag_share=rng.choice((0.0, 0.05, 1.0)),
        floor_share=rng.choice((0.0, 0.0, 0.6)),
        hold_share=rng.choice((0.0, 0.3, 1.0)),
        ranking=rng.choice((Ranking.GRANT,) * 4 + (Ranking.DECAY, Ranking.FIFO)),
        gang_first_gpus=rng.choice((0, 8, 16)),
        larger_gangs_first=rng.random() < 0.3,
        reservations=rng.choice((0, 1, 3, 8)),
        reservations_per_organization=rng.choice((1, 2, 4)),
        reservation_gpus=rng.choice((1, 4, 8)),
        promise_gpus=rng.choice((0, 0, 8)),
        promises_per_organization=rng.choice((1, 100)),
        lane=rng.choice((None, _lane(rng))),
        preemption=rng.choice((None, _preemption(rng))),
        organization_pool_thousandths=rng.choice((1000,) * 6 + (500,)),
        entitlements=rng.choice(((),) * 4 + ((Entitlement("p2", 2000, rng.choice((0, 300))),),)),
        organization_weights=rng.choice(((),) * 4 + ((("o2", 3000),),)),
    )


def a_random_hub(rng: Random, policy: Policy | None = None, plain: bool = False) -> "Hub":
    """Nearly full nodes, so that room is short from the beginning.

    `plain`: one grant per organization in one programme, and attempts end when they should.
    """
    hub = Hub(rng, policy or a_random_policy(rng), punctual=plain)
    hub.put(hub.policy)
    for id, rate in RATES.items():
        hub.put(GpuClass(id, rate))
    for id in ("c1", "c2"):
        hub.put(Cluster(id, ALWAYS_MS))
    for number in range(rng.randrange(2, 7)):
        hub.put(_node(rng, rng.choice(("c1", "c1", "c1", "c2")), f"n{number}"))
    pressed = not plain and hub.policy.preemption is not None and rng.random() < 0.7
    for id in ORGANIZATIONS:
        cap = None if plain else rng.choice((None,) * 6 + (16, 40))
        hub.put(Organization(id, False, rng.choice((0.0, 1e9, 4e10)), START_MS - HOUR_MS, cap))
        for number in range(1 if plain else rng.choice((1, 1, 2))):
            grant = _grant(rng, f"g-{id}-{number}", id)
            if plain:
                own = Path(grant.paths[0].accounts[-1:], id)
                grant = replace(grant, program_id="p1", paths=(own,))
            hub.put(_slept(grant) if pressed and id == "o1" else grant)
    for number in range(60 if pressed else rng.randrange(20)):
        hub.occupy(f"r{number}")
    for _ in range(rng.randrange(1, 12)):
        hub.submit()
    if pressed:
        hub.submit("o1", rng.choice(((8, 1), (4, 2), (8, 2), (8, 4))))
    return hub


@dataclass
class Hub:
    """The objects, and what only the world knows: when attempts really end, and when they are stopped."""

    rng: Random
    policy: Policy
    punctual: bool = False
    world: World = field(default_factory=dict)
    now_ms: int = START_MS
    reservations: tuple[Reservation, ...] = ()
    changes: list[Change] = field(default_factory=list)
    really_end: dict[str, int] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)
    preempted: dict[str, list[int]] = field(default_factory=dict)
    disturbed: bool = False
    """Since the last cycle a node was lost, something was paused or a start was refused."""
    submitted: int = 0

    def put(self, each: Change) -> None:
        self.changes.append(put(self.world, each))

    def snapshot(self) -> list[Change]:
        """Everything for a state that begins anew."""
        return [*self.world.values(), Reservations(self.reservations)]

    def news(self) -> list[Change]:
        news, self.changes = self.changes, []
        return news

    def of(self, kind: type[Kept]) -> list[Kept]:
        return [each for each in self.world.values() if isinstance(each, kind)]

    def submit(self, organization: str | None = None, shape: tuple[int, int] | None = None) -> None:
        rng, self.submitted = self.rng, self.submitted + 1
        gpus, pods = shape or rng.choice(SHAPES)
        gpu_class, *fallbacks = rng.choice(GANG_CHOICES if shape else CHOICES)
        self.put(
            Job(
                id=f"j{self.submitted:03d}",
                organization_id=organization or rng.choice(ORGANIZATIONS),
                grant_id=None,
                gpu_class=gpu_class,
                gpus_per_pod=gpus,
                pods=pods,
                walltime_ms=rng.choice(HOURS) * HOUR_MS - rng.choice((0, 0, 0, 1, 17 * MINUTE_MS)),
                submitted_at_ms=self.now_ms - rng.choice((0, 0, 1, 2)) * HOUR_MS,
                not_before_ms=rng.choice((None,) * 9 + (self.now_ms + HOUR_MS,)),
                restartable=rng.random() < 0.7,
                fallbacks=tuple(fallbacks),
                topology=Topology.ANY if shape and rng.random() < 0.8 else rng.choice(TOPOLOGIES),
            )
        )

    def occupy(self, job_id: str) -> None:
        """A small job that has run for a while, where there is room."""
        rng = self.rng
        node = rng.choice(self.of(Node))
        grant = rng.choice(self.of(Grant))
        gpu_class, gpus = rng.choice(sorted(node.capacities)), rng.choice((1, 2, 4, 8))
        capacity = node.capacities[gpu_class]
        if not node.schedulable or capacity.total - capacity.foreign - capacity.used < gpus:
            return
        ago_ms, walltime_ms = rng.randrange(1, 6) * HOUR_MS, rng.choice((6, 8, 24)) * HOUR_MS
        recent = (self.now_ms - rng.randrange(30) * HOUR_MS,) if rng.random() < 0.2 else ()
        self.preempted[job_id] = list(recent)
        job = Job(
            job_id, grant.organization_id, None, gpu_class, gpus, 1, walltime_ms, self.now_ms - ago_ms - HOUR_MS,
            restartable=rng.random() < 0.8, preempted_at_ms=recent,
        )  # fmt: skip
        accounts = tuple(account.id for account in grant.paths[0].accounts)
        cost = walltime_ms * gpus * RATES[gpu_class]
        pods = (PodPlacement(node.node, gpu_class, gpus),)
        self.put(job)
        self._begin(Start(job_id, 1, grant.id, accounts, node.cluster, pods, cost), self.now_ms - ago_ms)

    # --- what becomes of a plan ---

    def carry_out(self, plan: Plan, refuse: float = 0.0) -> None:
        """Store the paces, tell the victims, start what starts; some starts are refused."""
        self.disturbed = False
        self.reservations = plan.reservations
        for id, pace in plan.paces.items():
            grant = self.world[Kind.GRANT, id]
            assert isinstance(grant, Grant)
            self.world[Kind.GRANT, id] = replace(grant, pace=pace)
        for stop in plan.stops:
            self._tell(stop)
        for start in plan.starts:
            if self.rng.random() < refuse:
                self.disturbed = True
            else:
                self._begin(start, self.now_ms)
        self._sweep()

    def _tell(self, stop: Preempt) -> None:
        attempt = self.world[Kind.ATTEMPT, f"{stop.job_id}-{stop.attempt}"]
        assert isinstance(attempt, Attempt)
        self.put(
            replace(
                attempt,
                state=JobState.STOPPING,
                stop=Stop("preempted", stop.for_job),
                ends_at_ms=min(stop.stop_at_ms, attempt.ends_at_ms or stop.stop_at_ms),
            )
        )
        self.stopped[attempt.id] = stop.stop_at_ms
        self._change_job(stop.job_id, state=JobState.STOPPING)

    def _begin(self, start: Start, at_ms: int) -> None:
        job = self.world[Kind.JOB, start.job_id]
        assert isinstance(job, Job)
        ends_at_ms = at_ms + job.walltime_ms
        self._change_job(job.id, state=JobState.RUNNING, attempt=start.attempt)
        attempt = Attempt(
            job.id, start.attempt, start.grant_id, JobState.RUNNING, start.cluster, start.pods, start.cost_gpu_us,
            at_ms, started_at_ms=at_ms, ends_at_ms=ends_at_ms, organization_id=job.organization_id,
        )  # fmt: skip
        self.put(attempt)
        self.really_end[attempt.id] = ends_at_ms if self.punctual else self._some_end_ms(ends_at_ms)
        self._shift(attempt, 1)
        self._charge(start.account_path, start.cost_gpu_us, 0)

    def _some_end_ms(self, ends_at_ms: int) -> int:
        roll = self.rng.random()
        if roll < 0.3:
            return self.rng.randrange(self.now_ms + 1, max(self.now_ms + 2, ends_at_ms))
        return ends_at_ms if roll < 0.95 else ends_at_ms + self.rng.choice((1, 30_000, HOUR_MS))

    # --- what happens meanwhile ---

    def next_ms(self) -> int:
        """When the next attempt ends or is stopped, or room is reserved from."""
        dues = [min(at, self.stopped.get(id, at)) for id, at in self.really_end.items()]
        dues += [r.starts_at_ms for r in self.reservations]
        dues += [j.not_before_ms for j in self.of(Job) if j.waits and j.not_before_ms is not None]
        return min((at for at in dues if at > self.now_ms), default=self.now_ms + HOUR_MS)

    def advance(self, to_ms: int) -> None:
        """Attempts end, or are stopped, up to then."""
        self.now_ms = to_ms
        dues = [(min(at, self.stopped.get(id, ALWAYS_MS)), id) for id, at in self.really_end.items()]
        for due_ms, id in sorted(dues):
            if due_ms <= to_ms:
                self._end(id, due_ms)
        self._sweep()

    def disturb(self) -> None:
        """One of the things that may happen to a hub at any time."""
        rng = self.rng
        roll = rng.randrange(14)
        if roll < 8:
            self.submit()
        elif roll < 10:
            node = rng.choice(self.of(Node))
            self.put(replace(node, schedulable=not node.schedulable))
            self.disturbed = True
        elif roll < 11:
            grant = rng.choice(self.of(Grant))
            self.put(replace(grant, max_gpus=rng.choice((None, 8, 24))))
        elif roll < 12:
            cluster = rng.choice(self.of(Cluster))
            self.put(replace(cluster, paused=not cluster.paused))
            self.disturbed = True
        elif roll < 13:
            organization = rng.choice(self.of(Organization))
            self.put(replace(organization, max_gpus=rng.choice((None, None, 16, 40))))
        else:
            waiting = [job for job in self.of(Job) if job.waits]
            if waiting:
                self.put(replace(rng.choice(waiting), cancel_requested=True))

    def _end(self, id: str, at_ms: int) -> None:
        attempt = self.world[Kind.ATTEMPT, id]
        assert isinstance(attempt, Attempt)
        grant = self.world[Kind.GRANT, attempt.grant_id]
        assert isinstance(grant, Grant)
        stopped = self.stopped.pop(id, ALWAYS_MS) < self.really_end.pop(id)
        self._shift(attempt, -1)
        ran_ms = at_ms - (attempt.started_at_ms or at_ms)
        used = sum(ran_ms * pod.count * RATES[pod.gpu_class] for pod in attempt.pods)
        self._charge([account.id for account in grant.paths[0].accounts], -attempt.cost_gpu_us, used)
        organization = self.world[Kind.ORGANIZATION, grant.organization_id]
        assert isinstance(organization, Organization)
        decay = 0.5 ** ((at_ms - organization.as_of_ms) / self.policy.half_life_ms)
        usage = organization.decayed_usage_gpu_us * decay + used
        self.put(replace(organization, decayed_usage_gpu_us=usage, as_of_ms=at_ms))
        self.put(replace(attempt, state=JobState.ENDED, capacity_held=False))
        if stopped:
            times = self.preempted.setdefault(attempt.job_id, [])
            times.append(at_ms)
            recent = tuple(at for at in times if at > self.now_ms - DAY_MS)
            self._change_job(attempt.job_id, state=JobState.QUEUED, preempted_at_ms=recent)
        else:
            self.put(Tombstone(Kind.JOB, attempt.job_id))

    def _sweep(self) -> None:
        """An ended attempt is forgotten when nobody waits for its room."""
        waiting = {job.id for job in self.of(Job) if job.waits}
        for attempt in self.of(Attempt):
            if not attempt.capacity_held and (attempt.stop is None or attempt.stop.for_job not in waiting):
                self.put(Tombstone(Kind.ATTEMPT, attempt.id))

    def _change_job(self, job_id: str, **changed: object) -> None:
        job = self.world[Kind.JOB, job_id]
        assert isinstance(job, Job)
        self.put(replace(job, **changed))  # type: ignore[arg-type]

    def _shift(self, attempt: Attempt, sign: int) -> None:
        for pod in attempt.pods:
            node = self.world[Kind.NODE, f"{attempt.cluster}/{pod.node}"]
            assert isinstance(node, Node)
            capacity = node.capacities[pod.gpu_class]
            capacity = replace(capacity, used=capacity.used + sign * pod.count)
            self.put(replace(node, capacities={**node.capacities, pod.gpu_class: capacity}))

    def _charge(self, accounts: tuple[str, ...] | list[str], held: int, used: int) -> None:
        def booked(account: Account) -> Account:
            if account.id not in accounts:
                return account
            sums = account.held_gpu_us + held, account.used_gpu_us + used
            return replace(account, held_gpu_us=sums[0], used_gpu_us=sums[1])

        for grant in self.of(Grant):
            changed = with_accounts(grant, booked)
            if changed != grant:
                self.put(changed)


def with_accounts(grant: Grant, change: Callable[[Account], Account]) -> Grant:
    paths = tuple(replace(p, accounts=tuple(change(a) for a in p.accounts)) for p in grant.paths)
    return replace(grant, paths=paths)


def shuffled(rng: Random, objects: list[Change]) -> list[Change]:
    objects = list(objects)
    rng.shuffle(objects)
    return objects


def _node(rng: Random, cluster: str, name: str) -> Node:
    capacities: Mapping[str, Capacity] = {
        "h100": Capacity(rng.choice((4, 8, 8, 8)), rng.choice((0, 0, 0, 1)))
    }
    if rng.random() < 0.3:
        capacities = {**capacities, rng.choice(("mig", "a100")): Capacity(8)}
    return Node(cluster, name, rng.random() < 0.9, capacities, rng.choice(("", "r1", "r1", "r2")))


def _grant(rng: Random, id: str, organization: str) -> Grant:
    """A tenth to nine tenths through its term, more or less spent; its own account, sometimes under a shared one."""
    term_ms = rng.choice((20, 60)) * DAY_MS
    starts_ms = START_MS - int(term_ms * rng.choice((0.1, 0.5, 0.9)))
    hours = rng.choice((200, 2_000, 2_000, 5_000, 5_000))
    accounts = (Account(f"a-{id}", hours * GPU_HOUR, 0, int(hours * rng.choice((0, 0.3, 0.6)) * GPU_HOUR)),)
    if rng.random() < 0.2:
        accounts = (Account("shared", 3_000 * GPU_HOUR), *accounts)
    lag_ms = rng.randrange(-72, 73) * HOUR_MS
    pace = rng.choice((None, Pace(lag_ms, START_MS - HOUR_MS), Pace(lag_ms, START_MS - HOUR_MS)))
    cap = rng.choice((None, None, None, 8, 24))
    return Grant(
        id, rng.choice(("p1", "p1", "p2")), organization, starts_ms, starts_ms + term_ms,
        (Path(accounts, organization),), pace, cap,
    )  # fmt: skip


def _slept(grant: Grant) -> Grant:
    """The same, half through its term and not used at all."""
    half_ms = (grant.ends_at_ms - grant.starts_at_ms) // 2
    own = Account(f"a-{grant.id}", 20_000 * GPU_HOUR)
    return replace(
        grant, starts_at_ms=START_MS - half_ms, ends_at_ms=START_MS + half_ms, max_gpus=None,
        paths=(Path((own,), grant.organization_id),), pace=Pace(3 * DAY_MS, START_MS),
    )  # fmt: skip


def _lane(rng: Random) -> Lane:
    z = rng.choice((-0.7, -0.4, 0.0, 0.5))
    tapers = ((HOUR_MS, z), (4 * HOUR_MS, z - 0.1), (24 * HOUR_MS, z - rng.choice((0.1, 0.3))))
    return Lane(rng.choice((2, 8)), rng.choice((4, 96)) * HOUR_MS, tapers, rng.choice((0.0, 1.0)))


def _preemption(rng: Random) -> Preemption:
    return Preemption(
        gang_gpus=rng.choice((4, 8, 16)),
        gangs=rng.choice((1, 4)),
        gangs_at_once=rng.choice((1, 8)),
        victim_gpus=rng.choice((2, 8)),
        lead_ms=rng.choice((1, HOUR_MS, DAY_MS)),
        protected_ms=rng.choice((0, HOUR_MS, 3 * HOUR_MS)),
        cooldown_ms=rng.choice((0, 8 * HOUR_MS)),
        times_per_day=rng.choice((1, 3)),
        notice_ms=rng.choice((0, 10 * MINUTE_MS)),
        checkpoint_ms=rng.choice((0, HOUR_MS)),
        restart_ms=rng.choice((0, 10 * MINUTE_MS)),
    )
