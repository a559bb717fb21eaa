"""`gpuhub up`: the whole hub on this machine, for a first look, a check, or a day out of a trace."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from deploy.check import CLOCK_SPEED, CheckFailed, check
from deploy.child import last_lines
from deploy.controlplane.binaries import BuildFailed
from deploy.controlplane.nodes import NodeTrouble
from deploy.controlplane.toolchain import ToolchainTrouble
from deploy.datadir import DataDir, DataDirTrouble
from deploy.demo import MEMBER, seed
from deploy.hub import Hub, running
from deploy.programs import Kubernetes, Wish
from deploy.progress import Progress
from deploy.prometheus.programs import Programs, ready_prometheus
from deploy.prometheus.server import Server, ServerWish, running_prometheus
from deploy.session import Exit, UsageTrouble, refusal_lines
from deploy.supervisor import StartFailed
from deploy.trace import TraceWish, live_through
from quota.client import ServiceProblem, ServiceUnavailable
from scheduler.replay.traces import BadTrace

HOME = Path(".gpuhub")
_MEASURED = ("quota", "scheduler", "agent")

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
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="A real Kubernetes, its nodes played, as the cluster.")
    ] = False,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="A Kubernetes cluster that is there; its administrator's kubeconfig.")
    ] = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="A Prometheus beside it, with the hub's rules and alerts.")
    ] = False,
) -> None:
    """Start the whole hub on this machine: API, ledger, scheduler, a simulated GPU cluster and its agent."""
    cluster = ClusterWish(kubernetes, kubeconfig)
    wrong = _contradiction(checking, trace, data_dir, clock_speed, cluster)
    if not wrong and prometheus and (checking or trace is not None):
        wrong = "--prometheus watches a hub that stays up: leave out --check and --trace"
    if wrong:
        raise typer.Exit(_fail(Exit.USAGE, wrong))
    if checking:
        speed = clock_speed or (1 if cluster.is_kubernetes else CLOCK_SPEED)
        raise typer.Exit(_check(port, speed, timeout, cluster))
    if trace is None:
        home = DataDir(data_dir or (HOME / "kubernetes" if cluster.is_kubernetes else HOME))
        raise typer.Exit(
            guarded(lambda progress: _stay_up(home, port, clock_speed, cluster, progress, prometheus))
        )
    played = TraceWish(trace, hours, start_day, nodes, gpus_per_node, seed, clock_speed or 120)
    data = DataDir(data_dir or HOME / f"trace-{time.strftime('%Y%m%d-%H%M%S')}")
    interrupted = Ending(Exit.REFUSED, f"interrupted; what was lived through is in {data.path}")
    raise typer.Exit(guarded(lambda progress: live_through(played, data, port, progress), interrupted))


@dataclass(frozen=True, slots=True)
class ClusterWish:
    """Which cluster the hub shall have; neither means the simulated one."""

    is_played: bool = False
    """A Kubernetes that is started with the hub, its nodes played by kwok."""
    kubeconfig: Path | None = None
    """A Kubernetes that is there."""

    @property
    def is_kubernetes(self) -> bool:
        """Whether it is a Kubernetes at all."""
        return self.is_played or self.kubeconfig is not None

    @contextmanager
    def made(self, data: DataDir, progress: Progress) -> Iterator[Kubernetes | None]:
        """The cluster as the hub is told of it, for as long as the block. Raises UsageTrouble and others."""
        if not self.is_kubernetes:
            yield None
            return
        try:
            # its libraries are an extra, which a hub on the simulated cluster does not need
            room = import_module("deploy.kubernetes")
        except ModuleNotFoundError as missing:
            raise UsageTrouble(f"{missing.name} is missing: install gpuhub[controlplane]") from missing
        if self.kubeconfig is not None:
            yield room.given_cluster(data, self.kubeconfig, progress)
            return
        with room.played_cluster(data, progress) as cluster:
            yield cluster


def _contradiction(
    checking: bool, trace: str | None, data_dir: Path | None, clock_speed: int | None, cluster: ClusterWish
) -> str:
    """What is wrong with these options together; empty if nothing is."""
    if checking and (trace is not None or data_dir is not None):
        return "--check takes neither --trace nor --data-dir: it has a folder of its own"
    if cluster.is_played and cluster.kubeconfig is not None:
        return "--kubernetes starts a cluster, --kubeconfig uses one that is there: take one of them"
    if cluster.is_kubernetes and trace is not None:
        return "--trace is lived through on the simulated cluster: leave out --kubernetes and --kubeconfig"
    if cluster.is_kubernetes and clock_speed not in (None, 1):
        return "--clock-speed: Kubernetes lives at the wall's speed"
    if cluster.kubeconfig is not None and checking:
        return "--check runs jobs that only played nodes can run: use it with --kubernetes"
    return ""


@dataclass(frozen=True, slots=True)
class Ending:
    """What an interruption means."""

    code: Exit = Exit.OK
    line: str = "stopped; the next start goes on from here"


def guarded(
    run: Callable[[Progress], int], interrupted: Ending = Ending(), command: str = "gpuhub up"
) -> int:
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
    except (DataDirTrouble, BadTrace, UsageTrouble) as trouble:
        return _fail(Exit.USAGE, str(trouble), command=command)
    except ToolchainTrouble as trouble:
        return _fail(Exit.USAGE, str(trouble), command=command)
    except (BuildFailed, NodeTrouble) as failed:
        return _fail(Exit.REFUSED, str(failed), command=command)
    except StartFailed as failed:
        return _fail(Exit.REFUSED, str(failed), *(f"  | {line}" for line in failed.lines), command=command)
    except ServiceProblem as problem:
        return _fail(Exit.REFUSED, *refusal_lines(problem), command=command)
    except (ServiceUnavailable, TimeoutError) as error:
        return _fail(Exit.UNAVAILABLE, str(error), command=command)


def _stay_up(
    data: DataDir,
    port: int | None,
    clock_speed: int | None,
    cluster: ClusterWish,
    progress: Progress,
    prometheus: bool,
) -> int:
    programs = ready_prometheus(progress) if prometheus else None
    # A database keeps the speed it was begun with, so the next start need not name it again.
    speed = clock_speed or int(data.read("state.json").get("clock_speed", "1"))
    with (
        cluster.made(data, progress) as kubernetes,
        running(Wish(data, port, speed, kubernetes=kubernetes), progress) as hub,
    ):
        with progress.step("seeding the demo programme", "the demo programme is there"):
            # its jobs name images that are nowhere, which only played nodes can run
            seed(hub, with_jobs=cluster.kubeconfig is None)
        with _watched(hub, programs, progress) as server:
            _welcome(hub, server, progress)
            while True:
                time.sleep(3600)


@contextmanager
def _watched(hub: Hub, programs: Programs | None, progress: Progress) -> Iterator[Server | None]:
    """A Prometheus that reads the hub, as long as the block, if there are programs for it."""
    if programs is None:
        yield None
        return
    measured = [name for name in _MEASURED if name in hub.wish.names]
    wish = ServerWish(
        {name: [urlsplit(hub.url(name)).netloc] for name in measured}, token=hub.tokens["operator"]
    )
    with ExitStack() as stack:
        with progress.step("starting prometheus", "prometheus is up"):
            server = stack.enter_context(
                running_prometheus(
                    hub.data.path / "prometheus", programs, wish, lambda line: progress.say(line, "yellow")
                )
            )
        yield server


def _check(port: int | None, clock_speed: int, timeout_s: float, cluster: ClusterWish) -> int:
    with tempfile.TemporaryDirectory(prefix="gpuhub-check-") as folder:
        data = DataDir(Path(folder) / "data")

        def run(progress: Progress) -> int:
            with cluster.made(data, progress) as kubernetes:
                # building the control plane is not what is checked
                began = time.monotonic()
                try:
                    with running(Wish(data, port, clock_speed, kubernetes=kubernetes), progress) as hub:
                        with progress.step("seeding the demo programme", "the demo programme is there"):
                            seed(hub)
                        check(hub, progress, began, timeout_s)
                except (CheckFailed, TimeoutError) as failed:
                    return _fail(Exit.REFUSED, f"check failed: {failed}", *_tails(data))
            return int(Exit.OK)

        return guarded(run, Ending(Exit.REFUSED, "check interrupted"))


def _tails(data: DataDir) -> list[str]:
    lines = []
    for log in sorted(data.logs.glob("*.log")):
        lines.append(f"--- the end of {log.name}")
        lines.extend(last_lines(log, 8))
    return lines


def _fail(code: Exit, *lines: str, command: str = "gpuhub up") -> int:
    for line in lines:
        # A program's own line names the program already.
        is_first = line is lines[0] and not line.startswith("gpuhub ")
        typer.echo(f"{command}: {line}" if is_first else line, err=True)
    return int(code)


def _welcome(hub: Hub, server: Server | None, progress: Progress) -> None:
    api = hub.url("quota")
    watched = () if server is None else (f"prometheus {server.url}/api/v1/alerts  (no web pages)",)
    lines = (
        "",
        f"API        {api}      docs {api}/docs",
        f"metrics    {'  '.join(hub.url(name) + '/metrics' for name in _MEASURED if name in hub.wish.names)}",
        *watched,
        f"cluster    {_cluster_line(hub)}",
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


def _cluster_line(hub: Hub) -> str:
    kubernetes = hub.wish.kubernetes
    if kubernetes is None:
        return f"{hub.url('cluster')}  (simulated)"
    if kubernetes.admin is None:
        return f"Kubernetes, as {kubernetes.file} says"
    return f"Kubernetes, nodes played by kwok; kubectl --kubeconfig {os.path.relpath(kubernetes.admin)} get pods -A"


def _command() -> str:
    """How this command was called, so that the lines shown can be pasted."""
    called = Path(sys.argv[0])
    beside = called.parent / "gpuhub"
    return os.path.relpath(beside) if called.name == "gpuhub" and beside.exists() else "gpuhub"
