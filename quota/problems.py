"""Every error as an RFC 9457 problem document with a stable code; inputs are never echoed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from quota.errors import HubError
from quota.schemas.service import Problem

MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger("quota")


def install(app: FastAPI) -> None:
    """Answer errors of every kind as problems."""
    app.add_exception_handler(HubError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(DataError, _out_of_range)
    app.add_exception_handler(OverflowError, _out_of_range)
    app.add_exception_handler(Exception, _unexpected)


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    errors = [{"field": error.field, "message": error.detail}] if error.field else []
    return _problem(error.status, error.code, error.title(), error.detail, dict(error.numbers), errors)


def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [_field_error(detail) for detail in error.errors()]
    detail = "; ".join(f"{entry['field']}: {entry['message']}" for entry in errors[:5])
    return _problem(422, "invalid_request", "The request is not valid.", detail, {}, errors)


def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # what FastAPI says of a body that it cannot read
        detail = "the body is not JSON, is nested too deeply, or holds a number of thousands of digits"
        errors = [{"field": "body", "message": detail}]
        return _problem(422, "invalid_request", "The request is not valid.", detail, {}, errors)
    codes = {
        404: "not_found",
        405: "method_not_allowed",
        413: "body_too_large",
        415: "unsupported_media_type",
    }
    code = codes.get(error.status_code, f"http_{error.status_code}")
    return _problem(error.status_code, code, str(error.detail), "", {}, [])


def _out_of_range(request: Request, error: Exception) -> Response:
    """A value that passed the types and that no column holds: the types should have said so."""
    log.error("value_out_of_range", method=request.method, path=request.url.path, error=type(error).__name__)
    detail = "a value is longer or larger than the hub can store"
    return _problem(422, "invalid_request", "The request is not valid.", detail, {}, [])


def _left(_request: Request, _error: Exception) -> Response:
    """A caller that died while it sent its request: nobody reads this."""
    return _problem(499, "http_499", "The caller left.", "", {}, [])


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected", method=request.method, path=request.url.path, exc_info=error)
    return _problem(500, "internal_error", "Something broke in the service; nothing was changed.", "", {}, [])


def _field_error(detail: dict[str, Any]) -> dict[str, str]:
    location: Sequence[Any] = detail.get("loc", ())
    names = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    return {"field": ".".join(names) or "body", "message": str(detail.get("msg", "invalid"))}


def _problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    numbers: dict[str, int | str],
    errors: list[dict[str, str]],
) -> Response:
    document = Problem(
        type=f"urn:gpuhub:problem:{code}",
        title=title,
        status=status,
        code=code,
        detail=detail,
        numbers=numbers,
        errors=errors,
    )
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return Response(document.model_dump_json(), status, headers, MEDIA_TYPE)
