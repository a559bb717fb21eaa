"""How much and how fast: bodies beyond the limit, packed ones, and tokens that ask too often."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.client import ServiceProblem
from quota.errors import RateLimited
from quota.schemas.identity import Caller, Role
from quota.settings import Settings
from quota.throttle import BUCKETS_KEPT, Throttle
from tests import databases
from tests.builders import Api, an_api
from tests.integration.quota.door_world import BODIES, JSON, LIMIT


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("limits")
    with an_api(databases.new_sqlite(folder), body_limit_bytes=LIMIT) as made:
        yield made


# --- bodies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/scheduler/reports"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "streamed"])
def test_a_body_beyond_the_limit_is_refused(api: Api, path: str, declared: bool) -> None:
    client = api.scheduler if "scheduler" in path else api.firms["alpha"]
    large = b" " * (LIMIT + 1)
    content: Any = large if declared else iter([large[:50_000]] * 3)
    problem = api.refused(client, "POST", path, content=content, headers=JSON)
    assert (problem["http_status"], problem["code"]) == (413, "body_too_large")
    assert problem["numbers"] == {"limit_bytes": LIMIT}
    assert problem["errors"][0]["field"] == "body"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_body_of_exactly_the_limit_is_read(api: Api, streamed: bool) -> None:
    body = json.dumps(BODIES["submit_job"]).encode().ljust(LIMIT)
    content: Any = iter([body[:50_000], body[50_000:]]) if streamed else body
    problem = api.refused(api.firms["alpha"], "POST", "/v1/jobs", content=content, headers=JSON)
    assert problem["code"] == "unknown_gpu_class"


def test_a_packed_body_may_not_unfold_past_the_limit(api: Api) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    for size, status, code in ((LIMIT + 1, 413, "body_too_large"), (LIMIT, 409, "stale_epoch")):
        content = gzip.compress(json.dumps(BODIES["put_ranking"]).encode().ljust(size))
        assert len(content) < LIMIT
        problem = api.refused(api.scheduler, "PUT", "/v1/scheduler/ranking", content=content, headers=headers)
        assert (problem["http_status"], problem["code"]) == (status, code)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"{}")[:-5]], ids=["not packed", "cut short"])
def test_a_packed_body_that_cannot_be_unpacked_is_refused(api: Api, content: bytes) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    problem = api.refused(api.scheduler, "PUT", "/v1/scheduler/ranking", content=content, headers=headers)
    assert (problem["http_status"], problem["errors"][0]["field"]) == (422, "body")


def test_a_packed_document_is_read(sqlite_url: str) -> None:
    with an_api(sqlite_url) as fresh:
        body = BODIES["put_ranking"] | {"epoch": fresh.hub.epoch}
        content = gzip.compress(json.dumps(body).encode())
        headers = JSON | {"Content-Encoding": "gzip"}
        answer = fresh.call(fresh.scheduler, "PUT", "/v1/scheduler/ranking", content=content, headers=headers)
    assert (answer.status_code, answer.json()["cycle"]) == (200, 1)


# --- rates -----------------------------------------------------------------------------------------------


class HandSeconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _caller(role: Role = Role.MEMBER, token: str = "tok-1") -> Caller:
    return Caller(token_id=token, role=role, organization_id="alpha" if role is Role.MEMBER else None)


def _throttle(**settings: Any) -> tuple[Throttle, HandSeconds]:
    seconds = HandSeconds()
    return Throttle(Settings(**settings), seconds), seconds


def _taken(throttle: Throttle, caller: Caller, most: int = 10_000) -> int:
    """How many requests pass before one is refused."""
    for passed in range(most):
        try:
            throttle.take(caller)
        except RateLimited:
            return passed
    return most


def test_a_token_may_send_its_burst_and_then_its_rate() -> None:
    throttle, seconds = _throttle(member_requests_per_s=5, member_requests_burst=20)
    assert _taken(throttle, _caller()) == 20
    seconds.now_s += 2
    assert _taken(throttle, _caller()) == 10
    seconds.now_s += 3600
    assert _taken(throttle, _caller()) == 20, "a long rest saves up no more than the burst"


def test_what_is_refused_takes_nothing() -> None:
    throttle, seconds = _throttle(member_requests_per_s=1, member_requests_burst=1)
    throttle.take(_caller())
    for _ in range(50):
        with pytest.raises(RateLimited) as caught:
            throttle.take(_caller())
        assert caught.value.numbers == {"per_s": "1", "burst": 1, "retry_after_s": 1}
    seconds.now_s += 1
    throttle.take(_caller())


def test_the_seconds_told_are_enough() -> None:
    throttle, seconds = _throttle(member_requests_per_s=0.1, member_requests_burst=1)
    throttle.take(_caller())
    seconds.now_s += 4.5
    with pytest.raises(RateLimited) as caught:
        throttle.take(_caller())
    seconds.now_s += int(caught.value.numbers["retry_after_s"])
    throttle.take(_caller())


def test_tokens_do_not_share_their_rates() -> None:
    throttle, _ = _throttle(member_requests_burst=3)
    assert [_taken(throttle, _caller(token=name)) for name in ("tok-1", "tok-2", "tok-1")] == [3, 3, 0]


def test_scheduler_and_agents_are_never_limited_and_nobody_is_at_zero() -> None:
    throttle, _ = _throttle(
        member_requests_per_s=0, member_requests_burst=1, staff_requests_per_s=1, staff_requests_burst=2
    )
    passed = {role: _taken(throttle, _caller(role, role.value), 50) for role in Role}
    assert passed == {
        Role.SCHEDULER: 50,
        Role.AGENT: 50,
        Role.MEMBER: 50,
        Role.OPERATOR: 2,
        Role.AUDITOR: 2,
    }


def test_rested_tokens_are_forgotten() -> None:
    throttle, seconds = _throttle()
    for number in range(BUCKETS_KEPT):
        throttle.take(_caller(token=f"tok-{number}"))
    seconds.now_s += 60
    throttle.take(_caller(token="one more"))
    assert len(throttle._buckets) == 1


def test_a_refused_request_is_told_when_to_come_again(sqlite_url: str) -> None:
    with an_api(sqlite_url, member_requests_per_s=0.01, member_requests_burst=3) as api:
        alpha = api.firms["alpha"]
        for _ in range(3):
            alpha.read_caller()
        answer = api.call(alpha, "GET", "/v1/caller")
        with pytest.raises(ServiceProblem) as caught:
            alpha.read_caller()
        assert api.firms["beta"].read_caller().organization_id == "beta"
        assert api.call(alpha, "POST", "/v1/grants", content=b"{").status_code == 429, (
            "before its role is asked"
        )
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert answer.json()["numbers"] == {"per_s": "0.01", "burst": 3, "retry_after_s": 100}
    assert answer.headers["Retry-After"] == "100"
    assert (caught.value.code, caught.value.retry_after_s) == ("rate_limited", 100)


def test_the_defaults_limit_members_and_leave_operators_room() -> None:
    throttle, seconds = _throttle()
    assert _taken(throttle, _caller()) == 100
    assert _taken(throttle, _caller(Role.OPERATOR, "tok-2")) == 2000
    seconds.now_s += 1
    assert _taken(throttle, _caller()) == 50
