"""Transfers, corrections and the list of transfers over HTTP: numbers, dry runs, keys, who sees what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quota.client import ServiceProblem
from quota.ledger.tables import transfers
from quota.programs.endings import expire_due
from quota.schemas.ledger import TransferType
from quota.schemas.programs import Adjustment, CarryOver, GrantCut, GrantTransfer
from quota.schemas.transfers import Transfer
from tests.builders import DAY_MS, HOUR_MS, Api, an_api
from tests.integration.quota.grants_builders import HOURS, check_conserved
from tests.integration.quota.limits_builders import give


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made
        check_conserved(made.hub)


def test_a_refused_transfer_tells_what_is_possible(api: Api) -> None:
    grant, other = api.hub.award(hours="10"), api.hub.award("beta", hours="1")
    body = {"to_grant_id": other.id, "gpu_hours": "10.5", "reason": "moved"}
    refused = api.refused(api.operator, "POST", f"/v1/grants/{grant.id}/transfers", json=body)
    assert (refused["http_status"], refused["code"]) == (409, "insufficient_balance")
    assert refused["numbers"]["left_gpu_us"] == str(10 * HOURS)
    assert refused["numbers"]["needed_gpu_us"] == str(21 * HOURS // 2)


def test_a_dry_run_answers_the_same_and_leaves_nothing(api: Api) -> None:
    grant, other = api.hub.award(hours="10"), api.hub.award("beta", hours="1")
    before = api.hub.contents()
    cut = GrantCut(gpu_hours="4", reason="r")
    assert api.operator.cut_grant(grant.id, cut, dry_run=True).granted_gpu_us == 6 * HOURS
    move = GrantTransfer(to_grant_id=other.id, gpu_hours="4", reason="r")
    assert api.operator.transfer_hours(grant.id, move, dry_run=True).target.granted_gpu_us == 5 * HOURS
    correction = Adjustment(gpu_hours="-4", reason="r", evidence="e")
    assert api.operator.adjust_grant(grant.id, correction, dry_run=True).granted_gpu_us == 6 * HOURS
    with pytest.raises(ServiceProblem) as refused:
        api.operator.cut_grant(grant.id, GrantCut(gpu_hours="11", reason="r"), dry_run=True)
    assert refused.value.code == "insufficient_balance"
    after = api.hub.contents()
    assert {name for name in before if before[name] != after[name]} <= {"tokens"}


def test_the_same_key_moves_hours_once(api: Api) -> None:
    grant, other = api.hub.award(hours="10"), api.hub.award("beta", hours="1")
    move = GrantTransfer(to_grant_id=other.id, gpu_hours="4", reason="r")
    first = api.operator.transfer_hours(grant.id, move, key="k-1")
    assert api.operator.transfer_hours(grant.id, move, key="k-1") == first
    assert api.hub.grant(grant.id).granted_gpu_us == 6 * HOURS
    with pytest.raises(ServiceProblem) as refused:
        api.operator.transfer_hours(grant.id, move.model_copy(update={"gpu_hours": HOURS}), key="k-1")
    assert refused.value.code == "idempotency_key_reused"


def test_only_operators_move_hours(api: Api) -> None:
    grant = api.hub.award(hours="10")
    body = {"to_grant_id": grant.id, "gpu_hours": "1", "reason": "r"}
    for client in (api.firms["alpha"], api.auditor):
        refused = api.refused(client, "POST", f"/v1/grants/{grant.id}/transfers", json=body)
        assert refused["http_status"] == 403
    itself = api.refused(api.operator, "POST", f"/v1/grants/{grant.id}/transfers", json=body)
    assert (itself["http_status"], itself["errors"][0]["field"]) == (422, "to_grant_id")


def test_a_correction_needs_evidence_and_moves_the_budget(api: Api) -> None:
    api.hub.award(hours="10")
    path = "/v1/programs/ax/adjustments"
    bare = api.refused(api.operator, "POST", path, json={"gpu_hours": "1", "reason": "r"})
    assert bare["http_status"] == 422
    before = api.operator.read_program("ax")
    more = Adjustment(gpu_hours="5", reason="the council added", evidence="decision 3")
    assert api.operator.adjust_program("ax", more).budget_gpu_us == before.budget_gpu_us + 5 * HOURS
    less = Adjustment(gpu_hours="-100005", reason="a typing error", evidence="decision 4")
    with pytest.raises(ServiceProblem) as refused:
        api.operator.adjust_program("ax", less)
    assert refused.value.problem.numbers["left_gpu_us"] == before.remaining_gpu_us + 5 * HOURS
    nothing = {"gpu_hours": "0", "reason": "r", "evidence": "e"}
    assert api.refused(api.operator, "POST", path, json=nothing)["errors"][0]["field"] == "gpu_hours"


def test_carry_over_over_http(api: Api) -> None:
    hub = api.hub
    grant, other = hub.award(hours="10", ends_at=hub.now + DAY_MS), hub.award(hours="1")
    hub.clock.advance(DAY_MS)
    expire_due(hub.database)
    assert api.operator.read_program("ax").expired_gpu_us == 10 * HOURS
    body = CarryOver(to_grant_id=other.id, gpu_hours="10", reason="goes on")
    assert api.operator.carry_over_hours(grant.id, body, "k").target.granted_gpu_us == 11 * HOURS
    assert api.operator.carry_over_hours(grant.id, body, "k").target.granted_gpu_us == 11 * HOURS
    assert api.operator.read_program("ax").expired_gpu_us == 0


def test_every_transfer_is_listed_once_in_order_page_by_page(api: Api) -> None:
    hub = api.hub
    grant, other = hub.award(hours="100"), hub.award("beta", hours="5")
    job = hub.submit(gpus_per_pod=8, walltime_s=3 * 3600)
    hub.run(job, grant)
    hub.clock.advance(2 * HOUR_MS)
    hub.finish(job)
    api.operator.transfer_hours(grant.id, GrantTransfer(to_grant_id=other.id, gpu_hours="1", reason="r"))
    found: list[Transfer] = []
    after: str | None = None
    while True:
        page = api.auditor.list_transfers(after=after, limit=2)
        found += page.items
        if page.next is None:
            break
        after = page.next
    stored = sorted(hub.rows(transfers), key=lambda row: (row.seq, row.position))
    assert [row.id for row in stored] == [item.id for item in found]
    for item in found:
        if item.type is TransferType.SETTLE:
            assert item.slice is not None
            worth = item.slice.milliseconds * item.slice.gpus * item.slice.rate_thousandths
            assert item.amount_gpu_us == worth
    last = found[-1]
    assert {leg.account_id: leg.granted_gpu_us for leg in last.legs} == {
        grant.account_id: -HOURS,
        other.account_id: HOURS,
    }


def test_transfers_are_filtered_by_what_they_touch(api: Api) -> None:
    hub = api.hub
    grant, other = hub.award(hours="100"), hub.award("beta", hours="5")
    job = hub.submit(gpus_per_pod=1)
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS // 2)
    hub.finish(job)
    listed = api.auditor.list_transfers
    assert {item.job_id for item in listed(job_id=job.id).items} == {job.id}
    assert [item.type for item in listed(grant_id=other.id).items] == ["deposit"]
    assert [item.id for item in listed(account_id=other.account_id).items] == [f"{other.account_id}:award"]
    assert {item.type for item in listed(type=TransferType.HOLD).items} == {"hold"}
    late = listed(since=hub.now)
    assert {item.type for item in late.items} == {"settle", "release"}
    assert len(listed(until=hub.now).items) + len(late.items) == len(listed().items)
    assert listed(grant_id=grant.id, type=TransferType.RELEASE, since=hub.now).items[0].reason
    for query in ("after=x", "account_id=none", "grant_id=none", "type=none", "since=yesterday"):
        assert api.refused(api.auditor, "GET", f"/v1/transfers?{query}")["http_status"] in (404, 422), query


def test_a_firm_sees_its_own_side_of_a_transfer_and_nothing_of_another(api: Api) -> None:
    grant, other = api.hub.award(hours="100"), api.hub.award("beta", hours="5")
    api.operator.transfer_hours(grant.id, GrantTransfer(to_grant_id=other.id, gpu_hours="1", reason="r"))
    shown = api.firms["beta"].list_transfers().items
    assert [item.type for item in shown] == ["deposit", "transfer"]
    assert {leg.account_id for item in shown for leg in item.legs} == {other.account_id}
    assert api.firms["gamma"].list_transfers().items == ()
    for query in (f"grant_id={grant.id}", f"account_id={grant.account_id}", "account_id=platform"):
        assert api.refused(api.firms["beta"], "GET", f"/v1/transfers?{query}")["http_status"] == 404


def test_a_party_sees_what_touches_its_share(api: Api) -> None:
    grant = api.hub.award(hours="100")
    give(api.hub, grant, "beta", "30")
    shown = api.firms["beta"].list_transfers().items
    assert {leg.account_id for item in shown for leg in item.legs} == {f"share:{grant.id}:beta"}
    whole = api.firms["alpha"].list_transfers(grant_id=grant.id).items
    assert {leg.account_id for item in whole for leg in item.legs} == {
        grant.account_id,
        f"share:{grant.id}:beta",
    }
