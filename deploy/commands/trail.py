"""`gpuhub findings`: what should not be (operators, auditors)."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.session import service
from deploy.show import AUDITORS, JsonOption, console, json_out, moment, table

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
    if page.next is not None:
        typer.echo(f"more: gpuhub findings --after {page.next}")


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command("findings", rich_help_panel=AUDITORS)(findings)
