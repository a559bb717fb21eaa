"""Policies are data: versions and entity tags, a frozen copy in each grant, overdrafts that follow what is granted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.errors import NotFound, PreconditionFailed
from quota.ledger.tables import accounts
from quota.programs import policies
from quota.programs.endings import expire_due
from quota.programs.tables import grants
from quota.schemas.policies import GrantPolicy, PolicyPut
from tests.builders import DAY_MS, OPERATOR, Hub, an_api
from tests.integration.quota.grants_builders import (
    HOURS,
    a_judged_hub,
    adjust,
    cut,
    expired,
    put_policy,
    transfer,
    use_policy,
)


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with a_judged_hub(database_url) as made:
        yield made


def test_a_policy_has_versions_and_is_audited_before_and_after(hub: Hub) -> None:
    assert put_policy(hub, "poc", overdraft_thousandths=250).version == 1
    assert put_policy(hub, "poc", overdraft_thousandths=250).version == 1, "the same again is nothing"
    assert put_policy(hub, "poc", carry_over_thousandths=0).version == 2
    first, second = hub.rows(audit, action="policy.put")
    assert first.before is None
    assert json.loads(second.before) == json.loads(first.after)
    assert json.loads(second.after)["carry_over_thousandths"] == 0


def test_a_policy_changed_meanwhile_is_not_overwritten(hub: Hub) -> None:
    seen = policies.tag_of(put_policy(hub, "poc"))
    put_policy(hub, "poc", stop_notice_s=60)
    body = PolicyPut(policy=GrantPolicy(), reason="late")
    with pytest.raises(PreconditionFailed):
        hub.database.write(lambda tx: policies.put_policy(tx, OPERATOR, "poc", body, seen))


def test_a_grant_keeps_the_policy_it_was_awarded_under(hub: Hub) -> None:
    put_policy(hub, "poc", refund_cap_ms=1000)
    use_policy(hub, "poc")
    grant = hub.award()
    put_policy(hub, "poc", refund_cap_ms=2000)
    with hub.database.read() as connection:
        assert policies.policy_of(connection, grant.id).refund_cap_ms == 1000
        with pytest.raises(NotFound):
            policies.policy_of(connection, "grant-none")
    assert hub.award().policy.refund_cap_ms == 2000
    stored = json.loads(hub.row(grants, id=grant.id).policy)
    assert set(stored) == set(GrantPolicy.model_fields), "a later default changes nothing for it"


def test_a_programme_names_only_a_policy_that_is_there(hub: Hub) -> None:
    with pytest.raises(NotFound):
        use_policy(hub, "none")


def test_overdraft_follows_every_change_of_what_is_granted(hub: Hub) -> None:
    put_policy(hub, overdraft_thousandths=250)
    grant, other = hub.award(hours="10", ends_at=hub.now + DAY_MS), hub.award(hours="7.0000000025")

    def allowed() -> list[int]:
        rows = [hub.row(accounts, id=account) for account in (grant.account_id, other.account_id)]
        assert all(row.overdraft_gpu_us == row.granted_gpu_us * 250 // 1000 for row in rows)
        return [row.overdraft_gpu_us for row in rows]

    assert allowed()[0] == 5 * HOURS // 2
    hub.top_up(grant, "3")
    cut(hub, grant, "1.0000000325")
    transfer(hub, grant, other, "2.0000000775")
    adjust(hub, other, "-0.0000000975")
    adjust(hub, other, "1")
    assert allowed()[1] > 2 * HOURS
    hub.clock.advance(DAY_MS)
    expire_due(hub.database)
    assert allowed()[0] == 0


def test_overdraft_lets_a_start_pass_what_is_granted_up_to_its_bound(hub: Hub) -> None:
    put_policy(hub, overdraft_thousandths=250)
    grant = hub.award(hours="16")
    for node in ("n0", "n1"):
        hub.start(hub.submit(gpus_per_pod=8), grant, node)
    row = hub.row(accounts, id=grant.account_id)
    assert (row.granted_gpu_us, row.held_gpu_us) == (16 * HOURS, 16 * HOURS)
    refused = hub.try_start(hub.submit("alpha", gpu_class="a100", gpus_per_pod=8), grant, "a0")
    assert refused.code == "insufficient_balance"
    small = hub.submit("alpha", gpu_class="a100", gpus_per_pod=7)
    assert hub.start(small, grant, "a0") == 1
    assert hub.row(accounts, id=grant.account_id).held_gpu_us == 16 * HOURS + 7 * HOURS * 55 // 100


def test_an_overdrawn_grant_expires_nothing(hub: Hub) -> None:
    put_policy(hub, overdraft_thousandths=250)
    grant = hub.award(hours="8", ends_at=hub.now + DAY_MS)
    job = hub.submit(gpus_per_pod=8, walltime_s=4500)
    hub.run(job, grant)
    hub.clock.advance(4_500_000)
    hub.finish(job)
    hub.clock.advance(DAY_MS)
    assert expire_due(hub.database) == 1
    assert (hub.grant(grant.id).used_gpu_us, expired(hub)) == (10 * HOURS, 0)


def test_policies_over_http_have_etags_and_refuse_what_they_do_not_know(database_url: str) -> None:
    with an_api(database_url) as api:
        path = "/v1/policies/poc"
        body = {"policy": {"overdraft_thousandths": 250}, "reason": "the call"}
        first = api.call(api.operator, "PUT", path, json=body)
        assert (first.status_code, first.json()["version"]) == (200, 1)
        tag = first.headers["ETag"]
        assert api.call(api.auditor, "GET", path).headers["ETag"] == tag
        changed = body | {"policy": {"overdraft_thousandths": 100}}
        assert (
            api.call(api.operator, "PUT", path, json=changed, headers={"If-Match": tag}).json()["version"]
            == 2
        )
        stale = api.refused(api.operator, "PUT", path, json=body, headers={"If-Match": tag})
        assert (stale["http_status"], stale["code"]) == (412, "precondition_failed")
        for wrong in ({"overdraft": 1}, {"overdraft_thousandths": 1001}, {"when_grant_ends": "never"}):
            refused = api.refused(api.operator, "PUT", path, json=body | {"policy": wrong})
            assert refused["http_status"] == 422
        firm = api.firms["alpha"]
        assert api.refused(firm, "GET", path)["http_status"] == 403
        assert [item.id for item in api.operator.list_policies().items] == ["default", "poc"]
        program = api.call(api.operator, "GET", "/v1/programs/ax")
        change = {"policy_id": "poc", "reason": "the call"}
        headers = {"If-Match": program.headers["ETag"]}
        done = api.call(api.operator, "PATCH", "/v1/programs/ax", json=change, headers=headers)
        assert done.json()["policy_id"] == "poc"
        again = api.refused(api.operator, "PATCH", "/v1/programs/ax", json=change, headers=headers)
        assert again["code"] == "precondition_failed"
