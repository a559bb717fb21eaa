"""A small hub where everything happened once, its seals, its export, and statements: for the tests of the audit."""

from __future__ import annotations

from dataclasses import dataclass

from quota.audit import seals
from quota.clock import HOUR_MS
from quota.fleet import service as fleet
from quota.programs import endings
from quota.reports import exporting, statements
from quota.schemas.audit import Seal
from quota.schemas.fleet import NewGpuClass
from quota.schemas.ledger import RefundKind
from quota.schemas.programs import Grant
from quota.schemas.scheduling import StopReason
from quota.schemas.statements import StatementFormat, StatementLanguage
from tests.builders import DAY_MS, MINUTE_MS, OPERATOR, Hub, a_hub, ended, started
from tests.integration.quota.grants_builders import (
    adjust,
    carry_over,
    cut,
    put_policy,
    transfer,
    use_policy,
)
from tests.integration.quota.limits_builders import divide, give, move, path, release, run_on


@dataclass
class World:
    """The hub, and the grants whose statements matter."""

    hub: Hub
    plain: Grant
    consortium: Grant
    staged: Grant
    ended: Grant


def a_busy_hub(url: str) -> World:
    """Every type of transfer, under several seals: holds, extensions, faults, preemptions, late truth, limits."""
    hub = a_hub(url)
    plain = hub.award("alpha", "100")
    put_policy(hub, "loose", overdraft_thousandths=250)
    use_policy(hub, "loose")
    consortium = hub.award("alpha", "40")
    staged = hub.award("gamma", "30")
    over = hub.award("beta", "4", ends_at=hub.now + DAY_MS)
    seal(hub)
    _plain_work(hub, plain)
    _consortium_work(hub, consortium)
    _staged_work(hub, staged)
    _overdrawn_work(hub, over)
    _moves(hub, plain, consortium)
    seal(hub)
    hub.clock.set(max(hub.now, over.ends_at) + MINUTE_MS)
    endings.expire_due(hub.database)
    unused = hub.award("beta", "7", ends_at=hub.now + HOUR_MS)
    hub.clock.advance(HOUR_MS + MINUTE_MS)
    endings.expire_due(hub.database)
    carry_over(hub, unused, plain, "3")
    _plain_work(hub, plain)
    seal(hub)
    return World(hub, plain, consortium, staged, unused)


def ledger_of(hub: Hub, through_seal: int | None = None) -> bytes:
    """The export's bytes."""
    seal = exporting.begin_export(hub.database, OPERATOR, through_seal, "a test")
    return b"".join(exporting.write_ledger(hub.database, seal, packed=False))


def statement_of(
    world: World,
    grant: Grant,
    form: StatementFormat = StatementFormat.JSON,
    language: StatementLanguage = StatementLanguage.EN,
    *,
    as_of: int | None = None,
    since: int | None = None,
) -> bytes:
    """A statement sealed at `as_of` (default: now)."""
    return statements.read_statement(
        world.hub.database,
        OPERATOR,
        grant.id,
        as_of_ms=world.hub.now if as_of is None else as_of,
        since_ms=since,
        form=form,
        language=language,
    ).content


def all_seals(hub: Hub) -> tuple[Seal, ...]:
    with hub.database.read() as connection:
        return seals.list_seals(connection, 0, 1000).items


def seal(hub: Hub) -> None:
    """Seal what was written."""
    assert seals.seal_due(hub.database) >= 1
    hub.clock.advance(MINUTE_MS)


def _plain_work(hub: Hub, grant: Grant) -> None:
    """Success with an extension, a fault, a preemption, late truth, a refund by hand, one that never began."""
    job = hub.submit(walltime_s=2 * 3600, gpus_per_pod=2)
    hub.run(job, grant)
    hub.extend(job, 1800)
    hub.clock.advance(2 * HOUR_MS + 7)
    hub.report()
    hub.clock.advance(20 * MINUTE_MS)
    hub.finish(job)
    started_at = hub.attempt(job.id).first_started_at_ms
    hub.refund(job, started_at + 1000, started_at + 5001, RefundKind.FAULT, evidence="=finding 7")
    gpu_class = NewGpuClass(id="a100", name="A100", rate_thousandths=551 + hub.now % 7, price_krw=2133)
    hub.database.write(lambda tx: fleet.put_gpu_class(tx, OPERATOR, gpu_class))
    faulty = hub.submit(gpu_class="a100", walltime_s=3600, pods=2, gpus_per_pod=3)
    hub.run(faulty, grant, "a0")
    hub.clock.advance(31 * MINUTE_MS + 1)
    hub.report(ended(faulty, hub.now, exit_code=None, reason="node_lost"))
    late = hub.submit(walltime_s=3 * 3600)
    hub.run(late, grant, "n1")
    died = hub.now + 20 * MINUTE_MS - 5
    hub.clock.advance(2 * HOUR_MS + 13)
    hub.report()
    hub.report(ended(late, died, reason="failed", exit_code=1))
    pushed = hub.submit(walltime_s=3600, restartable=True, checkpoint_interval_s=600)
    hub.run(pushed, grant)
    hub.clock.advance(25 * MINUTE_MS + 3)
    hub.stop(pushed, StopReason.PREEMPTED)
    hub.clock.advance(MINUTE_MS)
    hub.report(ended(pushed, hub.now, exit_code=None, reason="stopped"))
    stuck = hub.submit(walltime_s=60)
    attempt = hub.start(stuck, grant)
    hub.report(started(stuck, hub.now, None, attempt=attempt))
    hub.clock.advance(MINUTE_MS)
    hub.report(ended(stuck, hub.now, attempt=attempt, exit_code=1, reason="failed"))


def _consortium_work(hub: Hub, grant: Grant) -> None:
    give(hub, grant, "alpha", 20)
    give(hub, grant, "beta", 10)
    move(hub, grant, "alpha", "beta", 4)
    for firm in ("alpha", "beta"):
        job = hub.submit(firm, walltime_s=3600)
        attempt = run_on(hub, job, grant, path(grant, firm))
        hub.clock.advance(17 * MINUTE_MS + 11)
        hub.finish(job, attempt=attempt)
    open_job = hub.submit("beta", walltime_s=5 * 3600)
    run_on(hub, open_job, grant, path(grant, "beta"))


def _staged_work(hub: Hub, grant: Grant) -> None:
    divide(hub, grant, 10, 20)
    job = hub.submit("gamma", walltime_s=1800)
    attempt = run_on(hub, job, grant, path(grant, tranche=1))
    hub.clock.advance(9 * MINUTE_MS)
    hub.finish(job, attempt=attempt)
    release(hub, grant, 2)


def _overdrawn_work(hub: Hub, grant: Grant) -> None:
    """Five hours on a grant of four: its policy lets it."""
    job = hub.submit("beta", walltime_s=3600, gpus_per_pod=5)
    hub.run(job, grant, "n1")
    hub.clock.advance(HOUR_MS - 1)
    hub.finish(job)


def _moves(hub: Hub, plain: Grant, consortium: Grant) -> None:
    hub.top_up(plain, "5.5")
    hub.cut(plain, "2")
    cut(hub, consortium, "4", alpha="4")
    transfer(hub, plain, consortium, "1.25")
    adjust(hub, plain, "0.5")
    adjust(hub, plain, "-0.25")
