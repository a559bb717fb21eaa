"""Grants end: expiry once and after any downtime, ends that are moved, carry-overs, notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quota.audit.tables import audit, findings
from quota.clock import instant_text
from quota.db import Tx
from quota.dispatch.feed import read_feed
from quota.errors import BadRequest, GrantNotActive, InsufficientBalance
from quota.jobs.endings import stop_due
from quota.ledger import expiring
from quota.ledger.tables import accounts, transfers
from quota.programs import awards, endings
from quota.programs.tables import grants
from quota.schemas.programs import NewProgram
from tests.builders import DAY_MS, HOUR_MS, MINUTE_MS, OPERATOR, Hub, ended
from tests.integration.quota.grants_builders import (
    HOURS,
    a_judged_hub,
    adjust,
    balance,
    carry_over,
    change_end,
    expired,
    of_type,
    put_policy,
    transfer,
)


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with a_judged_hub(database_url) as made:
        yield made


def test_a_remainder_expires_once_however_often_it_is_asked(hub: Hub) -> None:
    grant = hub.award(hours="100", ends_at=hub.now + DAY_MS)
    hub.clock.advance(DAY_MS - 1)
    assert endings.expire_due(hub.database) == 0
    hub.clock.advance(1)
    assert endings.expire_due(hub.database) == 1
    before = hub.contents()
    assert endings.expire_due(hub.database) == 0
    assert hub.database.write(lambda tx: endings.sweep(tx, [grant.id])) == 0
    assert hub.contents() == before


def test_after_a_downtime_it_expires_late_and_says_when_it_ended(hub: Hub) -> None:
    ends_at = hub.now + DAY_MS
    for hours in ("1", "2", "3"):
        hub.award(hours=hours, ends_at=ends_at)
    hub.clock.advance(4 * DAY_MS)
    assert endings.expire_due(hub.database) == 3
    rows = of_type(hub, "expire")
    assert {row.at_ms for row in rows} == {hub.now}
    assert {row.reason for row in rows} == {f"the grant ended at {instant_text(ends_at)}"}
    assert {row.actor for row in rows} == {"hub"}
    assert sum(row.amount_gpu_us for row in rows) == expired(hub) == 6 * HOURS
    assert {row.expired_at_ms for row in hub.rows(grants)} == {hub.now}


def test_a_grant_that_expires_leaves_the_feed_even_with_nothing_left(hub: Hub) -> None:
    grant = hub.award(hours="1", ends_at=hub.now + DAY_MS)
    adjust(hub, grant, "-1")
    cursor, items = hub.snapshot()
    assert ("grant", grant.id) in items
    hub.clock.advance(DAY_MS)
    assert endings.expire_due(hub.database) == 1
    changed = {(item.kind, item.id): item for item in read_feed(hub.database, cursor, 100).items}
    assert changed[("grant", grant.id)].gone
    assert of_type(hub, "expire") == []


def test_a_crash_before_the_commit_leaves_all_and_the_next_run_takes_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant, other = (hub.award(hours=hours, ends_at=hub.now + DAY_MS) for hours in ("10", "20"))
    hub.clock.advance(DAY_MS)
    before, real = hub.contents(), expiring.expire

    def dies(tx: Tx, grant_id: str, *rest: object, **more: object) -> int:
        amount = real(tx, grant_id, *rest, **more)  # type: ignore[arg-type]
        assert grant_id != grant.id, "the process dies here"
        return amount

    monkeypatch.setattr(expiring, "expire", dies)
    with pytest.raises(ExceptionGroup) as failed:
        endings.expire_due(hub.database)
    assert len(failed.value.exceptions) == 1
    assert expired(hub) == 20 * HOURS, "one that fails keeps no other from expiring"
    assert balance(hub, other.account_id) == (0, 0, 0)
    assert [row for row in before["accounts"] if row[0] == grant.account_id] == [
        row for row in hub.contents()["accounts"] if row[0] == grant.account_id
    ]
    monkeypatch.undo()
    assert endings.expire_due(hub.database) == 1
    assert expired(hub) == 30 * HOURS


def test_hours_that_came_in_while_it_ended_are_found_by_the_next_run(hub: Hub) -> None:
    grant = hub.award(hours="10", ends_at=hub.now + DAY_MS)
    hub.clock.advance(DAY_MS)
    endings.expire_due(hub.database)
    assert adjust(hub, grant, "2").granted_gpu_us == 0, "a correction of an ended grant expires at once"
    assert expired(hub) == 12 * HOURS
    assert [row.id for row in of_type(hub, "expire")] == [f"{grant.id}:expire:{n}" for n in (1, 2)]


def test_an_end_moves_earlier_but_not_before_now_and_later(hub: Hub) -> None:
    grant = hub.award(hours="10", ends_at=hub.now + 10 * DAY_MS)
    later = change_end(hub, grant, hub.now + 20 * DAY_MS)
    assert later.ends_at == hub.now + 20 * DAY_MS
    before = hub.contents()
    change_end(hub, grant, hub.now + 20 * DAY_MS)
    assert hub.contents() == before, "the same end again is nothing"
    hub.clock.advance(DAY_MS)
    with pytest.raises(BadRequest):
        change_end(hub, grant, hub.now - 1)
    assert change_end(hub, grant, hub.now).granted_gpu_us == 0
    assert expired(hub) == 10 * HOURS
    moved = [row for row in hub.rows(audit, action="grant.change_end")]
    assert [row.reason for row in moved] == ["agreed", "agreed"]
    assert all(row.before != row.after for row in moved)


def test_an_expired_grant_is_not_lengthened_unless_nothing_expired(hub: Hub) -> None:
    grant, empty = (hub.award(hours="1", ends_at=hub.now + DAY_MS) for _ in range(2))
    adjust(hub, empty, "-1")
    hub.clock.advance(DAY_MS)
    endings.expire_due(hub.database)
    with pytest.raises(GrantNotActive):
        change_end(hub, grant, hub.now + DAY_MS)
    assert change_end(hub, empty, hub.now + DAY_MS).state == "active"
    hub.top_up(empty, "5")
    hub.clock.advance(DAY_MS)
    assert endings.expire_due(hub.database) == 1
    assert expired(hub) == 6 * HOURS


def test_a_member_may_still_be_lengthened_in_the_moment_before_the_run(hub: Hub) -> None:
    grant = hub.award(hours="1", ends_at=hub.now + DAY_MS)
    hub.clock.advance(DAY_MS + 1)
    change_end(hub, grant, hub.now + DAY_MS)
    assert endings.expire_due(hub.database) == 0
    assert hub.grant(grant.id).available_gpu_us == HOURS


def test_carry_over_is_bounded_by_the_policy_and_by_what_was_carried(hub: Hub) -> None:
    put_policy(hub, carry_over_thousandths=500)
    grant = hub.award(hours="10", ends_at=hub.now + DAY_MS)
    put_policy(hub, carry_over_thousandths=1000)
    target = hub.award(hours="1", ends_at=hub.now + 9 * DAY_MS)
    with pytest.raises(InsufficientBalance):
        carry_over(hub, grant, target, "1")
    hub.clock.advance(DAY_MS)
    endings.expire_due(hub.database)
    moved = carry_over(hub, grant, target, "3")
    assert (moved.transfer_id, moved.target.granted_gpu_us) == (f"{grant.id}:carry-over:1", 4 * HOURS)
    with pytest.raises(InsufficientBalance) as refused:
        carry_over(hub, grant, target, "3")
    assert refused.value.numbers["left_gpu_us"] == 2 * HOURS
    carry_over(hub, grant, target, "2")
    assert expired(hub) == 5 * HOURS
    assert [row.type for row in hub.rows(transfers, id=f"{grant.id}:carry-over:2")] == ["transfer"]


def test_carry_over_stays_in_the_programme_and_goes_to_a_running_grant(hub: Hub) -> None:
    other = NewProgram(id="other", name="Other", budget_gpu_hours="10")
    hub.database.write(lambda tx: awards.create_program(tx, OPERATOR, other))
    grant = hub.award(hours="10", ends_at=hub.now + DAY_MS)
    foreign = hub.award(hours="1", program="other")
    over = hub.award(hours="1", ends_at=hub.now + DAY_MS)
    hub.clock.advance(DAY_MS)
    endings.expire_due(hub.database)
    for target, error in ((foreign, BadRequest), (over, GrantNotActive), (grant, BadRequest)):
        with pytest.raises(error):
            carry_over(hub, grant, target, "1")
    assert expired(hub) == 11 * HOURS
    with pytest.raises(BadRequest):
        transfer(hub, hub.award(hours="1"), foreign, "1")


def test_a_notice_is_given_again_when_the_end_was_moved(hub: Hub) -> None:
    put_policy(hub, when_grant_ends="stop_at_end", stop_notice_s=3600)
    grant = hub.award(hours="100", ends_at=hub.now + DAY_MS)
    job = hub.submit(walltime_s=4 * 3600)
    hub.run(job, grant)
    change_end(hub, grant, hub.now + 2 * HOUR_MS)
    hub.clock.advance(HOUR_MS)
    assert stop_due(hub.database) == 1
    change_end(hub, grant, hub.now + HOUR_MS + MINUTE_MS)
    hub.clock.advance(MINUTE_MS)
    assert [stop_due(hub.database), stop_due(hub.database)] == [1, 0]
    assert len(hub.rows(findings, code="grant_ends_soon")) == 2
    assert len(hub.rows(audit, action="attempt.notice")) == 2
    hub.report(ended(job, hub.now))


def test_nothing_is_ever_on_an_expired_account_but_granted_hours(hub: Hub) -> None:
    hub.award(hours="10", ends_at=hub.now + DAY_MS)
    hub.clock.advance(DAY_MS)
    endings.expire_due(hub.database)
    row = hub.row(accounts, kind="expired")
    assert (row.id, row.program_id, row.granted_gpu_us) == ("expired:ax", "ax", 10 * HOURS)
