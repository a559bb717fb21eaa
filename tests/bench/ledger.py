"""Hold + settle per second, through the API and in process, against the bare SQL of the same writes.

The limit is not guessed: what the service writes through its driver is recorded once, and replayed on a copy of the
same database with nothing but `sqlite3`, with the same transactions. Each round runs the service, the limit and HTTP
one after the other, because a machine is not equally fast all the time; a row is the median of the rounds.

`bare_with_reads` replays what the service read as well: what it would reach if nothing but SQLite took time.

One job per batch is how fast one hold and one settle are durable: two transactions each. Fifty per batch shares them.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import event

from quota.schemas import scheduling as wire
from quota.schemas.identity import Role
from tests import databases
from tests.bench.world import World

ROUNDS = 3
SIZES = (("", 1, 200), ("_batch", 50, 600))
"""Suffix of the rows, jobs per batch, jobs per round."""

Entry = tuple[str, Any, bool]
"""A statement, its parameters, and whether it was run for many of them."""


def run() -> list[dict[str, Any]]:
    """Rows `http`, `in_process`, `bare_with_reads` (one job per batch), and the same with `_batch`: jobs/s, the limit
    beside.
    """
    rows = []
    for suffix, batch, jobs in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows += _measure(Path(folder), suffix, batch, jobs)
    return rows


def _measure(folder: Path, suffix: str, batch: int, jobs: int) -> list[dict[str, Any]]:
    before, recorded = _record(folder, batch, jobs)
    rounds = [
        (
            _http(folder, batch, jobs),
            _in_process(folder, batch, jobs),
            _replay(folder, before, [entry for entry in recorded if not _reads(entry)], jobs),
            _replay(folder, before, recorded, jobs),
        )
        for _ in range(ROUNDS)
    ]
    bare = median(entry[2] for entry in rounds)
    return [
        {
            "bench": "ledger",
            "metric": name + suffix,
            "value": median(entry[place] for entry in rounds),
            "unit": "jobs/s",
            "limit": bare,
            "ratio": median(entry[place] / entry[2] for entry in rounds),
        }
        for name, place in (("http", 0), ("in_process", 1), ("bare_with_reads", 3))
    ]


def _in_process(folder: Path, batch: int, jobs: int) -> float:
    world = World(databases.new_sqlite(folder))
    seconds = _drive(world, batch, world.submit(jobs), world.decide, world.report)
    world.close()
    return jobs / seconds


def _http(folder: Path, batch: int, jobs: int) -> float:
    """Sent by another process, as a scheduler is one: bodies are made before, replies are only looked at."""
    world = World(databases.new_sqlite(folder))
    job_ids = world.submit(jobs)
    sent = bodies(world, job_ids, batch)
    with world.serve(), multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(send, (world.port, world.secrets[Role.SCHEDULER], []))
        seconds = pool.apply(send, (world.port, world.secrets[Role.SCHEDULER], sent))
    assert world.resolved_holds() == jobs, "every job was held and settled"
    world.close()
    return jobs / seconds


def bodies(world: World, job_ids: list[str], batch: int) -> list[tuple[str, bytes]]:
    """Paths and bodies that start and end these jobs, `batch` at a time."""
    sent: list[tuple[str, bytes]] = []
    for number, start in enumerate(range(0, len(job_ids), batch), 1):
        part = job_ids[start : start + batch]
        sent.append(("/v1/scheduler/decisions", world.starts(part, number).model_dump_json().encode()))
        sent.append(("/v1/scheduler/reports", world.ends(part, number).model_dump_json().encode()))
    return sent


def send(port: int, secret: str, bodies: list[tuple[str, bytes]]) -> float:
    """One after the other over one connection; answers seconds."""
    connection = HTTPConnection("127.0.0.1", port)
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    began = time.perf_counter()
    for path, body in bodies:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
        assert reply.status == 200, content
        assert b'"outcome":"refused"' not in content, content
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


def _drive(
    world: World,
    batch: int,
    job_ids: list[str],
    decide: Callable[[wire.DecisionBatch], wire.DecisionReply],
    report: Callable[[wire.ReportBatch], wire.ReportReply],
) -> float:
    seconds = 0.0
    for number, start in enumerate(range(0, len(job_ids), batch), 1):
        part = job_ids[start : start + batch]
        starts = world.starts(part, number)
        began = time.perf_counter()
        decided = decide(starts)
        seconds += time.perf_counter() - began
        assert all(result.outcome == "accepted" for result in decided.results), decided.results
        ends = world.ends(part, number)
        began = time.perf_counter()
        reported = report(ends)
        seconds += time.perf_counter() - began
        assert all(result.outcome == "accepted" for result in reported.results), reported.results
    assert world.resolved_holds() == len(job_ids), "every job was held and settled"
    return seconds


# --- the limit ------------------------------------------------------------------------------------


def _record(folder: Path, batch: int, jobs: int) -> tuple[Path, list[Entry]]:
    """A database before the jobs ran, and what the service then wrote, transaction by transaction."""
    world = World(databases.new_sqlite(folder))
    job_ids = world.submit(jobs)
    world.database.close()
    before = folder / "before.db"
    shutil.copyfile(world.database.engine.url.database or "", before)
    recorded: list[Entry] = []

    def through_recorder(_dialect: object, _record: object, _args: object, options: dict[str, Any]) -> None:
        options["factory"] = _recording(recorded)

    event.listen(world.database.engine, "do_connect", through_recorder)
    _drive(world, batch, job_ids, world.decide, world.report)
    world.close()
    return before, recorded


def _recording(recorded: list[Entry]) -> type[sqlite3.Connection]:
    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
            _note(recorded, (sql, parameters, False))
            super().execute(sql, parameters)
            return self

        def executemany(self, sql: str, rows: Any, /) -> Cursor:
            _note(recorded, (sql, list(rows), True))
            super().executemany(sql, rows)
            return self

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            found: sqlite3.Cursor = self.cursor().execute(sql, parameters)
            return found

        def commit(self) -> None:
            recorded.append(("COMMIT", (), False))
            super().commit()

    return Connection


def _note(recorded: list[Entry], entry: Entry) -> None:
    if entry[0].startswith(("INSERT", "UPDATE", "DELETE", "COMMIT")) or _reads(entry):
        recorded.append(entry)


def _reads(entry: Entry) -> bool:
    return entry[0].startswith("SELECT")


def _replay(folder: Path, before: Path, recorded: list[Entry], jobs: int) -> float:
    copy = folder / "copy.db"
    shutil.copyfile(before, copy)
    connection = sqlite3.connect(copy, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-65536"):
        connection.execute(f"PRAGMA {pragma}").close()
    began = time.perf_counter()
    is_open = False
    for statement, parameters, many in recorded:
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
    assert count == jobs, "the replay wrote the same"
    connection.close()
    for name in ("copy.db", "copy.db-wal", "copy.db-shm"):
        (folder / name).unlink(missing_ok=True)
    return jobs / seconds
