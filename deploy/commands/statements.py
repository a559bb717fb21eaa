"""`gpuhub statement`: read, save or print what was granted, held, used and charged."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from deploy.session import service
from deploy.show import JsonOption, console, hours, json_out, moment, table, won
from quota.clock import instant_ms
from quota.schemas.statements import Statement, StatementFormat, StatementLanguage, StatementLine

Json = Annotated[bool, JsonOption]
Moment = Annotated[str | None, typer.Option(help="RFC 3339; means the last audit seal at or before it.")]


def statement(
    grant_id: Annotated[str, typer.Argument(help="The grant's id; see `gpuhub balance`.")],
    as_of: Moment = None,
    since: Moment = None,
    output: Annotated[Path | None, typer.Option(help="Write a file instead of showing a table.")] = None,
    form: Annotated[StatementFormat, typer.Option("--format", help="Of the file.")] = StatementFormat.CSV,
    language: Annotated[
        StatementLanguage, typer.Option(help="Of the words in CSV and HTML.")
    ] = StatementLanguage.KO,
    as_json: Json = False,
) -> None:
    """Show every transfer of a grant with its arithmetic; with --as-of as it was sealed then."""
    as_of_ms, since_ms = _moment_ms("--as-of", as_of), _moment_ms("--since", since)
    with service() as client:
        if output is not None:
            content = client.write_statement(grant_id, form, language, as_of_ms, since_ms)
            output.write_bytes(content)
            typer.echo(f"{output}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")
            return
        found = client.read_statement(grant_id, as_of_ms, since_ms)
    if as_json:
        json_out(found)
    else:
        print_statement(found)


def _moment_ms(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return instant_ms(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def print_statement(found: Statement, tail: int | None = None) -> None:
    """A statement as a table; with `tail` only its last lines."""
    lines = found.lines if tail is None else found.lines[-tail:]
    title = (
        f"statement of {found.grant_id} ({found.organization_id}, {found.program_id})"
        f" as of {moment(found.as_of)}"
    )
    columns = ("at (KST)", "type", "job", ">granted", ">held", ">used", ">won", "arithmetic")
    out = console()
    if found.seal is None:
        title += ", not sealed"
    else:
        title += f", seal {found.seal.number} {found.seal.sha256[:16]}"
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


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command("statement", no_args_is_help=True)(statement)
