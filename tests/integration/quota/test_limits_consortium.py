"""The life of a consortium: three parties on one grant in two tranches, to the last statement."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quota.ledger.tables import hold_accounts, transfer_legs, transfers
from quota.programs import awards
from quota.reports import statements
from quota.schemas.identity import Caller
from quota.schemas.jobs import Job
from quota.schemas.limits import NewTranche
from quota.schemas.programs import Award, Grant
from quota.schemas.statements import Statement, StatementFormat, StatementLanguage
from tests.builders import DAY_MS, FIRMS, GPU_HOUR_US, HOUR_MS, OPERATOR, Hub, a_hub, a_member
from tests.integration.quota.limits_builders import balance, give, limits_of, path, release, run_on
from tests.property.ledger.ledger_checks import rebuilt_balances, stored_balances, violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
        assert rebuilt_balances(connection) == stored_balances(connection)
    made.close()


def test_three_parties_live_through_two_tranches(hub: Hub) -> None:
    grant = _consortium(hub)
    _each_party_runs_for_two_hours(hub, grant)
    _gamma_exhausts_its_share_while_the_grant_has_hours(hub, grant)
    _the_first_tranche_runs_dry_and_the_second_is_released(hub, grant)
    _a_closed_party_keeps_what_it_used(hub, grant)
    _statements_add_up(hub, grant)


def _consortium(hub: Hub) -> Grant:
    """100 hours in tranches of 40 and 60; alpha leads with 50, beta has 34, gamma 16."""
    body = Award(
        program_id="ax",
        organization_id="alpha",
        gpu_hours=100,
        ends_at=hub.now + 90 * DAY_MS,
        max_gpus=16,
        tranches=(
            NewTranche(gpu_hours=40, label="start"),
            NewTranche(gpu_hours=60, label="mid-term report"),
        ),
        reason="a consortium PoC",
    )
    grant = hub.database.write(lambda tx: awards.award(tx, OPERATOR, body))
    for party, hours in (("alpha", 50), ("beta", 34), ("gamma", 16)):
        give(hub, grant, party, hours)
    return grant


def _each_party_runs_for_two_hours(hub: Hub, grant: Grant) -> None:
    for party, gpus in (("alpha", 8), ("beta", 4), ("gamma", 4)):
        job = hub.submit(party, gpus_per_pod=gpus, walltime_s=2 * 3600)
        run_on(hub, job, grant, path(grant, party, 1), "n0" if gpus == 8 else "n1")
    refused = hub.try_start(hub.submit("beta"), grant, "a0", path=path(grant, "beta", 1))
    assert refused.code == "grant_cap", "16 GPUs are in use, whosever they are"
    assert balance(hub, grant.account_id) == (100, 32, 0)
    assert balance(hub, path(grant, None, 1)[0]) == (40, 32, 0)
    hub.clock.advance(2 * HOUR_MS)
    for job in _running(hub):
        hub.finish(job)
    assert balance(hub, grant.account_id) == (100, 0, 32)
    assert [balance(hub, path(grant, party)[0])[2] for party in FIRMS] == [16, 8, 8]


def _gamma_exhausts_its_share_while_the_grant_has_hours(hub: Hub, grant: Grant) -> None:
    job = hub.submit("gamma", gpus_per_pod=8)
    waiting = hub.submit("gamma")
    run_on(hub, job, grant, path(grant, "gamma", 1))
    result = hub.try_start(waiting, grant, "n1", path=path(grant, "gamma", 1))
    assert (result.code, result.numbers["account"]) == ("insufficient_balance", path(grant, "gamma")[0])
    assert hub.grant(grant.id).available_gpu_us == 60 * GPU_HOUR_US
    hold = f"{waiting.id}:1:hold"
    assert hub.rows(hold_accounts, hold_id=hold) == []
    assert hub.rows(transfer_legs, transfer_id=hold) == [], "no account of the path kept a leg"
    hub.clock.advance(HOUR_MS)
    hub.finish(job)
    assert balance(hub, path(grant, "gamma")[0]) == (16, 0, 16)


def _the_first_tranche_runs_dry_and_the_second_is_released(hub: Hub, grant: Grant) -> None:
    job = hub.submit("beta", gpus_per_pod=2)
    locked = hub.try_start(job, grant, path=path(grant, "beta", 2))
    assert locked.code == "not_found"
    dry = hub.try_start(job, grant, path=path(grant, "beta", 1))
    assert (dry.code, dry.numbers["account"]) == ("insufficient_balance", path(grant, None, 1)[0])
    release(hub, grant, 2)
    run_on(hub, job, grant, path(grant, "beta", 2))
    assert {row.account_id for row in hub.rows(hold_accounts, hold_id=f"{job.id}:1:hold")} == set(
        path(grant, "beta", 2)
    ), "a hold covers every account on its path"
    hub.clock.advance(HOUR_MS // 2)
    hub.finish(job)
    assert balance(hub, path(grant, "beta")[0]) == (34, 0, 9)
    assert balance(hub, path(grant, None, 2)[0]) == (60, 0, 1)
    assert balance(hub, grant.account_id) == (100, 0, 41)


def _a_closed_party_keeps_what_it_used(hub: Hub, grant: Grant) -> None:
    give(hub, grant, "beta", 0, a_member("alpha"))
    give(hub, grant, "alpha", 75, a_member("alpha"))
    assert balance(hub, path(grant, "beta")[0]) == (9, 0, 9)
    assert limits_of(hub, grant).left_for_shares_gpu_us == 0
    hub.start(hub.submit("alpha", gpus_per_pod=8, walltime_s=7 * 3600), grant, path=path(grant, "alpha", 2))


def _statements_add_up(hub: Hub, grant: Grant) -> None:
    whole = _statement(hub, grant, OPERATOR)
    assert whole.granted_gpu_us == 100 * GPU_HOUR_US
    assert whole.used_gpu_us == 41 * GPU_HOUR_US
    assert whole.held_gpu_us == 56 * GPU_HOUR_US
    assert sum(line.used_gpu_us for line in whole.lines) == whole.used_gpu_us
    earmarks = {row.id for row in hub.rows(transfers, type="transfer")}
    assert earmarks
    assert earmarks.isdisjoint(line.transfer_id for line in whole.lines), "dividing moves none of its hours"
    parties = [_statement(hub, grant, a_member(party)) for party in ("beta", "gamma")]
    assert [part.used_gpu_us for part in parties] == [9 * GPU_HOUR_US, 16 * GPU_HOUR_US]
    own = {row.id for row in hub.rows(transfers, type="settle")}
    seen = [{line.transfer_id for line in part.lines} & own for part in parties]
    assert seen[0].isdisjoint(seen[1]), "no party reads of another's jobs"


def _running(hub: Hub) -> list[Job]:
    _, objects = hub.snapshot()
    return [hub.job(key) for kind, key in objects if kind == "job" and hub.job(key).state.value == "running"]


def _statement(hub: Hub, grant: Grant, caller: Caller) -> Statement:
    written = statements.read_statement(
        hub.database,
        caller,
        grant.id,
        as_of_ms=None,
        since_ms=None,
        form=StatementFormat.JSON,
        language=StatementLanguage.EN,
    )
    return Statement.model_validate_json(written.content)
