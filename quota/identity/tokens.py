"""Tokens: made, taken over by a successor, ended. Only the SHA-256 of a secret is ever stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, and_, insert, not_, or_, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import AlreadyRotated, BadRequest, Forbidden, NotFound, TokenEnded
from quota.identity.rules import foreign_scopes, may_hand_on
from quota.identity.service import read_organization
from quota.identity.tables import organizations, tokens
from quota.ids import new_id
from quota.schemas.identity import (
    Caller,
    NewToken,
    RevokedTokens,
    Role,
    Scope,
    Token,
    TokenList,
    TokenRotation,
    TokenWithSecret,
)

PREFIX = "ghub_"
SHOWN_CHARACTERS = 12
"""How much of a secret lists show, so that its holder can tell which it is."""


def create_token(tx: Tx, actor: str | Caller, body: NewToken) -> TokenWithSecret:
    """Make a token; the secret is in this answer and nowhere else.

    Raises BadRequest with the field, NotFound for the organization, and Forbidden when a narrowed caller asks for
    a token wider than its own.
    """
    _check(tx, body)
    if isinstance(actor, Caller) and not may_hand_on(actor, body.scopes):
        raise _too_wide(actor)
    made = _insert(
        tx,
        role=body.role.value,
        organization_id=body.organization_id,
        node=body.node,
        label=body.label,
        scopes=_text(body.scopes),
        expires_at_ms=body.expires_at,
        replaces=None,
    )
    _record_created(tx, actor, made)
    return made


def rotate_token(tx: Tx, caller: Caller, token_id: str, body: TokenRotation) -> TokenWithSecret:
    """Make a successor of the same rights; the old token ends when the overlap is over, or earlier if it would have.

    A token may rotate itself, an operator any. Raises NotFound, Forbidden, TokenEnded, AlreadyRotated while a
    successor is good, BadRequest.
    """
    row = _row_to_rotate(tx, caller, token_id, body)
    _check_rotatable(tx, row)
    if body.expires_at is not None and body.expires_at <= tx.now_ms:
        raise BadRequest("expires_at must lie in the future", field="expires_at")
    before = _token(row)
    copied = {name: getattr(row, name) for name in ("role", "organization_id", "node", "label", "scopes")}
    ends_at_ms = row.expires_at_ms if body.expires_at is None else body.expires_at
    made = _insert(tx, **copied, expires_at_ms=ends_at_ms, replaces=token_id)
    over_at_ms = tx.now_ms + body.overlap_s * 1000
    if row.expires_at_ms is not None:
        over_at_ms = min(over_at_ms, row.expires_at_ms)
    tx.connection.execute(update(tokens).where(tokens.c.id == token_id).values(expires_at_ms=over_at_ms))
    after = before.model_copy(update={"expires_at": over_at_ms})
    audit.record(
        tx,
        caller,
        "token.rotate",
        token_id,
        reason=body.reason,
        detail={"successor": made.id, "overlap_s": body.overlap_s},
        before=_document(before),
        after=_document(after),
    )
    _record_created(tx, caller, made, body.reason)
    return made


def revoke_token(tx: Tx, caller: Caller, token_id: str, reason: str = "") -> Token:
    """End a token at once; revoking twice is revoking once. Raises NotFound."""
    row = _locked(tx, token_id)
    if row is None:
        raise _unknown(token_id)
    return _token(row) if row.revoked_at_ms is not None else _revoke(tx, caller, row, reason)


def revoke_organization_tokens(tx: Tx, caller: Caller, organization_id: str, reason: str) -> RevokedTokens:
    """End every token of an organization that was not revoked yet; doing it again ends none. Raises NotFound."""
    read_organization(tx.connection, organization_id)
    # whoever makes a token of this organization meanwhile holds its row: wait, and see that token too
    tx.connection.execute(
        select(organizations.c.id).where(organizations.c.id == organization_id).with_for_update()
    )
    rows = tx.connection.execute(
        select(tokens)
        .where(tokens.c.organization_id == organization_id, tokens.c.revoked_at_ms.is_(None))
        .order_by(tokens.c.id)
        .with_for_update()
    ).all()
    items = tuple(_revoke(tx, caller, row, reason) for row in rows)
    audit.record(
        tx,
        caller,
        "organization.revoke_tokens",
        organization_id,
        reason=reason,
        detail={"tokens": [item.id for item in items]},
    )
    return RevokedTokens(organization_id=organization_id, items=items)


def list_tokens(
    connection: Connection,
    now_ms: int,
    *,
    after: str = "",
    limit: int = 1000,
    role: Role | None = None,
    organization_id: str | None = None,
    active: bool | None = None,
) -> TokenList:
    """Tokens without secrets with an id greater than `after`, in order of creation.

    `active`: neither revoked nor expired at `now_ms` (business time).
    """
    statement = select(tokens).where(tokens.c.id > after)
    if role is not None:
        statement = statement.where(tokens.c.role == role.value)
    if organization_id is not None:
        statement = statement.where(tokens.c.organization_id == organization_id)
    if active is not None:
        statement = statement.where(_is_active(now_ms) if active else not_(_is_active(now_ms)))
    rows = connection.execute(statement.order_by(tokens.c.id).limit(limit + 1)).all()
    items = tuple(_token(row) for row in rows[:limit])
    return TokenList(items=items, next=items[-1].id if len(rows) > limit else None)


def digest(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def scopes_of(text: str) -> tuple[Scope, ...]:
    """Scopes as a row keeps them."""
    return tuple(Scope(name) for name in text.split())


def _check(tx: Tx, body: NewToken) -> None:
    if body.role is Role.MEMBER and body.organization_id is None:
        raise BadRequest("a member token needs organization_id", field="organization_id")
    if body.role is not Role.MEMBER and body.organization_id is not None:
        raise BadRequest(
            "a {role} token belongs to no organization", field="organization_id", role=body.role.value
        )
    if body.role is Role.AGENT and body.node is None:
        raise BadRequest("an agent token needs node: it speaks only of that node's GPUs", field="node")
    if body.role is not Role.AGENT and body.node is not None:
        raise BadRequest("only an agent token is bound to a node", field="node")
    foreign = foreign_scopes(body.role, body.scopes)
    if foreign:
        raise BadRequest(
            "role {role} has no scope {scope}", field="scopes", role=body.role.value, scope=foreign[0].value
        )
    if body.expires_at is not None and body.expires_at <= tx.now_ms:
        raise BadRequest("expires_at must lie in the future", field="expires_at")
    if body.organization_id is not None:
        read_organization(tx.connection, body.organization_id)


def _row_to_rotate(tx: Tx, caller: Caller, token_id: str, body: TokenRotation) -> Row[Any]:
    """The token's row, locked, if the caller may rotate it so."""
    own = caller.token_id == token_id
    manages = caller.role is Role.OPERATOR and (not caller.scopes or Scope.IDENTITY_WRITE in caller.scopes)
    if not own and caller.role is not Role.OPERATOR:
        raise _unknown(token_id)
    if not own and not manages:
        raise Forbidden("this needs a token with scope {scope}", scope=Scope.IDENTITY_WRITE.value)
    if body.expires_at is not None and not manages:
        raise Forbidden("only operators say how long a token lasts")
    row = _locked(tx, token_id)
    if row is None:
        raise _unknown(token_id)
    if not own and not may_hand_on(caller, scopes_of(row.scopes)):
        raise _too_wide(caller)
    return row


def _check_rotatable(tx: Tx, row: Row[Any]) -> None:
    if row.revoked_at_ms is not None:
        raise TokenEnded("token {token_id} was revoked", token_id=row.id)
    if row.expires_at_ms is not None and row.expires_at_ms <= tx.now_ms:
        raise TokenEnded("token {token_id} has expired", token_id=row.id)
    good = and_(tokens.c.replaces == row.id, _is_active(tx.now_ms))
    successor = tx.connection.execute(select(tokens.c.id).where(good)).scalar()
    if successor is not None:
        raise AlreadyRotated(
            "token {token_id} was taken over by {successor}; revoke that one to rotate again",
            token_id=row.id,
            successor=successor,
        )


def _locked(tx: Tx, token_id: str) -> Row[Any] | None:
    """The token's row, which nobody else changes until the end of this transaction.

    Its organization first, as an INSERT of a token locks it: so that this waits for `revoke_organization_tokens`
    instead of waiting in a circle with it.
    """
    owner = select(tokens.c.organization_id).where(tokens.c.id == token_id).scalar_subquery()
    tx.connection.execute(
        select(organizations.c.id)
        .where(organizations.c.id == owner)
        .with_for_update(read=True, key_share=True)
    )
    return tx.connection.execute(
        select(tokens).where(tokens.c.id == token_id).with_for_update()
    ).one_or_none()


def _insert(tx: Tx, **columns: Any) -> TokenWithSecret:
    secret = PREFIX + secrets.token_urlsafe(32)
    row = columns | {
        "id": new_id("tok"),
        "prefix": secret[:SHOWN_CHARACTERS],
        "secret_sha256": digest(secret),
        "created_at_ms": tx.now_ms,
        "revoked_at_ms": None,
    }
    tx.connection.execute(insert(tokens), row)
    stored = tx.connection.execute(select(tokens).where(tokens.c.id == row["id"])).one()
    return TokenWithSecret(**_token(stored).model_dump(), secret=secret)


def _revoke(tx: Tx, caller: Caller, row: Row[Any], reason: str) -> Token:
    before = _token(row)
    after = before.model_copy(update={"revoked_at": tx.now_ms})
    tx.connection.execute(update(tokens).where(tokens.c.id == row.id).values(revoked_at_ms=tx.now_ms))
    audit.record(
        tx,
        caller,
        "token.revoke",
        row.id,
        reason=reason,
        before=_document(before),
        after=_document(after),
    )
    return after


def _record_created(tx: Tx, actor: str | Caller, made: TokenWithSecret, reason: str = "") -> None:
    detail = {"role": made.role.value, "organization_id": made.organization_id, "label": made.label}
    audit.record(tx, actor, "token.create", made.id, reason=reason, detail=detail, after=_document(made))


def _document(token: Token) -> dict[str, object]:
    """A token for the audit trail: without its secret, and without what moves by itself."""
    return token.model_dump(mode="json", exclude={"secret", "last_used_at"})


def _is_active(now_ms: int) -> Any:
    expires = tokens.c.expires_at_ms
    return and_(tokens.c.revoked_at_ms.is_(None), or_(expires.is_(None), expires > now_ms))


def _text(scopes: Iterable[Scope]) -> str:
    chosen = set(scopes)
    return " ".join(scope.value for scope in Scope if scope in chosen)


def _unknown(token_id: str) -> NotFound:
    return NotFound("there is no token {token_id}", token_id=token_id)


def _too_wide(caller: Caller) -> Forbidden:
    return Forbidden(
        "a narrowed token makes none wider than itself; its scopes are {scopes}", scopes=_text(caller.scopes)
    )


def _token(row: Row[Any]) -> Token:
    return Token(
        id=row.id,
        role=Role(row.role),
        organization_id=row.organization_id,
        node=row.node,
        label=row.label,
        prefix=row.prefix,
        scopes=scopes_of(row.scopes),
        created_at=row.created_at_ms,
        expires_at=row.expires_at_ms,
        revoked_at=row.revoked_at_ms,
        last_used_at=row.last_used_at_ms,
        replaces=row.replaces,
    )
