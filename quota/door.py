"""What every route shares: who may call it, the hub behind the request, and answers without a second validation.

A route says who may call it with `access(…)`; `HubRoute` asks before it reads the body, so that a stranger's
request is answered 401 and a wrong role's 403 whatever the body holds.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from threading import Event
from typing import Annotated, Any, TypeVar

from fastapi import Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from quota.clock import Clock
from quota.db import Database
from quota.errors import BadRequest, Forbidden, PreconditionFailed, Unauthenticated
from quota.queue import Queue
from quota.schemas.identity import Caller, Role, Scope
from quota.settings import Settings

T = TypeVar("T", bound=BaseModel)

IfMatch = Annotated[str | None, Header(alias="If-Match")]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]
READERS = (Role.OPERATOR, Role.AUDITOR, Role.MEMBER)
ALL_ROLES = tuple(Role)


@dataclass(frozen=True, slots=True)
class Hub:
    """Everything one service process holds; made in `create_app`."""

    settings: Settings
    database: Database
    clock: Clock
    queue: Queue
    authenticate: Callable[[Database, str, str], Caller]
    """(database, secret, address of the request) -> caller; raises Unauthenticated. Blocks: call it in a thread."""
    stopping: Event = field(default_factory=Event)
    """Set when the process was asked to stop: long polls answer at once."""


def access(*roles: Role, scope: Scope | None) -> dict[str, Any]:
    """A route's `openapi_extra`: the roles that may call it, and the scope that a narrowed token needs."""
    assert roles, "a route that anybody may call says `public()`"
    return {"x-roles": [role.value for role in roles], "x-scope": None if scope is None else scope.value}


def public() -> dict[str, Any]:
    """`openapi_extra` of a route that needs no token."""
    return {"x-roles": [], "x-scope": None}


class HubRoute(APIRoute):
    """Lets in whom `access` names, before the body is read; `caller_of` then knows who it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler behind its guard."""
        inner = super().get_route_handler()
        extra = self.openapi_extra
        assert extra is not None, f"{self.path} does not say who may call it"
        roles = tuple(Role(name) for name in extra["x-roles"])
        scope = None if extra["x-scope"] is None else Scope(extra["x-scope"])
        if not roles:
            return inner

        async def guarded(request: Request) -> Response:
            caller = await run_in_threadpool(authenticate, request)
            _check_access(caller, roles, scope)
            request.state.caller = caller
            return await inner(request)

        return guarded


def authenticate(request: Request) -> Caller:
    """Who sends this request. Raises Unauthenticated. Blocks."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated()
    hub = hub_of(request)
    address = request.client.host if request.client else ""
    return hub.authenticate(hub.database, secret.strip(), address)


def _check_access(caller: Caller, roles: tuple[Role, ...], scope: Scope | None) -> None:
    if caller.role not in roles:
        needed = " or ".join(role.value for role in roles)
        raise Forbidden(f"this needs a token of role {needed}, yours is {caller.role.value}")
    if caller.scopes and scope is not None and scope not in caller.scopes:
        raise Forbidden(f"this needs a token with scope {scope.value}")


def hub_of(request: Request) -> Hub:
    """The hub that this request came to."""
    hub: Hub = request.app.state.hub
    return hub


def caller_of(request: Request) -> Caller:
    """Who is calling, as the route's guard found out."""
    caller: Caller = request.state.caller
    return caller


def answer(model: BaseModel, status: int = 200) -> Response:
    """A model as JSON, serialized once."""
    return Response(model.model_dump_json(), status, media_type="application/json")


def tagged(model: BaseModel, tag: str, status: int = 200) -> Response:
    """`answer` with the object's ETag."""
    return Response(model.model_dump_json(), status, {"ETag": tag}, "application/json")


def etag(*editable: object) -> str:
    """The entity tag of an object: a hash of what people may edit of it, so that balances don't change it."""
    text = json.dumps(editable, sort_keys=True, ensure_ascii=False, default=str)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def check_match(if_match: str | None, tag: str) -> None:
    """Raise PreconditionFailed unless the caller named this version, `*`, or none. Call it in the transaction."""
    if if_match is None or if_match.strip() == "*":
        return
    if tag not in {part.strip() for part in if_match.split(",")}:
        raise PreconditionFailed("this is version {tag} now, not {asked}", tag=tag, asked=if_match[:100])


async def raw_body(request: Request) -> bytes:
    """The body as bytes, unpacked if it came gzipped; a packed body may not unfold past the limit."""
    body = await request.body()
    if request.headers.get("Content-Encoding", "").lower() != "gzip":
        return body
    limit = hub_of(request).settings.body_limit_bytes
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(body, limit)
    except zlib.error as error:
        raise BadRequest("the body is not gzip as Content-Encoding says", field="body") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise BadRequest(f"the unpacked body is larger than {limit} bytes or cut short", field="body")
    return unpacked


def parse(model: type[T], body: bytes) -> T:
    """A wire type from JSON bytes; errors name the field as everywhere else."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        details = [detail | {"loc": ("body", *detail["loc"])} for detail in error.errors(include_url=False)]
        raise RequestValidationError(details) from error
