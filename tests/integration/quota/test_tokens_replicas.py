"""Two replicas over one PostgreSQL: a revocation holds at once on both, and so does a lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from quota.audit.tables import audit
from quota.identity.tables import auth_failures
from quota.schemas.identity import NewToken, Role, TokenRotation
from tests.builders import a_problem
from tests.integration.quota.token_world import World, a_client, a_replica, a_world, at_once

pytestmark = pytest.mark.postgres


@dataclass
class Replicas:
    world: World
    first: str
    second: str


@pytest.fixture
def replicas(postgres_url: str) -> Iterator[Replicas]:
    with (
        a_world(postgres_url) as world,
        a_replica(postgres_url, world.clock, trusted_proxies="127.0.0.1") as first,
        a_replica(postgres_url, world.clock, trusted_proxies="127.0.0.1") as second,
    ):
        yield Replicas(world, first, second)


def test_a_revocation_holds_on_the_other_replica_at_once(replicas: Replicas) -> None:
    operator = replicas.world.token(Role.OPERATOR)
    with a_client(replicas.first, operator.secret) as one, a_client(replicas.second, operator.secret) as two:
        for _ in range(5):
            token = two.create_token(NewToken(role=Role.AUDITOR))
            with a_client(replicas.second, token.secret) as holder:
                assert holder.read_caller().token_id == token.id
                one.revoke_token(token.id)
                with a_problem("unauthenticated", 401):
                    holder.read_caller()


def test_a_firm_is_shut_out_on_both_replicas_by_one_call(replicas: Replicas) -> None:
    operator = replicas.world.token(Role.OPERATOR)
    members = [replicas.world.token() for _ in range(3)]
    other = replicas.world.token(organization_id="beta")
    urls = (replicas.first, replicas.second)
    with a_client(replicas.first, operator.secret) as client:
        ended = client.revoke_organization_tokens("alpha", "a leak")
    assert [item.id for item in ended.items] == [member.id for member in members]
    for url in urls:
        for member in members:
            with a_client(url, member.secret) as holder, a_problem("unauthenticated", 401):
                holder.read_caller()
        with a_client(url, other.secret) as holder:
            assert holder.read_caller().organization_id == "beta"


def test_a_rotation_without_overlap_holds_on_the_other_replica(replicas: Replicas) -> None:
    old = replicas.world.token()
    with a_client(replicas.first, old.secret) as one, a_client(replicas.second, old.secret) as two:
        new = one.rotate_token(old.id, TokenRotation(overlap_s=0, reason="r"))
        with a_problem("unauthenticated", 401):
            two.read_caller()
    with a_client(replicas.second, new.secret) as holder:
        assert holder.read_caller().token_id == new.id


def test_failures_on_both_replicas_count_together(replicas: Replicas) -> None:
    """Eight threads fail at once, four on each: exactly eight are counted; two more lock both replicas."""
    token = replicas.world.token()
    lookalike = token.secret[:12] + "z" * 36
    urls = (replicas.first, replicas.second)

    def fail(number: int) -> int:
        with a_client(urls[number % 2], lookalike) as stranger:
            return int(stranger._http.get("/v1/caller").status_code)

    assert at_once(8, fail) == [401] * 8
    assert sorted(row.failures for row in replicas.world.rows(auth_failures)) == [8, 8]
    assert [fail(0), fail(1), fail(0), fail(1)] == [401, 401, 429, 429]
    for url in urls:
        with a_client(url, token.secret) as holder:
            answer = holder._http.get("/v1/caller")
        assert (answer.status_code, answer.json()["code"]) == (429, "locked_out")
        assert 0 < int(answer.headers["Retry-After"]) <= 900
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(replicas.world.rows(audit, action="lockout.begin")) == 1
    assert sorted(row.failures for row in replicas.world.rows(auth_failures)) == [10, 10]


def test_another_address_of_the_same_firm_goes_on(replicas: Replicas) -> None:
    """A proxy on loopback says who is asking; uvicorn believes it."""
    token = replicas.world.token()
    lookalike = token.secret[:12] + "z" * 36
    with a_client(replicas.first, lookalike) as stranger:
        for _ in range(11):
            last = stranger._http.get("/v1/caller", headers={"X-Forwarded-For": "203.0.113.7"})
    assert last.status_code == 429
    with a_client(replicas.second, token.secret) as holder:
        seen = [
            holder._http.get("/v1/caller", headers={"X-Forwarded-For": address}).status_code
            for address in ("203.0.113.7", "203.0.113.8")
        ]
    assert seen == [429, 200]


def test_nobody_is_believed_about_addresses_by_default(postgres_url: str) -> None:
    """A stranger who claims another's address locks out its own; the other one goes on."""
    with a_world(postgres_url) as world, a_replica(postgres_url, world.clock) as url:
        token = world.token()
        with a_client(url, token.secret[:12] + "z" * 36) as stranger:
            for number in range(11):
                claimed = {"X-Forwarded-For": f"203.0.113.{number}"}
                last = stranger._http.get("/v1/caller", headers=claimed).status_code
        assert last == 429
        assert len(world.rows(auth_failures)) == 2
