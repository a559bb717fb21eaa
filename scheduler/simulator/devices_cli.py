"""The `gpuhub simulate-devices` command: the GPUs of nodes that kwok plays, for agents to read."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvicorn
from fastapi import FastAPI, Query, Response
from starlette.middleware import Middleware

from scheduler.clusters.kubernetes.api import KubernetesApi
from scheduler.clusters.kubernetes.settings import BadClusterFile, read_cluster_file
from scheduler.simulator.devices import Devices
from scheduler.simulator.door import TokenDoor
from scheduler.simulator.fleet import read_fleet
from scheduler.simulator.readings import SAMPLES_KEPT, Readings

After = Annotated[int, Query(ge=0)]

app = typer.Typer(add_completion=False)


@app.command()
def simulate_devices(
    cluster_file: Annotated[Path, typer.Option(help="The TOML file that describes the cluster.")],
    nodes: Annotated[list[str], typer.Option(help="NODES:CLASS=COUNT[,...], as the cluster was made.")],
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Of an account that may annotate pods; default: the cluster file's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8090,
    token_env: Annotated[
        str, typer.Option(help="Name of the environment variable that holds the bearer token.")
    ] = "",
    sample_period_s: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Time between utilisation samples.")
    ] = 10.0,
) -> None:
    """Give the pods of simulated nodes their GPUs, and tell agents how busy they are."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    period_ms = round(sample_period_s * 1000)
    try:
        settings = read_cluster_file(cluster_file)
        if kubeconfig is not None:
            settings = settings.model_copy(update={"kubeconfig": kubeconfig, "context": None})
        fleet = read_fleet(nodes)
        api = KubernetesApi("devices", settings)
    except (BadClusterFile, ValueError) as trouble:
        typer.echo(f"gpuhub simulate-devices: {trouble}", err=True)
        raise typer.Exit(2) from trouble
    devices = Devices(api, fleet, _now_ms(), SAMPLES_KEPT * period_ms, settings.watch_s)
    door = create_app(devices, Readings(period_ms), os.environ.get(token_env, ""))
    with _running(devices):
        uvicorn.run(door, host=host, port=port, ws="none", log_level="warning", access_log=False)


def create_app(devices: Devices, readings: Readings, token: str) -> FastAPI:
    """The part of the simulated cluster's door that agents use."""
    app = FastAPI(
        title="gpuhub simulated devices",
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(TokenDoor, token=token)],
    )

    @app.get("/-/healthy")
    def healthy() -> Response:
        return Response(status_code=200 if devices.ready else 503)

    @app.get("/v1/nodes/{name}/gpus")
    def gpus_of_node(name: str, after_ms: After = 0) -> Response:
        with devices.lock:
            node = devices.nodes.get(name)
            if node is None or node.lost_ms is not None:
                return Response(status_code=404 if node is None else 503)
            return _json(readings.node_text(node, after_ms, _now_ms()))

    @app.get("/v1/gpus")
    def gpus_of_fleet(after_ms: After = 0) -> Response:
        with devices.lock:
            return _json(readings.fleet_text(list(devices.nodes.values()), after_ms, _now_ms()))

    return app


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def _running(devices: Devices) -> Iterator[None]:
    devices.start()
    try:
        yield
    finally:
        devices.stop()
