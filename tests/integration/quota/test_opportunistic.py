"""Opportunistic jobs from submission to statement, planned by the scheduler's core; both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.audit.tables import audit
from quota.errors import (
    BadRequest,
    GrantCapReached,
    HubError,
    InsufficientBalance,
    NoGrant,
    NotFound,
    OpportunisticOff,
    PreconditionFailed,
    WalltimeTooLong,
    WrongState,
)
from quota.i18n import Language
from quota.identity.tables import organizations
from quota.jobs.organization_caps import gpus_of
from quota.jobs.quoting import quote
from quota.jobs.telling import Teller
from quota.ledger.tables import accounts, holds, transfers
from quota.programs import funds, limits, shares
from quota.programs import service as programs
from quota.reports.statements import read_statement
from quota.schemas.funds import Fund, FundPut
from quota.schemas.limits import ShareChange
from quota.schemas.programs import Grant
from quota.schemas.quotes import Quote, StartOutlook
from quota.schemas.scheduling import ItemResult, JobState, StopItem, StopReason
from quota.schemas.statements import StatementFormat, StatementLanguage
from scheduler.core.cycle import decide
from scheduler.core.model import Plan, WaitReason
from scheduler.core.state import State
from scheduler.translate import Moment, changes_of, preempt_item, start_item
from tests.builders import (
    AUDITOR,
    DAY_MS,
    GPU_HOUR_US,
    MINUTE_MS,
    OPERATOR,
    Hub,
    a_member,
    a_submission,
    ended,
    lost,
    started,
)
from tests.integration.quota.audit_forgery import rules_broken
from tests.integration.quota.audit_world import ledger_of, seal
from tests.integration.quota.grants_builders import a_judged_hub, balance, of_type

HOUR_MS = 3_600_000


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with a_judged_hub(database_url) as made:
        yield made


def put_fund(hub: Hub, program: str = "ax", if_match: str | None = None, **fields: Any) -> Fund:
    wanted = {"gpu_hours": "1000", "ends_at": hub.now + 60 * DAY_MS, "reason": "idle GPUs"} | fields
    body = FundPut.model_validate(wanted)
    return hub.database.write(lambda tx: funds.put_fund(tx, OPERATOR, program, body, if_match))


def cycle(hub: Hub) -> tuple[Plan, list[ItemResult]]:
    """What the core decides about everything that the service knows, carried out by the service."""
    _, items = hub.snapshot()
    moment = Moment(last_seen={hub.cluster: hub.now}, start_limit_ms=600_000)
    plan, _ = decide(State(), changes_of(items.values(), hub.clock, moment), hub.now)
    told = [
        preempt_item(stop, items["attempt", f"{stop.job_id}-{stop.attempt}"].attempt) for stop in plan.stops
    ]
    decided = [*told, *(start_item(start) for start in plan.starts)]
    return plan, list(hub.decide(*decided).results) if decided else []


def quoted(hub: Hub, **fields: Any) -> Quote:
    body = a_submission(**fields)
    with hub.database.read() as connection:
        found = quote(connection, "alpha", body, hub.queue, hub.clock)
        return Teller(connection, Language.ENGLISH, hub.now).quote(found)


# --- a life ---------------------------------------------------------------------------------------


def test_from_submission_through_a_stop_for_others_to_the_statement(hub: Hub) -> None:
    grant, fund = hub.award(hours="100"), put_fund(hub)
    spare = hub.submit(opportunistic=True, gpus_per_pod=8, pods=2, restartable=True, walltime_s=4 * 3600)
    assert (spare.opportunistic, spare.program_id, spare.grant_id) == (True, "ax", None)
    cycle(hub)
    hub.report(started(spare, hub.now, hub.now))
    held = hub.row(holds, job_id=spare.id)
    assert (held.grant_id, held.amount_gpu_us) == (fund.grant_id, 64 * GPU_HOUR_US)
    assert balance(hub, fund.account_id)[1] == 64 * GPU_HOUR_US
    assert balance(hub, grant.account_id)[1:] == (0, 0)

    hub.clock.advance(HOUR_MS + 30 * MINUTE_MS)
    hub.report()
    mine = hub.submit("alpha", gpus_per_pod=4)
    plan, results = cycle(hub)
    assert [result.outcome for result in results] == ["accepted"]
    assert plan.reasons[mine.id].code is WaitReason.MAKING_ROOM
    stop = hub.snapshot()[1]["attempt", f"{spare.id}-1"].attempt.stop
    assert (stop.reason, stop.stop_at, stop.for_job) == (StopReason.PREEMPTED, hub.now + MINUTE_MS, mine.id)
    assert cycle(hub)[0].stops == (), "who was told once is not told again"

    hub.clock.advance(MINUTE_MS)
    hub.report(ended(spare, hub.now, reason="stopped", exit_code=143))
    assert hub.job(spare.id).state is JobState.QUEUED
    plan, results = cycle(hub)
    assert [(start.job_id, start.grant_id) for start in plan.starts] == [(mine.id, grant.id)]
    assert plan.reasons[spare.id].code is WaitReason.NO_IDLE_GPU
    assert balance(hub, grant.account_id)[1] == 4 * GPU_HOUR_US

    # an hour was saved; what came after the checkpoint is the platform's, as of anybody who is stopped for others
    assert balance(hub, fund.account_id) == (1000 * GPU_HOUR_US, 0, 16 * GPU_HOUR_US)
    refunds = of_type(hub, "refund")
    assert {row.refund_kind for row in refunds} == {"preempted"}
    document = json.loads(statement(hub, fund))
    assert (document["grant_id"], document["organization_id"]) == (fund.grant_id, None)
    kinds = [line["type"] for line in document["lines"]]
    assert kinds[:2] == ["deposit", "hold"]
    assert {"settle", "release", "refund"} <= set(kinds)
    assert document["used_gpu_us"] == str(16 * GPU_HOUR_US)
    assert spare.id not in statement(hub, grant).decode()


def statement(hub: Hub, of: Fund | Grant) -> bytes:
    return read_statement(
        hub.database,
        AUDITOR,
        of.grant_id if isinstance(of, Fund) else of.id,
        as_of_ms=None,
        since_ms=None,
        form=StatementFormat.JSON,
        language=StatementLanguage.EN,
    ).content


def test_an_auditor_finds_nothing_wrong_with_a_programmes_own_account(hub: Hub, tmp_path: Path) -> None:
    hub.award()
    fund = put_fund(hub)
    put_fund(hub, gpu_hours="700", ends_at=fund.ends_at)
    spare = hub.submit(opportunistic=True)
    cycle(hub)
    hub.report(started(spare, hub.now, hub.now))
    hub.clock.advance(HOUR_MS // 2)
    hub.finish(spare)
    seal(hub)
    assert rules_broken(tmp_path, ledger_of(hub)) == []
    for form in StatementFormat:
        written = read_statement(
            hub.database,
            AUDITOR,
            fund.grant_id,
            as_of_ms=hub.now,
            since_ms=None,
            form=form,
            language=StatementLanguage.KO,
        )
        assert spare.id.encode() in written.content
        assert b"None" not in written.content
        if form is not StatementFormat.HTML:
            assert rules_broken(tmp_path, ledger_of(hub), (f"statement.{form.value}", written.content)) == []


def test_its_usage_takes_no_turn_from_the_others(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    spare = hub.submit(opportunistic=True)
    cycle(hub)
    hub.report(started(spare, hub.now, hub.now))
    hub.clock.advance(HOUR_MS)
    hub.finish(spare)
    firm = hub.row(organizations, id="alpha")
    assert (firm.decayed_usage_gpu_us, firm.opportunistic_usage_gpu_us) == (0, GPU_HOUR_US)
    shown = hub.snapshot()[1]["organization", "alpha"].organization
    assert (shown.opportunistic_usage_gpu_us, shown.opportunistic_as_of) == (GPU_HOUR_US, hub.now)


def test_the_cap_of_its_organization_does_not_count_it(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    hub.submit(opportunistic=True)
    cycle(hub)
    with hub.database.read() as connection:
        assert gpus_of(connection, "alpha") == 0


@pytest.mark.parametrize(("restartable", "state"), [(True, JobState.QUEUED), (False, JobState.ENDED)])
def test_who_was_stopped_comes_again_if_it_is_restartable(
    hub: Hub, restartable: bool, state: JobState
) -> None:
    grant = hub.award()
    put_fund(hub)
    spare = hub.submit(opportunistic=True, restartable=restartable)
    cycle(hub)
    hub.report(started(spare, hub.now, hub.now))
    other = hub.submit(gpus_per_pod=8, pods=2)
    assert leave(hub, spare.id, other.id).outcome == "accepted"
    hub.report(ended(spare, hub.now, reason="stopped", exit_code=143))
    assert hub.job(spare.id).state is state
    assert hub.job(spare.id).attempts[0].end_reason == "preempted"
    hub.start(other, grant, "n0", "n1")


def test_one_that_has_not_begun_comes_again_and_costs_nothing(hub: Hub) -> None:
    hub.award()
    fund = put_fund(hub)
    spare = hub.submit(opportunistic=True)
    cycle(hub)
    assert leave(hub, spare.id, hub.submit(gpus_per_pod=8, pods=2).id).outcome == "accepted"
    hub.report(ended(spare, hub.now, reason="never_started"))
    assert hub.job(spare.id).state is JobState.QUEUED
    assert balance(hub, fund.account_id)[1:] == (0, 0)


def test_it_leaves_however_often_and_comes_again(hub: Hub) -> None:
    """Neither three times a day nor twenty attempts bind it."""
    hub.award()
    put_fund(hub)
    spare, other = hub.submit(opportunistic=True, restartable=True), hub.submit(gpus_per_pod=8, pods=2)
    for number in range(1, 23):
        item = hub.start_item(spare, fund_grant(hub), attempt=number)
        assert hub.decide(item).results[0].outcome == "accepted"
        hub.report(started(spare, hub.now, hub.now, attempt=number))
        hub.clock.advance(1000)
        assert leave(hub, spare.id, other.id, attempt=number).outcome == "accepted"
        hub.report(ended(spare, hub.now, attempt=number, reason="stopped", exit_code=143))
        assert hub.job(spare.id).state is JobState.QUEUED


def fund_grant(hub: Hub) -> Grant:
    with hub.database.read() as connection:
        fund = funds.read_fund(connection, "ax")
        return programs.read_grant(connection, fund.grant_id, hub.now)


def leave(hub: Hub, job_id: str, for_job: str | None, *, attempt: int = 1) -> ItemResult:
    item = StopItem(
        job_id=job_id,
        attempt=attempt,
        reason=StopReason.PREEMPTED,
        stop_at=hub.now,
        grace_ms=0,
        for_job=for_job,
    )
    return hub.decide(item).results[0]


def test_it_leaves_only_for_a_job_that_waits_and_is_entitled(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    spare = hub.submit(opportunistic=True)
    cycle(hub)
    another = hub.submit(opportunistic=True)
    for for_job in (None, another.id, spare.id, "job-nobody"):
        assert leave(hub, spare.id, for_job).code == "wrong_state"


def test_a_lost_node_is_nobodys_idle_gpu(hub: Hub) -> None:
    hub.award()
    fund = put_fund(hub)
    spare = hub.submit(opportunistic=True, gpus_per_pod=8, pods=2)
    cycle(hub)
    hub.report(started(spare, hub.now, hub.now))
    hub.clock.advance(HOUR_MS)
    hub.report(lost(spare, hub.now))
    other = hub.submit()
    plan, _ = cycle(hub)
    assert (plan.starts, plan.stops) == ((), ())
    assert plan.reasons[other.id].code is WaitReason.NO_FREE_GPU
    assert balance(hub, fund.account_id)[1] == 0


# --- who pays -------------------------------------------------------------------------------------


def test_a_start_draws_on_the_programmes_account_and_on_nothing_else(hub: Hub) -> None:
    grant, fund = hub.award(), put_fund(hub)
    spare, plain = hub.submit(opportunistic=True), hub.submit()
    assert hub.try_start(spare, grant).code == "not_found"
    assert hub.try_start(plain, fund_grant(hub)).code == "not_found"
    put_fund(hub, pays=False, ends_at=fund.ends_at)
    assert hub.try_start(spare, fund_grant(hub)).code == "opportunistic_off"
    put_fund(hub, gpu_hours="0.5", ends_at=fund.ends_at)
    assert hub.try_start(spare, fund_grant(hub)).code == "insufficient_balance"
    put_fund(hub, max_gpus=1, ends_at=fund.ends_at)
    assert hub.try_start(spare, fund_grant(hub)).outcome == "accepted"
    second = hub.submit(opportunistic=True)
    assert hub.try_start(second, fund_grant(hub), "n1").code == "grant_cap"
    assert cycle(hub)[0].reasons[second.id].code is WaitReason.OPPORTUNISTIC_CAP


@pytest.mark.parametrize(
    ("fund", "asked", "error", "field"),
    [
        ({"pays": False}, {}, OpportunisticOff, "opportunistic"),
        ({}, {"program_id": "other"}, NotFound, "program_id"),
        ({"job_walltime_s": 3600}, {"walltime_s": 3601}, WalltimeTooLong, "walltime_s"),
        ({"job_grace_s": 10}, {"grace_s": 11}, BadRequest, "grace_s"),
        ({"max_gpus": 4}, {"gpus_per_pod": 8}, GrantCapReached, "gpus_per_pod"),
        ({"gpu_hours": "3"}, {"gpus_per_pod": 4}, InsufficientBalance, "opportunistic"),
    ],
)
def test_a_submission_that_the_programme_would_never_pay_is_refused(
    hub: Hub, fund: dict[str, Any], asked: dict[str, Any], error: type[HubError], field: str
) -> None:
    hub.award()
    put_fund(hub, **fund)
    with pytest.raises(error) as refused:
        hub.submit(opportunistic=True, **asked)
    assert (type(refused.value), refused.value.field) == (error, field)


def test_without_an_account_or_a_running_grant_nobody_pays(hub: Hub) -> None:
    with pytest.raises(NoGrant):
        hub.submit(opportunistic=True)
    hub.award(starts_at=hub.now + DAY_MS)
    with pytest.raises(NoGrant):
        hub.submit(opportunistic=True)
    hub.award()
    with pytest.raises(OpportunisticOff):
        hub.submit(opportunistic=True)
    put_fund(hub, ends_at=hub.now + DAY_MS)
    hub.clock.advance(DAY_MS)
    with pytest.raises(OpportunisticOff):
        hub.submit(opportunistic=True)


@pytest.mark.parametrize("wrong", [{"opportunistic": True, "grant_id": "grant-1"}, {"program_id": "ax"}])
def test_who_pays_is_said_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="program"):
        a_submission(**wrong)


def test_a_quote_says_who_pays_and_how_soon_it_has_to_be_gone(hub: Hub) -> None:
    grant, fund = hub.award(hours="0.1"), put_fund(hub)
    found = quoted(hub, opportunistic=True, grace_s=30)
    assert (found.program_id, found.grant_id, found.leaves_within_s) == ("ax", fund.grant_id, 90)
    assert found.estimate.starts is StartOutlook.NOW
    assert found.payer_text is not None
    assert "AX pays, and no grant of its organization" in found.payer_text
    assert grant.id not in {one.grant_id for one in found.grants}
    spent = quoted(hub, opportunistic=True, walltime_s=80_000, gpus_per_pod=8, pods=2)
    assert spent.cost.gpu_us > 100 * GPU_HOUR_US
    assert quoted(hub, walltime_s=60).program_id is None


def test_to_whoever_is_entitled_their_gpus_are_as_good_as_free(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    hub.submit(opportunistic=True, gpus_per_pod=8, pods=2, walltime_s=80_000, grace_s=120)
    cycle(hub)
    mine = quoted(hub, gpus_per_pod=8)
    assert mine.estimate.room_at_the_latest == hub.now + 3 * MINUTE_MS
    another = quoted(hub, opportunistic=True, gpus_per_pod=8)
    assert another.estimate.room_at_the_latest is not None
    assert another.estimate.room_at_the_latest > hub.now + 80_000_000


# --- the account ----------------------------------------------------------------------------------


def test_an_account_is_given_hours_of_the_budget_and_gives_them_back(hub: Hub) -> None:
    before = balance(hub, "program:ax")[0]
    fund = put_fund(hub, gpu_hours="10")
    assert balance(hub, "program:ax")[0] == before - 10 * GPU_HOUR_US
    more = put_fund(hub, gpu_hours="15", ends_at=fund.ends_at, if_match=fund.etag)
    assert (more.grant_id, more.granted_gpu_us, more.version) == (fund.grant_id, 15 * GPU_HOUR_US, 2)
    less = put_fund(hub, gpu_hours="4", ends_at=fund.ends_at)
    assert (less.available_gpu_us, balance(hub, "program:ax")[0]) == (
        4 * GPU_HOUR_US,
        before - 4 * GPU_HOUR_US,
    )
    assert [row.type for row in hub.rows(transfers) if row.type == "pullback"] == ["pullback"]
    trail = len(hub.rows(audit))
    assert put_fund(hub, gpu_hours="4", ends_at=fund.ends_at) == less, "the same again does nothing"
    assert len(hub.rows(audit)) == trail
    with pytest.raises(PreconditionFailed):
        put_fund(hub, gpu_hours="4", if_match=fund.etag)


def test_no_more_than_the_budget_has_and_no_less_than_is_in_use(hub: Hub) -> None:
    hub.award()
    with pytest.raises(InsufficientBalance):
        put_fund(hub, gpu_hours="1000000")
    fund = put_fund(hub, gpu_hours="10")
    hub.submit(opportunistic=True, gpus_per_pod=4)
    cycle(hub)
    with pytest.raises(InsufficientBalance):
        put_fund(hub, gpu_hours="3", ends_at=fund.ends_at)
    with pytest.raises(NotFound):
        put_fund(hub, program="nobody")


def test_what_is_left_expires_and_the_next_account_is_another_grant(hub: Hub) -> None:
    hub.award()
    fund = put_fund(hub, gpu_hours="10", ends_at=hub.now + DAY_MS)
    spare = hub.submit(opportunistic=True)
    hub.clock.advance(DAY_MS)
    after = put_fund(hub, gpu_hours="20")
    assert after.grant_id != fund.grant_id
    plan, _ = cycle(hub)
    assert [(start.job_id, start.grant_id) for start in plan.starts] == [(spare.id, after.grant_id)]


def test_it_is_no_organizations_grant(hub: Hub) -> None:
    mine, fund = hub.award(), put_fund(hub)
    with hub.database.read() as connection:
        member = a_member()
        shown = programs.list_grants(connection, member, hub.now).items
        assert [grant.id for grant in shown] == [mine.id]
        with pytest.raises(NotFound):
            programs.read_grant(connection, fund.grant_id, hub.now, member)
        assert [row.id for row in programs.payable_grants(connection, "alpha", hub.now)] == [mine.id]
        with pytest.raises(NotFound):
            limits.check_visible(member, limits.read_tree(connection, fund.grant_id))
    body = ShareChange(gpu_hours="1", reason="a part")
    with pytest.raises(WrongState):
        hub.database.write(lambda tx: shares.put_share(tx, OPERATOR, fund.grant_id, "alpha", body, None))
    assert hub.row(accounts, id=fund.account_id).organization_id is None


def test_it_cannot_be_extended(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    spare = hub.submit(opportunistic=True)
    cycle(hub)
    with pytest.raises(WrongState, match="opportunistic"):
        hub.extend(spare, 60)
