"""`gpuhub reconcile` and `gpuhub tasks`: does everything agree, and did what runs by itself run (operators)."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.session import service
from deploy.show import AUDITORS, JsonOption, console, hours, json_out, moment, table
from quota.schemas.reconciliation import ReconcileDay, Reconciliation

Json = Annotated[bool, JsonOption]


def reconcile(
    day: Annotated[str | None, typer.Argument(help="Compare this day again: YYYY-MM-DD in Seoul.")] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days to show.")] = 14,
    as_json: Json = False,
) -> None:
    """Show per day what ledger, clusters and agents say; differences are listed by `gpuhub findings`."""
    with service() as client:
        asked = None if day is None else ReconcileDay(day=day)
        page = client.list_reconciliations(limit=days) if asked is None else client.reconcile_day(asked)
    if as_json:
        json_out(page)
        return
    if not page.items:
        typer.echo("no day is over yet; each is compared once the next has begun and late evidence is in")
        return
    columns = ("day", "cluster", ">attempts", ">ledger", ">cluster", ">observed", ">busy", ">differences")
    console().print(table("GPU hours per day (Seoul)", columns, [_cells(item) for item in page.items]))


def tasks(as_json: Json = False) -> None:
    """Show the periodic tasks and what they did last."""
    with service() as client:
        found = client.list_tasks()
    if as_json:
        json_out(found)
        return
    rows = [
        (
            item.name,
            f"{item.period_s} s",
            "never" if item.last_run_at is None else moment(item.last_run_at),
            item.result or "",
        )
        for item in found.items
    ]
    console().print(table("periodic tasks", ("task", ">every", "last run (KST)", "result"), rows))


def _cells(item: Reconciliation) -> tuple[str, ...]:
    # an amount on a GPU at rate 1.000: GPU milliseconds x 1000
    amounts = (item.ledger_gpu_ms, item.cluster_gpu_ms, item.observed_gpu_ms, item.busy_gpu_ms)
    return (
        item.day,
        item.cluster,
        str(item.attempts),
        *(hours(amount * 1000) for amount in amounts),
        str(item.differences),
    )


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("reconcile", rich_help_panel=AUDITORS)(reconcile)
    app.command("tasks", rich_help_panel=AUDITORS)(tasks)
