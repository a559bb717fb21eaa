"""Statements: what an account opened with, every transfer, what they add up to; and the hash of what was issued.

A sealed statement depends on nothing but rows that are never changed: the account's legs and transfers up to the
seal, and rate versions. So the same question has the same bytes for ever, and the first answer's hash is kept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, assert_never

from sqlalchemy import Connection, Row, insert, select

from quota.audit import seals
from quota.audit import service as audit
from quota.db import Database, Tx, head
from quota.errors import BadRequest, Conflict, NotFound
from quota.identity import service as identity
from quota.ids import new_id
from quota.ledger import statement as ledger
from quota.ledger.tables import accounts, statements
from quota.programs.tables import grants
from quota.reports import paper
from quota.schemas.audit import Seal
from quota.schemas.identity import Caller, Role
from quota.schemas.statements import (
    IssuedStatement,
    IssuedStatementPage,
    StatementFormat,
    StatementLanguage,
)
from quota.schemas.values import gpu_hours_text

FORMAT = "gpuhub-statement/1"
"""Named in every statement; another layout gets another number, so that old hashes stay true."""


class StatementChanged(Conflict):
    """This statement was issued before with another content: the ledger or the program was changed."""

    code = "statement_changed"


@dataclass(frozen=True, slots=True)
class Written:
    """A statement as bytes, with its SHA-256, and its id once it was issued."""

    content: bytes
    sha256: str
    issued_id: str | None


def read_statement(
    database: Database,
    caller: Caller,
    grant_id: str,
    *,
    as_of_ms: int | None,
    since_ms: int | None,
    form: StatementFormat,
    language: StatementLanguage,
) -> Written:
    """The statement at the last seal at or before `as_of`, from the last seal at or before `since`.

    Without `as_of` it is what stands now: not sealed, and not issued. Raises NotFound for an unknown or foreign
    grant and for a moment before the first seal, StatementChanged when an issued statement came out differently.
    """
    with database.read() as connection:
        account = _account(connection, caller, grant_id)
        seal = None if as_of_ms is None else _seal(connection, as_of_ms, "as_of")
        since = None if since_ms is None else _seal(connection, since_ms, "since")
        if seal is not None and since is not None and since.number > seal.number:
            raise BadRequest("since must not be after as_of", field="since")
        through = head(connection) if seal is None else seal.through_seq
        at_ms = database.clock.now_ms() if seal is None else seal.at
        content = _json(connection, account, seal, since, through, at_ms)
    match form:
        case StatementFormat.JSON:
            language = StatementLanguage.EN  # JSON has no words of its own
        case StatementFormat.CSV:
            content = paper.csv_bytes(json.loads(content), language)
        case StatementFormat.HTML:
            content = paper.html_bytes(json.loads(content), language)
        case _:
            assert_never(form)
    sha256 = hashlib.sha256(content).hexdigest()
    if seal is None:
        return Written(content, sha256, None)
    key = {
        "account_id": account.id,
        "seal": seal.number,
        "since_seal": 0 if since is None else since.number,
        "format": form.value,
        "language": language.value,
    }
    return Written(content, sha256, _issue(database, caller, grant_id, key, sha256, len(content)))


def list_issued(
    connection: Connection, caller: Caller, grant_id: str, after: str | None, limit: int
) -> IssuedStatementPage:
    """The statements that were issued of a grant, or of the caller's share of it, oldest first."""
    account = _account(connection, caller, grant_id)
    wanted = select(statements).where(statements.c.account_id == account.id)
    wanted = wanted.order_by(statements.c.id).limit(limit + 1)
    if after is not None:
        wanted = wanted.where(statements.c.id > after)
    rows = connection.execute(wanted).all()
    items = tuple(_issued(row) for row in rows[:limit])
    return IssuedStatementPage(items=items, next=items[-1].id if len(rows) > limit else None)


# --- what it says ---------------------------------------------------------------------------------


def _json(
    connection: Connection,
    account: Row[Any],
    seal: Seal | None,
    since: Seal | None,
    through_seq: int,
    at_ms: int,
) -> bytes:
    """The document in its one form: UTF-8, keys in this order, no spaces, one line feed at the end."""
    after_seq = 0 if since is None else since.through_seq
    sums = ledger.balance(connection, account.id, after_seq)
    before = {
        "format": FORMAT,
        "grant_id": account.grant_id,
        "organization_id": account.organization_id,
        "program_id": account.program_id,
        "account_id": account.id,
        "as_of": ledger.instant(at_ms),
        "seq": through_seq,
        "seal": _stamp(seal),
        "since": _stamp(since),
        "opening": {f"{name}_gpu_us": str(getattr(sums, name)) for name in ("granted", "held", "used")},
    }
    lines = ",".join(ledger.json_lines(connection, account.id, after_seq, through_seq, sums))
    if seal is None:
        stored = (account.granted_gpu_us, account.held_gpu_us, account.used_gpu_us)
        found = (sums.granted, sums.held, sums.used)
        assert found == stored, f"account {account.id} is not the sum of its transfers"
    names = ("granted", "held", "used", "available")
    after = {
        **{f"{name}_gpu_us": str(getattr(sums, name)) for name in names},
        **{f"{name}_gpu_hours": gpu_hours_text(getattr(sums, name)) for name in names},
        "total_krw": sums.krw,
    }
    return f'{_members(before)},"lines":[{lines}],{_members(after)[1:]}}}\n'.encode()


def _members(fields: dict[str, Any]) -> str:
    """An object's JSON without its last brace."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[:-1]


def _stamp(seal: Seal | None) -> dict[str, object] | None:
    if seal is None:
        return None
    return {
        "number": seal.number,
        "at": ledger.instant(seal.at),
        "through_seq": seal.through_seq,
        "sha256": seal.sha256,
    }


def _seal(connection: Connection, at_ms: int, field: str) -> Seal:
    found = seals.last_seal_at_or_before(connection, at_ms)
    if found is None:
        raise NotFound("there was no audit seal yet at that moment", field=field)
    return found


def _account(connection: Connection, caller: Caller, grant_id: str) -> Row[Any]:
    """The grant's account; for a party of a consortium its own share. Raises NotFound."""
    row = connection.execute(
        select(accounts).join(grants, grants.c.account_id == accounts.c.id).where(grants.c.id == grant_id)
    ).one_or_none()
    if row is not None and identity.sees(caller, row.organization_id):
        return row
    if row is not None and caller.role is Role.MEMBER:
        share = connection.execute(
            select(accounts).where(
                accounts.c.grant_id == grant_id,
                accounts.c.kind == "share",
                accounts.c.organization_id == caller.organization_id,
            )
        ).one_or_none()
        if share is not None:
            return share
    raise NotFound("there is no grant {grant_id}", grant_id=grant_id)


# --- what was issued ------------------------------------------------------------------------------


def _issue(
    database: Database, caller: Caller, grant_id: str, key: dict[str, Any], sha256: str, size_bytes: int
) -> str:
    """Keep the hash of the first answer. Dying before it: nothing was answered, and the next one is the first."""
    with database.read() as connection:
        known = _known(connection, key)
    if known is None:
        row = key | {"grant_id": grant_id, "sha256": sha256, "size_bytes": size_bytes}
        known = database.write(lambda tx: _keep(tx, caller, key, row))
    if known.sha256 != sha256:
        database.write(lambda tx: _tell(tx, known, sha256))
        raise StatementChanged(
            "statement {statement} was issued with SHA-256 {issued}; the same question now gives {now}",
            statement=known.id,
            issued=known.sha256,
            now=sha256,
        )
    return str(known.id)


def _keep(tx: Tx, caller: Caller, key: dict[str, Any], row: dict[str, Any]) -> Row[Any]:
    known = _known(tx.connection, key)
    if known is not None:
        return known
    statement_id = new_id("st")
    stamp = {"id": statement_id, "issued_at_ms": tx.now_ms, "issued_by": caller.token_id}
    tx.connection.execute(insert(statements), row | stamp)
    audit.record(tx, caller, "statement.issue", statement_id, detail=row)
    found = _known(tx.connection, key)
    assert found is not None
    return found


def _tell(tx: Tx, known: Row[Any], sha256: str) -> None:
    audit.find(tx, "statement_changed", known.id, f"issued with SHA-256 {known.sha256}, now {sha256}")


def _known(connection: Connection, key: dict[str, Any]) -> Row[Any] | None:
    return connection.execute(select(statements).filter_by(**key)).one_or_none()


def _issued(row: Row[Any]) -> IssuedStatement:
    return IssuedStatement(
        id=row.id,
        grant_id=row.grant_id,
        account_id=row.account_id,
        seal=row.seal,
        since_seal=row.since_seal,
        format=StatementFormat(row.format),
        language=StatementLanguage(row.language),
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        issued_at=row.issued_at_ms,
        issued_by=row.issued_by,
    )
