"""Whoever changes a grant, a budget or an organization locks rows in the order of all others: no circle of waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import Connection
from sqlalchemy import text

from quota.db import Tx
from quota.jobs import switches
from quota.programs import changes, endings
from quota.schemas.programs import Adjustment, Grant
from quota.schemas.switches import FreezeChange
from tests.builders import DAY_MS, OPERATOR, Hub, a_hub

pytestmark = pytest.mark.postgres


@pytest.fixture
def hub(postgres_url: str) -> Iterator[Hub]:
    made = a_hub(postgres_url)
    yield made
    made.close()


def test_an_end_is_moved_while_a_report_relies_on_the_grants_row(hub: Hub) -> None:
    """A report that changes an attempt twice holds its grant's row by a foreign key, and may wait for accounts."""
    grant = hub.award()

    def move(tx: Tx) -> Grant:
        tx.connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        return endings.change_end(tx, OPERATOR, grant.id, hub.now + DAY_MS, "shorter")

    with _other(hub, "SELECT 1 FROM grants WHERE id = %s FOR KEY SHARE", grant.id):
        assert hub.database.write(move).ends_at == hub.now + DAY_MS


def test_a_freeze_that_stops_jobs_waits_for_them_before_it_holds_their_organization(hub: Hub) -> None:
    """As reports and extensions do: jobs first."""
    grant, job = hub.award(), hub.submit()
    hub.run(job, grant)
    body = FreezeChange(frozen=True, stop_running=True, reason="unpaid bill")
    with _other(hub, "SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", job.id) as report:
        freeze = _in_thread(
            lambda: hub.database.write(lambda tx: switches.freeze(tx, OPERATOR, "alpha", body))
        )
        _until_it_waits(report, freeze)
        report.execute("SELECT 1 FROM organizations WHERE id = 'alpha' FOR NO KEY UPDATE NOWAIT")
    freeze.join()
    assert hub.job(job.id).cancel_requested_at == hub.now


def test_a_bigger_budget_waits_for_its_programme_before_it_holds_the_treasury(hub: Hub) -> None:
    """As a smaller one does."""
    body = Adjustment(gpu_hours="5", reason="misread", evidence="decision 7")
    with _other(hub, "SELECT 1 FROM accounts WHERE id = %s FOR UPDATE", "program:ax") as smaller:
        bigger = _in_thread(
            lambda: hub.database.write(lambda tx: changes.adjust_program(tx, OPERATOR, "ax", body))
        )
        _until_it_waits(smaller, bigger)
        smaller.execute("SELECT 1 FROM accounts WHERE id = 'treasury' FOR UPDATE NOWAIT")
    bigger.join()
    with hub.database.read() as connection:
        told = connection.execute(
            text("SELECT before, after FROM audit WHERE action = 'program.adjust'")
        ).one()
    assert told == ('{"budget_gpu_us": "360000000000000"}', '{"budget_gpu_us": "360018000000000"}')


@contextmanager
def _other(hub: Hub, lock: str, key: str) -> Iterator[Connection[tuple[object, ...]]]:
    """Another transaction that holds a row."""
    url = hub.database.url.replace("postgresql+psycopg:", "postgresql:")
    with psycopg.connect(url) as connection:
        assert connection.execute(lock, (key,)).fetchone() is not None
        yield connection


def _in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _until_it_waits(connection: Connection[tuple[object, ...]], thread: threading.Thread) -> None:
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE datname = current_database() AND NOT granted"
    )
    while connection.execute(waiting).fetchone() == (0,):
        assert thread.is_alive(), "it waited for nobody"
