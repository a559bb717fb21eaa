"""Shares, tranches and caps over HTTP: who may, what comes back, what is told of a refusal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quota.schemas.limits import (
    NewTranche,
    NewTranches,
    ShareChange,
    ShareMove,
    TrancheChange,
    TrancheRelease,
)
from quota.schemas.programs import Award, Grant
from tests.builders import DAY_MS, GPU_HOUR_US, Api, a_problem, an_api


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as served:
        yield served


def test_a_lead_divides_its_grant_and_each_party_sees_its_part(api: Api) -> None:
    grant = _award(api)
    api.operator.put_share(grant.id, "beta", _share(30))
    lead, party, stranger = (api.firms[name] for name in ("alpha", "beta", "gamma"))
    lead.put_share(grant.id, "alpha", _share(70))
    body = ShareMove(
        from_organization_id="alpha", to_organization_id="beta", gpu_hours=10, reason="they need it"
    )
    moved = lead.move_share(grant.id, body, "move-1")
    assert lead.move_share(grant.id, body, "move-1") == moved, "the same key moves once"
    assert [share.balance.granted_gpu_us for share in moved.items] == [60 * GPU_HOUR_US, 40 * GPU_HOUR_US]
    assert [share.organization_id for share in lead.read_limits(grant.id).shares] == ["alpha", "beta"]
    assert [share.organization_id for share in party.read_limits(grant.id).shares] == ["beta"]
    assert party.read_grant(grant.id).granted_gpu_us == 40 * GPU_HOUR_US
    assert party.list_grants().items == (party.read_grant(grant.id),)
    assert party.read_share(grant.id, "beta").balance.available_gpu_us == 40 * GPU_HOUR_US
    with a_problem("not_found", 404):
        party.read_share(grant.id, "alpha")
    with a_problem("forbidden", 403):
        party.put_share(grant.id, "beta", _share(90))
    unknown = api.refused(stranger, "GET", "/v1/grants/grant-none/limits")
    foreign = api.refused(stranger, "GET", f"/v1/grants/{grant.id}/limits")
    assert (foreign["code"], foreign["detail"]) == (
        "not_found",
        unknown["detail"].replace("grant-none", grant.id),
    )


def test_a_share_is_edited_under_its_entity_tag(api: Api) -> None:
    grant = _award(api)
    address = f"/v1/grants/{grant.id}/shares/beta"
    made = api.call(api.operator, "PUT", address, json={"gpu_hours": "30", "reason": "first"})
    assert made.status_code == 200
    tag = made.headers["ETag"]
    assert api.call(api.operator, "GET", address).headers["ETag"] == tag
    changed = api.operator.put_share(grant.id, "beta", _share(20), tag)
    assert changed.balance.granted_gpu_us == 20 * GPU_HOUR_US
    with a_problem("precondition_failed", 412):
        api.operator.put_share(grant.id, "beta", _share(10), tag)


def test_a_refusal_tells_what_is_possible(api: Api) -> None:
    grant = _award(api)
    problem = api.refused(
        api.operator,
        "PUT",
        f"/v1/grants/{grant.id}/shares/beta",
        json={"gpu_hours": "100.5", "reason": "too much"},
    )
    assert (problem["http_status"], problem["code"]) == (409, "insufficient_balance")
    assert str(100 * GPU_HOUR_US) in problem["detail"]


def test_tranches_are_opened_changed_and_released_by_operators(api: Api) -> None:
    grant = _award(api)
    parts = (NewTranche(gpu_hours=40, label="start"), NewTranche(gpu_hours=50, label="report"))
    body = NewTranches(tranches=parts, reason="by milestones")
    made = api.operator.open_tranches(grant.id, body, "open-1")
    assert api.operator.open_tranches(grant.id, body, "open-1") == made
    with a_problem("already_exists", 409):
        api.operator.open_tranches(grant.id, body)
    with a_problem("forbidden", 403):
        api.firms["alpha"].open_tranches(grant.id, body)
    changed = api.operator.put_tranche(grant.id, 2, TrancheChange(gpu_hours=60, reason="all of it"))
    assert changed.balance is not None
    assert changed.balance.granted_gpu_us == 60 * GPU_HOUR_US
    letter = TrancheRelease(reason="milestone reached", evidence="report 7")
    released = api.operator.release_tranche(grant.id, 2, letter)
    assert [part.released for part in released.items] == [True, True]
    assert released.items[1].balance is not None
    assert released.items[1].balance.granted_gpu_us == 100 * GPU_HOUR_US
    assert api.operator.release_tranche(grant.id, 2, letter) == released
    with a_problem("not_found", 404):
        api.operator.release_tranche(grant.id, 3, letter)
    with a_problem("forbidden", 403):
        api.firms["alpha"].release_tranche(grant.id, 2, letter)


def test_a_release_without_evidence_is_no_release(api: Api) -> None:
    grant = _award(api)
    address = f"/v1/grants/{grant.id}/tranches/1/release"
    for wrong in ({"reason": "because"}, {"reason": "because", "evidence": ""}):
        assert api.refused(api.operator, "POST", address, json=wrong)["http_status"] == 422


def test_a_party_sees_which_tranches_are_released_but_no_balance_of_all(api: Api) -> None:
    body = Award(
        program_id="ax",
        organization_id="alpha",
        gpu_hours=100,
        ends_at=api.hub.now + 90 * DAY_MS,
        max_gpus=8,
        tranches=(NewTranche(gpu_hours=40, label="start"), NewTranche(gpu_hours=60, label="report")),
        reason="a PoC",
    )
    grant = api.operator.award_grant(body)
    assert grant.max_gpus == 8
    api.operator.put_share(grant.id, "beta", _share(30))
    seen = api.firms["beta"].read_limits(grant.id)
    assert [(part.label, part.released, part.balance) for part in seen.tranches] == [
        ("start", True, None),
        ("report", False, None),
    ]
    assert (seen.max_gpus, seen.gpus_in_use, seen.left_for_tranches_gpu_us) == (8, None, None)
    whole = api.auditor.read_limits(grant.id)
    assert (whole.gpus_in_use, whole.left_for_shares_gpu_us) == (0, 70 * GPU_HOUR_US)


def _award(api: Api) -> Grant:
    body = Award(
        program_id="ax",
        organization_id="alpha",
        gpu_hours=100,
        ends_at=api.hub.now + 90 * DAY_MS,
        reason="a PoC",
    )
    return api.operator.award_grant(body)


def _share(hours: int) -> ShareChange:
    return ShareChange(gpu_hours=hours, reason="the agreement")
