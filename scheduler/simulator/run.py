"""Start the simulated cluster as a process: journal, door, one event loop."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from scheduler.simulator.crash import open_journal
from scheduler.simulator.door import create_app
from scheduler.simulator.faults import CUT
from scheduler.simulator.fleet import read_fleet, read_racks
from scheduler.simulator.journal import JournalTrouble
from scheduler.simulator.model import Model
from scheduler.simulator.readings import SAMPLES_KEPT, Readings
from scheduler.simulator.settings import Settings
from scheduler.simulator.simulation import Simulation

log = structlog.get_logger()


class CannotServe(Exception):
    """The process cannot start; the text says why in one line."""


def serve(settings: Settings) -> None:
    """Serve until a signal ends the process. Raises CannotServe."""
    # Standard output carries one line only, the one that says where the door is.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        fleet, racks = read_fleet(settings.nodes), read_racks(settings.nodes)
    except ValueError as wrong:
        raise CannotServe(f"--nodes: {wrong}") from wrong
    listener = _listen(settings.host, settings.port)
    model = Model(past_kept_ms=SAMPLES_KEPT * settings.sample_period_ms)
    try:
        journal = open_journal(settings.data_dir, os.environ)
        model.replay(journal.read())
    except (JournalTrouble, OSError) as trouble:
        raise CannotServe(str(trouble)) from trouble
    simulation = Simulation(model, journal, settings.clock, _end_process)
    if not simulation.add_fleet(fleet, racks) and {node: len(gpus) for node, gpus in fleet.items()} != {
        name: len(node.gpus) for name, node in model.nodes.items()
    }:
        log.warning("fleet_kept", reason="the journal has its own nodes", journal=str(journal.path))
    readings = Readings(settings.sample_period_ms, settings.clock.wall_of)
    app = create_app(simulation, readings, settings.token, settings.speedy)
    config = uvicorn.Config(
        app,
        http=CuttableProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    listener.listen()  # whoever has read the line below may connect at once
    host, port = listener.getsockname()[:2]
    sys.stdout.write(f"simulated cluster on http://{host}:{port} with {len(model.nodes)} nodes\n")
    sys.stdout.flush()
    Server(config, simulation.release_readers).run(sockets=[listener])
    journal.close()


class CuttableProtocol(HttpToolsProtocol):
    """Lets the application cut the connection, which plain ASGI cannot ask for."""

    def on_message_begin(self) -> None:
        """Offer the cut to the request that begins."""
        super().on_message_begin()
        self.scope["extensions"] = {CUT: {"abort": self.transport.abort}}


class Server(uvicorn.Server):
    """Does not wait for long polls when it is asked to end."""

    def __init__(self, config: uvicorn.Config, release_readers: Callable[[], None]) -> None:
        super().__init__(config)
        self._release_readers = release_readers

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end."""
        super().handle_exit(sig, frame)
        self._release_readers()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as taken:
        listener.close()
        raise CannotServe(f"cannot listen on {host}:{port}: {taken.strerror}") from taken
    return listener


def _end_process(reason: str) -> NoReturn:
    """End at once, without answering anybody and without running anything else."""
    sys.stderr.write(f"simulated cluster ends: {reason}\n")
    sys.stderr.flush()
    os._exit(70)
