"""HTTP door of the export."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from quota.door import HubRoute, access, caller_of, hub_of
from quota.reports import exporting
from quota.schemas.identity import Role, Scope
from quota.schemas.values import Reason, RowNumber

router = APIRouter(tags=["audit"], route_class=HubRoute)

MEDIA_TYPE = "application/jsonl"
_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object a line: header, rates, programmes, grants, accounts, holds, then audit rows, "
        "transfers, slices and seals in feed order, and a footer with counts and SHA-256.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/v1/exports/ledger",
    operation_id="export_ledger",
    response_class=StreamingResponse,
    responses=_LINES,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
)
def export_ledger(
    request: Request,
    reason: Annotated[Reason, Query()],
    through_seal: Annotated[RowNumber | None, Query()] = None,
) -> Response:
    """The whole ledger and audit trail up to a seal, the newest unless one is named, as JSON lines.

    For `gpuhub audit verify`, which needs nothing else. It holds personal data, so it takes a `reason` and is itself
    in the trail. A file without a footer was cut short. Gzipped where `Accept-Encoding` allows it.

    404 `not_found` (seal).
    """
    hub = hub_of(request)
    seal = exporting.begin_export(hub.database, caller_of(request), through_seal, reason)
    packed = _takes_gzip(request.headers.get("Accept-Encoding", ""))
    headers = {
        "Content-Disposition": f'attachment; filename="ledger-{seal.number}.jsonl"',
        "Vary": "Accept-Encoding",
    }
    if packed:
        headers["Content-Encoding"] = "gzip"
    chunks = exporting.write_ledger(hub.database, seal, packed=packed)
    return StreamingResponse(_in_threads(chunks), headers=headers, media_type=MEDIA_TYPE)


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding names gzip other than to refuse it."""
    for part in accepted.lower().split(","):
        name, _, weight = part.replace(" ", "").partition(";q=")
        if name == "gzip":
            return weight.strip("0.") != "" or not weight
    return False


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Chunks made in a thread; closes the snapshot behind them also when the caller has left."""
    try:
        while (chunk := await run_in_threadpool(next, chunks, None)) is not None:
            yield chunk
    finally:
        cast("Generator[bytes]", chunks).close()
