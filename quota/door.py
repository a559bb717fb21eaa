"""What every route shares: who may call it, the hub behind the request, and answers without a second validation.

A route says who may call it with `access(…)`; `HubRoute` asks before it reads the body, so that a stranger's
request is answered 401 and a wrong role's 403 whatever the body holds, however large it is. Then comes the rate
limit, then query parameters that the route does not know, then the body's size, and only then the body itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from threading import Event, Semaphore
from typing import Annotated, Any, TypeVar

from fastapi import Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.params import ParamTypes
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from quota.clock import Clock
from quota.db import Database
from quota.errors import BadRequest, BodyTooLarge, Forbidden, PreconditionFailed, Unauthenticated
from quota.i18n import Language, choose
from quota.queue import Queue
from quota.schemas.identity import Caller, Role, Scope
from quota.schemas.values import Id
from quota.settings import Settings
from quota.throttle import Seats, Throttle

T = TypeVar("T", bound=BaseModel)
R = TypeVar("R")

IfMatch = Annotated[str | None, Header(alias="If-Match")]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]
After = Annotated[Id | None, Query(description="The `next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many items a page has at most.")]
PAGE = 200
"""How many items a page has if the request does not say."""
READERS = (Role.OPERATOR, Role.AUDITOR, Role.MEMBER)
ALL_ROLES = tuple(Role)
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
SMALL_BODY_BYTES = 16_384
"""What may be read of a request before it is known whose it is."""
GUARD_WAITS_S = 0.2
"""How long the guard waits for such a body."""


@dataclass(frozen=True, slots=True)
class Hub:
    """Everything one service process holds; made in `create_app`."""

    settings: Settings
    database: Database
    clock: Clock
    queue: Queue
    authenticate: Callable[[Database, str, str], Caller]
    """(database, secret, address of the request) -> caller; raises Unauthenticated. Blocks: call it in a thread."""
    throttle: Throttle
    seats: Seats
    """Of those who read logs."""
    questions: Semaphore = field(default_factory=Semaphore)
    """Of what-if questions this process asks one at a time: each reads the whole state."""
    stopping: Event = field(default_factory=Event)
    """Set when the process was asked to stop: long polls answer at once."""


def access(*roles: Role, scope: Scope | None) -> dict[str, Any]:
    """A route's `openapi_extra`: the roles that may call it, and the scope that a narrowed token needs."""
    assert roles, "a route that anybody may call says `public()`"
    return {"x-roles": [role.value for role in roles], "x-scope": None if scope is None else scope.value}


def public() -> dict[str, Any]:
    """`openapi_extra` of a route that needs no token."""
    return {"x-roles": [], "x-scope": None}


@dataclass(frozen=True, slots=True)
class _Guard:
    """Whom a route lets in, and which query parameters it knows."""

    roles: tuple[Role, ...]
    scope: Scope | None
    known: frozenset[str]

    def admit(self, request: Request) -> None:
        """Find out who calls, for `caller_of`; raise unless it may, at this rate. Blocks."""
        if not self.roles:
            return
        caller = authenticate(request)
        hub_of(request).throttle.take(caller)
        _check_access(caller, self.roles, self.scope)
        request.state.caller = caller

    def check_query(self, request: Request) -> None:
        """Raise RequestValidationError for a parameter that the route does not know, or that comes twice."""
        if not request.scope["query_string"]:
            return
        unknown = [name for name in request.query_params if name not in self.known]
        if unknown:
            raise RequestValidationError([{"type": "unknown_parameter", "loc": ("query", unknown[0])}])
        names = [name for name, _ in request.query_params.multi_items()]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise RequestValidationError([{"type": "repeated_parameter", "loc": ("query", repeated[0])}])


class HubRoute(APIRoute):
    """Lets in whom `access` names, before the body is read; `caller_of` then knows who it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler behind its guard."""
        inner, guard = super().get_route_handler(), self._guard()

        async def guarded(request: Request) -> Response:
            if guard.roles:
                await run_in_threadpool(guard.admit, request)
            guard.check_query(request)
            if request.method in WITH_BODY:
                request = await _read_body(request)
            return await inner(request)

        return guarded

    def _guard(self) -> _Guard:
        extra = self.openapi_extra
        assert extra is not None, f"{self.path} does not say who may call it"
        parameters = [item.field_info for item in get_flat_params(self.dependant)]
        return _Guard(
            roles=tuple(Role(name) for name in extra["x-roles"]),
            scope=None if extra["x-scope"] is None else Scope(extra["x-scope"]),
            known=frozenset(
                str(item.alias) for item in parameters if getattr(item, "in_", None) is ParamTypes.query
            ),
        )


class RawRoute(HubRoute):
    """A busy route of `(request, raw)` that parses its body itself: one thread does all its work.

    A small body that comes at once is read before the guard asks, which spares a good request a second thread. Who
    declares one and sends it late, or never, meets the guard meanwhile. The answers are those of any other route.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint behind its guard, without FastAPI's reading of parameters that it does not have."""
        guard, endpoint = self._guard(), self.endpoint

        def serve(request: Request, raw: bytes) -> Response:
            guard.admit(request)
            guard.check_query(request)
            response: Response = endpoint(request, raw)
            return response

        async def guarded(request: Request) -> Response:
            if not _is_small(request):
                await run_in_threadpool(guard.admit, request)
                guard.check_query(request)
                request = await _read_body(request)
                return await run_in_threadpool(endpoint, request, await raw_body(request))
            receive, parts = _limited(request.receive, SMALL_BODY_BYTES), list[bytes]()
            try:
                async with asyncio.timeout(GUARD_WAITS_S):
                    await _collect(receive, parts)
            except TimeoutError:
                await run_in_threadpool(guard.admit, request)
                await _collect(receive, parts)
            return await run_in_threadpool(serve, request, b"".join(parts))

        return guarded


async def _collect(receive: Receive, parts: list[bytes]) -> None:
    """The parts of a body as they come; who is interrupted goes on with the next one."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)


def _is_small(request: Request) -> bool:
    """Whether the body says that it is small, and is what it is: a packed one may unfold."""
    declared = _declared_bytes(request)
    if declared is None or "Content-Encoding" in request.headers:
        return False
    return declared <= min(SMALL_BODY_BYTES, hub_of(request).settings.body_limit_bytes)


def _declared_bytes(request: Request) -> int | None:
    """What Content-Length says, if it is a number."""
    declared = request.headers.get("Content-Length", "")
    if not declared.isdecimal():
        return None
    digits = declared.lstrip("0")
    # so many digits are no length, and more than Python reads
    return int(digits or "0") if len(digits) < 19 else sys.maxsize


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
        needed = "/".join(role.value for role in roles)
        raise Forbidden(
            "this needs a token of role {needed}, yours is {role}", needed=needed, role=caller.role.value
        )
    if caller.scopes and scope is not None and scope not in caller.scopes:
        raise Forbidden("this needs a token with scope {scope}", scope=scope.value)


async def _read_body(request: Request) -> Request:
    """The same request with its body read. Raises BodyTooLarge before more than the limit is kept."""
    limit = hub_of(request).settings.body_limit_bytes
    if (_declared_bytes(request) or 0) > limit:
        raise _too_large(limit)
    limited = Request(request.scope, _limited(request.receive, limit), request._send)
    await limited.body()
    return limited


def _limited(receive: Receive, limit: int) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge("a body has at most {limit_bytes} bytes", field="body", limit_bytes=limit)


def hub_of(request: Request) -> Hub:
    """The hub that this request came to."""
    hub: Hub = request.app.state.hub
    return hub


def caller_of(request: Request) -> Caller:
    """Who is calling, as the route's guard found out."""
    caller: Caller = request.state.caller
    return caller


def language_of(request: Request) -> Language:
    """The language that this request asks for."""
    return choose(",".join(request.headers.getlist("Accept-Language")))


def spoken(model: BaseModel, language: Language, status: int = 200) -> Response:
    """`answer` with sentences in it: says in which language they are."""
    told = {"Content-Language": language.value, "Vary": "Accept-Language"}
    return Response(model.model_dump_json(), status, told, "application/json")


def answer(model: BaseModel, status: int = 200) -> Response:
    """A model as JSON, serialized once."""
    return said(model.model_dump_json(), status)


def said(text: str, status: int = 200) -> Response:
    """What is JSON already."""
    return Response(text, status, media_type="application/json")


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


def page(rows: Sequence[R], limit: int, token: Callable[[R], str]) -> tuple[Sequence[R], str | None]:
    """One page of rows that were read with `limit + 1`, and where the next one goes on; None at the end."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], token(rows[limit - 1])


async def raw_body(request: Request) -> bytes:
    """The body as bytes, unpacked if it came gzipped; a packed body may not unfold past the limit."""
    body = await request.body()
    if request.headers.get("Content-Encoding", "").lower() != "gzip":
        return body
    limit = hub_of(request).settings.body_limit_bytes
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequest("the body is not gzip as Content-Encoding says", field="body") from error
    if len(unpacked) > limit:
        raise _too_large(limit)
    if not unpacker.eof:
        raise BadRequest("the packed body is cut short", field="body")
    return unpacked


def parse(model: type[T], body: bytes) -> T:
    """A wire type from JSON bytes; errors name the field as everywhere else."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        details = [detail | {"loc": ("body", *detail["loc"])} for detail in error.errors(include_url=False)]
        raise RequestValidationError(details) from error
