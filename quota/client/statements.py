"""Calls about statements."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.clock import instant_text
from quota.schemas import statements


class StatementCalls(Transport):
    """Calls about statements."""

    def read_statement(
        self, grant_id: str, as_of_ms: int | None = None, since_ms: int | None = None
    ) -> statements.Statement:
        """Every transfer of a grant with its arithmetic; with `as_of_ms` as it stood at an audit seal."""
        return self._get(
            f"/v1/grants/{grant_id}/statement",
            statements.Statement,
            as_of=None if as_of_ms is None else instant_text(as_of_ms),
            since=None if since_ms is None else instant_text(since_ms),
        )

    def write_statement(
        self,
        grant_id: str,
        form: statements.StatementFormat,
        language: statements.StatementLanguage,
        as_of_ms: int | None = None,
        since_ms: int | None = None,
    ) -> bytes:
        """`read_statement` as the bytes of a JSON, CSV or HTML file."""
        return self._read_bytes(
            f"/v1/grants/{grant_id}/statement",
            format=form.value,
            language=language.value,
            as_of=None if as_of_ms is None else instant_text(as_of_ms),
            since=None if since_ms is None else instant_text(since_ms),
        )

    def list_statements(
        self, grant_id: str, after: str | None = None, limit: int = 50
    ) -> statements.IssuedStatementPage:
        """The sealed statements that were issued, with their hashes."""
        path = f"/v1/grants/{grant_id}/statements"
        return self._get(path, statements.IssuedStatementPage, after=after, limit=limit)
