"""Every error as an RFC 9457 problem document with a stable code, in the caller's language; inputs are never echoed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from quota.door import language_of
from quota.errors import BadRequest, BodyTooLarge, HubError, NotFound, filled
from quota.i18n import Language, text
from quota.schemas.service import Problem

MEDIA_TYPE = "application/problem+json"
TITLES = {
    "method_not_allowed": "This path does not take this method.",
    "unsupported_media_type": "The hub does not read this kind of body.",
    "http_499": "The caller left.",
    "internal_error": "Something broke in the service; nothing was changed.",
}
"""English titles of what no HubError stands for; theirs are the classes' first lines."""
HTTP_CODES = {
    404: (NotFound.code, NotFound.title()),
    405: ("method_not_allowed", TITLES["method_not_allowed"]),
    413: (BodyTooLarge.code, BodyTooLarge.title()),
    415: ("unsupported_media_type", TITLES["unsupported_media_type"]),
}
UNREADABLE = "the body is not JSON, is nested too deeply, or holds a number of thousands of digits"
OUT_OF_RANGE = "a value is longer or larger than the hub can store"
FIELD_MESSAGES = {
    "unknown_parameter": "this path has no such query parameter",
    "repeated_parameter": "this query parameter is given more than once",
    "model_attributes_type": "a JSON object is needed; send it with Content-Type: application/json",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
}
"""English messages of error types whose own would repeat what was sent, or that are ours."""
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


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    language = language_of(request)
    title = _title(language, error.code, error.title())
    detail = title if error.template == error.title() else _detail(language, error.template, error.numbers)
    errors = [{"field": error.field, "message": detail}] if error.field else []
    return _problem(language, error.status, error.code, title, detail, error.numbers, errors)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    language = language_of(request)
    errors = [_field_error(language, detail) for detail in error.errors()]
    detail = "; ".join(f"{entry['field']}: {entry['message']}" for entry in errors[:5])
    return _bad_request(language, detail, errors)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    language = language_of(request)
    if error.status_code == 400:  # what FastAPI says of a body that it cannot read
        detail = _detail(language, UNREADABLE, {})
        return _bad_request(language, detail, [{"field": "body", "message": detail}])
    unknown = (f"http_{error.status_code}", HTTPStatus(error.status_code).phrase)
    code, title = HTTP_CODES.get(error.status_code, unknown)
    headers = {"Allow": error.headers["Allow"]} if error.headers and "Allow" in error.headers else {}
    return _problem(language, error.status_code, code, _title(language, code, title), headers=headers)


def _out_of_range(request: Request, error: Exception) -> Response:
    """A value that passed the types and that no column holds: the types should have said so."""
    log.error("value_out_of_range", method=request.method, path=request.url.path, error=type(error).__name__)
    language = language_of(request)
    return _bad_request(language, _detail(language, OUT_OF_RANGE, {}), [])


def _left(request: Request, _error: Exception) -> Response:
    """A caller that died while it sent its request: nobody reads this."""
    language = language_of(request)
    return _problem(language, 499, "http_499", _title(language, "http_499", TITLES["http_499"]))


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected", method=request.method, path=request.url.path, exc_info=error)
    language = language_of(request)
    title = _title(language, "internal_error", TITLES["internal_error"])
    return _problem(language, 500, "internal_error", title)


def _title(language: Language, code: str, english: str) -> str:
    return text(language, "titles", code) or english


def _detail(language: Language, template: str, values: Mapping[str, object]) -> str:
    return filled(text(language, "details", template) or template, values)


def _field_error(language: Language, detail: Mapping[str, Any]) -> dict[str, str]:
    location: Sequence[Any] = detail.get("loc", ())
    names = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    return {"field": ".".join(names) or "body", "message": _field_message(language, detail)}


def _field_message(language: Language, detail: Mapping[str, Any]) -> str:
    kind = str(detail.get("type", ""))
    values: Mapping[str, object] = detail.get("ctx", {})
    if kind == "wrong_value":
        return _detail(language, str(values["template"]), values)
    template = text(language, "fields", kind) or FIELD_MESSAGES.get(kind)
    return str(detail.get("msg", "invalid")) if template is None else filled(template, values)


def _bad_request(language: Language, detail: str, errors: list[dict[str, str]]) -> Response:
    title = _title(language, BadRequest.code, BadRequest.title())
    return _problem(language, BadRequest.status, BadRequest.code, title, detail, {}, errors)


def _problem(
    language: Language,
    status: int,
    code: str,
    title: str,
    detail: str = "",
    numbers: Mapping[str, int | str] | None = None,
    errors: Iterable[dict[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    document = Problem(
        type=f"urn:gpuhub:problem:{code}",
        title=title,
        status=status,
        code=code,
        detail=detail,
        numbers=dict(numbers or {}),
        errors=list(errors),
    )
    told = {"Content-Language": language.value, "Vary": "Accept-Language"} | dict(headers or {})
    if status == HTTPStatus.UNAUTHORIZED:
        told["WWW-Authenticate"] = "Bearer"
    if "retry_after_s" in document.numbers:
        told["Retry-After"] = str(document.numbers["retry_after_s"])
    return Response(document.model_dump_json(), status, told, MEDIA_TYPE)
