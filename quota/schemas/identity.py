"""Organizations, tokens and the caller behind a token."""

from __future__ import annotations

from enum import StrEnum

from quota.schemas.values import Instant, Name, NodeName, Reply, Request, Slug, Text


class Role(StrEnum):
    """What a token may do."""

    OPERATOR = "operator"
    """Runs the hub: organizations, grants, nodes, every job."""
    MEMBER = "member"
    """Belongs to one organization: its jobs, its grants."""
    AUDITOR = "auditor"
    """Reads everything, changes nothing."""
    SCHEDULER = "scheduler"
    """The scheduler program."""
    AGENT = "agent"
    """A node agent: may deliver evidence only."""


class Scope(StrEnum):
    """What a token may be narrowed to; a token without scopes may do everything that its role may."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    GRANTS_READ = "grants:read"
    """Grants, balances, statements."""
    GRANTS_WRITE = "grants:write"
    """Programmes, awards, changes of grants, corrections."""
    FLEET_READ = "fleet:read"
    FLEET_WRITE = "fleet:write"
    """Clusters, GPU classes, nodes, and the switches that pause placement."""
    IDENTITY_READ = "identity:read"
    IDENTITY_WRITE = "identity:write"
    """Organizations and tokens."""
    AUDIT_READ = "audit:read"
    """The audit trail, its seals, findings, reconciliations."""
    SCHEDULER = "scheduler"
    EVIDENCE_WRITE = "evidence:write"


class OrganizationKind(StrEnum):
    """What sort of organization this is."""

    STARTUP = "startup"
    SME = "sme"
    UNIVERSITY = "university"
    TRAINING = "training"
    PUBLIC = "public"


class NewOrganization(Request):
    """Register an organization."""

    id: Slug
    name: Name
    kind: OrganizationKind = OrganizationKind.STARTUP


class Organization(Reply):
    """An organization as operators see it."""

    id: str
    name: str
    kind: OrganizationKind
    frozen: bool
    created_at: Instant


class NewToken(Request):
    """Make a token; members need `organization_id`, agents may be bound to a node."""

    role: Role
    organization_id: Slug | None = None
    node: NodeName | None = None
    label: Text = ""
    expires_at: Instant | None = None


class Token(Reply):
    """A token without its secret."""

    id: str
    role: Role
    organization_id: str | None
    node: str | None
    label: str
    prefix: str
    created_at: Instant
    expires_at: Instant | None
    revoked_at: Instant | None


class TokenWithSecret(Token):
    """A new token; the secret is shown this once."""

    secret: str


class Caller(Reply):
    """Who a token speaks for."""

    token_id: str
    role: Role
    organization_id: str | None
    node: str | None = None
    scopes: tuple[Scope, ...] = ()
    """Empty: everything that the role may do."""
    address: str = ""
    """Where the request came from; for the audit trail."""


class OrganizationList(Reply):
    """Organizations in order of id."""

    items: tuple[Organization, ...]


class TokenList(Reply):
    """Tokens in order of creation."""

    items: tuple[Token, ...]


class AuditRow(Reply):
    """One mutation: who did what to what."""

    id: int
    at: Instant
    actor: str
    action: str
    subject: str
    reason: str
    detail: dict[str, object]


class AuditPage(Reply):
    """Audit rows, oldest first; pass `next` as `after` for the following page."""

    items: tuple[AuditRow, ...]
    next: int | None
