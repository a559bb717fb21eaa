"""`gpuhub agent run`: reads and checks what it is told, and becomes the agent (`agents.node`).

The agent at work is a program of its own in the same process (same number, parent, signals and outputs): what reads
a command line would be carried along for as long as the node lives, and `gpuhub` has loaded all of its commands.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from agents.environment import SettingsFromEnvironment
from agents.settings import HANDED_OVER, AgentSettings, Unusable, clock_of, token_of

app = typer.Typer(
    name="agent",
    help="Measure what GPUs really do and deliver it as evidence.",
    pretty_exceptions_enable=False,
)


@app.callback()
def agent() -> None:
    """Measure what GPUs really do and deliver it as evidence."""


@app.command()
def run(
    quota_url: Annotated[str | None, typer.Option(help="The quota service's address.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the token.")] = None,
    reader: Annotated[str | None, typer.Option(help="What reads the GPUs: simulated or nvml.")] = None,
    cluster_url: Annotated[str | None, typer.Option(help="The simulated cluster's address.")] = None,
    node: Annotated[list[str] | None, typer.Option(help="Read this node; repeatable. None: all.")] = None,
    outbox: Annotated[Path | None, typer.Option(help="The file that keeps the evidence.")] = None,
    clock: Annotated[
        str | None, typer.Option(envvar="GPUHUB_CLOCK", help="BUSINESS_MS,WALL_MS,SPEED of the hub.")
    ] = None,
    sample_interval_s: Annotated[float | None, typer.Option(help="Business seconds between reads.")] = None,
    send_interval_s: Annotated[float | None, typer.Option(help="Wall seconds between deliveries.")] = None,
    host: Annotated[str | None, typer.Option(help="Where /metrics is served.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
) -> None:
    """Read GPUs, keep evidence, deliver it, serve /metrics, until SIGTERM or SIGINT."""
    given = {
        "quota_url": quota_url,
        "token_env": token_env,
        "reader": reader,
        "cluster_url": cluster_url,
        "node": node or None,
        "outbox": outbox,
        "clock": clock,
        "sample_interval_s": sample_interval_s,
        "send_interval_s": send_interval_s,
        "host": host,
        "port": port,
    }
    try:
        settings = AgentSettings.model_validate(
            SettingsFromEnvironment().model_dump()
            | {name: value for name, value in given.items() if value is not None}
        )
        clock_of(settings)
        token_of(settings)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _end(f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}") from error
    except Unusable as error:
        raise _end(str(error)) from error
    _become_the_agent(settings)


def _become_the_agent(settings: AgentSettings) -> NoReturn:
    # In the environment, which only the same user can read: an address may have a password in it.
    os.environ[HANDED_OVER] = settings.model_dump_json()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "agents.node"])


def _end(message: str) -> typer.Exit:
    sys.stderr.write(f"gpuhub agent: {message}\n")
    return typer.Exit(2)


if __name__ == "__main__":
    app()
