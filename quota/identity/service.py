"""Organizations and tokens: who may speak to the hub."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from quota.audit import service as audit
from quota.db import Database, Tx
from quota.errors import AlreadyExists, BadRequest, NotFound, Unauthenticated
from quota.identity.tables import organizations, tokens
from quota.ids import new_id
from quota.schemas.identity import (
    Caller,
    NewOrganization,
    NewToken,
    Organization,
    OrganizationKind,
    OrganizationList,
    Role,
    Scope,
    Token,
    TokenList,
    TokenWithSecret,
)

PREFIX = "ghub_"

_BY_SECRET = select(tokens).where(tokens.c.secret_sha256 == bindparam("digest"))
_ORGANIZATION = select(organizations).where(organizations.c.id == bindparam("organization"))


def create_organization(tx: Tx, caller: Caller, body: NewOrganization) -> Organization:
    """Register an organization; a known id is refused."""
    if tx.connection.execute(select(organizations.c.id).where(organizations.c.id == body.id)).first():
        raise AlreadyExists(f"organization {body.id} exists already", field="id")
    tx.connection.execute(
        insert(organizations),
        {
            "id": body.id,
            "name": body.name,
            "kind": body.kind.value,
            "frozen": False,
            "created_at_ms": tx.now_ms,
            "decayed_usage_gpu_us": 0.0,
            "decayed_as_of_ms": tx.now_ms,
        },
    )
    tx.touch("organization", body.id)
    audit.record(tx, caller.token_id, "organization.create", body.id, detail={"name": body.name})
    return read_organization(tx.connection, body.id)


def read_organization(connection: Connection, organization_id: str) -> Organization:
    """One organization. Raises NotFound."""
    row = connection.execute(_ORGANIZATION, {"organization": organization_id}).one_or_none()
    if row is None:
        raise NotFound(f"there is no organization {organization_id}")
    return _organization(row)


def list_organizations(connection: Connection, caller: Caller) -> OrganizationList:
    """All organizations in order of id; a member sees its own."""
    statement = select(organizations).order_by(organizations.c.id)
    if caller.role is Role.MEMBER:
        statement = statement.where(organizations.c.id == caller.organization_id)
    return OrganizationList(items=tuple(_organization(row) for row in connection.execute(statement)))


def create_token(tx: Tx, actor: str, body: NewToken) -> TokenWithSecret:
    """Make a token. Only its SHA-256 is stored; the secret is in this answer and nowhere else."""
    if body.role is Role.MEMBER and body.organization_id is None:
        raise BadRequest("a member token needs organization_id", field="organization_id")
    if body.role is not Role.MEMBER and body.organization_id is not None:
        raise BadRequest(f"a {body.role.value} token belongs to no organization", field="organization_id")
    if body.node is not None and body.role is not Role.AGENT:
        raise BadRequest("only an agent token is bound to a node", field="node")
    if body.organization_id is not None:
        read_organization(tx.connection, body.organization_id)
    secret = PREFIX + secrets.token_urlsafe(32)
    row = {
        "id": new_id("tok"),
        "role": body.role.value,
        "organization_id": body.organization_id,
        "node": body.node,
        "label": body.label,
        "prefix": secret[:12],
        "secret_sha256": _digest(secret),
        "created_at_ms": tx.now_ms,
        "expires_at_ms": body.expires_at,
        "revoked_at_ms": None,
    }
    tx.connection.execute(insert(tokens), row)
    detail = {"role": body.role.value, "organization_id": body.organization_id, "label": body.label}
    audit.record(tx, actor, "token.create", str(row["id"]), detail=detail)
    stored = tx.connection.execute(select(tokens).where(tokens.c.id == row["id"])).one()
    return TokenWithSecret(**_token(stored).model_dump(), secret=secret)


def revoke_token(tx: Tx, caller: Caller, token_id: str) -> Token:
    """End a token at once; revoking twice is revoking once."""
    row = tx.connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no token {token_id}")
    if row.revoked_at_ms is None:
        tx.connection.execute(update(tokens).where(tokens.c.id == token_id).values(revoked_at_ms=tx.now_ms))
        audit.record(tx, caller.token_id, "token.revoke", token_id)
    return _token(tx.connection.execute(select(tokens).where(tokens.c.id == token_id)).one())


def list_tokens(connection: Connection) -> TokenList:
    """All tokens without secrets, in order of creation."""
    return TokenList(
        items=tuple(_token(row) for row in connection.execute(select(tokens).order_by(tokens.c.id)))
    )


def authenticate(database: Database, secret: str, address: str) -> Caller:
    """Who this secret, presented from this address, speaks for. Raises Unauthenticated."""
    with database.read() as connection:
        row = connection.execute(_BY_SECRET, {"digest": _digest(secret)}).one_or_none()
    now_ms = database.clock.now_ms()
    if row is None or row.revoked_at_ms is not None:
        raise Unauthenticated("this token is unknown or was revoked")
    if row.expires_at_ms is not None and row.expires_at_ms <= now_ms:
        raise Unauthenticated("this token has expired")
    return Caller(
        token_id=row.id,
        role=Role(row.role),
        organization_id=row.organization_id,
        node=row.node,
        scopes=tuple(Scope(name) for name in row.scopes.split()),
        address=address,
    )


def sees(caller: Caller, organization_id: str) -> bool:
    """Whether the caller may know of this organization's objects."""
    return caller.role in (Role.OPERATOR, Role.AUDITOR) or caller.organization_id == organization_id


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _organization(row: Row[Any]) -> Organization:
    return Organization(
        id=row.id,
        name=row.name,
        kind=OrganizationKind(row.kind),
        frozen=row.frozen,
        created_at=row.created_at_ms,
    )


def _token(row: Row[Any]) -> Token:
    return Token(
        id=row.id,
        role=Role(row.role),
        organization_id=row.organization_id,
        node=row.node,
        label=row.label,
        prefix=row.prefix,
        created_at=row.created_at_ms,
        expires_at=row.expires_at_ms,
        revoked_at=row.revoked_at_ms,
    )
