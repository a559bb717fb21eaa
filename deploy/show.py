"""How amounts, times and tables look on a terminal; and the same content as JSON for scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quota.schemas.values import GPU_US_PER_HOUR

SEOUL = timezone(timedelta(hours=9), "KST")
"""Hours are cut and statements are read in Seoul's time."""

_AMOUNT = re.compile(r"(?<![\w.-])(-?\d+) GPU(?:-us|·µs)")
_BARE_AMOUNT = re.compile(r"(?<![\w.,-])(-?\d{7,})(?![\w.-])")

OPERATORS = "Operators"
AUDITORS = "Auditors and operators"
"""Panels of the help; what is in none of them is everybody's."""

JsonOption = typer.Option("--json", help="Print the service's answer as JSON, for scripts.")


def console() -> Console:
    """The terminal; wide enough for a table when the output goes into a file."""
    out = Console(highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(highlight=False, width=160)


def json_out(content: BaseModel | Sequence[BaseModel] | dict[str, object]) -> None:
    """One JSON document on stdout."""
    if isinstance(content, BaseModel):
        typer.echo(content.model_dump_json(indent=1))
    elif isinstance(content, dict):
        typer.echo(json.dumps(content, indent=1))
    else:
        typer.echo(json.dumps([json.loads(item.model_dump_json()) for item in content], indent=1))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; a column whose name begins with `>` holds numbers and is aligned right."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        made.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    for row in rows:
        # Text, not markup: names may hold square brackets.
        made.add_row(*(Text(cell) for cell in row))
    return made


def hours(amount_gpu_us: int) -> str:
    """GPU hours for people; small amounts keep the digits that matter."""
    value = amount_gpu_us / GPU_US_PER_HOUR
    if amount_gpu_us == 0:
        return "0"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.6f}".rstrip("0") or "0"


def with_hours(text: str) -> str:
    """A text for people with its GPU-microseconds told in hours, as the tables tell them."""

    def told(found: re.Match[str]) -> str:
        return f"{hours(int(found[1]))} GPU-h"

    # one unit may stand for several amounts: "at most 5 GPU-us are possible, 3600000000 were asked for"
    return _BARE_AMOUNT.sub(told, _AMOUNT.sub(told, text)) if _AMOUNT.search(text) else text


def moment(at_ms: int | None) -> str:
    """A time in Seoul, to the second."""
    if at_ms is None:
        return "-"
    return f"{datetime.fromtimestamp(at_ms / 1000, SEOUL):%Y-%m-%d %H:%M:%S}"


def won(amount: int) -> str:
    """Won with thousands separated."""
    return f"₩{amount:,}"
