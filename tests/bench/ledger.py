"""Hold + settle per second, through the API and in process, against the bare SQL of the same writes.

The limit is not guessed: the statements that the service really executed are recorded, and the writes among them are
replayed on a copy of the database with nothing but `sqlite3`, with the same transactions.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event

from quota.schemas import scheduling as wire
from tests import databases
from tests.bench.world import World

JOBS = 600
BATCH = 50


def run() -> list[dict[str, Any]]:
    """Rows `http` and `in_process`: jobs held and settled per second, the limit beside each."""
    with tempfile.TemporaryDirectory() as folder:
        in_process, bare = _in_process(Path(folder))
        http = _http(Path(folder))
    return [
        {
            "bench": "ledger",
            "metric": name,
            "value": value,
            "unit": "jobs/s",
            "limit": bare,
            "ratio": value / bare,
        }
        for name, value in (("http", http), ("in_process", in_process))
    ]


def _in_process(folder: Path) -> tuple[float, float]:
    world = World(databases.new_sqlite(folder))
    job_ids = world.submit(JOBS)
    world.database.engine.dispose()
    copy = folder / "copy.db"
    shutil.copyfile(world.database.engine.url.database or "", copy)
    recorded: list[tuple[str, Any, bool]] = []
    event.listen(
        world.database.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, parameters, _context, many: recorded.append(
            (statement, parameters, many)
        ),
    )
    event.listen(world.database.engine, "commit", lambda _connection: recorded.append(("COMMIT", (), False)))
    seconds = _drive(job_ids, world, world.decide, world.report)
    world.close()
    return JOBS / seconds, JOBS / _replay(copy, recorded)


def _http(folder: Path) -> float:
    world = World(databases.new_sqlite(folder))
    job_ids = world.submit(JOBS)
    with world.serve() as client:
        seconds = _drive(
            job_ids,
            world,
            lambda batch: client.send_decisions(batch.model_dump_json().encode()),
            lambda batch: client.send_reports(batch.model_dump_json().encode()),
        )
    world.close()
    return JOBS / seconds


def _drive(
    job_ids: list[str],
    world: World,
    decide: Callable[[wire.DecisionBatch], wire.DecisionReply],
    report: Callable[[wire.ReportBatch], wire.ReportReply],
) -> float:
    began = time.perf_counter()
    for number, start in enumerate(range(0, len(job_ids), BATCH), 1):
        part = job_ids[start : start + BATCH]
        decided = decide(world.starts(part, number))
        assert all(result.outcome == "accepted" for result in decided.results), decided.results
        reported = report(world.ends(part, number))
        assert all(result.outcome == "accepted" for result in reported.results), reported.results
    seconds = time.perf_counter() - began
    assert world.resolved_holds() == len(job_ids), "every job was held and settled"
    return seconds


def _replay(copy: Path, recorded: list[tuple[str, Any, bool]]) -> float:
    connection = sqlite3.connect(copy, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-65536"):
        connection.execute(f"PRAGMA {pragma}").close()
    writes = [entry for entry in recorded if entry[0].startswith(("INSERT", "UPDATE", "DELETE", "COMMIT"))]
    began = time.perf_counter()
    is_open = False
    for statement, parameters, many in writes:
        if statement == "COMMIT":
            if is_open:
                connection.execute("COMMIT")
            is_open = False
            continue
        if not is_open:
            connection.execute("BEGIN IMMEDIATE")
            is_open = True
        if many:
            connection.executemany(statement, parameters)
        else:
            connection.execute(statement, parameters).fetchall()
    seconds = time.perf_counter() - began
    count = connection.execute("SELECT count(*) FROM holds WHERE resolved").fetchone()[0]
    assert count == JOBS, "the replay wrote the same"
    connection.close()
    return seconds
