"""A quote: what a job would cost, which grant would pay, and when it could start. Reads only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, select

from quota.clock import Clock, wall_ms
from quota.fleet.rules import Rate
from quota.identity.tables import organizations
from quota.ids import earliest_id
from quota.jobs import opportunistic, organization_caps
from quota.jobs.caps import gpus_in_use
from quota.jobs.choices import accepts, unit_of
from quota.jobs.foretelling import quoted_eta
from quota.jobs.openings import FleetView
from quota.jobs.outlook import (
    Ask,
    Judged,
    Purse,
    binding,
    judge,
    size_band,
    start_by_ms,
)
from quota.jobs.service import read_rates
from quota.jobs.tables import attempts, jobs
from quota.ledger.rules import amount_gpu_us, won
from quota.ledger.tables import accounts
from quota.programs import service as programs
from quota.programs.paths import account_paths
from quota.queue import Queue
from quota.schemas.jobs import JobSubmission
from quota.schemas.quotes import (
    ClassQuote,
    GrantQuote,
    GrantVerdict,
    NoEta,
    Quote,
    QuotedCost,
    QuotedEta,
    StartOutlook,
    WaitEstimate,
    WaitHistory,
)
from quota.schemas.scheduling import JobState, Waiting, WaitReason

HISTORY_DAYS = 7
HISTORY_JOBS = 500
HISTORY_LEAST = 5
"""Fewer would tell a firm about single jobs of another."""
_NEVER_MS = 1 << 62
_HISTORY_WALL_MS = 30 * 24 * 3_600_000
"""No job is looked at that was submitted before this."""
_FOR_ROOM = frozenset(
    {
        WaitReason.NEW,
        WaitReason.NO_FREE_GPU,
        WaitReason.NO_NODE_FITS,
        WaitReason.ROOM_RESERVED,
        WaitReason.RESERVED,
        WaitReason.BOOKED,
        WaitReason.BEHIND_IN_ORDER,
        WaitReason.START_REFUSED,
    }
)
"""Who waits for one of these may be given the room first."""

_WAITS = jobs.c.state == JobState.QUEUED.value
_FIRST_STARTS = (
    select((attempts.c.claimed_at_ms - jobs.c.submitted_at_ms).label("waited_ms"))
    .join(attempts, and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == 1))
    .where(
        jobs.c.id >= bindparam("oldest"),
        jobs.c.gpu_class == bindparam("of_class"),
        jobs.c.fallback_classes == "[]",
        jobs.c.program_id.is_not(None) == bindparam("is_opportunistic"),
        (jobs.c.pods * jobs.c.gpus_per_pod).between(bindparam("gpus_from"), bindparam("gpus_to")),
        attempts.c.claimed_at_ms >= bindparam("since"),
    )
    .order_by(jobs.c.id.desc())
    .limit(HISTORY_JOBS)
)


def quote(
    connection: Connection, organization_id: str, body: JobSubmission, queue: Queue, clock: Clock
) -> Quote:
    """Quote a job that a submission would take; `queue` was refreshed from the same connection."""
    now_ms = clock.now_ms()
    fund = opportunistic.fund_of(connection, organization_id, body, now_ms) if body.opportunistic else None
    if fund is None:
        purses = _purses(connection, organization_id, body.grant_id, now_ms)
    else:
        purses = [_fund_purse(connection, fund)]
    notice_ms = queue.opportunistic_notice_ms(connection)
    options = [
        _option(connection, organization_id, body, rate, purses, fund, notice_ms, queue, clock, now_ms)
        for rate in read_rates(connection, body)
    ]
    # as the scheduler would: the first that starts now, else where room comes first
    best = min(options, key=_rank)
    program_id = None if fund is None else fund.program_id
    eta = quoted_eta(queue, organization_id, program_id, body, best.estimate, now_ms)
    return Quote(
        as_of=now_ms,
        organization_id=organization_id,
        gpu_class=best.quote.gpu_class,
        gpus=body.pods * body.gpus_per_pod,
        walltime_s=body.walltime_s,
        cost=best.quote.cost,
        grant_id=best.quote.grant_id,
        program_id=program_id,
        leaves_within_s=None if fund is None else notice_ms // 1000 + body.grace_s,
        grants=tuple(_grant_quote(one) for one in best.judged),
        could_ever_start=any(option.quote.could_ever_start for option in options),
        estimate=best.estimate,
        eta=eta if isinstance(eta, QuotedEta) else None,
        no_eta=eta if isinstance(eta, NoEta) else None,
        classes=tuple(option.quote for option in options),
    )


@dataclass(frozen=True, slots=True)
class _Option:
    """The job on one of the classes that it accepts."""

    quote: ClassQuote
    judged: list[Judged]
    estimate: WaitEstimate


def _option(
    connection: Connection,
    organization_id: str,
    body: JobSubmission,
    rate: Rate,
    purses: list[Purse],
    fund: Row[Any] | None,
    notice_ms: int,
    queue: Queue,
    clock: Clock,
    now_ms: int,
) -> _Option:
    walltime_ms, gpus = body.walltime_s * 1000, body.pods * body.gpus_per_pod
    cost = amount_gpu_us(walltime_ms, gpus, rate.rate_thousandths)
    unit = unit_of(body.topology, body.gpus_per_pod, body.pods)
    ask = Ask(unit.pods, unit.gpus_per_pod, walltime_ms, cost, in_rack=unit.in_rack)
    judged = judge(ask, purses, now_ms)
    chosen = next((one for one in judged if one.verdict is GrantVerdict.CHOSEN), None)
    # whoever is entitled to their GPUs does not wait for the opportunistic jobs' ends
    leave_ms = notice_ms if fund is None else None
    fleet_view = FleetView(connection, rate.gpu_class, clock, now_ms, leave_ms)
    estimate = _estimate(connection, organization_id, fleet_view, ask, judged, fund, queue, now_ms)
    quoted = ClassQuote(
        gpu_class=rate.gpu_class,
        cost=QuotedCost(
            gpu_us=cost,
            gpu_hours=cost,
            krw=won(walltime_ms, gpus, rate.price_krw),
            rate_id=rate.id,
            rate_thousandths=rate.rate_thousandths,
            price_krw=rate.price_krw,
        ),
        grant_id=None if chosen is None else chosen.purse.grant_id,
        could_ever_start=any(one.could_ever for one in judged),
        starts=estimate.starts,
        waiting=estimate.waiting,
        room_at_the_latest=estimate.room_at_the_latest,
    )
    return _Option(quoted, judged, estimate)


def _rank(option: _Option) -> tuple[int, int]:
    order = (StartOutlook.NOW, StartOutlook.LATER, StartOutlook.NEVER)
    room_ms = option.estimate.room_at_the_latest
    paid = option.quote.grant_id is not None
    return 2 * order.index(option.estimate.starts) + (not paid), _NEVER_MS if room_ms is None else room_ms


# --- grants ---------------------------------------------------------------------------------------


def _purses(connection: Connection, organization_id: str, pinned: str | None, now_ms: int) -> list[Purse]:
    rows = programs.payable_grants(connection, organization_id, now_ms)
    rows = [row for row in rows if pinned in (None, row.id)]
    tree: dict[str, list[Row[Any]]] = defaultdict(list)
    wanted = accounts.c.grant_id.in_([row.id for row in rows])
    for account in connection.execute(select(accounts).where(wanted).order_by(accounts.c.id)):
        tree[account.grant_id].append(account)
    return [_purse(connection, organization_id, row, tree[row.id]) for row in rows]


def _purse(connection: Connection, organization_id: str, row: Row[Any], tree: list[Row[Any]]) -> Purse:
    rooms = [
        min(
            account.granted_gpu_us + account.overdraft_gpu_us - account.held_gpu_us - account.used_gpu_us
            for account in path.accounts
        )
        for path in account_paths(row.organization_id, tree)
        if path.organization_id == organization_id
    ]
    left = None if row.max_gpus is None else max(0, row.max_gpus - gpus_in_use(connection, row.id))
    share = None
    if row.organization_id != organization_id:
        share = next(one for one in tree if one.kind == "share" and one.organization_id == organization_id)
    return Purse(
        grant_id=row.id,
        starts_at_ms=row.starts_at_ms,
        ends_at_ms=row.ends_at_ms,
        rooms_gpu_us=tuple(rooms),
        unused_gpu_us=row.left_gpu_us,
        max_gpus=row.max_gpus,
        gpus_left=left,
        share_room_gpu_us=None if share is None else _room(share),
    )


def _fund_purse(connection: Connection, fund: Row[Any]) -> Purse:
    """What a programme pays opportunistic jobs from, as a purse of whoever asks."""
    left = None if fund.max_gpus is None else max(0, fund.max_gpus - gpus_in_use(connection, fund.grant_id))
    return Purse(
        grant_id=fund.grant_id,
        starts_at_ms=fund.starts_at_ms,
        ends_at_ms=fund.ends_at_ms,
        rooms_gpu_us=(fund.granted_gpu_us - fund.held_gpu_us - fund.used_gpu_us,),
        unused_gpu_us=fund.granted_gpu_us - fund.used_gpu_us,
        max_gpus=fund.max_gpus,
        gpus_left=left,
    )


def _room(account: Row[Any]) -> int:
    left = account.granted_gpu_us + account.overdraft_gpu_us - account.held_gpu_us - account.used_gpu_us
    return int(left)


def _grant_quote(one: Judged) -> GrantQuote:
    left = one.purse.told_gpu_us
    return GrantQuote(
        grant_id=one.purse.grant_id,
        verdict=one.verdict,
        starts_at=one.purse.starts_at_ms,
        ends_at=one.purse.ends_at_ms,
        left_gpu_us=left,
        left_gpu_hours=left,
        fitting_walltime_s=None if one.fitting_ms is None else one.fitting_ms // 1000,
        gpus_left=one.purse.told_gpus_left,
        could_ever=one.could_ever,
    )


# --- the wait -------------------------------------------------------------------------------------


def _estimate(
    connection: Connection,
    organization_id: str,
    fleet_view: FleetView,
    ask: Ask,
    judged: list[Judged],
    fund: Row[Any] | None,
    queue: Queue,
    now_ms: int,
) -> WaitEstimate:
    gpu_class, room = fleet_view.gpu_class, fleet_view.room_at_ms(ask)
    unpaid = _unpaid(ask, judged)
    waiting = (
        _frozen(connection, organization_id)
        or (unpaid and fund is not None and _unpaid_by(fund, unpaid))
        or unpaid
        or (_capped(connection, organization_id, ask) if fund is None else None)
        or fleet_view.closed(ask)
        or _no_room(connection, gpu_class, ask, room, queue, now_ms)
    )
    if not any(one.could_ever for one in judged):
        starts = StartOutlook.NEVER
    else:
        starts = StartOutlook.NOW if waiting is None else StartOutlook.LATER
    ranked = queue.ranked_at_ms()
    everybody = connection.execute(select(func.count()).select_from(jobs).where(_WAITS)).scalar_one()
    return WaitEstimate(
        starts=starts,
        waiting=waiting,
        position=_position(connection, organization_id, queue),
        position_at_worst=everybody + 1,
        room_at_the_latest=None if starts is StartOutlook.NEVER else room,
        start_by=start_by_ms(ask, judged),
        ranked_at=ranked,
        ranking_age_s=None if ranked is None else max(0, now_ms - ranked) // 1000,
        history=_history(connection, gpu_class, ask.gpus, now_ms, opportunistic=fund is not None),
    )


def _frozen(connection: Connection, organization_id: str) -> Waiting | None:
    statement = select(organizations.c.frozen).where(organizations.c.id == organization_id)
    if not connection.execute(statement).scalar_one():
        return None
    return Waiting(code=WaitReason.ORGANIZATION_FROZEN, numbers={"organization": organization_id})


def _unpaid(ask: Ask, judged: list[Judged]) -> Waiting | None:
    found = binding(judged)
    if found is None:
        return None
    code, one = found
    if one is None:
        return Waiting(code=code)
    purse = one.purse
    numbers: dict[str, int | str] = {"grant": purse.grant_id}
    if code is WaitReason.GRANT_CAP and purse.max_gpus is not None:
        numbers |= {"cap": purse.max_gpus, "needed": ask.gpus}
        if purse.told_gpus_left is not None:
            numbers |= {"in_use": purse.max_gpus - purse.told_gpus_left}
    elif code is WaitReason.GRANT_EXHAUSTED:
        numbers |= {"needed_gpu_us": ask.cost_gpu_us}
        if purse.share_room_gpu_us in (None, purse.remainder_gpu_us):
            numbers |= {"left_gpu_us": purse.told_gpu_us}
    elif code is WaitReason.GRANT_ENDS_FIRST:
        numbers |= {"ends_at_ms": purse.ends_at_ms, "walltime_ms": one.fitting_ms or 0}
    elif code is WaitReason.GRANT_NOT_STARTED:
        numbers |= {"starts_at_ms": purse.starts_at_ms}
    return Waiting(code=code, numbers=numbers)


def _unpaid_by(fund: Row[Any], unpaid: Waiting) -> Waiting | None:
    """The same said of a programme instead of a grant; None where it is said of a grant all the same."""
    codes = {
        WaitReason.GRANT_EXHAUSTED: WaitReason.OPPORTUNISTIC_SPENT,
        WaitReason.GRANT_CAP: WaitReason.OPPORTUNISTIC_CAP,
    }
    if unpaid.code not in codes:
        return None
    numbers = {name: value for name, value in unpaid.numbers.items() if name != "grant"}
    return Waiting(code=codes[unpaid.code], numbers={"program": fund.program_id} | numbers)


def _capped(connection: Connection, organization_id: str, ask: Ask) -> Waiting | None:
    """A grant pays, but the organization has as many GPUs in use as it may."""
    found = organization_caps.gpus_left(connection, organization_id)
    if found is None or found[1] + ask.gpus <= found[0]:
        return None
    numbers: dict[str, int | str] = {"organization": organization_id, "cap": found[0], "in_use": found[1]}
    return Waiting(code=WaitReason.ORGANIZATION_CAP, numbers=numbers | {"needed": ask.gpus})


def _no_room(
    connection: Connection, gpu_class: str, ask: Ask, room: int | None, queue: Queue, now_ms: int
) -> Waiting | None:
    """Why it would wait for room: none is free, or others of its class wait for what is."""
    if room != now_ms:
        return Waiting(code=WaitReason.NO_FREE_GPU, numbers={"gpu_class": gpu_class, "needed": ask.gpus})
    ids = connection.execute(select(jobs.c.id).where(_WAITS, accepts(gpu_class))).scalars()
    before = sum(1 for job_id in ids if (queue.code(job_id) or WaitReason.NEW) in _FOR_ROOM)
    if not before:
        return None
    return Waiting(code=WaitReason.BEHIND_IN_ORDER, numbers={"gpu_class": gpu_class, "waiting": before})


def _position(connection: Connection, organization_id: str, queue: Queue) -> int | None:
    mine = select(jobs.c.id).where(_WAITS, jobs.c.organization_id == organization_id)
    places = [queue.position(job_id) for job_id in connection.execute(mine).scalars()]
    last = max((place for place in places if place is not None), default=None)
    return None if last is None else last + 1


def _history(
    connection: Connection, gpu_class: str, gpus: int, now_ms: int, *, opportunistic: bool
) -> WaitHistory | None:
    gpus_from, gpus_to = size_band(gpus)
    rows = connection.execute(
        _FIRST_STARTS,
        {
            "oldest": earliest_id("job", wall_ms() - _HISTORY_WALL_MS),
            "of_class": gpu_class,
            "is_opportunistic": opportunistic,
            "gpus_from": gpus_from,
            "gpus_to": gpus_to,
            "since": now_ms - HISTORY_DAYS * 24 * 3_600_000,
        },
    )
    waits = [max(0, row.waited_ms) for row in rows]
    if len(waits) < HISTORY_LEAST:
        return None
    return WaitHistory(
        gpus_from=gpus_from,
        gpus_to=gpus_to,
        days=HISTORY_DAYS,
        jobs=len(waits),
        median_wait_s=int(median(waits)) // 1000,
    )
