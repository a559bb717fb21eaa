"""The `gpuhub scheduler` commands."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from pydantic import ValidationError

from quota.client import QuotaClient
from quota.clock import Clock
from scheduler import provision_cli
from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.kubernetes.settings import BadClusterFile, read_cluster_file
from scheduler.clusters.port import Cluster
from scheduler.clusters.simulated import SimulatedCluster
from scheduler.crash import CrashPlan
from scheduler.door import Door, PortTaken, Windows
from scheduler.logs import LogDesk
from scheduler.metrics import Metrics
from scheduler.run import Lines, Scheduler
from scheduler.settings import Settings
from scheduler.whatif.desk import WhatIfDesk

LEASE_TIMEOUT_S = 4.0
"""Shorter than a renewal's period, so that an unanswered renewal leaves time for the next."""

app = typer.Typer(add_completion=False, no_args_is_help=True)
provision_cli.register(app)


@app.callback()
def scheduler() -> None:
    """Who runs where, now."""


@app.command()
def run(
    quota_url: Annotated[str | None, typer.Option(help="Base URL of the quota service.")] = None,
    token_env: Annotated[
        str, typer.Option(help="Name of the environment variable that holds the scheduler's token.")
    ] = "GPUHUB_TOKEN",
    cluster: Annotated[
        list[str] | None, typer.Option(help="NAME=URL of a simulated cluster. May be given several times.")
    ] = None,
    cluster_token_env: Annotated[
        str, typer.Option(help="Name of the environment variable that holds the clusters' bearer token.")
    ] = "",
    kubernetes: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE of a Kubernetes cluster and the TOML file that describes it."),
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option(envvar="GPUHUB_CLOCK", help="BUSINESS_MS,WALL_MS,SPEED; empty = the wall's time."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of /metrics and the health checks.")] = None,
    port: Annotated[int | None, typer.Option(help="Their port; 0 picks a free one and prints it.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Where the quota service reaches them, if not at http://HOST:PORT.")
    ] = None,
    holder: Annotated[str | None, typer.Option(help="Name in the lease; the host's name if empty.")] = None,
    cycle_interval_s: Annotated[float | None, typer.Option(help="Least time between two cycles.")] = None,
    idle_interval_s: Annotated[float | None, typer.Option(help="A cycle at least this often.")] = None,
    report_interval_s: Annotated[
        float | None, typer.Option(help="How often a cluster's watermark alone is told.")
    ] = None,
    ranking_interval_s: Annotated[
        float | None, typer.Option(help="The queue is published at most this often.")
    ] = None,
    forecast_interval_s: Annotated[
        float | None, typer.Option(help="When jobs will start is foretold at most this often; 0: never.")
    ] = None,
) -> None:
    """Lead the hub's scheduling, or stand by while another scheduler does."""
    given = {
        "quota_url": quota_url,
        "clusters": _clusters(cluster) if cluster else None,
        "kubernetes": _files(kubernetes) if kubernetes else None,
        "clock": clock,
        "host": host,
        "port": port,
        "url": url,
        "holder": holder,
        "cycle_interval_s": cycle_interval_s,
        "idle_interval_s": idle_interval_s,
        "report_interval_s": report_interval_s,
        "ranking_interval_s": ranking_interval_s,
        "forecast_interval_s": forecast_interval_s,
    }
    settings = _settings({name: value for name, value in given.items() if value is not None})
    token = _secret("--token-env", token_env)
    cluster_token = _secret("--cluster-token-env", cluster_token_env) if cluster_token_env else ""
    try:
        serve(settings, token, cluster_token)
    except (PortTaken, BadClusterFile) as error:
        _refuse(str(error))


def serve(settings: Settings, token: str, cluster_token: str) -> None:
    """Build everything, then go round until SIGTERM or SIGINT. Raises PortTaken or BadClusterFile."""
    metrics, crash = Metrics(), CrashPlan.from_environment(os.environ)
    with ExitStack() as stack:

        def line(timeout_s: float) -> QuotaClient:
            return stack.enter_context(QuotaClient(settings.quota_url, token, timeout_s))

        clusters: dict[str, Cluster] = {
            name: stack.enter_context(SimulatedCluster(name, url, cluster_token))
            for name, url in settings.clusters.items()
        }
        for name, path in settings.kubernetes.items():
            described = read_cluster_file(path)
            clusters[name] = stack.enter_context(KubernetesCluster(name, described, step=crash.reach))
        patience_s = settings.call_timeout_s
        lines = Lines(line(LEASE_TIMEOUT_S), line(patience_s), line(patience_s), line(patience_s))
        program = Scheduler(settings, Clock.from_text(settings.clock), lines, clusters, metrics, crash)
        desk = LogDesk(clusters, program.door_secret, settings.log_streams)
        windows = Windows(metrics.text, program.readiness, program.waiting, desk, WhatIfDesk(desk.admits))
        door = Door(settings.host, settings.port, windows)
        _log_to_stderr()
        program.register(settings.url or f"http://{settings.host}:{door.port}")
        stack.enter_context(door)
        sys.stdout.write(f"scheduler {settings.holder} on http://{settings.host}:{door.port}\n")
        sys.stdout.flush()
        _run_until_signal(program)


def _run_until_signal(program: Scheduler) -> None:
    # the loop has a thread of its own: a signal handler may not take a lock that its own thread holds
    loop = threading.Thread(target=program.run, name="loop")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: program.stop())
    loop.start()
    while loop.is_alive():
        loop.join(timeout=1.0)


def _settings(given: dict[str, object]) -> Settings:
    try:
        settings = Settings.model_validate(Settings().model_dump() | given)
        Clock.from_text(settings.clock)
        CrashPlan.from_environment(os.environ)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        _refuse(f"{option}: {first['msg']}")
    except ValueError as error:
        _refuse(str(error))
    both = settings.clusters.keys() & settings.kubernetes.keys()
    if both:
        _refuse(f"--kubernetes: {min(both)} is given as a simulated cluster, too")
    if not settings.clusters and not settings.kubernetes:
        _refuse("name at least one cluster: --cluster NAME=URL or --kubernetes NAME=FILE")
    if settings.kubernetes and Clock.from_text(settings.clock).speed != 1:
        _refuse("--clock: Kubernetes lives at the wall's speed; the hub's clock has to do so, too")
    return settings.model_copy(update={"holder": settings.holder or socket.gethostname()})


def _clusters(texts: list[str]) -> dict[str, str]:
    clusters: dict[str, str] = {}
    for text in texts:
        name, _, url = text.partition("=")
        if not name or not url.startswith(("http://", "https://")):
            _refuse(f"--cluster: {text!r} is not NAME=URL")
        if name in clusters:
            _refuse(f"--cluster: {name} is given twice")
        clusters[name] = url
    return clusters


def _files(texts: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path:
            _refuse(f"--kubernetes: {text!r} is not NAME=FILE")
        if name in files:
            _refuse(f"--kubernetes: {name} is given twice")
        files[name] = Path(path)
    return files


def _secret(option: str, variable: str) -> str:
    secret = os.environ.get(variable, "")
    if not secret:
        _refuse(f"{option}: the environment has no {variable}")
    return secret


def _refuse(why: str) -> NoReturn:
    typer.echo(f"gpuhub scheduler run: {why}", err=True)
    raise typer.Exit(2)


def _log_to_stderr() -> None:
    # standard output carries one line only, the one that says where the door is
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
