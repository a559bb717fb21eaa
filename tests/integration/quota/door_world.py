"""What the tests of the door share: every operation of the document, and a valid request to each."""

from __future__ import annotations

import json
from typing import Any

from quota import examples
from quota.client import QuotaClient
from tests.builders import Api

JSON = {"Content-Type": "application/json"}
LIMIT = 100_000
"""Bytes a body may have in these tests."""

EVERYBODY = {"operator", "auditor", "member", "scheduler", "agent"}
READERS = {"operator", "auditor", "member"}
STAFF = {"operator", "auditor"}
PUBLIC = {"read_clock", "read_health", "read_readiness"}

EVIDENCE = {
    "job_id": "job-1",
    "attempt": 1,
    "gpu_uuid": "GPU-1",
    "gpu_class": "h100",
    "node": "n0",
    "hour": "2026-11-22T00:00:00Z",
    "agent_epoch": "epoch-01",
    "seq": 1,
    "busy_ms": 1,
    "observed_ms": 1,
}
# each is valid and names something that is not there, so that whoever may call is answered but changes nothing
BODIES: dict[str, Any] = {
    "submit_job": {"name": "a", "gpu_class": "v100", "walltime_s": 1},
    "create_program": {"id": "ax", "name": "AX", "budget_gpu_hours": "1"},
    "award_grant": {
        "program_id": "nobody",
        "organization_id": "alpha",
        "gpu_hours": "1",
        "ends_at": "2099-01-01T00:00:00Z",
        "reason": "r",
    },
    "create_cluster": {"id": "sim", "kind": "simulated"},
    "put_gpu_class": {"id": "h100", "name": "H100", "rate_thousandths": 1000, "price_krw": 4000},
    "change_node": {"cordoned": False, "reason": "r"},
    "pause_hub": {"paused": False, "reason": "r"},
    "pause_cluster": {"paused": False, "reason": "r"},
    "pause_gpu_class": {"paused": False, "reason": "r"},
    "create_organization": {"id": "alpha", "name": "A"},
    "create_token": {"role": "member"},
    "take_lease": {"holder": "nobody", "instance": "instance-x", "epoch": 999},
    "send_decisions": {"epoch": 999, "stream": "decisions", "seq": 1, "items": []},
    "send_reports": {
        "epoch": 999,
        "stream": "cluster:sim",
        "seq": 1,
        "cluster": "sim",
        "items": [],
        "observed_through": "2026-11-22T00:00:00Z",
    },
    "put_ranking": {"epoch": 999, "cycle": 1, "at": "2026-11-22T00:00:00Z", "order": [], "reasons": {}},
    "put_forecast": {"epoch": 999, "as_of": "2026-11-22T00:00:00Z", "etas": {}},
    "report_gpus": {"gpus": [], "verdicts": []},
    "deliver_evidence": {"rows": [EVIDENCE | {"node": "n9"}]},
}
PATHS = {"class_id": "h100", "cluster": "sim", "node": "nobody", "position": "9"}


class Operation:
    """One operation of the API's document."""

    def __init__(self, method: str, path: str, document: dict[str, Any]) -> None:
        self.id: str = document["operationId"]
        self.method = method
        self.path = path
        self.document = document

    @property
    def roles(self) -> set[str]:
        return set(self.document["x-roles"])

    @property
    def takes_body(self) -> bool:
        return "requestBody" in self.document

    def has_header(self, name: str) -> bool:
        return any(
            item["in"] == "header" and item["name"] == name for item in self.document.get("parameters", ())
        )

    def problems(self) -> dict[int, set[str]]:
        """The codes it may answer, by status."""
        return {
            int(status): set(reply["content"]["application/problem+json"]["examples"])
            for status, reply in self.document["responses"].items()
            if "application/problem+json" in reply.get("content", {})
        }

    def example(self) -> Any:
        return self.document["requestBody"]["content"]["application/json"]["example"]

    def body(self) -> Any:
        """A valid body, or None where none is taken."""
        return BODIES.get(self.id, self.example()) if self.takes_body else None

    def url(self, **ids: str) -> str:
        """Its path to something that is not there."""
        path = self.path
        for part in path.split("/"):
            if part.startswith("{"):
                name = part.strip("{}")
                path = path.replace(part, ids.get(name, PATHS.get(name, "nobody")))
        return path

    def query(self) -> dict[str, str]:
        """The query parameters that it needs, and a long poll's `wait`."""
        needed = {
            item["name"]: str(examples.of_schema(item["schema"], {}, name=item["name"]))
            for item in self.document.get("parameters", ())
            if item["in"] == "query" and item["required"]
        }
        return needed | ({"wait": "0"} if self.id == "follow_feed" else {})


def operations(api: Api) -> dict[str, Operation]:
    """All of the API's operations by id."""
    return {
        document["operationId"]: Operation(method.upper(), path, document)
        for path, methods in api.application.openapi()["paths"].items()
        for method, document in methods.items()
    }


def call(
    api: Api, client: QuotaClient, operation_id: str, content: bytes | str | None = None, **ids: str
) -> Any:
    """A valid request to an operation, or one with another body."""
    operation = operations(api)[operation_id]
    if content is None and operation.takes_body:
        content = json.dumps(operation.body())
    headers = JSON if content is not None else {}
    return api.call(
        client,
        operation.method,
        operation.url(**ids),
        content=content,
        params=operation.query(),
        headers=headers,
    )


def clients(api: Api) -> dict[str, QuotaClient]:
    """A client per role."""
    return {
        "operator": api.operator,
        "auditor": api.auditor,
        "member": api.firms["alpha"],
        "scheduler": api.scheduler,
        "agent": api.agent,
    }
