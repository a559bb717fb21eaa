"""`gpuhub audit`: who did what, the chain of seals, the ledger as a file, and its check without the service."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from deploy import audit_verify
from deploy.moments import maybe_moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, hours, json_out, moment, table
from quota.client import ServiceUnavailable
from quota.schemas.audit import AuditRow

Json = Annotated[bool, JsonOption]
After = Annotated[int, typer.Option(min=0, help="Only what came after this number.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many, oldest first; over 100 need --reason.")]
Since = Annotated[
    str | None, typer.Option(help="From this moment on: '2026-11-22 18:00' in Seoul, or RFC 3339.")
]
Until = Annotated[str | None, typer.Option(help="Before this moment.")]

audit_app = typer.Typer(help="Who did what, its seals, and the ledger as a file to check.")


@audit_app.callback(invoke_without_command=True)
def trail(
    context: typer.Context,
    after: After = 0,
    limit: Limit = 100,
    actor: Annotated[str | None, typer.Option(help="Only what this token did.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, such as grant.cut or personal.read.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only what was done to this.")] = None,
    since: Since = None,
    until: Until = None,
    reason: Annotated[str | None, typer.Option(help="Why you need it; kept in the trail.")] = None,
    as_json: Json = False,
) -> None:
    """Show the audit trail: every change, by whom, to what, why, and what it changed."""
    if context.invoked_subcommand is not None:
        return
    since_ms, until_ms = maybe_moment_ms("--since", since), maybe_moment_ms("--until", until)
    with service() as client:
        page = client.list_audit(
            after,
            limit,
            actor=actor,
            action=action,
            subject=subject,
            since=since_ms,
            until=until_ms,
            reason=reason,
        )
    if as_json:
        json_out(page)
        return
    rows = [
        (str(row.id), moment(row.at), row.actor, row.action, row.subject, row.reason, _what_changed(row))
        for row in page.items
    ]
    console().print(table("", (">id", "at (KST)", "who", "did", "to", "because", "what"), rows))
    if page.next is not None:
        typer.echo(f"more: gpuhub audit --after {page.next}")


@audit_app.command()
def seals(after: After = 0, limit: Limit = 100, as_json: Json = False) -> None:
    """Show the chain of seals; write the last SHA-256 down where the hub cannot reach."""
    with service() as client:
        page = client.list_seals(after, limit)
    if as_json:
        json_out(page)
        return
    rows = [
        (str(seal.number), moment(seal.at), str(seal.audit_rows), str(seal.transfers), seal.sha256)
        for seal in page.items
    ]
    console().print(table("", (">seal", "at (KST)", ">audit rows", ">transfers", "SHA-256"), rows))
    if page.next is not None:
        typer.echo(f"more: gpuhub audit seals --after {page.next}")


@audit_app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write; packed if the name ends with .gz.")],
    reason: Annotated[str, typer.Option(help="Why you need it; kept in the trail.")],
    through_seal: Annotated[
        int | None, typer.Option(min=1, help="Up to this seal instead of the newest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the whole ledger and audit trail up to a seal into one file of JSON lines."""
    with service() as client:
        try:
            with _whole_file(file) as target:
                client.export_ledger(target, reason, through_seal)
        except OSError as error:
            raise UsageTrouble(f"{file}: {error.strerror or error}") from error
    size = file.stat().st_size
    if as_json:
        json_out({"file": str(file), "bytes": size})
    else:
        typer.echo(f"{file}: {size:,} bytes; check it with: gpuhub audit verify {file}")


@audit_app.command()
def verify(
    ledger: Annotated[Path, typer.Argument(help="A file of `gpuhub audit export`.")],
    statements: Annotated[list[Path] | None, typer.Argument(help="Statements: .json, .csv, .html.")] = None,
    head: Annotated[
        list[str] | None, typer.Option(help="SHA-256 of a seal that you wrote down earlier.")
    ] = None,
) -> None:
    """Check a ledger's file, and statements against it, without the service: one line per violation.

    Exit codes: 0 all rules hold · 1 violations · 2 nothing could be checked.
    """
    raise typer.Exit(
        audit_verify.run(ledger, statements or [], head or [], lambda text: typer.echo(text, nl=False))
    )


def _what_changed(row: AuditRow) -> str:
    """The fields that differ between before and after, else the row's detail."""
    if row.before is None and row.after is None:
        return ", ".join(f"{name}: {_shown(row.detail, name)}" for name in row.detail)
    before, after = row.before or {}, row.after or {}
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {_shown(before, name)} -> {_shown(after, name)}" for name in names)


def _shown(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return "none"
    if name.endswith("_gpu_us") and str(value).lstrip("-").isdecimal():
        return f"{hours(int(str(value)))} GPU-h"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _whole_file(file: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when all of it was written and its last line is the footer."""
    part = file.with_name(file.name + ".part")
    opened = cast("Callable[[Path, str], BinaryIO]", gzip.open if file.suffix == ".gz" else open)
    try:
        with opened(part, "wb") as target:
            watched = _Tail(target)
            yield cast("BinaryIO", watched)
        if not watched.last_line().startswith(b'{"counts":'):
            raise ServiceUnavailable("the answer broke off before the file's footer")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


class _Tail:
    """Passes bytes on and remembers the last of them."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._tail = b""

    def write(self, chunk: bytes) -> int:
        self._tail = (self._tail + chunk)[-4096:]
        return self._target.write(chunk)

    def last_line(self) -> bytes:
        return self._tail.removesuffix(b"\n").rpartition(b"\n")[2] if self._tail.endswith(b"}\n") else b""
