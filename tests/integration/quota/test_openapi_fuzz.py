"""Every operation of the document against generated requests: valid ones, and ones that break the document.

No answer is a 5xx, none says what the document does not, and no refusal changes a row. The seed is fixed;
`GPUHUB_FUZZ_EXAMPLES` (requests per operation and kind) and `GPUHUB_FUZZ_SEED` make another, longer run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from quota.identity.tables import organizations
from quota.schemas.identity import Role
from tests import databases
from tests.integration.quota.limits_builders import path
from tests.integration.quota.tenant_world import Unchanged, World, a_world

EXAMPLES = int(os.environ.get("GPUHUB_FUZZ_EXAMPLES", "4"))
SEED = int(os.environ.get("GPUHUB_FUZZ_SEED", "20261122"))
CONFORMS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")

pytestmark = pytest.mark.timeout(120 * max(1, EXAMPLES // 4))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(databases.new_sqlite(tmp_path)) as made:
        yield made


class Fuzzed:
    """One world under generated requests; what went wrong is collected, so that one run tells it all."""

    def __init__(self, world: World) -> None:
        load_all_checks()
        self.world = world
        self.document = json.loads(json.dumps(world.application.openapi()))
        self.operations_by_id = world.operations()
        del self.document["components"][
            "securitySchemes"
        ]  # tokens are the matrix's; here they are always good
        for methods in self.document["paths"].values():
            for document in methods.values():
                document["security"] = []
        self.unchanged = Unchanged(world)
        self.known = known_ids(world)
        self.statuses: Counter[int] = Counter()
        self.senders: Counter[str] = Counter()
        self.wrong: list[str] = []

    def operations(self) -> Iterator[APIOperation[Any, Any, Any, Any]]:
        for one in schemathesis.openapi.from_dict(self.document).get_all_operations():
            assert isinstance(one, Ok), one
            yield one.ok()

    def run(self, operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> None:
        """Send generated requests to one operation, each by a role that may."""
        callers = operation.definition.raw["x-roles"] or [role.value for role in Role]
        cases = operation.as_strategy(generation_mode=mode)
        ids = {name: st.none() | st.sampled_from(pool) for name, pool in self.known.items()}

        @seed(SEED)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # requests change the world: a smaller one would not fail again
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases, caller=st.sampled_from(callers), names=st.fixed_dictionaries(ids))
        def send(case: Case[Any], caller: str, names: dict[str, str | None]) -> None:
            if mode is GenerationMode.POSITIVE:
                name_known(case, names)
            self.send(case, caller, mode)

        send()

    def send(self, case: Case[Any], caller: str, mode: GenerationMode) -> None:
        """One request, its answer against the document, and the database after it."""
        if case.operation.definition.raw["operationId"] == "follow_feed" and "wait" in case.query:
            case.query["wait"] = "0" if mode is GenerationMode.POSITIVE else case.query["wait"]
        token = {"Authorization": f"Bearer {self.world.secrets[caller]}"}
        request = case.as_transport_kwargs(base_url="http://testserver", headers=token)
        request["content"] = request.pop("data", None)
        assert not request.pop("cookies", None), "the hub has none"
        answer = self.world.http.request(
            **{name: value for name, value in request.items() if value is not None}
        )
        self.statuses[answer.status_code] += 1
        self.senders[caller] += 1
        where = f"{caller} {case.operation.label} {answer.status_code}"
        if changed := self.unchanged.after(answer.status_code):
            self.wrong.append(f"{where} changed {changed}: {case.as_curl_command()}")
        if answer.status_code >= 400 and not self._names(case, answer.status_code, answer.json()["code"]):
            self.wrong.append(f"{where} is not documented: {answer.text} {case.as_curl_command()}")
        checks = CONFORMS + ([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])
        try:
            case.validate_response(answer, checks=checks)
        except FailureGroup as failures:
            self.wrong.append(f"{where}: {failures}")

    def _names(self, case: Case[Any], status: int, code: str) -> bool:
        """Whether the document names this code for the operation."""
        operation = self.operations_by_id[case.operation.definition.raw["operationId"]]
        return code in operation.problems().get(status, set())

    def close(self) -> None:
        self.unchanged.close()


def known_ids(world: World) -> dict[str, list[str]]:
    """What generated requests may name so that they reach something, by field; no caller's own token among it."""
    consortium = world.grants["consortium"]
    jobs = [job.id for job in world.jobs.values()]
    grants = [grant.id for grant in world.grants.values()]
    return {
        "grant_id": grants,
        "to_grant_id": grants,
        "job_id": jobs,
        "organization_id": ["beta", "delta"],
        "from_organization_id": ["gamma", "delta"],
        "to_organization_id": ["gamma", "delta"],
        "account_id": [consortium.account_id, *path(consortium, "gamma", 1), "program:ax", "treasury"],
        "token_id": [world.tokens["beta"], world.tokens["operator+jobs:read"]],
        "program_id": ["ax"],
        "policy_id": ["standard"],
        "gpu_class": ["h100", "a100"],
        "class_id": ["h100"],
        "cluster": ["sim"],
        "node": ["n0", "a0"],
        "position": ["1", "2"],
        "epoch": [str(world.hub.epoch)],
        "stream": ["decisions", "cluster:sim"],
    }


def name_known(case: Case[Any], names: dict[str, str | None]) -> None:
    """Put ids of what is there into a valid request, and numbers where it has numbers."""
    parts: tuple[Any, ...] = (case.path_parameters, case.query, case.body)
    for part in parts:
        for name in set(part) & set(names) if isinstance(part, dict) else ():
            value = names[name]
            if value is not None and part[name] is not None:
                part[name] = int(value) if isinstance(part[name], int) else value


def takes_anything(operation: APIOperation[Any, Any, Any, Any]) -> bool:
    """Whether there is something to break: a parameter, a body."""
    raw = operation.definition.raw
    return bool(raw.get("parameters") or raw.get("requestBody"))


@pytest.fixture
def fuzzed(world: World) -> Iterator[Fuzzed]:
    made = Fuzzed(world)
    yield made
    made.close()


def test_valid_requests_are_answered_as_documented(fuzzed: Fuzzed) -> None:
    for operation in fuzzed.operations():
        fuzzed.run(operation, GenerationMode.POSITIVE)
    assert fuzzed.wrong == [], "\n\n".join(fuzzed.wrong)
    assert {200, 201, 404, 409, 422} <= set(fuzzed.statuses), fuzzed.statuses
    assert set(fuzzed.senders) == {role.value for role in Role}


def test_requests_that_break_the_document_are_refused_as_documented(fuzzed: Fuzzed) -> None:
    for operation in fuzzed.operations():
        if takes_anything(operation):
            fuzzed.run(operation, GenerationMode.NEGATIVE)
    assert fuzzed.wrong == [], "\n\n".join(fuzzed.wrong)
    assert fuzzed.statuses[422] > 100
    assert set(fuzzed.senders) == {role.value for role in Role}


def test_methods_that_a_path_does_not_take_are_refused(fuzzed: Fuzzed) -> None:
    for path_, methods in fuzzed.document["paths"].items():
        url = path_.replace("{position}", "1").replace("{", "").replace("}", "")
        for method in METHODS:
            if method.lower() in methods:
                continue
            answer = fuzzed.world.ask("operator", method, url)
            assert answer.status_code == 405, (method, url, answer.text)
            assert set(answer.headers["Allow"].split(", ")) <= {name.upper() for name in methods}
            assert answer.headers["content-type"] == "application/problem+json"
            assert fuzzed.unchanged.after(405) == []


# --- what the checks are worth --------------------------------------------------------------------------


def test_an_answer_that_the_document_does_not_name_is_found(fuzzed: Fuzzed) -> None:
    """Planted in the document: no 200, another type of a field, another type of content."""
    replies = fuzzed.document["paths"]["/v1/clock"]["get"]["responses"]
    true = json.loads(json.dumps(replies))
    plants: list[dict[str, Any]] = [
        {"418": true["200"]},
        {"200": {"description": "", "content": {"text/csv": {"schema": {"type": "string"}}}}},
        {"200": {"description": "", "content": {"application/json": {"schema": {"type": "array"}}}}},
    ]
    for number, plant in enumerate([true, *plants]):
        replies.clear()
        replies.update(plant)
        for operation in fuzzed.operations():
            if operation.label == "GET /v1/clock":
                fuzzed.run(operation, GenerationMode.POSITIVE)
        assert bool(fuzzed.wrong) == bool(number), plant
        fuzzed.wrong.clear()


def test_a_refusal_that_writes_is_found(fuzzed: Fuzzed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the service: a job that is not there leaves a row all the same."""
    hub = fuzzed.world.application.state.hub
    read = hub.database.read

    def write_first() -> Any:
        with hub.database.engine.begin() as connection:
            connection.execute(organizations.update().values(name="changed"))
        return read()

    assert fuzzed.world.ask("operator", "GET", "/v1/jobs/nobody").status_code == 404
    assert fuzzed.unchanged.after(404) == []
    monkeypatch.setattr(hub.database, "read", write_first)
    assert fuzzed.world.ask("operator", "GET", "/v1/jobs/nobody").status_code == 404
    assert fuzzed.unchanged.after(404) == ["organizations"]
