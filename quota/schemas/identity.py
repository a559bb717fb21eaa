"""Organizations, tokens and the caller behind a token."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from quota.schemas.values import Instant, Name, Reason, Reply, Request, Slug, Text

NodeBinding = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9.-]{0,251}[a-z0-9*]$|^[a-z0-9]$",
        description="A node's name; with `*` at its end all nodes whose names begin so (one agent of a simulated "
        "cluster).",
        examples=["sim-0", "sim-*"],
    ),
]
LONGEST_OVERLAP_S = 30 * 86_400


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
    """Programmes, awards, changes of grants, corrections; for a member: how its firms share its grant."""
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


class OrganizationChange(Request):
    """Correct an organization's name or kind; what is left out stays."""

    name: Name | None = None
    kind: OrganizationKind | None = None
    reason: Reason


class NewToken(Request):
    """Make a token; members need `organization_id`, agents `node`."""

    role: Role
    organization_id: Slug | None = None
    node: NodeBinding | None = None
    label: Text = ""
    """Whose it is; shown to operators and auditors."""
    scopes: Annotated[tuple[Scope, ...], Field(max_length=len(Scope))] = ()
    """Empty: everything that the role may do."""
    expires_at: Instant | None = None
    """Absent: until it is revoked."""


class TokenRotation(Request):
    """Take a token over into a new one of the same rights."""

    overlap_s: Annotated[int, Field(strict=True, ge=0, le=LONGEST_OVERLAP_S)] = 86_400
    """How long the old secret stays good, in seconds of the hub's clock; 0 ends it at once."""
    expires_at: Instant | None = None
    """Operators: when the new one ends. Absent: when the old one would have."""
    reason: Reason


class TokenRevocation(Request):
    """End every token of an organization."""

    reason: Reason


class Token(Reply):
    """A token without its secret."""

    id: str
    role: Role
    organization_id: str | None
    node: str | None
    label: str
    prefix: str
    scopes: tuple[Scope, ...] = ()
    """Empty: everything that the role may do."""
    created_at: Instant
    expires_at: Instant | None
    revoked_at: Instant | None
    last_used_at: Instant | None = None
    """To the minute; absent: never used."""
    replaces: str | None = None
    """The token that this one took over from."""


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
    """Organizations in order of id; pass `next` as `after` for the following page."""

    items: tuple[Organization, ...]
    next: str | None = None


class TokenList(Reply):
    """Tokens in order of creation; pass `next` as `after` for the following page."""

    items: tuple[Token, ...]
    next: str | None = None


class RevokedTokens(Reply):
    """The tokens that this call ended, in order of creation."""

    organization_id: str
    items: tuple[Token, ...]
