"""HTTP door of statements."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from quota.door import READERS, HubRoute, access, answer, caller_of, hub_of
from quota.reports import statements
from quota.schemas.identity import Scope
from quota.schemas.statements import (
    IssuedStatementPage,
    Statement,
    StatementFormat,
    StatementLanguage,
)
from quota.schemas.values import Id, Instant

router = APIRouter(tags=["statements"], route_class=HubRoute)

MEDIA_TYPES = {
    StatementFormat.JSON: "application/json",
    StatementFormat.CSV: "text/csv; charset=utf-8",
    StatementFormat.HTML: "text/html; charset=utf-8",
}
_OTHER_FORMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {}, "text/html": {}}}}


@router.get(
    "/v1/grants/{grant_id}/statement",
    operation_id="read_statement",
    response_model=Statement,
    responses=_OTHER_FORMS,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def read_statement(
    request: Request,
    grant_id: Id,
    as_of: Annotated[Instant | None, Query()] = None,
    since: Annotated[Instant | None, Query()] = None,
    form: Annotated[StatementFormat, Query(alias="format")] = StatementFormat.JSON,
    language: Annotated[StatementLanguage, Query()] = StatementLanguage.EN,
) -> Response:
    """Every transfer of a grant with its arithmetic; a party of a consortium gets that of its own share.

    With `as_of` it stands at the last audit seal at or before that moment, names that seal, has the same bytes
    whenever it is asked for, and its SHA-256 (`Repr-Digest`) is kept. Without `as_of` it shows the present, unsealed.
    `since` opens it with the balance at an earlier seal. 404 before the first seal, 409 `statement_changed`.
    """
    hub = hub_of(request)
    written = statements.read_statement(
        hub.database,
        caller_of(request),
        grant_id,
        as_of_ms=as_of,
        since_ms=since,
        form=form,
        language=language,
    )
    digest = base64.b64encode(bytes.fromhex(written.sha256)).decode()
    headers = {"Repr-Digest": f"sha-256=:{digest}:"}
    if written.issued_id is not None:
        headers["Statement-Id"] = written.issued_id
    if form is StatementFormat.CSV:
        headers["Content-Disposition"] = f'attachment; filename="statement-{grant_id}.csv"'
    if form is StatementFormat.HTML:
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
    return Response(written.content, 200, headers, MEDIA_TYPES[form])


@router.get(
    "/v1/grants/{grant_id}/statements",
    operation_id="list_statements",
    response_model=IssuedStatementPage,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def list_statements(
    request: Request,
    grant_id: Id,
    after: Id | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """The sealed statements that were issued, with their hashes, in order of id."""
    with hub_of(request).database.read() as connection:
        return answer(statements.list_issued(connection, caller_of(request), grant_id, after, limit))
