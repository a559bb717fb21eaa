"""`gpuhub findings` and `gpuhub audit`: what should not be, and who did what (operators, auditors)."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from deploy.session import service
from deploy.show import JsonOption, console, json_out, moment, table

Json = Annotated[bool, JsonOption]
After = Annotated[int, typer.Option(min=0, help="Only what came after this id.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many, oldest first.")]


def findings(after: After = 0, limit: Limit = 100, as_json: Json = False) -> None:
    """Show findings: disagreements and other things that should not be, with numbers."""
    with service() as client:
        page = client.list_findings(after, limit)
    if as_json:
        json_out(page)
        return
    rows = [(str(item.id), moment(item.at), item.code, item.subject, item.detail) for item in page.items]
    console().print(
        table("", (">id", "at (KST)", "code", "subject", "detail"), rows) if rows else "no findings"
    )
    _tell_next("findings", page.next)


def audit(after: After = 0, limit: Limit = 100, as_json: Json = False) -> None:
    """Show the audit trail: every change, by whom, to what and why."""
    with service() as client:
        page = client.list_audit(after, limit)
    if as_json:
        json_out(page)
        return
    rows = [
        (str(row.id), moment(row.at), row.actor, row.action, row.subject, row.reason, json.dumps(row.detail))
        for row in page.items
    ]
    console().print(table("", (">id", "at (KST)", "who", "did", "to", "because", "detail"), rows))
    _tell_next("audit", page.next)


def _tell_next(command: str, after: int | None) -> None:
    if after is not None:
        typer.echo(f"more: gpuhub {command} --after {after}")


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("findings")(findings)
    app.command("audit")(audit)
