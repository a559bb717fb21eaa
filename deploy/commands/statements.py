"""`gpuhub statement`: read, save or print what was granted, held, used and charged."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from deploy.moments import maybe_moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, hours, json_out, moment, table, won
from quota.client.paging import every
from quota.schemas.statements import Statement, StatementFormat, StatementLanguage, StatementLine

Json = Annotated[bool, JsonOption]
AsOf = Annotated[
    str | None,
    typer.Option(help="As it stood at the last seal by then: '2026-11-22 18:00' in Seoul, or RFC 3339."),
]
Since = Annotated[str | None, typer.Option(help="Open with the balance at the last seal by then.")]


def statement(
    grant_id: Annotated[str, typer.Argument(help="The grant's id; see `gpuhub balance`.")],
    as_of: AsOf = None,
    since: Since = None,
    output: Annotated[Path | None, typer.Option(help="Write a file instead of showing a table.")] = None,
    form: Annotated[StatementFormat, typer.Option("--format", help="Of the file.")] = StatementFormat.CSV,
    language: Annotated[
        StatementLanguage, typer.Option(help="Of the words in CSV and HTML.")
    ] = StatementLanguage.KO,
    as_json: Json = False,
) -> None:
    """Show every transfer of a grant with its arithmetic; with --as-of as it was sealed then."""
    as_of_ms, since_ms = maybe_moment_ms("--as-of", as_of), maybe_moment_ms("--since", since)
    with service() as client:
        if output is not None:
            content = client.write_statement(grant_id, form, language, as_of_ms, since_ms)
            try:
                output.write_bytes(content)
            except OSError as error:
                raise UsageTrouble(
                    f"--output {output}: {error.strerror}; name a file you can write"
                ) from error
            told = {"file": str(output), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            if as_json:
                json_out(told)
            else:
                typer.echo(f"{output}: {len(content):,} bytes, SHA-256 {told['sha256']}")
            return
        found = client.read_statement(grant_id, as_of_ms, since_ms)
    if as_json:
        json_out(found)
    else:
        print_statement(found)


def issued(
    grant_id: Annotated[str, typer.Argument(help="The grant's id; see `gpuhub balance`.")],
    as_json: Json = False,
) -> None:
    """List the sealed statements of a grant that were issued, with the SHA-256 of each."""
    with service() as client:
        found = list(every(client.list_statements, grant_id=grant_id))
    if as_json:
        json_out(found)
        return
    rows = [
        (
            moment(item.issued_at),
            item.issued_by,
            f"{item.since_seal} to {item.seal}",
            item.format.value,
            item.language.value,
            item.sha256,
        )
        for item in found
    ]
    columns = ("issued (KST)", "to", "seals", "form", "words", "SHA-256")
    console().print(
        table("", columns, rows) if rows else "none yet; `gpuhub statement GRANT --as-of TIME` issues one"
    )


def print_statement(found: Statement, tail: int | None = None) -> None:
    """A statement as a table; with `tail` only its last lines."""
    lines = found.lines if tail is None else found.lines[-tail:]
    whose = found.organization_id or "opportunistic jobs"
    title = f"statement of {found.grant_id} ({whose}, {found.program_id}) as of {moment(found.as_of)}"
    columns = ("at (KST)", "type", "job", ">granted", ">held", ">used", ">won", "arithmetic")
    out = console()
    if found.seal is None:
        title += ", not sealed"
    else:
        title += f", seal {found.seal.number} {found.seal.sha256[:16]}"
    out.print(title, style="italic", soft_wrap=True)
    out.print(table("", columns, [_line_cells(line) for line in lines]))
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
    """Add these commands to the app."""
    app.command("statement", no_args_is_help=True)(statement)
    app.command("statements", no_args_is_help=True)(issued)
