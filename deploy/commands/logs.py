"""`gpuhub logs`: what a job's pod wrote, and what it goes on to write."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from deploy.session import service

INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C ended."""


class _Output:
    """Standard output, where every piece shows at once."""

    def write(self, data: bytes, /) -> int:
        """Write and show."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return len(data)


def logs(
    job_id: Annotated[str, typer.Argument(help="The job's id.")],
    attempt: Annotated[int | None, typer.Option(min=1, help="Which attempt; default: the latest.")] = None,
    pod: Annotated[int, typer.Option(min=0, help="Which pod of a gang; the first is 0.")] = 0,
    tail: Annotated[int, typer.Option(min=0, help="How many of the last lines.")] = 1000,
    since: Annotated[
        int | None, typer.Option(min=1, metavar="SECONDS", help="Only what was written since so long ago.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the pod ends, or Ctrl-C.")
    ] = False,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Begin each line with its time.")] = False,
) -> None:
    """Show what a job wrote. A last line that begins with gpuhub says that there is more."""
    try:
        with service() as client:
            client.read_job_logs(
                job_id,
                _Output(),
                attempt=attempt,
                pod=pod,
                tail_lines=tail,
                since_s=since,
                follow=follow,
                timestamps=timestamps,
            )
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `gpuhub logs JOB | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def register(app: typer.Typer) -> None:
    """Add this command to the app."""
    app.command("logs", no_args_is_help=True)(logs)
