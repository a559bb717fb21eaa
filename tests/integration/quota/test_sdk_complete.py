"""The typed client against the document: a method per operation with its parameters and types, each called once."""

from __future__ import annotations

import inspect
import io
import json
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from quota.client import QuotaClient
from tests import databases
from tests.integration.quota.door_world import Operation
from tests.integration.quota.tenant_requests import PROBES, Valid, valid_requests
from tests.integration.quota.tenant_world import World, a_world
from tests.integration.quota.token_world import a_replica

CALLED = {
    "*.Idempotency-Key": "key",
    "*.If-Match": "if_match",
    "list_audit.from": "since",  # `from` is Python's
    "follow_feed.wait": "wait_s",
    "read_statement.as_of": "as_of_ms",
    "read_statement.since": "since_ms",
    "put_gpu_class.class_id": "body",  # its id
    "pause_gpu_class.class_id": "gpu_class",
}
"""What a method calls a parameter of the document otherwise."""
SPLIT = {
    "submit_job.dry_run": ("quote_job", "body"),
    "read_statement.format": ("write_statement", "form"),
    "read_statement.language": ("write_statement", "language"),
    "read_scheduler_state.pseudonyms": ("save_scheduler_state", "pseudonyms"),
}
"""Parameters that change the type of the answer have a method of their own."""
AS_FIELDS = {"revoke_organization_tokens", "revoke_token"}
"""Their bodies are nothing but a reason, which is an argument."""
AS_BYTES = {"send_decisions", "send_reports"}
"""Sent again byte for byte when the outcome is unknown."""
ADDED = {"export_ledger.target", "read_job_logs.target"}
JSON_TYPES = {"integer": int, "boolean": bool, "number": float, "string": str}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("sdk")
    with a_world(databases.new_sqlite(folder)) as made:
        yield made


def _operations(world: World) -> dict[str, Operation]:
    return {name: one for name, one in world.operations().items() if name not in PROBES}


def _method(name: str) -> inspect.Signature:
    return inspect.signature(getattr(QuotaClient, name), eval_str=True)


def _python_name(operation: Operation, name: str) -> str:
    return CALLED.get(f"{operation.id}.{name}", CALLED.get(f"*.{name}", name))


# --- names and types ----------------------------------------------------------------------------------


def test_there_is_a_method_for_every_operation_and_for_nothing_else(world: World) -> None:
    methods = {name for name, _ in inspect.getmembers(QuotaClient, inspect.isfunction) if name[0] != "_"}
    assert methods - {"close"} == set(_operations(world)) | {method for method, _ in SPLIT.values()}


def test_every_parameter_of_the_document_can_be_given(world: World) -> None:
    for operation in _operations(world).values():
        given = dict(_method(operation.id).parameters)
        expected = {"self"}
        for item in operation.document.get("parameters", ()):
            if f"{operation.id}.{item['name']}" in SPLIT:
                method, argument = SPLIT[f"{operation.id}.{item['name']}"]
                assert argument in _method(method).parameters
                continue
            name = _python_name(operation, item["name"])
            expected.add(name)
            assert name in given, (operation.id, name)
            required = given[name].default is inspect.Parameter.empty
            assert required == item["required"], (operation.id, name)
        expected |= _body_arguments(operation)
        extra = set(given) - expected
        assert {f"{operation.id}.{name}" for name in extra} <= ADDED, operation.id


def _body_arguments(operation: Operation) -> set[str]:
    if not operation.takes_body:
        return set()
    return {"reason"} if operation.id in AS_FIELDS else {"body"}


def test_parameters_have_the_types_of_the_document(world: World) -> None:
    components = world.application.openapi()["components"]["schemas"]
    compared = 0
    for operation in _operations(world).values():
        for item in operation.document.get("parameters", ()):
            at = f"{operation.id}.{item['name']}"
            if at in SPLIT or CALLED.get(at) == "body":
                continue
            given = _method(operation.id).parameters[_python_name(operation, item["name"])].annotation
            assert _types(given) - {types.NoneType} == _schema_types(item["schema"], components), at
            compared += 1
    assert compared > 100


def _types(annotation: Any) -> set[Any]:
    """The plain types of an annotation: an enum is the texts it may be."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return {one for part in typing.get_args(annotation) for one in _types(part)}
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return {frozenset(member.value for member in annotation)}
    return {annotation}


def _schema_types(schema: dict[str, Any], components: dict[str, Any]) -> set[Any]:
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        parts = [_schema_types(part, components) for part in schema["anyOf"]]
        return {one for part in parts for one in part} - {types.NoneType}
    if "enum" in schema:
        return {frozenset(schema["enum"])}
    if schema["type"] == "null":
        return {types.NoneType}
    if schema.get("format") == "date-time":
        return {int}  # milliseconds in Python
    return {JSON_TYPES[schema["type"]]}


def test_bodies_and_replies_are_the_documents_models(world: World) -> None:
    for operation in _operations(world).values():
        signature = _method(operation.id)
        if operation.takes_body and operation.id not in AS_FIELDS:
            body = signature.parameters["body"].annotation
            schema = operation.document["requestBody"]["content"]["application/json"]["schema"]
            expected = bytes if operation.id in AS_BYTES else _model(schema)
            assert (body if body is bytes else body.__name__) == expected, operation.id
        replies = operation.document["responses"]
        content = replies["201" if "201" in replies else "200"]["content"]
        if "application/json" in content:
            name = _model(content["application/json"]["schema"])
            assert signature.return_annotation.__name__ == name, operation.id


def _model(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def test_what_creates_takes_a_key_and_what_edits_a_tag(world: World) -> None:
    for operation in _operations(world).values():
        creates = operation.method == "POST" and "201" in operation.document["responses"]
        assert creates == operation.has_header("Idempotency-Key"), operation.id
        assert creates == ("key" in _method(operation.id).parameters), operation.id
        assert operation.method != "PATCH" or operation.has_header("If-Match"), operation.id


# --- every method, once -------------------------------------------------------------------------------


def test_every_method_is_called_once_with_the_documents_example(world: World) -> None:
    operations, plan = _operations(world), valid_requests(world)
    assert set(plan) == set(operations), "an operation that nobody calls"
    with a_replica(world.hub.database.url, world.hub.clock) as url:
        for name, made in plan.items():
            request, operation = made(), operations[name]
            with QuotaClient(url, world.secrets[request.caller]) as client:
                reply = getattr(client, name)(**_arguments(operation, request))
            assert isinstance(reply, _method(name).return_annotation), name
            assert isinstance(reply, BaseModel) or reply > 0, name


def _arguments(operation: Operation, request: Valid) -> dict[str, Any]:
    """The request as the method takes it: what the document names by the method's names."""
    given = {_python_name(operation, name): value for name, value in (request.ids | request.query).items()}
    given |= {name.partition(".")[2]: io.BytesIO() for name in ADDED if name.startswith(f"{operation.id}.")}
    if operation.has_header("Idempotency-Key"):
        given["key"] = f"{operation.id} once"
    if operation.id in AS_FIELDS and request.body is not None:
        given |= request.body
    elif request.body is not None:
        model = _method(operation.id).parameters["body"].annotation
        body = json.dumps(request.body).encode()
        given["body"] = body if model is bytes else model.model_validate_json(body)
    return given
