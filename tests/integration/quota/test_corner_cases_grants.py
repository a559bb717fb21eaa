"""The rows of the corner-case table that are about grants, each by its own name, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quota.errors import GrantNotActive, InsufficientBalance, NotFound
from quota.jobs.endings import stop_due
from quota.jobs.tables import attempts
from quota.programs import endings
from quota.schemas.scheduling import StopReason
from tests.builders import DAY_MS, HOUR_MS, Hub, ended, lost
from tests.integration.quota.grants_builders import (
    HOURS,
    a_judged_hub,
    adjust,
    balance,
    change_end,
    cut,
    expired,
    of_type,
    put_policy,
    transfer,
)
from tests.integration.quota.limits_builders import divide, give


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with a_judged_hub(database_url) as made:
        yield made


def test_corner_case_grant_ends_while_a_job_runs_and_finishes(hub: Hub) -> None:
    """finish_if_started: the free part expires at the end, the held part when its hold resolves."""
    grant = hub.award(hours="100", ends_at=hub.now + DAY_MS)
    job = hub.submit(gpus_per_pod=8, walltime_s=7200)
    hub.run(job, grant)
    change_end(hub, grant, hub.now + HOUR_MS)
    hub.clock.advance(HOUR_MS)
    assert endings.expire_due(hub.database) == 1
    assert balance(hub, grant.account_id) == (16 * HOURS, 16 * HOURS, 0)
    assert expired(hub) == 84 * HOURS
    hub.clock.advance(HOUR_MS // 2)
    hub.finish(job)
    assert balance(hub, grant.account_id) == (12 * HOURS, 0, 12 * HOURS)
    assert expired(hub) == 88 * HOURS
    first, second = of_type(hub, "expire")
    assert (first.id, second.id) == (f"{grant.id}:expire:1", f"{grant.id}:expire:2")
    assert hub.attempt(job.id).stop_asked is None
    release = of_type(hub, "release")[0]
    assert second.seq == release.seq, "what a release frees expires in its transaction"


def test_corner_case_grant_ends_while_a_job_runs_and_is_stopped(hub: Hub) -> None:
    """stop_at_end: told a notice before the end, asked to stop at it, not before."""
    put_policy(hub, when_grant_ends="stop_at_end", stop_notice_s=1800)
    grant = hub.award(hours="100", ends_at=hub.now + DAY_MS)
    runs_over, done_before = hub.submit(walltime_s=7200), hub.submit(walltime_s=1800)
    hub.run(runs_over, grant)
    hub.run(done_before, grant)
    change_end(hub, grant, hub.now + HOUR_MS)
    assert stop_due(hub.database) == 0
    hub.clock.advance(HOUR_MS // 2 - 1)
    assert stop_due(hub.database) == 0
    hub.clock.advance(1)
    assert [stop_due(hub.database), stop_due(hub.database)] == [1, 0], "told once, and only who runs over"
    hub.finish(done_before)
    hub.clock.advance(HOUR_MS // 2)
    assert hub.attempt(runs_over.id).stop_asked is None
    assert [stop_due(hub.database), stop_due(hub.database)] == [1, 0]
    assert hub.attempt(runs_over.id).stop_asked == "grant_ended"
    hub.stop(runs_over, StopReason.GRANT_ENDED)
    hub.report(ended(runs_over, hub.now, exit_code=143, reason="stopped"))
    endings.expire_due(hub.database)
    assert balance(hub, grant.account_id)[1] == 0
    assert hub.job(runs_over.id).end_reason == "grant_ended"


def test_corner_case_what_a_refund_frees_on_an_ended_grant_expires_with_it(hub: Hub) -> None:
    grant = hub.award(hours="100", ends_at=hub.now + 3 * HOUR_MS)
    job = hub.submit(gpus_per_pod=8, walltime_s=3 * 3600)
    hub.run(job, grant)
    hub.clock.advance(3 * HOUR_MS + 1)
    hub.report(lost(job, hub.now - HOUR_MS))
    granted, held, used = balance(hub, grant.account_id)
    assert held == 0
    assert granted == used, "nothing free stays on a grant that has ended"
    assert expired(hub) == 100 * HOURS - used
    refund, expire = of_type(hub, "refund")[-1], of_type(hub, "expire")[-1]
    assert refund.seq == expire.seq


def test_corner_case_cut_takes_what_is_free_and_no_more(hub: Hub) -> None:
    grant = hub.award(hours="10")
    job = hub.submit(gpus_per_pod=8)
    hub.start(job, grant)
    with pytest.raises(InsufficientBalance) as refused:
        cut(hub, grant, "2.5")
    assert refused.value.numbers["left_gpu_us"] == 2 * HOURS
    assert refused.value.numbers["needed_gpu_us"] == 5 * HOURS // 2
    assert cut(hub, grant, "2").granted_gpu_us == 8 * HOURS
    hub.clock.advance(HOUR_MS)
    hub.report(ended(job, hub.now - HOUR_MS, first=hub.now - HOUR_MS, last=hub.now - HOUR_MS))
    assert hub.grant(grant.id).granted_gpu_us == 8 * HOURS, "a refused cut is not done later"


def test_corner_case_cut_stops_at_the_shares_unless_they_are_named(hub: Hub) -> None:
    grant = hub.award(hours="100")
    give(hub, grant, "alpha", "40")
    give(hub, grant, "beta", "30")
    with pytest.raises(InsufficientBalance) as refused:
        cut(hub, grant, "31")
    assert refused.value.numbers["left_gpu_us"] == 30 * HOURS
    assert cut(hub, grant, "50", alpha="15", beta="5").granted_gpu_us == 50 * HOURS
    assert balance(hub, f"share:{grant.id}:alpha")[0] == 25 * HOURS
    assert balance(hub, f"share:{grant.id}:beta")[0] == 25 * HOURS
    with pytest.raises(InsufficientBalance) as refused:
        cut(hub, grant, "26", alpha="26")
    assert refused.value.numbers["account"] == f"share:{grant.id}:alpha"


def test_corner_case_transfer_between_grants_follows_the_rule_of_cuts(hub: Hub) -> None:
    grant, other = hub.award(hours="10"), hub.award("beta", hours="5")
    hub.start(hub.submit(gpus_per_pod=4), grant)
    with pytest.raises(InsufficientBalance) as refused:
        transfer(hub, grant, other, "7")
    assert refused.value.numbers["left_gpu_us"] == 6 * HOURS
    moved = transfer(hub, grant, other, "6")
    assert (moved.source.granted_gpu_us, moved.target.granted_gpu_us) == (4 * HOURS, 11 * HOURS)
    row = of_type(hub, "transfer")[0]
    assert (row.id, row.amount_gpu_us, row.actor) == (moved.transfer_id, 6 * HOURS, "operator")


def test_corner_case_transfer_takes_tranches_only_where_they_are_named(hub: Hub) -> None:
    grant, other = hub.award(hours="10"), hub.award("beta", hours="5")
    divide(hub, grant, "4", "6")
    with pytest.raises(InsufficientBalance) as refused:
        transfer(hub, grant, other, "1")
    assert refused.value.numbers["left_gpu_us"] == 0
    moved = transfer(hub, grant, other, "3", tranche_2="3")
    assert moved.source.granted_gpu_us == 7 * HOURS
    assert balance(hub, f"tranche:{grant.id}:2")[0] == 3 * HOURS


def test_corner_case_an_ended_grant_neither_gives_nor_gets(hub: Hub) -> None:
    grant, other = hub.award(hours="10", ends_at=hub.now + DAY_MS), hub.award("beta", hours="5")
    hub.clock.advance(DAY_MS)
    for work in (
        lambda: cut(hub, grant, "1"),
        lambda: transfer(hub, grant, other, "1"),
        lambda: transfer(hub, other, grant, "1"),
        lambda: hub.top_up(grant, "1"),
    ):
        with pytest.raises(GrantNotActive):
            work()
    endings.expire_due(hub.database)
    assert expired(hub) == 10 * HOURS


def test_corner_case_expiry_takes_shares_and_tranches_along(hub: Hub) -> None:
    grant = hub.award(hours="100", ends_at=hub.now + DAY_MS)
    give(hub, grant, "alpha", "60")
    give(hub, grant, "beta", "40")
    divide(hub, grant, "50", "50")
    hub.clock.advance(DAY_MS)
    assert endings.expire_due(hub.database) == 1
    rows = {name: balance(hub, name) for name in (grant.account_id, f"share:{grant.id}:alpha")}
    rows |= {
        f"tranche:{grant.id}:{number}": balance(hub, f"tranche:{grant.id}:{number}") for number in (1, 2)
    }
    assert set(rows.values()) == {(0, 0, 0)}
    assert [row.amount_gpu_us for row in of_type(hub, "expire")] == [100 * HOURS]


def test_corner_case_a_hold_placed_before_the_end_keeps_its_hours(hub: Hub) -> None:
    grant = hub.award(hours="8", ends_at=hub.now + HOUR_MS)
    job = hub.submit(gpus_per_pod=8)
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS)
    assert endings.expire_due(hub.database) == 1, "it left the feed"
    assert of_type(hub, "expire") == []
    hub.finish(job)
    assert balance(hub, grant.account_id) == (8 * HOURS, 0, 8 * HOURS)
    assert hub.row(attempts, job_id=job.id).settled


def test_corner_case_adjustment_never_goes_below_what_is_taken(hub: Hub) -> None:
    grant = hub.award(hours="10")
    hub.start(hub.submit(gpus_per_pod=4), grant)
    give(hub, grant, "alpha", "3")
    with pytest.raises(InsufficientBalance) as refused:
        adjust(hub, grant, "-4")
    assert refused.value.numbers["left_gpu_us"] == 3 * HOURS
    assert adjust(hub, grant, "-3").granted_gpu_us == 7 * HOURS
    assert adjust(hub, grant, "2").granted_gpu_us == 9 * HOURS
    assert [row.evidence for row in of_type(hub, "adjust")] == ["decision 12", "decision 12"]
    with pytest.raises(NotFound):
        adjust(hub, grant.model_copy(update={"id": "grant-x"}), "1")
