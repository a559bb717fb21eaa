"""The `gpuhub simulate` command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from quota.clock import Clock
from scheduler.simulator.fleet import DEFAULT_NODES
from scheduler.simulator.run import CannotServe, serve
from scheduler.simulator.settings import Settings

app = typer.Typer(add_completion=False)


@app.command()
def simulate(
    data_dir: Annotated[Path, typer.Option(help="Where the journal lies; one process per directory.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port and prints it.")] = 8090,
    nodes: Annotated[
        list[str] | None,
        typer.Option(help="NODES:CLASS=COUNT[,...], e.g. 'sim-[0-1]:h100=8'. May be given several times."),
    ] = None,
    clock: Annotated[
        str, typer.Option(envvar="GPUHUB_CLOCK", help="BUSINESS_MS,WALL_MS,SPEED; empty = the wall's time.")
    ] = "",
    token_env: Annotated[
        str, typer.Option(help="Name of the environment variable that holds the bearer token.")
    ] = "",
    sample_period_s: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Business time between utilisation samples.")
    ] = 10.0,
    speedy: Annotated[
        bool, typer.Option("--speedy", help="Pods start and stop without delay unless they say otherwise.")
    ] = False,
) -> None:
    """Run a simulated GPU cluster: nodes, pods, a journal and an HTTP door."""
    try:
        settings = Settings(
            data_dir=data_dir,
            host=host,
            port=port,
            nodes=tuple(nodes) if nodes else DEFAULT_NODES,
            clock=_clock(clock),
            token=_token(token_env),
            sample_period_ms=round(sample_period_s * 1000),
            speedy=speedy,
        )
        serve(settings)
    except CannotServe as trouble:
        typer.echo(f"gpuhub simulate: {trouble}", err=True)
        raise typer.Exit(2) from trouble


def _clock(text: str) -> Clock:
    try:
        return Clock.from_text(text)
    except ValueError as wrong:
        raise CannotServe(f"--clock: {wrong}") from wrong


def _token(variable: str) -> str:
    if not variable:
        return ""
    token = os.environ.get(variable, "")
    if not token:
        raise CannotServe(f"--token-env: the environment has no {variable}")
    return token
