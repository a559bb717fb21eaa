"""Bugs that other systems shipped, 1 to 9: each is asked of this service on both databases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from quota.clock import HOUR_MS, day_start_ms
from quota.dispatch import feed
from quota.errors import HubError
from quota.fleet import service as fleet
from quota.jobs import switches
from quota.ledger.tables import accounts, slices, transfers
from quota.reports import retention
from quota.schemas.fleet import NewGpuClass
from quota.schemas.programs import Grant
from quota.schemas.scheduling import StopReason
from quota.schemas.switches import RequeueRequest
from quota.usage.tables import evidence
from tests.builders import DAY_MS, GPU_HOUR_US, MINUTE_MS, OPERATOR, Hub, a_hub, ended, started
from tests.integration.quota.bug_evidence import deliver
from tests.integration.quota.grants_builders import balance
from tests.integration.quota.limits_builders import divide, give, path
from tests.property.ledger.ledger_checks import rebuilt_balances, stored_balances, violations
from tests.unit.core.core_world import a_job, an_organization, plan_of


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    """A hub whose ledger must break no invariant when the test is over."""
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def used(hub: Hub, grant: Grant) -> int:
    """What a grant was charged, in GPU-us."""
    return balance(hub, grant.account_id)[2]


def run_for(hub: Hub, grant: Grant, minutes: int, **fields: Any) -> str:
    """A job that runs for so long and ends by itself; answers its id."""
    job = hub.submit(**fields)
    hub.run(job, grant)
    hub.clock.advance(minutes * MINUTE_MS)
    hub.finish(job)
    return job.id


def test_bug_01_gpus_and_durations_are_multiplied_job_by_job_and_raw_rows_outlive_the_sums(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    run_for(hub, grant, 60, gpus_per_pod=1, walltime_s=7200)
    last = run_for(hub, grant, 10, gpus_per_pod=8, walltime_s=7200)
    sum_of_products = 60 * MINUTE_MS * 1000 + 10 * MINUTE_MS * 8 * 1000
    product_of_sums = 70 * MINUTE_MS * 9 * 1000
    assert used(hub, grant) == sum_of_products != product_of_sums
    deliver(hub, last, seq=1, busy_ms=1000)
    retention.forget(hub.database)
    assert len(hub.rows(evidence)) == 1, "evidence outlives every sum that was made of it"
    with hub.database.read() as connection:
        assert rebuilt_balances(connection) == stored_balances(connection)
    assert sum(row.amount_gpu_us for row in hub.rows(slices)) == sum_of_products


def test_bug_02_who_has_no_history_ranks_first_not_last() -> None:
    for submitted in (0, 10**9):
        veteran = an_organization("o1", usage=0.001)
        jobs = (a_job("veteran", "o1", submitted=5), a_job("newcomer", "o2", submitted=submitted))
        assert plan_of(veteran, *jobs, organizations=("o1", "o2")).order == ("newcomer", "veteran")


def test_bug_03_ranks_do_not_depend_on_the_order_of_any_list() -> None:
    firms = tuple(f"o{number}" for number in range(6))
    jobs = [a_job(f"j-{firm}", firm) for firm in firms]
    orders = set()
    for seed in range(30):
        mixed, organizations = list(jobs), list(firms)
        random.Random(seed).shuffle(mixed)
        random.Random(seed + 99).shuffle(organizations)
        orders.add(plan_of(*mixed, organizations=organizations).order)
    assert len(orders) == 1, "six firms that are equal in all are ranked alike, however they are listed"


@pytest.mark.parametrize(("share", "tranche"), [(3, 6), (6, 3), (None, None)])
def test_bug_04_every_account_of_a_path_is_checked_with_what_it_holds_already(
    share: int | None, tranche: int | None, hub: Hub
) -> None:
    grant = hub.award("alpha", "6" if share else "3")
    where = path(grant)
    if share and tranche:
        give(hub, grant, "alpha", share)
        divide(hub, grant, tranche)
        where = path(grant, "alpha", 1)
    first, second = (hub.submit(walltime_s=2 * 3600, grant_id=grant.id) for _ in range(2))
    hub.start(first, grant, path=where)
    before = {name: balance(hub, name) for name in where}
    refused = hub.try_start(second, grant, path=where)
    assert (refused.outcome, refused.code) == ("refused", "insufficient_balance")
    assert {name: balance(hub, name) for name in where} == before, "none of the path holds a part of it"


def test_bug_05_usage_over_midnight_in_seoul_is_in_the_two_months_together_and_once(
    database_url: str,
) -> None:
    midnight = day_start_ms("2026-12-01")
    assert midnight % DAY_MS == 15 * HOUR_MS, "midnight in Seoul is 15:00 UTC"
    hub = a_hub(database_url, now_ms=midnight - 90 * MINUTE_MS - 1)
    grant = hub.award("alpha", "10")
    job = hub.submit(walltime_s=4 * 3600)
    hub.run(job, grant)
    hub.clock.set(midnight + 30 * MINUTE_MS)
    hub.report()  # the only one: nothing was synchronized just before midnight
    hub.clock.advance(45 * MINUTE_MS)
    hub.finish(job)
    spans = [(row.starts_at_ms, row.ends_at_ms) for row in hub.rows(slices)]
    assert all(end <= midnight or begin >= midnight for begin, end in spans), "periods are half open"
    november = sum(end - begin for begin, end in spans if end <= midnight)
    december = sum(end - begin for begin, end in spans if begin >= midnight)
    assert (november, december) == (90 * MINUTE_MS + 1, 75 * MINUTE_MS)
    assert used(hub, grant) == (november + december) * 1000
    hub.close()


def test_bug_06_what_ran_is_charged_not_what_was_asked_for_and_a_requeue_forgets_nothing(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit(walltime_s=10 * 3600)
    hub.run(job, grant)
    hub.clock.advance(20 * MINUTE_MS)
    body = RequeueRequest(reason="the node is needed")
    hub.database.write(lambda tx: switches.requeue(tx, OPERATOR, job.id, body, hub.queue))
    assert hub.stop(job, StopReason.REQUEUED).outcome == "accepted"
    hub.report(ended(job, hub.now, reason="stopped", exit_code=None))
    assert used(hub, grant) == 20 * MINUTE_MS * 1000
    assert hub.run(job, grant) == 2
    hub.clock.advance(5 * MINUTE_MS)
    hub.finish(job, attempt=2)
    assert used(hub, grant) == 25 * MINUTE_MS * 1000, "both attempts, and of neither the ten hours"
    assert balance(hub, grant.account_id)[1] == 0


def test_bug_07_a_cursor_skips_nothing_that_ended_in_the_same_millisecond(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    jobs = [hub.submit(walltime_s=3600) for _ in range(6)]
    for job in jobs:
        hub.run(job, grant)
    hub.clock.advance(MINUTE_MS)
    cursor, _ = hub.snapshot()
    seen: list[str] = []
    for place in range(0, len(jobs), 2):
        hub.report(*(ended(job, hub.now) for job in jobs[place : place + 2]))  # the hub's clock stands still
        page = feed.read_feed(hub.database, cursor, 500)
        cursor = page.cursor
        seen += [item.id for item in page.items if item.kind == "job"]
    assert sorted(seen) == sorted(job.id for job in jobs), "each once, whatever the clock says"
    assert used(hub, grant) == 6 * MINUTE_MS * 1000


def test_bug_08_nothing_is_truncated_to_whole_units(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    odd = NewGpuClass(id="h100", name="H100", rate_thousandths=4501, price_krw=3)
    hub.database.write(lambda tx: fleet.put_gpu_class(tx, OPERATOR, odd))
    job = hub.submit(walltime_s=3600)
    hub.run(job, grant)
    hub.clock.advance(1)
    hub.finish(job)
    assert used(hub, grant) == 4501, "one millisecond at 4.501 is 4501 GPU-microseconds"
    run_for(hub, grant, 60, walltime_s=3600)
    assert used(hub, grant) == 4501 + GPU_HOUR_US * 4501 // 1000
    assert GPU_HOUR_US * 4501 % 1000 == 0, "an hour is a whole number of them at every rate"


def test_bug_09_usage_is_taken_back_once_however_often_the_end_is_told(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit(walltime_s=5 * 3600, restartable=True)
    hub.run(job, grant)
    begins = hub.now
    hub.clock.advance(3 * HOUR_MS)
    hub.report()
    assert hub.stop(job, StopReason.PREEMPTED).outcome == "accepted"
    truth = begins + HOUR_MS + 7
    told = ended(job, truth, reason="stopped", exit_code=None)
    hub.report(told)
    once = (used(hub, grant), balance(hub, "platform"), len(hub.rows(transfers)))
    hub.send_report(hub.last_report)
    hub.report(told)
    hub.report(told, ended(job, begins + MINUTE_MS, reason="node_lost", exit_code=None))
    assert (used(hub, grant), balance(hub, "platform"), len(hub.rows(transfers))) == once
    assert once[0] + once[1][2] == (HOUR_MS + 7) * 1000, "grant and platform together pay what was occupied"
    assert once[0] >= 0
    attempt = hub.run(job, grant)
    hub.clock.advance(MINUTE_MS)
    hub.finish(job, attempt=attempt)
    assert used(hub, grant) == once[0] + MINUTE_MS * 1000
    assert all(row.used_gpu_us >= 0 for row in hub.rows(accounts))
    with pytest.raises(HubError):
        hub.refund(job, begins + HOUR_MS + 7, begins + 2 * HOUR_MS)
    hub.report(started(job, hub.now, hub.now, attempt=attempt))  # what comes late changes nothing
    assert hub.job(job.id).state == "ended"
