"""`gpuhub controlplane`: a real Kubernetes control plane on this machine, its nodes played by kwok."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from deploy.controlplane.binaries import Binaries, BuildFailed, find_binaries
from deploy.controlplane.building import told_to
from deploy.controlplane.nodes import NodeTrouble, read_nodes
from deploy.controlplane.plane import ControlPlane, running_plane
from deploy.controlplane.programs import AUDIT_RULES, PlaneWish
from deploy.controlplane.toolchain import ToolchainTrouble
from deploy.datadir import DataDirTrouble
from deploy.progress import Progress
from deploy.session import Exit
from deploy.supervisor import StartFailed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A real Kubernetes control plane on this machine, its nodes played by kwok.",
)


@app.command()
def build() -> None:
    """Build its programs from Go modules, once per user; what is there already is kept."""
    raise typer.Exit(_guarded(_build))


@app.command()
def run(
    folder: Annotated[
        Path, typer.Option(help="Where it keeps everything; the next start goes on from there.")
    ],
    nodes: Annotated[
        list[str] | None,
        typer.Option(help="NODES:CLASS=COUNT[,...], e.g. 'sim-[0-1]:h100=8'. May be given several times."),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Keep an audit log of what the API server is asked.")
    ] = False,
) -> None:
    """Run it until Ctrl-C or SIGTERM. Needs no root and no container; listens on this machine only."""
    wish = PlaneWish(nodes=tuple(nodes or ()), audit_rules=AUDIT_RULES if audit else ())
    try:
        read_nodes(wish.nodes)
    except ValueError as trouble:
        raise typer.Exit(_fail(Exit.USAGE, f"--nodes: {trouble}")) from trouble
    raise typer.Exit(_guarded(lambda progress: _run(folder, wish, progress)))


def _build(progress: Progress) -> int:
    binaries = ready_binaries(progress)
    progress.say(f"the control plane's programs are in {binaries.kube_apiserver.parent}")
    return int(Exit.OK)


def _run(folder: Path, wish: PlaneWish, progress: Progress) -> int:
    binaries = ready_binaries(progress)
    began = time.monotonic()
    with running_plane(folder, binaries, wish, lambda line: progress.say(line, "yellow")) as plane:
        progress.say(f"✓ the control plane is up ({time.monotonic() - began:.1f} s)")
        _welcome(plane, binaries, progress)
        while True:
            time.sleep(3600)


def _welcome(plane: ControlPlane, binaries: Binaries, progress: Progress) -> None:
    lines = (
        f"API         {plane.url}",
        f"kubeconfig  {plane.kubeconfig}",
        f"logs        {plane.layout.folder / 'logs'}",
        f"try         {binaries.kubectl} --kubeconfig {plane.kubeconfig} get nodes",
        "Ctrl-C stops it; the next start with the same folder goes on from there.",
    )
    for line in lines:
        progress.say(line)


def ready_binaries(progress: Progress) -> Binaries:
    """Find or build the programs, and tell how far it is."""
    with told_to(progress, "looking for the control plane's programs") as told:
        return find_binaries(told)


def _guarded(work: Callable[[Progress], int]) -> int:
    """Work until the end or a signal; what a user can cause becomes lines and an exit code."""
    # SIGTERM and a closed terminal stop it as cleanly as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` wants the hang-up ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    progress = Progress()
    try:
        return work(progress)
    except KeyboardInterrupt:
        progress.say("stopped")
        return int(Exit.OK)
    except (DataDirTrouble, ToolchainTrouble) as trouble:
        return _fail(Exit.USAGE, str(trouble))
    except StartFailed as failed:
        return _fail(Exit.REFUSED, str(failed), *(f"  | {line}" for line in failed.lines))
    except (BuildFailed, NodeTrouble) as failed:
        return _fail(Exit.REFUSED, str(failed))
    except TimeoutError as error:
        return _fail(Exit.UNAVAILABLE, str(error))


def _fail(code: Exit, *lines: str) -> int:
    for line in lines:
        typer.echo(f"gpuhub controlplane: {line}" if line is lines[0] else line, err=True)
    return int(code)
