"""Bring a database to this program's schema, or say in one line why that cannot be."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from quota.db import Database
from quota.errors import Conflict

_ADVISORY_LOCK = 0x67707568  # "gpuh"


class NewerSchema(Conflict):
    """The database was written by a newer gpuhub."""

    code = "newer_schema"


def upgrade(database: Database) -> None:
    """Migrate to the newest schema. Raises NewerSchema for one that this program does not know."""
    config = alembic_config()
    script = ScriptDirectory.from_config(config)
    with (
        database.engine.execution_options(hub_writes=True).connect() as connection,
        _tables_may_be_copied(connection),
        connection.begin(),
    ):
        if database.dialect == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = '30s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        current = MigrationContext.configure(connection).get_current_revision()
        known = {revision.revision for revision in script.walk_revisions()}
        if current is not None and current not in known:
            raise NewerSchema(
                "the database has schema {schema}, newer than this program; use a newer gpuhub",
                schema=current,
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if database.dialect == "sqlite":
            broken = connection.execute(text("PRAGMA foreign_key_check")).all()
            assert not broken, f"the migration broke {len(broken)} references"


@contextmanager
def _tables_may_be_copied(connection: Connection) -> Iterator[None]:
    """SQLite changes a constraint by copying its table, for which foreign keys must be off before BEGIN."""
    raw = connection.connection.dbapi_connection
    if not isinstance(raw, sqlite3.Connection):
        yield
        return
    raw.execute("PRAGMA foreign_keys=OFF").close()
    try:
        yield
    finally:
        raw.execute("PRAGMA foreign_keys=ON").close()


def is_current(database: Database) -> bool:
    """Whether the database has exactly this program's schema."""
    with database.read() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current == ScriptDirectory.from_config(alembic_config()).get_current_head()


def alembic_config() -> Config:
    """Alembic's configuration; the migrations travel inside the package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config
