"""`gpuhub organization` and `gpuhub token`: who may come in (operators)."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.durations import duration_s
from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, json_out, moment, table
from quota.client import QuotaClient
from quota.schemas.identity import (
    NewOrganization,
    NewToken,
    Organization,
    OrganizationChange,
    OrganizationKind,
    Role,
    Scope,
    Token,
    TokenRotation,
)

Json = Annotated[bool, JsonOption]
Key = Annotated[str | None, typer.Option(help="Idempotency-Key: the same request twice is done once.")]

organization_app = typer.Typer(no_args_is_help=True, help="Register, correct and list organizations.")
token_app = typer.Typer(
    no_args_is_help=True, help="Make, rotate, list and revoke tokens; members rotate their own."
)


@organization_app.command("create")
def create_organization(
    organization_id: Annotated[str, typer.Argument(help="A short name, such as alpha-lab.")],
    name: Annotated[str, typer.Option(help="Its full name.")],
    kind: Annotated[OrganizationKind, typer.Option(help="What sort it is.")] = OrganizationKind.STARTUP,
    as_json: Json = False,
) -> None:
    """Register an organization."""
    with service() as client:
        made = client.create_organization(NewOrganization(id=organization_id, name=name, kind=kind))
    if as_json:
        json_out(made)
    else:
        typer.echo(f"{made.id} registered; next: gpuhub token create member --organization {made.id}")


@organization_app.command("list")
def list_organizations(
    kind: Annotated[OrganizationKind | None, typer.Option(help="Only of this sort.")] = None,
    as_json: Json = False,
) -> None:
    """List organizations."""
    with service() as client:
        found = _all_organizations(client, kind)
    if as_json:
        json_out(found)
        return
    rows = [
        (item.id, item.name, item.kind.value, "frozen" if item.frozen else "", moment(item.created_at))
        for item in found
    ]
    console().print(table("", ("organization", "name", "kind", "", "registered"), rows))


@organization_app.command("change")
def change_organization(
    organization_id: Annotated[str, typer.Argument(help="Its id.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    name: Annotated[str | None, typer.Option(help="Its right name.")] = None,
    kind: Annotated[OrganizationKind | None, typer.Option(help="What sort it really is.")] = None,
    as_json: Json = False,
) -> None:
    """Correct an organization's name or kind."""
    with service() as client:
        changed = client.change_organization(
            organization_id, OrganizationChange(name=name, kind=kind, reason=reason)
        )
    if as_json:
        json_out(changed)
    else:
        typer.echo(f"{changed.id} is {changed.name} ({changed.kind.value})")


@organization_app.command("revoke-tokens")
def revoke_organization_tokens(
    organization_id: Annotated[str, typer.Argument(help="Its id.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    as_json: Json = False,
) -> None:
    """End all tokens of an organization at once."""
    with service() as client:
        ended = client.revoke_organization_tokens(organization_id, reason)
    if as_json:
        json_out(ended)
    else:
        typer.echo(f"{len(ended.items)} tokens of {organization_id} revoked")


@token_app.command("create")
def create_token(
    role: Annotated[Role, typer.Argument(help="What the token may do.")],
    organization: Annotated[str | None, typer.Option(help="Members: their organization.")] = None,
    node: Annotated[str | None, typer.Option(help="Agents: the node it may speak for.")] = None,
    label: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Narrow it to this; repeatable. Default: all its role may.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="How long it is valid: 90d. Default: until revoked.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a token. Its secret is shown this once."""
    with service() as client:
        body = NewToken(
            role=role,
            organization_id=organization,
            node=node,
            label=label,
            scopes=tuple(scope or ()),
            expires_at=None if expires_in is None else _expiry_ms(client, expires_in),
        )
        made = client.create_token(body, key)
    if as_json:
        json_out(made)
    else:
        typer.echo(f"token {made.id} ({made.role.value}); the secret is shown only now:")
        typer.echo(made.secret)


@token_app.command("rotate")
def rotate_token(
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    token_id: Annotated[
        str | None, typer.Argument(help="The token's id; default: the one you are logged in with.")
    ] = None,
    overlap: Annotated[
        str, typer.Option(help="How long the old secret stays good: 12h; 0s: not at all.")
    ] = "1d",
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a successor of the same rights. Its secret is shown this once."""
    with service() as client:
        old = token_id or client.read_caller().token_id
        made = client.rotate_token(old, TokenRotation(overlap_s=_overlap_s(overlap), reason=reason), key)
    if as_json:
        json_out(made)
        return
    typer.echo(
        f"token {made.id} takes over from {old}, which ends in {overlap}; the secret is shown only now:"
    )
    typer.echo(made.secret)
    if token_id is None:
        typer.echo("go on with it: gpuhub login --url URL (it asks for the token)", err=True)


@token_app.command("list")
def list_tokens(
    role: Annotated[Role | None, typer.Option(help="Only of this role.")] = None,
    organization: Annotated[str | None, typer.Option(help="Only of this organization.")] = None,
    active: Annotated[
        bool | None, typer.Option("--active/--ended", help="Only those that work, or that do not.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List tokens, without their secrets. The audit trail keeps who read the list."""
    with service() as client:
        found = _all_tokens(client, role, organization, active)
    if as_json:
        json_out(found)
        return
    columns = ("token", "role", "for", "label", "prefix", "scopes", "made (KST)", "last used", "state")
    rows = [
        (
            item.id,
            item.role.value,
            item.organization_id or item.node or "",
            item.label,
            item.prefix,
            " ".join(item.scopes) or "all of its role",
            moment(item.created_at),
            "never" if item.last_used_at is None else moment(item.last_used_at),
            _token_state(item),
        )
        for item in found
    ]
    console().print(table("", columns, rows))


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="The token's id; see `gpuhub token list`.")],
    reason: Annotated[str | None, typer.Option(help="Why; kept in the audit trail.")] = None,
    as_json: Json = False,
) -> None:
    """End a token at once."""
    with service() as client:
        ended = client.revoke_token(token_id, reason)
    if as_json:
        json_out(ended)
    else:
        typer.echo(f"token {ended.id} revoked")


def _all_organizations(client: QuotaClient, kind: OrganizationKind | None) -> list[Organization]:
    page = client.list_organizations(kind=kind)
    found = list(page.items)
    while page.next is not None:
        page = client.list_organizations(page.next, kind=kind)
        found.extend(page.items)
    return found


def _all_tokens(
    client: QuotaClient, role: Role | None, organization: str | None, active: bool | None
) -> list[Token]:
    page = client.list_tokens(role=role, organization_id=organization, active=active)
    found = list(page.items)
    while page.next is not None:
        page = client.list_tokens(page.next, role=role, organization_id=organization, active=active)
        found.extend(page.items)
    return found


def _overlap_s(text: str) -> int:
    if text.strip() in ("0", "0s"):
        return 0
    try:
        return duration_s(text)
    except ValueError as error:
        raise UsageTrouble(f"--overlap: {error}") from error


def _token_state(item: Token) -> str:
    if item.revoked_at is not None:
        return f"revoked {moment(item.revoked_at)}"
    return "good" if item.expires_at is None else f"until {moment(item.expires_at)}"


def _expiry_ms(client: QuotaClient, text: str) -> int:
    try:
        valid_ms = duration_s(text) * 1000
    except ValueError as error:
        raise UsageTrouble(f"--expires-in: {error}") from error
    return client.read_clock().now + valid_ms
