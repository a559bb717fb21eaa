"""`gpuhub organization` and `gpuhub token`: who may come in (operators)."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.durations import duration_s
from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, json_out, moment, table
from quota.client import QuotaClient
from quota.schemas.identity import NewOrganization, NewToken, OrganizationKind, Role, Token

Json = Annotated[bool, JsonOption]

organization_app = typer.Typer(no_args_is_help=True, help="Register and list organizations (operators).")
token_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens (operators).")


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
def list_organizations(as_json: Json = False) -> None:
    """List organizations."""
    with service() as client:
        found = client.list_organizations()
    if as_json:
        json_out(found.items)
        return
    rows = [
        (item.id, item.name, item.kind.value, "frozen" if item.frozen else "", moment(item.created_at))
        for item in found.items
    ]
    console().print(table("", ("organization", "name", "kind", "", "registered"), rows))


@token_app.command("create")
def create_token(
    role: Annotated[Role, typer.Argument(help="What the token may do.")],
    organization: Annotated[str | None, typer.Option(help="Members: their organization.")] = None,
    node: Annotated[str | None, typer.Option(help="Agents: the node it may speak for.")] = None,
    label: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    expires_in: Annotated[
        str | None, typer.Option(help="How long it is valid: 90d. Default: until revoked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a token. Its secret is shown this once."""
    with service() as client:
        body = NewToken(
            role=role,
            organization_id=organization,
            node=node,
            label=label,
            expires_at=None if expires_in is None else _expiry_ms(client, expires_in),
        )
        made = client.create_token(body)
    if as_json:
        json_out(made)
    else:
        typer.echo(f"token {made.id} ({made.role.value}); the secret is shown only now:")
        typer.echo(made.secret)


@token_app.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List tokens, without their secrets."""
    with service() as client:
        found = client.list_tokens()
    if as_json:
        json_out(found.items)
        return
    columns = ("token", "role", "for", "label", "prefix", "made", "state")
    rows = [
        (
            item.id,
            item.role.value,
            item.organization_id or item.node or "",
            item.label,
            item.prefix,
            moment(item.created_at),
            _token_state(item),
        )
        for item in found.items
    ]
    console().print(table("", columns, rows))


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="The token's id; see `gpuhub token list`.")],
    as_json: Json = False,
) -> None:
    """End a token at once."""
    with service() as client:
        ended = client.revoke_token(token_id)
    if as_json:
        json_out(ended)
    else:
        typer.echo(f"token {ended.id} revoked")


def _token_state(item: Token) -> str:
    if item.revoked_at is not None:
        return f"revoked {moment(item.revoked_at)}"
    return "" if item.expires_at is None else f"until {moment(item.expires_at)}"


def _expiry_ms(client: QuotaClient, text: str) -> int:
    try:
        valid_ms = duration_s(text) * 1000
    except ValueError as error:
        raise UsageTrouble(f"--expires-in: {error}") from error
    return client.read_clock().now + valid_ms
