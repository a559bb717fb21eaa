"""The API's document: what FastAPI derives, and for every operation an example and the problems it may answer.

A problem's code stands either in the operation's text, in backquotes after its status (409 `already_exists`), or
follows from what the operation takes: a token, a body, a path, an Idempotency-Key, an If-Match.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from quota import examples
from quota.door import WITH_BODY
from quota.errors import (
    BadRequest,
    BodyTooLarge,
    Forbidden,
    HubError,
    IdempotencyMismatch,
    LockedOut,
    NotFound,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
)
from quota.schemas.forecasts import ForecastDocument
from quota.schemas.gpus import GpuReport
from quota.schemas.identity import Role
from quota.schemas.scheduling import DecisionBatch, RankingDocument, ReportBatch
from quota.schemas.service import Problem
from quota.schemas.usage import EvidenceBatch

RAW_MODELS: tuple[type[BaseModel], ...] = (
    DecisionBatch,
    ReportBatch,
    RankingDocument,
    ForecastDocument,
    EvidenceBatch,
    GpuReport,
)
"""What routes parse themselves."""
PROBLEM = "application/problem+json"
TAKES_ANY_NAME = frozenset({"put_gpu_class", "put_policy"})
"""Operations with an id in their path that need not be there."""
_CODE = re.compile(r"[0-9]{3} `([a-z_]+)`")
_TEMPLATE = "#/components/schemas/{model}"


def complete(document: dict[str, Any]) -> None:
    """Add to FastAPI's document what it cannot know."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    _, raw = models_json_schema([(model, "validation") for model in RAW_MODELS], ref_template=_TEMPLATE)
    _, told = models_json_schema([(Problem, "serialization")], ref_template=_TEMPLATE)
    for name, schema in (raw.get("$defs", {}) | told.get("$defs", {})).items():
        schemas.setdefault(name, schema)
    known = known_problems()
    components["examples"] = {code: {"value": _example(known[code])} for code in sorted(known)}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation.setdefault("x-scope", None)  # FastAPI leaves out what is null
            if not operation.get("x-roles"):
                operation["security"] = []  # the application's own would ask everybody for a token
            _add_dry_run(operation)
            _add_problems(operation, path, method.upper(), known)
            _add_examples(operation, schemas)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


def known_problems() -> dict[str, type[HubError]]:
    """Every code that a HubError has, with the class nearest to HubError."""
    found: dict[str, type[HubError]] = {}
    pending: list[type[HubError]] = [HubError]
    for kind in pending:
        found.setdefault(kind.code, kind)
        pending.extend(kind.__subclasses__())
    return found


def codes_of(operation: dict[str, Any], path: str, method: str) -> set[str]:
    """The codes of the problems that an operation may answer."""
    return {kind.code for kind in _implied(operation, path, method)} | set(
        _CODE.findall(operation.get("description", ""))
    )


def _implied(operation: dict[str, Any], path: str, method: str) -> Iterator[type[HubError]]:
    yield BadRequest
    roles = set(operation.get("x-roles", ()))
    headers = {item["name"].lower() for item in operation.get("parameters", ()) if item["in"] == "header"}
    if roles:
        yield from (Unauthenticated, LockedOut, Forbidden)
    if roles & {Role.MEMBER.value, Role.OPERATOR.value, Role.AUDITOR.value}:
        yield RateLimited
    if method in WITH_BODY:
        yield BodyTooLarge
    if "{" in path and operation["operationId"] not in TAKES_ANY_NAME:
        yield NotFound
    if "idempotency-key" in headers:
        yield IdempotencyMismatch
    if "if-match" in headers:
        yield PreconditionFailed


def _add_dry_run(operation: dict[str, Any]) -> None:
    """What would be made is answered like what was made, with 200."""
    responses = operation["responses"]
    named = {item["name"] for item in operation.get("parameters", ())}
    if "dry_run" in named and "201" in responses:
        told = {"description": "With `dry_run`: what it would do; nothing was stored."}
        responses.setdefault("200", copy.deepcopy(responses["201"]) | told)


def _add_problems(
    operation: dict[str, Any], path: str, method: str, known: dict[str, type[HubError]]
) -> None:
    by_status: dict[int, list[str]] = defaultdict(list)
    for code in sorted(codes_of(operation, path, method)):
        by_status[known[code].status].append(code)
    responses = operation["responses"]
    responses.pop(str(BadRequest.status), None)  # FastAPI's own
    for status, codes in sorted(by_status.items()):
        described = "; ".join(f"`{code}`: {known[code].title()}" for code in codes)
        responses[str(status)] = {
            "description": described,
            "content": {
                PROBLEM: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
                }
            },
        }
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            responses[str(status)]["headers"] = {
                "Retry-After": {"description": "Seconds until it may work.", "schema": {"type": "integer"}}
            }


def _add_examples(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        body.setdefault("example", examples.of_schema(body["schema"], schemas, brief=True))
    for status, response in operation["responses"].items():
        for media_type, content in response.get("content", {}).items() if status.startswith("2") else ():
            if media_type == "application/json":
                content.setdefault("example", examples.of_schema(content["schema"], schemas))
            elif media_type in examples.TEXTS:
                content.setdefault("schema", {"type": "string"})
                content.setdefault("example", examples.TEXTS[media_type])


def _example(kind: type[HubError]) -> dict[str, Any]:
    return Problem(
        type=f"urn:gpuhub:problem:{kind.code}", title=kind.title(), status=kind.status, code=kind.code
    ).model_dump(mode="json")
