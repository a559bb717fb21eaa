"""What tokens may be: which scopes a role has, which nodes an agent speaks for, who may hand on what."""

from __future__ import annotations

from collections.abc import Iterable

from quota.schemas.identity import Caller, Role, Scope

_READS = {Scope.JOBS_READ, Scope.GRANTS_READ, Scope.FLEET_READ, Scope.IDENTITY_READ}
_WRITES = {Scope.JOBS_WRITE, Scope.GRANTS_WRITE, Scope.FLEET_WRITE, Scope.IDENTITY_WRITE}

SCOPES: dict[Role, frozenset[Scope]] = {
    Role.OPERATOR: frozenset(_READS | _WRITES | {Scope.AUDIT_READ}),
    Role.AUDITOR: frozenset(_READS | {Scope.AUDIT_READ}),
    Role.MEMBER: frozenset(_READS | {Scope.JOBS_WRITE, Scope.GRANTS_WRITE}),
    Role.SCHEDULER: frozenset({Scope.SCHEDULER}),
    Role.AGENT: frozenset({Scope.EVIDENCE_WRITE}),
}
"""All that a role may do; a token may be narrowed to some of it."""


def foreign_scopes(role: Role, scopes: Iterable[Scope]) -> list[Scope]:
    """Those scopes that this role does not have."""
    return [scope for scope in scopes if scope not in SCOPES[role]]


def may_hand_on(caller: Caller, scopes: Iterable[Scope]) -> bool:
    """Whether the caller may make a token with these scopes: a narrowed one makes none wider than itself."""
    wanted = set(scopes)
    return not caller.scopes or (bool(wanted) and wanted <= set(caller.scopes))


def speaks_for(binding: str | None, node: str) -> bool:
    """Whether a token that is bound so may speak of this node; one bound to none speaks of none."""
    if binding is None:
        return False
    if binding.endswith("*"):
        return node.startswith(binding[:-1])
    return node == binding
