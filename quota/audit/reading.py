"""Who read what: reads of personal data leave a row in the audit trail, before the reply goes out.

Personal are today the labels of tokens (whose a token is), and in the audit trail the actors, the labels and the
addresses; an organization's own members see none of these. Jobs' logs may hold anything, so they count as personal
whoever reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

from quota.audit import service as audit
from quota.db import Database
from quota.errors import BadRequest
from quota.schemas.identity import Caller

EXPORT_ROWS = 100
"""Asking for more rows at once than this is taking them away, which needs a reason."""


def check_reason(limit: int, reason: str | None) -> None:
    """Raise BadRequest when so many rows are asked for without a reason."""
    if limit > EXPORT_ROWS and not (reason or "").strip():
        raise BadRequest(
            "more than {rows} rows of personal data at once are an export: say why",
            field="reason",
            rows=EXPORT_ROWS,
        )


def record_read(
    database: Database,
    caller: Caller,
    what: str,
    query: Mapping[str, object],
    count: int,
    reason: str | None = None,
) -> None:
    """Write down that the caller read `count` rows of `what`; call it after reading and before answering.

    A crash before this row is written answers nobody, one after it leaves a row of a read that nobody got: never
    the other way round. `query` is what was asked for; absent parameters are left out.
    """
    asked = {name: value for name, value in query.items() if value is not None}
    detail = {"query": asked, "count": count}
    database.write(lambda tx: audit.record(tx, caller, audit.READ, what, reason=reason or "", detail=detail))
