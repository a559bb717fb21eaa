"""What every route shares: the hub behind the request, its caller, and answers without a second validation."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection

from quota.clock import Clock
from quota.db import Database
from quota.errors import BadRequest, Forbidden, Unauthenticated
from quota.queue import Queue
from quota.schemas.identity import Caller, Role
from quota.settings import Settings

T = TypeVar("T", bound=BaseModel)

READERS = (Role.OPERATOR, Role.AUDITOR, Role.MEMBER)


@dataclass(frozen=True, slots=True)
class Hub:
    """Everything one service process holds; made in `create_app`."""

    settings: Settings
    database: Database
    clock: Clock
    queue: Queue
    authenticate: Callable[[Connection, str, int], Caller]
    """(connection, secret, now in ms) -> caller; raises Unauthenticated."""
    stopping: Event = field(default_factory=Event)
    """Set when the process was asked to stop: long polls answer at once."""


def hub_of(request: Request) -> Hub:
    """The hub that this request came to."""
    hub: Hub = request.app.state.hub
    return hub


def caller_of(request: Request, *roles: Role) -> Caller:
    """Who is calling. Raises Unauthenticated, and Forbidden unless the role is one of `roles`."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated()
    hub = hub_of(request)
    with hub.database.read() as connection:
        caller = hub.authenticate(connection, secret.strip(), hub.clock.now_ms())
    if roles and caller.role not in roles:
        needed = " or ".join(role.value for role in roles)
        raise Forbidden(f"this needs a token of role {needed}, yours is {caller.role.value}")
    return caller


def answer(model: BaseModel, status: int = 200) -> Response:
    """A model as JSON, serialized once."""
    return Response(model.model_dump_json(), status, media_type="application/json")


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
