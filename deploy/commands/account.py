"""`gpuhub login`, `whoami`, `balance`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deploy.session import open_client, save_login, service, told
from deploy.show import JsonOption, console, hours, json_out, moment, table
from quota.client import QuotaClient
from quota.schemas.identity import Caller
from quota.schemas.programs import Grant

Json = Annotated[bool, JsonOption]


def login(
    url: Annotated[str, typer.Option(help="Address of the service.", envvar="GPUHUB_URL")],
    token: Annotated[
        str,
        typer.Option(
            help="Your token; asked for when left out.", prompt=True, hide_input=True, envvar="GPUHUB_TOKEN"
        ),
    ],
    as_json: Json = False,
) -> None:
    """Check a token and remember it for the next commands."""
    with told(), open_client(url, token) as client:
        caller = client.read_caller()
        path = save_login(url, token)
    if as_json:
        json_out({"saved": str(path), "role": caller.role.value, "organization_id": caller.organization_id})
        return
    typer.echo(f"logged in at {url} as {_caller_text(caller)}; saved in {path}")
    if os.environ.get("GPUHUB_TOKEN") not in (None, "", token):
        typer.echo("note: GPUHUB_TOKEN is set to another token and goes before the saved one", err=True)


def whoami(as_json: Json = False) -> None:
    """Say who the token speaks for."""
    with service() as client:
        caller = client.read_caller()
    if as_json:
        json_out(caller)
    else:
        scopes = f", narrowed to {' '.join(caller.scopes)}" if caller.scopes else ""
        typer.echo(f"{_caller_text(caller)} (token {caller.token_id}{scopes})")


def balance(
    organization: Annotated[str | None, typer.Option(help="Operators: only this organization's.")] = None,
    as_json: Json = False,
) -> None:
    """Show the grants: granted = used + held + available."""
    with service() as client:
        grants = all_grants(client, organization)
    if as_json:
        json_out(grants)
    elif grants:
        console().print(grant_table(grants))
    else:
        typer.echo("no grants; the operator awards them")


def all_grants(client: QuotaClient, organization: str | None = None) -> list[Grant]:
    """Every grant the caller may see, over all pages."""
    grants: list[Grant] = []
    after: str | None = None
    while True:
        page = client.list_grants(organization, after)
        grants.extend(page.items)
        after = page.next
        if after is None:
            return grants


def grant_table(grants: list[Grant]) -> object:
    """Grants as a table in GPU hours of the reference GPU."""
    rows = [
        (
            grant.id,
            grant.organization_id or "(opportunistic jobs)",
            grant.program_id,
            grant.state.value,
            hours(grant.granted_gpu_us),
            hours(grant.used_gpu_us),
            hours(grant.held_gpu_us),
            hours(grant.available_gpu_us),
            moment(grant.ends_at),
        )
        for grant in grants
    ]
    columns = (
        "grant",
        "organization",
        "programme",
        "state",
        ">granted",
        ">used",
        ">held",
        ">available",
        "ends (KST)",
    )
    return table("GPU hours of the reference GPU: granted = used + held + available", columns, rows)


def _caller_text(caller: Caller) -> str:
    return caller.role.value + (f" of {caller.organization_id}" if caller.organization_id else "")


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("login")(login)
    app.command("whoami")(whoami)
    app.command("balance")(balance)
