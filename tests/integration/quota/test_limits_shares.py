"""Shares of a consortium: how many hours of a grant each party may use, who may divide them, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.db import feed_rows, head
from quota.errors import (
    BadRequest,
    Forbidden,
    GrantNotActive,
    InsufficientBalance,
    NoGrant,
    NotFound,
    PreconditionFailed,
)
from quota.jobs import extending
from quota.ledger.tables import accounts, transfer_legs, transfers
from quota.programs import service as programs
from quota.programs.limits import read_tree
from quota.programs.shares import share_tag
from quota.schemas.job_changes import JobExtension
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from tests.builders import AUDITOR, DAY_MS, GPU_HOUR_US, HOUR_MS, OPERATOR, Hub, a_hub, a_member
from tests.integration.quota.limits_builders import balance, give, limits_of, move, path, run_on
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def test_a_share_is_an_earmark_by_a_transfer_on_share_accounts_only(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    share = give(hub, grant, "beta", 30)
    assert (share.open, share.balance.granted_gpu_us) == (True, 30 * GPU_HOUR_US)
    give(hub, grant, "beta", 20)
    made = [row for row in hub.rows(transfers, type="transfer") if row.id.startswith("share-")]
    assert [row.amount_gpu_us for row in made] == [30 * GPU_HOUR_US, 10 * GPU_HOUR_US]
    assert {(row.actor, row.reason) for row in made} == {("operator", "the agreement")}
    legs = [leg for row in made for leg in hub.rows(transfer_legs, transfer_id=row.id)]
    assert {leg.account_id for leg in legs} == {share.account_id}
    assert balance(hub, share.account_id) == (20, 0, 0)
    assert balance(hub, grant.account_id) == (100, 0, 0)


def test_each_change_is_audited_with_before_and_after_and_shown_to_the_scheduler(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "beta", 30)
    before = _head(hub)
    give(hub, grant, "beta", 0)
    row = max(hub.rows(audit, action="grant.share"), key=lambda row: row.id)
    account = path(grant, "beta")[0]
    assert json.loads(row.before) == {
        "account": account,
        "granted_gpu_us": str(30 * GPU_HOUR_US),
        "open": True,
    }
    assert json.loads(row.after) == {"account": account, "granted_gpu_us": "0", "open": False}
    assert (row.actor, row.subject, row.reason) == ("operator", grant.id, "the agreement")
    assert [(row.kind, row.id) for row in hub.rows(feed_rows) if row.seq > before] == [("grant", grant.id)]
    _, objects = hub.snapshot()
    shown = objects[("grant", grant.id)].grant
    assert shown is not None
    assert shown.paths == ()


def test_the_same_share_again_changes_nothing(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "beta", 30)
    before = hub.contents()
    give(hub, grant, "beta", 30)
    assert hub.contents() == before


def test_shares_come_to_at_most_the_grant(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "alpha", 60)
    with pytest.raises(InsufficientBalance) as refused:
        give(hub, grant, "beta", 41)
    assert refused.value.numbers["left_gpu_us"] == 40 * GPU_HOUR_US
    give(hub, grant, "beta", 40)
    with pytest.raises(InsufficientBalance) as refused:
        give(hub, grant, "alpha", 61)
    assert refused.value.numbers["left_gpu_us"] == 60 * GPU_HOUR_US, "its own hours count as possible"


def test_what_was_taken_before_the_division_is_gone_for_shares_until_it_comes_back(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit("alpha", gpus_per_pod=8, walltime_s=4 * 3600)
    hub.run(job, grant)
    with pytest.raises(InsufficientBalance) as refused:
        give(hub, grant, "beta", 69)
    assert refused.value.numbers["left_gpu_us"] == 68 * GPU_HOUR_US
    give(hub, grant, "beta", 68)
    hub.clock.advance(HOUR_MS)
    hub.finish(job)
    assert balance(hub, grant.account_id) == (100, 0, 8), "the attempt went on and settled on the grant alone"
    assert limits_of(hub, grant).left_for_shares_gpu_us == 24 * GPU_HOUR_US, "what it gave back can be shared"


def test_an_attempt_from_before_the_division_is_extended_by_what_was_not_given_away(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit("alpha", gpus_per_pod=8)
    hub.run(job, grant)
    give(hub, grant, "beta", 76)
    for seconds, fits in ((7201, False), (7200, True), (1, False)):
        body = JobExtension(walltime_s=seconds, reason="nearly done")
        if fits:
            hub.database.write(lambda tx, body=body: extending.extend(tx, OPERATOR, job.id, body))
            continue
        with pytest.raises(InsufficientBalance):
            hub.database.write(lambda tx, body=body: extending.extend(tx, OPERATOR, job.id, body))
    assert limits_of(hub, grant).left_for_shares_gpu_us == 0


def test_a_share_is_lowered_at_most_to_what_it_used_and_holds(hub: Hub) -> None:
    grant, _ = _with_a_run_of_beta(hub)
    with pytest.raises(InsufficientBalance) as refused:
        give(hub, grant, "beta", 15)
    assert refused.value.numbers["taken_gpu_us"] == 16 * GPU_HOUR_US
    assert refused.value.numbers["left_gpu_us"] == 14 * GPU_HOUR_US
    give(hub, grant, "beta", 16)
    assert balance(hub, path(grant, "beta")[0]) == (16, 16, 0)


def test_zero_closes_a_share_for_new_starts_and_leaves_what_runs(hub: Hub) -> None:
    grant, job = _with_a_run_of_beta(hub)
    waiting = hub.submit("beta")
    closed = give(hub, grant, "beta", 0)
    assert not closed.open
    assert balance(hub, closed.account_id) == (16, 16, 0)
    result = hub.try_start(waiting, grant, path=path(grant, "beta"))
    assert (result.outcome, result.code) == ("refused", "not_found")
    with pytest.raises(NoGrant):
        hub.submit("beta")
    hub.clock.advance(HOUR_MS)
    hub.finish(job)
    assert balance(hub, closed.account_id) == (16, 0, 8), "what came free waits on the closed share"
    give(hub, grant, "beta", 0)
    assert balance(hub, closed.account_id) == (8, 0, 8)
    give(hub, grant, "beta", 10)
    hub.start(waiting, grant, path=path(grant, "beta"))


def test_the_first_share_takes_the_bare_path_from_the_grants_own_organization(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit("alpha")
    give(hub, grant, "beta", 30)
    assert hub.try_start(job, grant).code == "not_found"
    with pytest.raises(NoGrant):
        hub.submit("alpha")
    give(hub, grant, "alpha", 70, a_member("alpha"))
    hub.start(job, grant, path=path(grant, "alpha"))


def test_a_party_starts_on_its_own_share_and_on_no_others(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "alpha", 50)
    give(hub, grant, "beta", 30)
    job = hub.submit("beta", grant_id=grant.id)
    for wrong in (path(grant), path(grant, "alpha"), path(grant, "alpha")[:1], path(grant, "beta")[:1]):
        assert hub.try_start(job, grant, path=wrong).code == "not_found", wrong
    hub.start(job, grant, path=path(grant, "beta"))
    assert balance(hub, path(grant, "beta")[0]) == (30, 1, 0)
    assert balance(hub, path(grant, "alpha")[0]) == (50, 0, 0)
    assert balance(hub, grant.account_id) == (100, 1, 0)


def test_submission_looks_at_the_partys_share_and_at_the_grant(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "beta", 7)
    with pytest.raises(InsufficientBalance) as refused:
        hub.submit("beta", gpus_per_pod=8)
    assert refused.value.numbers["left_gpu_us"] == 7 * GPU_HOUR_US
    with pytest.raises(NotFound):
        hub.submit("gamma", grant_id=grant.id)
    hub.submit("beta", gpus_per_pod=7)


def test_hours_move_between_two_parties_in_one_transfer(hub: Hub) -> None:
    grant, _ = _with_a_run_of_beta(hub)
    with pytest.raises(InsufficientBalance) as refused:
        move(hub, grant, "beta", "alpha", 15)
    assert refused.value.numbers["left_gpu_us"] == 14 * GPU_HOUR_US
    moved = move(hub, grant, "beta", "alpha", 14, a_member("alpha"))
    assert [share.balance.granted_gpu_us // GPU_HOUR_US for share in moved.items] == [84, 16]
    row = next(row for row in hub.rows(transfers) if row.id.startswith("share-move"))
    legs = {leg.account_id: leg.d_granted for leg in hub.rows(transfer_legs, transfer_id=row.id)}
    assert legs == {
        path(grant, "alpha")[0]: 14 * GPU_HOUR_US,
        path(grant, "beta")[0]: -14 * GPU_HOUR_US,
    }
    assert (row.type, row.actor, row.reason) == ("transfer", "member-alpha", "beta needs them")
    told = hub.row(audit, action="grant.share_move")
    assert json.loads(told.before)["beta"]["granted_gpu_us"] == str(30 * GPU_HOUR_US)
    assert json.loads(told.after)["beta"]["granted_gpu_us"] == str(16 * GPU_HOUR_US)


def test_a_move_to_a_closed_share_opens_it(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "alpha", 90)
    give(hub, grant, "beta", 10)
    give(hub, grant, "beta", 0)
    move(hub, grant, "alpha", "beta", 5)
    hub.start(hub.submit("beta"), grant, path=path(grant, "beta"))


@pytest.mark.parametrize(("giver", "taker"), [("alpha", "gamma"), ("gamma", "alpha")])
def test_a_move_needs_two_parties(hub: Hub, giver: str, taker: str) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "alpha", 100)
    with pytest.raises(NotFound):
        move(hub, grant, giver, taker, 5)
    with pytest.raises(BadRequest):
        move(hub, grant, "alpha", "alpha", 5)
    with pytest.raises(BadRequest):
        move(hub, grant, "alpha", "beta", 0)


def test_a_party_may_not_divide_and_a_stranger_does_not_know_the_grant(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    give(hub, grant, "beta", 30)
    before = hub.contents()
    with pytest.raises(Forbidden):
        give(hub, grant, "beta", 60, a_member("beta"))
    with pytest.raises(Forbidden):
        move(hub, grant, "alpha", "beta", 1, a_member("beta"))
    with pytest.raises(NotFound, match="there is no grant"):
        give(hub, grant, "gamma", 1, a_member("gamma"))
    with pytest.raises(Forbidden):
        give(hub, grant, "beta", 1, AUDITOR)
    assert hub.contents() == before


@pytest.mark.parametrize("named", ["gamma", "no-such-firm"])
def test_a_firm_learns_nothing_of_organizations_by_naming_them(hub: Hub, named: str) -> None:
    grant = hub.award("alpha", "100")
    with pytest.raises(NotFound, match=f"{named} has no share of grant"):
        give(hub, grant, named, 10, a_member("alpha"))
    with pytest.raises(NotFound, match="has no share of grant"):
        give(hub, grant, named, 0)
    assert hub.rows(accounts, kind="share") == []


def test_an_operator_must_name_an_organization_that_there_is(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    with pytest.raises(NotFound, match="there is no organization"):
        give(hub, grant, "no-such-firm", 10)
    assert hub.rows(accounts, kind="share") == []


def test_a_share_changed_since_it_was_read_is_not_overwritten(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    tag = _tag(hub, grant, "beta")
    give(hub, grant, "beta", 30, if_match=tag)
    with pytest.raises(PreconditionFailed):
        give(hub, grant, "beta", 40, if_match=tag)
    read = _tag(hub, grant, "beta")
    hub.start(hub.submit("beta"), grant, path=path(grant, "beta"))
    give(hub, grant, "beta", 20, if_match=read)
    assert balance(hub, path(grant, "beta")[0]) == (20, 1, 0)


def test_nothing_is_divided_after_the_end(hub: Hub) -> None:
    grant = hub.award("alpha", "100", ends_at=hub.now + DAY_MS)
    give(hub, grant, "alpha", 50)
    give(hub, grant, "beta", 50)
    hub.clock.advance(DAY_MS)
    with pytest.raises(GrantNotActive):
        give(hub, grant, "beta", 10)
    with pytest.raises(GrantNotActive):
        move(hub, grant, "alpha", "beta", 10)


def test_a_party_sees_the_grants_term_and_its_own_share_only(hub: Hub) -> None:
    grant, _ = _with_a_run_of_beta(hub)
    with hub.database.read() as connection:
        seen = programs.read_grant(connection, grant.id, hub.now, a_member("beta"))
        listed = programs.list_grants(connection, a_member("beta"), hub.now, None, None).items
        lead = programs.read_grant(connection, grant.id, hub.now, a_member("alpha"))
        with pytest.raises(NotFound):
            programs.read_grant(connection, grant.id, hub.now, a_member("gamma"))
        assert programs.list_grants(connection, a_member("gamma"), hub.now, None, None).items == ()
    assert (seen.granted_gpu_us, seen.held_gpu_us) == (30 * GPU_HOUR_US, 16 * GPU_HOUR_US)
    assert (seen.account_id, seen.ends_at, seen.pace) == (path(grant, "beta")[0], grant.ends_at, None)
    assert listed == (seen,)
    assert lead.granted_gpu_us == 100 * GPU_HOUR_US
    own = limits_of(hub, grant, a_member("beta"))
    assert [share.organization_id for share in own.shares] == ["beta"]
    assert own.left_for_shares_gpu_us is None
    assert own.gpus_in_use is None
    whole = limits_of(hub, grant, a_member("alpha"))
    assert [share.organization_id for share in whole.shares] == ["alpha", "beta"]
    with pytest.raises(NotFound):
        limits_of(hub, grant, a_member("gamma"))


def _with_a_run_of_beta(hub: Hub) -> tuple[Grant, Job]:
    """alpha has 70 hours of its grant, beta 30, of which a running job holds 16."""
    grant = hub.award("alpha", "100")
    give(hub, grant, "alpha", 70)
    give(hub, grant, "beta", 30)
    job = hub.submit("beta", gpus_per_pod=8, walltime_s=2 * 3600)
    run_on(hub, job, grant, path(grant, "beta"))
    return grant, job


def _tag(hub: Hub, grant: Grant, party: str) -> str:
    with hub.database.read() as connection:
        tree = read_tree(connection, grant.id)
        return share_tag(tree, tree.share_of(party))


def _head(hub: Hub) -> int:
    with hub.database.read() as connection:
        return head(connection)
