"""A year of a busy hub (1 million jobs, 10 million slices): balance, job list and statement, on both databases.

The year is written with plain SQL, as the service would have written it; what is measured goes over HTTP to the real
service. `GPUHUB_BENCH_JOBS` makes it a smaller year.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quota.app import create_app
from quota.client import QuotaClient
from quota.schemas.identity import Role
from quota.schemas.scheduling import JobState
from quota.schemas.statements import StatementFormat, StatementLanguage
from quota.settings import Settings
from tests import databases
from tests.bench.world import World
from tests.bench.year_world import FIRMS, SLICES, Year, fill

JOBS = int(os.environ.get("GPUHUB_BENCH_JOBS", "1000000"))
READS = 200
LIMITS_S = {"balance_p95": 0.05, "jobs_p95": 0.05, "statement": 2.0, "sealed_statement": 2.0}


def run() -> list[dict[str, Any]]:
    """Seconds per database beside their limits; the plain names stand for the slower database of the two.

    `statement` is that of one grant over the whole year, as things stand now; `sealed_statement` as of the seal.
    """
    found: dict[str, dict[str, float]] = {}
    for name, measure in (("sqlite", _on_sqlite), ("postgres", _on_postgres)):
        print(f"  a year of {JOBS:,} jobs on {name} …", file=sys.stderr, flush=True)
        found[name] = measure()
    rows = [_row(metric, max(seconds[metric] for seconds in found.values()), metric) for metric in LIMITS_S]
    for name, seconds in found.items():
        rows += [_row(f"{name}_{metric}", value, metric) for metric, value in seconds.items()]
    return rows


def _row(name: str, seconds: float, metric: str) -> dict[str, Any]:
    limit = LIMITS_S[metric]
    row = {"bench": "year", "metric": name, "value": seconds, "unit": "s", "limit": limit}
    return row | {"ratio": seconds / limit}


def _on_sqlite() -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="hub-year-"))
    try:
        return _measure(databases.new_sqlite(folder))
    finally:
        shutil.rmtree(folder)


def _on_postgres() -> dict[str, float]:
    url = databases.new_postgres()
    try:
        return _measure(url)
    finally:
        databases.drop_postgres(url)


def _measure(url: str) -> dict[str, float]:
    world = World(url)
    year = fill(world, JOBS)
    app = create_app(Settings(database=url, tasks=False, member_requests_per_s=0, staff_requests_per_s=0))
    with (
        world.serve(app),
        QuotaClient(f"http://127.0.0.1:{world.port}", world.secrets[Role.OPERATOR], timeout_s=600) as client,
    ):
        found = _read(client, year)
    world.close()
    return found


def _read(client: QuotaClient, year: Year) -> dict[str, float]:
    rng = random.Random(4)
    big = year.grant_ids[0]
    form, language = StatementFormat.JSON, StatementLanguage.EN
    return {
        "balance_p95": _p95(lambda: client.read_grant(rng.choice(year.grant_ids))),
        "jobs_p95": _p95(lambda: _list_jobs(client, rng)),
        "statement": _best(lambda: client.write_statement(big, form, language)),
        "sealed_statement": _best(
            lambda: client.write_statement(big, form, language, as_of_ms=year.sealed_at_ms)
        ),
    }


def _list_jobs(client: QuotaClient, rng: random.Random) -> None:
    firm, before = f"firm-{rng.randrange(FIRMS):03d}", f"job-{rng.randrange(JOBS):08d}"
    questions: tuple[dict[str, Any], ...] = (
        {},
        {"organization_id": firm},
        {"state": JobState.QUEUED},
        {"organization_id": firm, "state": JobState.QUEUED},
        {"organization_id": firm, "after": before},
        {"after": before},
    )
    client.list_jobs(**rng.choice(questions))


def _p95(read: Callable[[], object]) -> float:
    seconds = []
    for _ in range(READS):
        began = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[int(READS * 0.95)]


def _best(read: Callable[[], bytes]) -> float:
    """The better of two: the first one fills caches that a busy hub has filled."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        content = read()
        seconds.append(time.perf_counter() - began)
        assert len(content) > JOBS // FIRMS * SLICES * 100, "a year's lines"
    return min(seconds)
