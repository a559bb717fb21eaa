"""Problems in Korean and English, as the caller asks; codes, numbers and fields are the same in both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from quota.client import QuotaClient
from quota.dispatch import routes as dispatch
from tests import databases
from tests.builders import Api, a_problem, a_submission, an_api
from tests.integration.quota.door_world import BODIES, JSON

KOREAN = re.compile(r"[가-힣]")
GOOD = {"name": "a", "gpu_class": "h100", "walltime_s": 60}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("languages")
    with an_api(databases.new_sqlite(folder), member_requests_per_s=0) as made:
        made.hub.award("alpha", "10")
        yield made


def _both(api: Api, client: QuotaClient, method: str, path: str, **request: Any) -> tuple[Any, Any]:
    """The same refused request in English and in Korean."""
    told = []
    for language in ("en", "ko"):
        headers = request.get("headers", {}) | {"Accept-Language": language}
        answer = api.call(client, method, path, **(request | {"headers": headers}))
        assert answer.headers["Content-Language"] == language
        assert answer.headers["Vary"] == "Accept-Language"
        assert answer.headers["Content-Type"] == "application/problem+json"
        told.append(answer.json())
    return told[0], told[1]


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("alpha", "POST", "/v1/jobs", {"json": GOOD | {"walltime_s": 11 * 3600}}),
    ("alpha", "POST", "/v1/jobs", {"json": GOOD | {"gpu_class": "v100"}}),
    ("alpha", "POST", "/v1/jobs", {"json": GOOD | {"gpus_per_pod": 9}}),
    ("alpha", "POST", "/v1/jobs", {"json": {"walltime_s": "x", "pods": 0, "surprise": 1}}),
    ("alpha", "POST", "/v1/jobs", {"content": b"{", "headers": JSON}),
    ("alpha", "POST", "/v1/jobs", {"content": b"[" * 100_000, "headers": JSON}),
    ("alpha", "POST", "/v1/jobs", {"content": json.dumps(GOOD)}),
    ("alpha", "GET", "/v1/jobs/nothing", {}),
    ("alpha", "GET", "/v1/jobs?limit=0&state=flying", {}),
    ("alpha", "GET", "/v1/jobs?before=x", {}),
    ("alpha", "GET", "/v1/jobs?submitted_from=yesterday", {}),
    ("alpha", "POST", "/v1/grants", {"json": BODIES["award_grant"]}),
    ("operator", "POST", "/v1/grants", {"json": BODIES["award_grant"]}),
    ("operator", "POST", "/v1/grants", {"json": BODIES["award_grant"] | {"gpu_hours": "NaN"}}),
    ("operator", "POST", "/v1/tokens", {"json": {"role": "member"}}),
    ("operator", "POST", "/v1/organizations", {"json": {"id": "alpha", "name": "A"}}),
    ("operator", "GET", "/v1/nowhere", {}),
    ("operator", "DELETE", "/v1/jobs", {}),
    ("scheduler", "POST", "/v1/scheduler/decisions", {"json": BODIES["send_decisions"]}),
    ("scheduler", "POST", "/v1/scheduler/decisions", {"json": {"items": [{"kind": "jump"}]}}),
    ("scheduler", "GET", "/v1/scheduler/feed?after=999999", {}),
    ("agent", "POST", "/v1/usage/evidence", {"json": {"rows": []}}),
    ("nobody", "GET", "/v1/jobs", {}),
]


@pytest.mark.parametrize(
    ("who", "method", "path", "request_"), CASES, ids=[str(n) for n in range(len(CASES))]
)
def test_a_problem_is_told_in_both_languages(
    api: Api, who: str, method: str, path: str, request_: dict[str, Any]
) -> None:
    known = {"operator": api.operator, "scheduler": api.scheduler, "agent": api.agent} | api.firms
    with QuotaClient(api.base_url, "ghub_nobody") as nobody:
        english, korean = _both(api, known.get(who, nobody), method, path, **request_)
    for text in _texts(english):
        assert not KOREAN.search(text)
    for text in _texts(korean):
        assert KOREAN.search(text), text
    for same in ("type", "status", "code", "numbers"):
        assert english[same] == korean[same]
    assert [entry["field"] for entry in english["errors"]] == [entry["field"] for entry in korean["errors"]]
    assert bool(english["detail"]) == bool(korean["detail"])


def _texts(problem: dict[str, Any]) -> list[str]:
    told = [problem["title"], *(entry["message"] for entry in problem["errors"])]
    return [*told, problem["detail"]] if problem["detail"] else told


def test_numbers_stand_in_the_korean_text_too(api: Api) -> None:
    body = GOOD | {"walltime_s": 11 * 3600}
    _, korean = _both(api, api.firms["alpha"], "POST", "/v1/jobs", json=body)
    assert korean["numbers"] == {"needed_gpu_us": "39600000000", "left_gpu_us": "36000000000"}
    for value in korean["numbers"].values():
        assert value in korean["detail"]
    assert "{" not in korean["detail"]


def test_english_is_what_nobody_asked_for(api: Api) -> None:
    for headers in ({}, {"Accept-Language": "fr"}, {"Accept-Language": "de-CH, fr;q=0.5"}):
        with QuotaClient(api.base_url, "ghub_nobody") as client:
            del client._http.headers["Accept-Language"]
            answer = api.call(client, "GET", "/v1/jobs", headers=headers)
        assert answer.headers["Content-Language"] == "en"


def test_what_breaks_inside_is_told_in_korean_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(dispatch.feed, "read_snapshot", broken)
    with capture_logs():
        answer = api.call(api.scheduler, "GET", "/v1/scheduler/snapshot", headers={"Accept-Language": "ko"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert KOREAN.search(answer.json()["title"])
    assert "hunter2" not in answer.text


def test_the_client_speaks_its_users_language(api: Api) -> None:
    secret = api.firms["alpha"]._http.headers["Authorization"].removeprefix("Bearer ")
    with (
        QuotaClient(api.base_url, secret, language="ko-KR, ko;q=0.9") as client,
        a_problem("not_found", 404) as caught,
    ):
        client.read_job("nothing")
    assert KOREAN.search(caught[0].detail)


def test_amounts_in_problems_are_strings_in_json_and_ints_in_python(api: Api) -> None:
    alpha = api.firms["alpha"]
    with a_problem("insufficient_balance", 409) as caught:
        alpha.submit_job(a_submission(walltime_s=11 * 3600))
    assert caught[0].problem.numbers == {"needed_gpu_us": 39_600_000_000, "left_gpu_us": 36_000_000_000}
    raw = api.refused(alpha, "POST", "/v1/jobs", json=GOOD | {"walltime_s": 11 * 3600})
    assert all(isinstance(value, str) for value in raw["numbers"].values())


def test_amounts_in_results_of_a_batch_are_strings_in_json_and_ints_in_python(sqlite_url: str) -> None:
    with an_api(sqlite_url) as api:
        hub = api.hub
        grant = hub.award("alpha", "10")
        first, second = (hub.submit("alpha", walltime_s=6 * 3600) for _ in range(2))
        reply = hub.decide(hub.start_item(first, grant), hub.start_item(second, grant))
    refused = reply.results[1]
    assert refused.code == "insufficient_balance"
    assert refused.numbers["left_gpu_us"] == 4 * 3_600_000_000
    told = json.loads(refused.model_dump_json())["numbers"]
    assert told["left_gpu_us"] == str(4 * 3_600_000_000)
    assert type(refused).model_validate_json(refused.model_dump_json()) == refused
