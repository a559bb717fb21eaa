"""`gpuhub login`, `whoami`, `balance`, `statement`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deploy.session import open_client, save_login, service, told
from deploy.show import JsonOption, console, hours, json_out, moment, table, won
from quota.client import QuotaClient
from quota.schemas.identity import Caller
from quota.schemas.ledger import Statement, StatementLine
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
        typer.echo(f"{_caller_text(caller)} (token {caller.token_id})")


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


def statement(
    grant_id: Annotated[str, typer.Argument(help="The grant's id; see `gpuhub balance`.")],
    as_json: Json = False,
) -> None:
    """Show every transfer of a grant with its arithmetic."""
    with service() as client:
        found = client.read_statement(grant_id)
    if as_json:
        json_out(found)
    else:
        print_statement(found)


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
            grant.organization_id,
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


def print_statement(found: Statement, tail: int | None = None) -> None:
    """A statement as a table; with `tail` only its last lines."""
    lines = found.lines if tail is None else found.lines[-tail:]
    title = (
        f"statement of {found.grant_id} ({found.organization_id}, {found.program_id})"
        f" as of {moment(found.as_of)}"
    )
    columns = ("at (KST)", "type", "job", ">granted", ">held", ">used", ">won", "arithmetic")
    out = console()
    out.print(table(title, columns, [_line_cells(line) for line in lines]))
    if len(lines) < len(found.lines):
        out.print(f"({len(found.lines) - len(lines)} earlier lines: gpuhub statement {found.grant_id})")
    out.print(
        f"granted {hours(found.granted_gpu_us)} = used {hours(found.used_gpu_us)}"
        f" + held {hours(found.held_gpu_us)}"
        f" + available {hours(found.available_gpu_us)} GPU-h; used comes to {won(found.total_krw)}"
    )


def _line_cells(line: StatementLine) -> tuple[str, ...]:
    part = line.slice
    arithmetic = line.reason
    if part is not None:
        arithmetic = (
            f"{part.milliseconds:,} ms x {part.gpus} {part.gpu_class} x {part.rate_thousandths / 1000:g}"
            f" = {part.milliseconds * part.gpus * part.rate_thousandths:,} GPU-us;"
            f" {won(part.price_krw)}/h"
        )
    job = "" if line.job_id is None else f"{line.job_id}-{line.attempt}"
    return (
        moment(line.at),
        line.type.value,
        job,
        _signed(line.granted_gpu_us),
        _signed(line.held_gpu_us),
        _signed(line.used_gpu_us),
        won(line.krw) if line.krw else "",
        arithmetic,
    )


def _signed(amount_gpu_us: int) -> str:
    if not amount_gpu_us:
        return ""
    return ("+" if amount_gpu_us > 0 else "") + hours(amount_gpu_us)


def _caller_text(caller: Caller) -> str:
    return caller.role.value + (f" of {caller.organization_id}" if caller.organization_id else "")


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("login")(login)
    app.command("whoami")(whoami)
    app.command("balance")(balance)
    app.command("statement", no_args_is_help=True)(statement)
