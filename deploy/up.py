"""`gpuhub up`: the whole hub on this machine, for a first look, a check, or a day out of a trace."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deploy.check import CLOCK_SPEED, CheckFailed, check
from deploy.child import last_lines
from deploy.datadir import DataDir, DataDirTrouble
from deploy.demo import MEMBER, seed
from deploy.hub import Hub, Wish, running
from deploy.progress import Progress
from deploy.session import Exit, UsageTrouble, refusal_lines
from deploy.supervisor import StartFailed
from deploy.trace import TraceWish, live_through
from deploy.traces import TraceTrouble
from quota.client import ServiceProblem, ServiceUnavailable

HOME = Path(".gpuhub")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where everything is kept; default .gpuhub, a new folder in it for --trace."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the API; default: a free one, remembered.")
    ] = None,
    checking: Annotated[
        bool, typer.Option("--check", help="Prove in a temporary directory that it works here, and exit.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that --check may take.")] = 120.0,
    clock_speed: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Business seconds per wall second; default 1, 10 with --check, 120 with --trace.",
        ),
    ] = None,
    trace: Annotated[
        str | None, typer.Option(help="Live through a trace: a .tar.gz, a folder, a .csv, or `synthetic`.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.05, max=1440, help="--trace: how many hours of it.")] = 24.0,
    start_day: Annotated[int, typer.Option(min=0, help="--trace: the day it begins with, from 0.")] = 0,
    nodes: Annotated[int, typer.Option(min=1, max=10_000, help="--trace: nodes of the cluster.")] = 128,
    gpus_per_node: Annotated[int, typer.Option(min=1, max=64, help="--trace: H100s per node.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="--trace synthetic: the same seed, the same trace.")] = 1,
) -> None:
    """Start the whole hub on this machine: API, ledger, scheduler, a simulated GPU cluster and its agent."""
    if checking and (trace is not None or data_dir is not None):
        raise typer.Exit(
            _fail(Exit.USAGE, "--check takes neither --trace nor --data-dir: it has a folder of its own")
        )
    if checking:
        raise typer.Exit(_check(port, clock_speed or CLOCK_SPEED, timeout))
    if trace is None:
        home = DataDir(data_dir or HOME)
        raise typer.Exit(guarded(lambda progress: _stay_up(home, port, clock_speed, progress)))
    played = TraceWish(trace, hours, start_day, nodes, gpus_per_node, seed, clock_speed or 120)
    data = DataDir(data_dir or HOME / f"trace-{time.strftime('%Y%m%d-%H%M%S')}")
    interrupted = Ending(Exit.REFUSED, f"interrupted; what was lived through is in {data.path}")
    raise typer.Exit(guarded(lambda progress: live_through(played, data, port, progress), interrupted))


@dataclass(frozen=True, slots=True)
class Ending:
    """What an interruption means."""

    code: Exit = Exit.OK
    line: str = "stopped; the next start goes on from here"


def guarded(run: Callable[[Progress], int], interrupted: Ending = Ending()) -> int:
    """Run until the end or a signal; what a user can cause becomes one or two lines and an exit code."""
    progress = Progress()
    # SIGTERM and a closed terminal stop the hub as cleanly as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` wants the hang-up ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        return run(progress)
    except KeyboardInterrupt:
        progress.say(interrupted.line)
        return int(interrupted.code)
    except (DataDirTrouble, TraceTrouble, UsageTrouble) as trouble:
        return _fail(Exit.USAGE, str(trouble))
    except StartFailed as failed:
        return _fail(Exit.REFUSED, str(failed), *(f"  | {line}" for line in failed.lines))
    except ServiceProblem as problem:
        return _fail(Exit.REFUSED, *refusal_lines(problem))
    except (ServiceUnavailable, TimeoutError) as error:
        return _fail(Exit.UNAVAILABLE, str(error))


def _stay_up(data: DataDir, port: int | None, clock_speed: int | None, progress: Progress) -> int:
    # A database keeps the speed it was begun with, so the next start need not name it again.
    speed = clock_speed or int(data.read("state.json").get("clock_speed", "1"))
    with running(Wish(data, port, speed), progress) as hub:
        with progress.step("seeding the demo programme", "the demo programme is there"):
            seed(hub)
        _welcome(hub, progress)
        while True:
            time.sleep(3600)


def _check(port: int | None, clock_speed: int, timeout_s: float) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpuhub-check-") as folder:
        wish = Wish(DataDir(Path(folder) / "data"), port, clock_speed)

        def run(progress: Progress) -> int:
            try:
                with running(wish, progress) as hub:
                    with progress.step("seeding the demo programme", "the demo programme is there"):
                        seed(hub)
                    check(hub, progress, began, timeout_s)
            except (CheckFailed, TimeoutError) as failed:
                return _fail(Exit.REFUSED, f"check failed: {failed}", *_tails(wish.data))
            return int(Exit.OK)

        return guarded(run, Ending(Exit.REFUSED, "check interrupted"))


def _tails(data: DataDir) -> list[str]:
    lines = []
    for log in sorted(data.logs.glob("*.log")):
        lines.append(f"--- the end of {log.name}")
        lines.extend(last_lines(log, 8))
    return lines


def _fail(code: Exit, *lines: str) -> int:
    for line in lines:
        # A program's own line names the program already.
        is_first = line is lines[0] and not line.startswith("gpuhub ")
        typer.echo(f"gpuhub up: {line}" if is_first else line, err=True)
    return int(code)


def _welcome(hub: Hub, progress: Progress) -> None:
    api = hub.url("quota")
    lines = (
        "",
        f"API        {api}      docs {api}/docs",
        f"metrics    {api}/metrics  {hub.url('scheduler')}/metrics  {hub.url('agent')}/metrics",
        f"cluster    {hub.url('cluster')}  (simulated)",
        f"data       {hub.data.path}  (logs in {hub.data.logs})",
        f"member     {hub.tokens[MEMBER]}  (of {MEMBER})",
        "",
        "try next, in another terminal:",
        f"  {_command()} login --url {api} --token {hub.tokens[MEMBER]}",
        f"  {_command()} submit hello --gpus 2 --walltime 10m"
        " --annotation simulate.gpuhub/duration_s=5 --wait -- python train.py",
        f"  {_command()} balance",
        "",
        "Ctrl-C stops it; the next `gpuhub up` goes on from there.",
    )
    for line in lines:
        progress.say(line)


def _command() -> str:
    """How this command was called, so that the lines shown can be pasted."""
    called = Path(sys.argv[0])
    beside = called.parent / "gpuhub"
    return os.path.relpath(beside) if called.name == "gpuhub" and beside.exists() else "gpuhub"
