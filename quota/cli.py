"""`gpuhub quota …`: serve, migrate, make the first tokens."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import structlog
import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from quota import schema_version, timekeeping
from quota.app import create_app
from quota.clock import Clock, instant_ms
from quota.db import Database
from quota.door import Hub
from quota.errors import HubError
from quota.identity import tokens
from quota.schemas.identity import NewToken, Role, Scope, TokenWithSecret
from quota.settings import Settings

app = typer.Typer(help="The quota service: grants, ledger, jobs.", no_args_is_help=True)

DatabaseOption = Annotated[str, typer.Option(help="sqlite:///PATH or postgresql://…")]


@app.command()
def serve(
    database: DatabaseOption = "sqlite:///quota.db",
    host: str = "127.0.0.1",
    port: int = 8080,
    lease_ttl_s: float = 15.0,
) -> None:
    """Serve the API; migrates first."""
    with _one_line_errors(), _only_process(database):
        opened = _migrated(database)
        opened.close()
        _log_to_stderr()
        listener = _listen(host, port)
        settings = Settings(database=database, host=host, port=port, lease_ttl_s=lease_ttl_s)
        service = create_app(settings)
        _Server(server_config(service, settings), service.state.hub).run(sockets=[listener])


def server_config(service: FastAPI, settings: Settings) -> uvicorn.Config:
    """How the service is served: whose word on addresses is believed, and how long a stop waits for replies."""
    return uvicorn.Config(
        service,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )


@app.command()
def init(
    database: DatabaseOption = "sqlite:///quota.db",
    clock_speed: Annotated[int, typer.Option(min=1, help="Business seconds per wall second.")] = 1,
    clock_origin: Annotated[str, typer.Option(help="RFC 3339 business time of the first start.")] = "",
    clock_at_least: Annotated[int, typer.Option(help="Business ms that another part has reached.")] = 0,
) -> None:
    """Migrate the database and anchor its clock; prints {"clock": "BUSINESS,WALL,SPEED"}."""
    clock = prepare(database, clock_speed, clock_origin, clock_at_least)
    typer.echo(json.dumps({"clock": clock.text()}))


@app.command()
def token(
    role: Annotated[Role, typer.Option()],
    database: DatabaseOption = "sqlite:///quota.db",
    organization: str | None = None,
    node: str | None = None,
    label: str = "made on the command line",
    scope: Annotated[list[Scope] | None, typer.Option(help="Narrow it to this; repeatable.")] = None,
    expires_at: Annotated[str, typer.Option(help="RFC 3339 time of the hub's clock.")] = "",
) -> None:
    """Make a token directly in the database; prints it as JSON, its secret this once."""
    try:
        body = NewToken(
            role=role,
            organization_id=organization,
            node=node,
            label=label,
            scopes=tuple(scope or ()),
            expires_at=instant_ms(expires_at) if expires_at else None,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        _fail(f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}")
    except ValueError as error:
        _fail(f"--expires-at: {error}")
    typer.echo(make_token(database, body).model_dump_json())


def prepare(database: str, clock_speed: int, clock_origin: str = "", clock_at_least: int = 0) -> Clock:
    """What `init` does; ends the process with one line when it cannot."""
    with _one_line_errors(), _only_process(database):
        try:
            origin = instant_ms(clock_origin) if clock_origin else None
        except ValueError as error:
            _fail(f"--clock-origin: {error}")
        opened = _migrated(database)
        clock = opened.write(lambda tx: timekeeping.anchor_clock(tx, clock_speed, origin, clock_at_least))
        opened.close()
        return clock


def make_token(database: str, body: NewToken) -> TokenWithSecret:
    """What `token` does; ends the process with one line when it cannot."""
    with _one_line_errors(), _only_process(database):
        opened = _migrated(database)
        made = opened.write(lambda tx: tokens.create_token(tx, "command line", body))
        opened.close()
        return made


class _Server(uvicorn.Server):
    """Tells long polls to answer when it is asked to stop, so that stopping takes no time."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self._hub.stopping.set()
        super().handle_exit(sig, frame)


def _migrated(url: str) -> Database:
    database = Database(url, Clock())
    schema_version.upgrade(database)
    with database.read() as connection:
        database.clock = timekeeping.read_clock(connection)
    return database


@contextmanager
def _only_process(url: str) -> Iterator[None]:
    """SQLite serves one process: a lock beside the file says whose it is."""
    try:
        path = make_url(url).database if make_url(url).get_backend_name() == "sqlite" else None
    except ArgumentError:
        _fail(f"--database {url!r} is not a database URL such as sqlite:///quota.db")
    if path is None:
        yield
        return
    lock = Path(f"{Path(path).resolve()}.lock")  # one lock whatever link leads to the file
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        _fail(f"cannot write beside {path}: {error.strerror}")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 20).decode(errors="replace").strip()
        _fail(f"{path} is in use by process {owner or 'unknown'}; stop it or use another database")
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except HubError as error:
        _fail(error.detail)
    except DBAPIError as error:
        _fail(f"the database cannot be used: {str(error.orig).splitlines()[0] if error.orig else error}")
    except SQLAlchemyError as error:
        _fail(f"the database cannot be used: {str(error).splitlines()[0]}")
    except ValueError as error:
        _fail(str(error).splitlines()[0])


def _log_to_stderr() -> None:
    # a traceback without the values of variables: a request's hold tokens
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        _fail(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port")
    return listener


def _fail(line: str) -> None:
    typer.echo(f"gpuhub quota: {line}", err=True)
    sys.exit(2)
