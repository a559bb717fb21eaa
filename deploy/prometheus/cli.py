"""`gpuhub prometheus`: a Prometheus on this machine that knows the hub's rules and alerts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from deploy.progress import Progress
from deploy.prometheus.programs import ready_prometheus
from deploy.prometheus.server import JOBS, ServerWish, running_prometheus
from deploy.session import Exit
from deploy.up import guarded

COMMAND = "gpuhub prometheus"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A Prometheus on this machine that knows the hub's rules and alerts.",
)


@app.command()
def build() -> None:
    """Build prometheus and promtool from their Go module, once per user; what is there already is kept."""
    raise typer.Exit(guarded(_build, command=COMMAND))


@app.command()
def run(
    folder: Annotated[
        Path, typer.Option(help="Where it keeps everything; the next start goes on from there.")
    ],
    target: Annotated[
        list[str],
        typer.Option(help="JOB=HOST:PORT, JOB one of quota, scheduler, agent. May be given several times."),
    ],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where it listens; default: a free one, remembered.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="An auditor's token, if the quota service is on another machine.")
    ] = None,
) -> None:
    """Run it until Ctrl-C or SIGTERM, with the hub's configuration. Listens on this machine only."""
    targets: dict[str, list[str]] = {}
    for text in target:
        job, _, address = text.partition("=")
        if job not in JOBS or ":" not in address:
            typer.echo(
                f"{COMMAND}: --target {text}: say JOB=HOST:PORT, JOB one of {', '.join(JOBS)}", err=True
            )
            raise typer.Exit(int(Exit.USAGE))
        targets.setdefault(job, []).append(address)
    try:
        token = "" if token_file is None else token_file.read_text().strip()
    except OSError as error:
        typer.echo(f"{COMMAND}: {token_file}: {error.strerror}", err=True)
        raise typer.Exit(int(Exit.USAGE)) from error
    wish = ServerWish(targets, port, token)
    raise typer.Exit(guarded(lambda progress: _run(folder, wish, progress), command=COMMAND))


def _build(progress: Progress) -> int:
    programs = ready_prometheus(progress)
    progress.say(f"prometheus and promtool are in {programs.prometheus.parent}")
    return int(Exit.OK)


def _run(folder: Path, wish: ServerWish, progress: Progress) -> int:
    programs = ready_prometheus(progress)
    with running_prometheus(folder, programs, wish, lambda line: progress.say(line, "yellow")) as server:
        progress.say(f"✓ Prometheus answers at {server.url} (its API; the web pages are not built in)")
        progress.say(f"  try: curl '{server.url}/api/v1/alerts'")
        while True:
            time.sleep(3600)
