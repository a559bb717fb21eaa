"""What all engines of one test process share, so that a thousand fresh databases cost what they hold and no more.

SQL is compiled once per kind of database and not once per database, and SQLite's commits do not wait for the disk: what
dies here is a thread at most. Programs that are killed or cut off from power are processes, with engines of their own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import ConnectionPoolEntry

from quota import db


@dataclass
class _Shared:
    dialect: Dialect
    compiled: dict[Any, Any]


def install() -> None:
    """Let `quota.db` make such engines in this process."""
    db._engine = _sharing(db._engine)


def _sharing(make: Callable[[str, int], Engine]) -> Callable[[str, int], Engine]:
    shared: dict[str, _Shared] = {}

    def made(url: str, pool_size: int) -> Engine:
        engine = make(url, pool_size)
        name = engine.dialect.name
        if name == "sqlite":
            event.listen(engine, "connect", _hurry)
        if name in shared:
            engine.dialect = shared[name].dialect
            engine.update_execution_options(compiled_cache=shared[name].compiled)
        else:
            # only a dialect that has met its server knows all about it
            event.listen(
                engine, "engine_connect", lambda _: shared.setdefault(name, _Shared(engine.dialect, {}))
            )
        return engine

    return made


def _hurry(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()
