"""The scheduling core again, slow and plain as the documentation: it shares no code with the core.

It knows nothing of room kept for a job that others stop for; worlds with such stops are judged by invariants.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor, fsum

from scheduler.core.model import (
    Attempt,
    Capacity,
    Change,
    Cluster,
    GpuClass,
    Grant,
    Job,
    JobState,
    Node,
    Organization,
    Pace,
)
from scheduler.core.policy import Policy

Placement = tuple[str, dict[str, int]]
"""(cluster, GPUs by node)"""


@dataclass
class Answer:
    """What the core should say: starts as (job, grant, path, cluster, GPUs by node), and why others wait."""

    starts: list[tuple[str, str, tuple[str, ...], str, dict[str, int]]]
    order: tuple[str, ...]
    paces: dict[str, Pace]
    codes: dict[str, str]
    money: dict[str, dict[str, int | str]]
    """The numbers beside GRANT_CAP, GRANT_EXHAUSTED and ORGANIZATION_CAP."""


@dataclass
class Hub:
    """The objects by id, and what this cycle has taken from them so far."""

    now_ms: int
    policy: Policy = field(default_factory=Policy)
    classes: dict[str, GpuClass] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    organizations: dict[str, Organization] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    taken: dict[tuple[str, str, str], int] = field(default_factory=dict)
    charged: dict[str, int] = field(default_factory=dict)
    spent_on: dict[tuple[str, str], int] = field(default_factory=dict)
    """By grant and party."""
    given: dict[str, int] = field(default_factory=dict)
    """GPUs by grant."""
    given_to: dict[str, int] = field(default_factory=dict)
    """GPUs by organization."""
    lags: dict[str, int] = field(default_factory=dict)


def reference(objects: Iterable[Change], now_ms: int) -> Answer:
    """One cycle from a snapshot."""
    hub = _hub(objects, now_ms)
    waiting = {id: job for id, job in hub.jobs.items() if job.waits}
    paces = {id: _pace(hub, grant, waiting) for id, grant in hub.grants.items() if _runs(hub, grant)}
    hub.lags = {id: pace.lag_ms for id, pace in paces.items()}
    answer = Answer([], (), paces, {}, {})
    fitted = {
        (id, each.gpu_class) for id, job in waiting.items() for each in choices(job) if _place(hub, each)
    }
    while True:
        ranked = _ranked(hub, waiting)
        job = next((each for each in ranked if each is _choice(hub, waiting[each.id], ranked)), None)
        if job is None:
            break
        placement = _place(hub, job)
        assert placement is not None
        drawn = _draw(hub, job)
        assert isinstance(drawn, tuple)
        grant_id, path = drawn
        cost = _cost(hub, job)
        answer.starts.append((job.id, grant_id, path, *placement))
        del waiting[job.id]
        spent_by = (grant_id, job.organization_id)
        hub.spent_on[spent_by] = hub.spent_on.get(spent_by, 0) + cost
        hub.given[grant_id] = hub.given.get(grant_id, 0) + job.gpus_per_pod * job.pods
        hub.given_to[job.organization_id] = hub.given_to.get(job.organization_id, 0) + _gpus(job)
        for account in path:
            hub.charged[account] = hub.charged.get(account, 0) + cost
        for node, gpus in placement[1].items():
            key = (placement[0], node, job.gpu_class)
            hub.taken[key] = hub.taken.get(key, 0) + gpus
    able = list(dict.fromkeys(job.id for job in ranked))
    rest = sorted((job.submitted_at_ms, id) for id, job in waiting.items() if id not in able)
    answer.order = (*able, *(id for _, id in rest))
    firsts: dict[tuple[str, int, int, str], tuple[str, str]] = {}
    for each in ranked:
        firsts.setdefault((each.gpu_class, *_unit(each)), (each.id, each.gpu_class))
    next_ones = set(firsts.values()) & fitted
    for id in answer.order:
        job = waiting[id]
        # told is what keeps it from the first class that it could pay
        told = next((c for c in choices(job) if not isinstance(_draw(hub, c), str)), choices(job)[0])
        answer.codes[id] = _code(hub, told, (id, told.gpu_class) in next_ones)
        others = {"other_classes": len(job.fallbacks)} if job.fallbacks else {}
        if answer.codes[id] in ("grant_cap", "grant_exhausted"):
            answer.money[id] = _money_numbers(hub, told) | others
        elif answer.codes[id] == "organization_cap":
            cap, in_use = _ceiling(hub, job.organization_id)
            numbers = {"organization": job.organization_id, "cap": cap, "in_use": in_use}
            answer.money[id] = {**numbers, "needed": _gpus(job)} | others
    return answer


def choices(job: Job) -> list[Job]:
    """The same job as it would be if it accepted one class only, once for each, the preferred one first."""
    return [replace(job, gpu_class=name, fallbacks=()) for name in (job.gpu_class, *job.fallbacks)]


def _choice(hub: Hub, job: Job, ranked: list[Job]) -> Job | None:
    """The first class that it can pay, and on which it fits."""
    able = [each for each in ranked if each.id == job.id]
    names = (job.gpu_class, *job.fallbacks)
    return next((e for e in sorted(able, key=lambda e: names.index(e.gpu_class)) if _place(hub, e)), None)


def _hub(objects: Iterable[Change], now_ms: int) -> Hub:
    hub = Hub(now_ms)
    for each in objects:
        match each:
            case Policy():
                hub.policy = each
            case GpuClass():
                hub.classes[each.id] = each
            case Node():
                hub.nodes[each.id] = each
            case Cluster():
                hub.clusters[each.id] = each
            case Grant():
                hub.grants[each.id] = each
            case Organization():
                hub.organizations[each.id] = each
            case Job():
                hub.jobs[each.id] = each
            case Attempt():
                hub.attempts[each.id] = each
    return hub


# --- money ---------------------------------------------------------------------------------------


def _runs(hub: Hub, grant: Grant) -> bool:
    return grant.starts_at_ms <= hub.now_ms < grant.ends_at_ms


def _cost(hub: Hub, job: Job) -> int:
    return job.walltime_ms * job.gpus_per_pod * job.pods * hub.classes[job.gpu_class].rate_thousandths


def _left(hub: Hub, account: str) -> int:
    copies = [
        a.left_gpu_us for g in hub.grants.values() for p in g.paths for a in p.accounts if a.id == account
    ]
    return min(copies) - hub.charged.get(account, 0)


def _room(hub: Hub, accounts: tuple[str, ...]) -> int:
    return min((_left(hub, account) for account in accounts), default=0)


def _parties(grant: Grant) -> set[str]:
    return {path.organization_id for path in grant.paths} or {grant.organization_id}


def _in_use(hub: Hub, grant: Grant) -> int:
    mine = [a for a in hub.attempts.values() if a.grant_id == grant.id and a.capacity_held]
    return sum(pod.count for attempt in mine for pod in attempt.pods) + hub.given.get(grant.id, 0)


def _in_time(hub: Hub, job: Job) -> list[tuple[Grant, list[tuple[str, ...]], list[int]]]:
    """The grants that a job may draw on and that last long enough: its paths there, and the room on each."""
    found = []
    for grant in hub.grants.values():
        lasts = hub.now_ms + job.walltime_ms <= grant.ends_at_ms
        pinned = job.grant_id in (None, grant.id)
        if _runs(hub, grant) and lasts and pinned and job.organization_id in _parties(grant):
            mine = [path for path in grant.paths if path.organization_id == job.organization_id]
            paths = [tuple(account.id for account in path.accounts) for path in mine]
            found.append((grant, paths, [_room(hub, path) for path in paths]))
    return found


def _draw(hub: Hub, job: Job) -> tuple[str, tuple[str, ...]] | str:
    """The grant and path a job draws on, or the code of the reason why it draws on none."""
    organization = hub.organizations.get(job.organization_id)
    if organization and organization.frozen:
        return "organization_frozen"
    if job.not_before_ms is not None and job.not_before_ms > hub.now_ms:
        return "cooldown"
    if job.gpu_class not in hub.classes:
        return "nodes_unavailable"
    grants = [g for g in hub.grants.values() if job.organization_id in _parties(g) and organization]
    grants = [g for g in grants if job.grant_id in (None, g.id)]
    in_time = _in_time(hub, job) if organization else []
    offers, capped = [], False
    for grant, paths, rooms in in_time:
        good = [path for path, room in zip(paths, rooms, strict=True) if room >= _cost(hub, job)]
        if good and (grant.max_gpus is None or _in_use(hub, grant) + _gpus(job) <= grant.max_gpus):
            offers.append((grant.ends_at_ms, max(rooms), grant.id, good[0]))
        capped = capped or bool(good)
    if offers:
        cap, in_use = _ceiling(hub, job.organization_id)
        return min(offers)[2:] if in_use + _gpus(job) <= cap else "organization_cap"
    if capped:
        return "grant_cap"
    if in_time:
        return "grant_exhausted"
    if any(_runs(hub, g) for g in grants):
        return "grant_ends_first"
    return "grant_not_started" if any(g.starts_at_ms > hub.now_ms for g in grants) else "no_grant"


def _unit(job: Job) -> tuple[int, int, str]:
    """What has to fit: so many GPUs, so often, within what."""
    if job.pods == 1 or not job.topology.value.startswith("same"):
        return job.gpus_per_pod, job.pods, ""
    return (
        (_gpus(job), 1, "node") if job.topology.value == "same_node" else (job.gpus_per_pod, job.pods, "rack")
    )


def _gpus(job: Job) -> int:
    return job.gpus_per_pod * job.pods


def _ceiling(hub: Hub, organization_id: str) -> tuple[int, int]:
    """How many GPUs an organization may keep, and how many it does. Of a share of the pool one node is the least."""
    organization, policy = hub.organizations[organization_id], hub.policy
    nodes = [node for node in hub.nodes.values() if node.schedulable]
    sizes = [capacity.total for node in nodes for capacity in node.capacities.values()]
    part = organization.pool_thousandths
    if part is None:
        counts = sum(sizes) >= policy.organization_pool_from_gpus
        part = policy.organization_pool_thousandths if counts else 1000
    caps = [] if organization.max_gpus is None else [organization.max_gpus]
    if part < 1000 and sum(sizes) > 0:
        caps.append(max([ceil(Fraction(part * sum(sizes), 1000)), *sizes]))
    mine = [a for a in hub.attempts.values() if a.organization_id == organization_id and a.capacity_held]
    in_use = sum(pod.count for attempt in mine for pod in attempt.pods)
    return min(caps, default=10**9), in_use + hub.given_to.get(organization_id, 0)


def _money_numbers(hub: Hub, job: Job) -> dict[str, int | str]:
    """What stands beside the reason: of several grants the one nearest to sufficing, the first of equals."""
    cost, gpus = _cost(hub, job), _gpus(job)
    in_time = sorted(
        _in_time(hub, job), key=lambda found: (found[0].ends_at_ms, max(found[2], default=0), found[0].id)
    )
    capped = [grant for grant, _, rooms in in_time if any(room >= cost for room in rooms)]
    if capped:
        caps = [(grant.max_gpus or 0, _in_use(hub, grant), grant) for grant in capped]
        cap, in_use, grant = min(caps, key=lambda found: (found[0] < gpus, found[1] - found[0]))
        return {"grant": grant.id, "cap": cap, "in_use": in_use, "needed": gpus}
    grant, paths, rooms = min(in_time, key=lambda found: -max(found[2], default=0))
    short: int | str = ""
    if paths:
        widest = paths[rooms.index(max(rooms))]
        short = min(widest, key=lambda account: (_left(hub, account), widest.index(account)))
    left = max(0, *rooms) if rooms else 0
    return {"grant": grant.id, "account": short, "needed_gpu_us": cost, "left_gpu_us": left}


# --- order ---------------------------------------------------------------------------------------


def _own(grant: Grant) -> tuple[int, int, int]:
    """granted, held, used of the grant itself: the last account of its paths, each counted once."""
    own = {path.accounts[-1].id: path.accounts[-1] for path in grant.paths if path.accounts}
    totals = [(a.granted_gpu_us, a.held_gpu_us, a.used_gpu_us) for a in own.values()]
    return tuple(map(sum, zip(*totals, strict=True))) if totals else (0, 0, 0)  # type: ignore[return-value]


def _in_term(grant: Grant, gpu_us: int) -> int:
    term = max(1, grant.ends_at_ms - grant.starts_at_ms)
    granted = _own(grant)[0]
    return floor(Fraction(gpu_us, granted) * term) if granted > 0 else term


def _bound(hub: Hub, grant: Grant) -> int:
    return int(max(1, grant.ends_at_ms - grant.starts_at_ms) * hub.policy.lag_bound_share)


def _remaining(hub: Hub, grant: Grant) -> int:
    """What the attempts on the grant may still use."""
    total = 0
    for attempt in hub.attempts.values():
        if attempt.grant_id == grant.id and attempt.state is not JobState.ENDED:
            begin, end = attempt.started_at_ms, attempt.ends_at_ms
            if begin is None or end is None or end <= begin:
                total += attempt.cost_gpu_us
            else:
                total += attempt.cost_gpu_us // (attempt.walltime_ms or end - begin) * (end - hub.now_ms)
    return total


def _pace(hub: Hub, grant: Grant, waiting: dict[str, Job]) -> Pace:
    _, held, used = _own(grant)
    spent = held + used - _remaining(hub, grant)
    pace = grant.pace or Pace(0, grant.starts_at_ms)
    then = spent if pace.spent_gpu_us is None else pace.spent_gpu_us
    meanwhile = _in_term(grant, spent) - _in_term(grant, then)
    draws = [(job.submitted_at_ms, _draw(hub, each)) for job in waiting.values() for each in choices(job)]
    since = [submitted for submitted, draw in draws if not isinstance(draw, str) and draw[0] == grant.id]
    begin = max(pace.as_of_ms, grant.starts_at_ms)
    waited = max(0, hub.now_ms - max(min(since), begin)) if since else 0
    lag = pace.lag_ms
    if meanwhile < 0:
        lag -= meanwhile  # refunded
        meanwhile = 0
    term = max(1, grant.ends_at_ms - grant.starts_at_ms)
    idle = int(term * hub.policy.idle_lag_share)
    lag += min(max(0, hub.now_ms - begin) - meanwhile, max(waited, idle - lag))
    behind = hub.now_ms - grant.starts_at_ms - _in_term(grant, spent)
    return Pace(min(lag, behind, _bound(hub, grant)), hub.now_ms, spent)


def _lag(hub: Hub, grant: Grant) -> int:
    """This cycle's picks counted."""
    promised = _remaining(hub, grant) + sum(cost for (id, _), cost in hub.spent_on.items() if id == grant.id)
    return max(hub.lags[grant.id] - _in_term(grant, promised), -_bound(hub, grant))


def _mean_lag(hub: Hub, grants: list[Grant]) -> int:
    weights = [max(1, _own(grant)[0]) for grant in grants]
    return floor(Fraction(sum(_lag(hub, g) * w for g, w in zip(grants, weights, strict=True)), sum(weights)))


def _program_weight(hub: Hub, program_id: str) -> int:
    found = [each for each in hub.policy.entitlements if each.program_id == program_id]
    return found[0].weight_thousandths if found else 1000


def _is_owed(hub: Hub, program_id: str) -> bool:
    """Whether a programme keeps less than its reserved part of the pool, this cycle's picks counted."""
    parts = [e.reserved_thousandths for e in hub.policy.entitlements if e.program_id == program_id]
    nodes = [node for node in hub.nodes.values() if node.schedulable]
    pool = sum(capacity.total for node in nodes for capacity in node.capacities.values())
    kept = sum(_in_use(hub, grant) for grant in hub.grants.values() if grant.program_id == program_id)
    return bool(parts) and kept < ceil(Fraction(pool * parts[0], 1000))


def _weighed(lag_ms: int, weight: int) -> int:
    return floor(Fraction(lag_ms * weight, 1000)) if lag_ms > 0 else ceil(Fraction(lag_ms * 1000, weight))


def _usage(hub: Hub, organization_ids: set[str]) -> float:
    decayed, held = [], 0
    running = [grant for grant in hub.grants.values() if _runs(hub, grant)]
    for id in organization_ids:
        if organization := hub.organizations.get(id):
            age = max(0, hub.now_ms - organization.as_of_ms) / hub.policy.half_life_ms
            decayed.append(organization.decayed_usage_gpu_us * 0.5**age)
        held += sum(_held_by(g, id) + hub.spent_on.get((g.id, id), 0) for g in running if id in _parties(g))
    return fsum(decayed) + held


def _held_by(grant: Grant, organization_id: str) -> int:
    """A party among several holds what its share holds, the first account of each of its paths."""
    if len(_parties(grant)) == 1:
        return _own(grant)[1]
    mine = [path.accounts[0] for path in grant.paths if path.organization_id == organization_id]
    return sum({account.id: account.held_gpu_us for account in mine}.values())


def _ranked(hub: Hub, waiting: dict[str, Job]) -> list[Job]:
    """The jobs that could pay, in order, once for each class that they could pay."""
    draws = [(each, _draw(hub, each)) for job in waiting.values() for each in choices(job)]
    able = [(each, hub.grants[draw[0]]) for each, draw in draws if not isinstance(draw, str)]
    running = [grant for grant in hub.grants.values() if _runs(hub, grant)]

    def first(chosen: Callable[[Job, Grant], bool]) -> tuple[int, str]:
        return min((job.submitted_at_ms, job.id) for job, grant in able if chosen(job, grant))

    def scaled(usage: float, weight: int) -> float:
        return usage if weight == 1000 else usage * 1000 / weight

    def key(entry: tuple[Job, Grant]) -> tuple[object, ...]:
        job, grant = entry
        mine = job.organization_id
        of_program = [g for g in running if g.program_id == grant.program_id]
        of_branch = [g for g in of_program if mine in _parties(g)]
        parties = {id for g in of_program for id in _parties(g)}
        weight = _program_weight(hub, grant.program_id)
        own = next((w for id, w in hub.policy.organization_weights if id == mine), 1000)
        return (
            not _is_owed(hub, grant.program_id),
            (
                -_weighed(_mean_lag(hub, of_program), weight),
                scaled(_usage(hub, parties), weight),
                first(lambda _, g: g.program_id == grant.program_id),
            ),
            (
                -_weighed(_mean_lag(hub, of_branch), own),
                scaled(_usage(hub, {mine}), own),
                first(lambda j, g: g.program_id == grant.program_id and j.organization_id == mine),
            ),
            (-_lag(hub, grant), first(lambda j, g: g.id == grant.id and j.organization_id == mine)),
            (job.submitted_at_ms, job.id),
        )

    return [job for job, _ in sorted(able, key=key)]


# --- room ----------------------------------------------------------------------------------------


def _seen(hub: Hub) -> set[str]:
    return {
        c.id for c in hub.clusters.values() if hub.now_ms - c.last_seen_ms <= hub.policy.cluster_unseen_ms
    }


def _clusters(hub: Hub) -> list[str]:
    return sorted(id for id in _seen(hub) if not hub.clusters[id].paused)


def _free(hub: Hub, node: Node, gpu_class: str) -> tuple[int, int]:
    """(free, total)"""
    capacity = node.capacities.get(gpu_class, Capacity(0))
    free = max(0, capacity.total - capacity.foreign - capacity.used)
    return free - hub.taken.get((node.cluster, node.node, gpu_class), 0), capacity.total


def _is_paused(hub: Hub, job: Job) -> bool:
    gpu_class = hub.classes.get(job.gpu_class)
    return hub.policy.placement_paused or (gpu_class is not None and gpu_class.paused)


def _place(hub: Hub, job: Job) -> Placement | None:
    """Within what it requires, or the narrowest that it prefers and that has room."""
    if _is_paused(hub, job):
        return None
    for within in WISHES[job.topology.value] if job.pods > 1 else ("",):
        found = _places(hub, job, within)
        if found:
            return min(found)[1]
    return None


WISHES = {
    "any": ("",),
    "spread": ("",),
    "same_node": ("node",),
    "same_rack": ("rack",),
    "prefer_same_node": ("node", "rack", ""),
    "prefer_same_rack": ("rack", ""),
}


def domains(nodes: Iterable[Node], within: str) -> dict[tuple[str, str], list[Node]]:
    """The nodes by (cluster, "") or by (cluster, rack), those of no rack left out."""
    found: dict[tuple[str, str], list[Node]] = {}
    for node in sorted(nodes, key=lambda node: (node.cluster, node.rack)):
        if within != "rack" or node.rack:
            found.setdefault((node.cluster, node.rack if within == "rack" else ""), []).append(node)
    return found


def _places(hub: Hub, job: Job, within: str) -> list[tuple[tuple[int, int, int, str, str], Placement]]:
    """Pod by pod onto the fullest node that has room, or that has the fewest of them; the least torn open first."""
    size, pods = (_gpus(job), 1) if within == "node" else (job.gpus_per_pod, job.pods)
    usable = [n for n in hub.nodes.values() if n.cluster in _clusters(hub) and n.schedulable]
    found = []
    for (cluster, rack), nodes in domains(usable, within).items():
        before = {n.node: _free(hub, n, job.gpu_class) for n in nodes}
        state, chosen = dict(before), dict[str, int]()
        spread = job.topology.value == "spread"
        for _ in range(pods):
            fit = [
                (
                    chosen.get(name, 0) if spread else 0,
                    *_fullness(before if spread else state, name, size),
                    name,
                )
                for name, (free, _) in state.items()
                if free >= size
            ]
            if not fit:
                break
            name = min(fit)[-1]
            chosen[name] = chosen.get(name, 0) + size
            state[name] = state[name][0] - size, state[name][1]
        else:
            broken = sum(before[n][0] == before[n][1] and state[n][0] > 0 for n in chosen)
            most = max(chosen.values()) if spread else 0
            left = sum(state[n][0] for n in chosen)
            found.append(((most, broken, left, cluster, rack), (cluster, chosen)))
    return found


def _fullness(state: dict[str, tuple[int, int]], name: str, size: int) -> tuple[bool, int, bool]:
    free, total = state[name]
    return free == total and free > size, free, free == total


def _code(hub: Hub, job: Job, lost_room: bool) -> str:
    draw = _draw(hub, job)
    if isinstance(draw, str):
        return draw
    if lost_room:
        return "behind_in_order"
    if _is_paused(hub, job):
        return "placement_paused"
    g, pods, within = _unit(job)
    seen = _seen(hub)
    live, dark = set(_clusters(hub)), {n.cluster for n in hub.nodes.values()} - seen

    def most(clusters: set[str], part: int, also_shut: bool) -> int:
        """Pods that fit in the best of these clusters or their racks; part 0 = what is free, 1 = were all empty."""
        mine = [n for n in hub.nodes.values() if n.cluster in clusters and (n.schedulable or also_shut)]
        sums = (
            sum(_free(hub, n, job.gpu_class)[part] // g for n in each)
            for each in domains(mine, within).values()
        )
        return max(sums, default=0)

    paused = seen - live
    never = most(live, 1, False) < pods
    if most(dark, 0, False) >= pods or (never and most(seen, 1, True) < pods <= most(dark, 1, True)):
        return "cluster_unseen"
    if most(paused, 0, False) >= pods or (never and most(paused, 1, False) >= pods):
        return "placement_paused"
    if most(seen, 0, True) >= pods or (never and most(seen, 1, True) >= pods):
        return "nodes_unavailable"
    free = sum(
        _free(hub, n, job.gpu_class)[0] for n in hub.nodes.values() if n.cluster in live and n.schedulable
    )
    return "no_free_gpu" if free < g * pods else "no_node_fits"
