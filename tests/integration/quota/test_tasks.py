"""Periodic tasks: once per period however many replicas run, caught up after downtime, failures visible."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from quota import tasks
from quota.audit.tables import findings, seals, task_runs
from quota.clock import HOUR_MS
from quota.db import Database, Tx
from quota.identity.tables import tokens
from quota.identity.tokens import create_token
from quota.reports import retention, watching
from quota.schemas.identity import NewToken, Role
from quota.tasks import TASKS, Task, run_due
from quota.usage.tables import evidence
from tests.builders import DAY_MS, MINUTE_MS, HandClock, Hub, a_hub

RUN = {"done_at_ms": 0, "result": "done"}


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    made.take_lease()
    yield made
    made.close()


def _task(name: str) -> Task:
    return next(task for task in TASKS if task.name == name)


def test_a_task_runs_once_per_period_and_again_in_the_next(hub: Hub) -> None:
    done: list[int] = []
    task = Task("count", MINUTE_MS, lambda database: f"{done.append(database.clock.now_ms())}")
    for _ in range(3):
        run_due(hub.database, task)
    hub.clock.advance(MINUTE_MS - 1)
    run_due(hub.database, task)
    assert len(done) == 1
    hub.clock.advance(1)
    assert run_due(hub.database, task) is not None
    assert len(done) == 2
    assert [row.result for row in hub.rows(task_runs, task="count")] == ["None", "None"]


def test_replicas_that_tick_at_once_do_the_work_once(database_url: str) -> None:
    """Eight threads; on PostgreSQL each with a database of its own, as replicas have."""
    hub = a_hub(database_url)
    replicas = [hub.database] * 8
    if hub.database.dialect == "postgresql":
        replicas = [Database(database_url, HandClock()) for _ in range(8)]
    done: list[str] = []
    task = Task("count", MINUTE_MS, lambda _database: f"{done.append('done')}")
    barrier = threading.Barrier(8)

    def tick(replica: Database) -> None:
        for _ in range(5):
            barrier.wait()
            run_due(replica, task)

    threads = [threading.Thread(target=tick, args=(replica,)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["done"]
    for replica in {hub.database, *replicas}:
        replica.close()


def test_a_failure_is_kept_and_the_next_period_tries_again(hub: Hub) -> None:
    outcomes = iter([RuntimeError("no luck"), None])

    def work(_database: Database) -> str:
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome
        return "fine"

    task = Task("luck", MINUTE_MS, work)
    assert run_due(hub.database, task) == "failed: RuntimeError: no luck"
    assert run_due(hub.database, task) is None
    hub.clock.advance(MINUTE_MS)
    assert run_due(hub.database, task) == "fine"
    assert [row.result for row in hub.rows(task_runs, task="luck")] == [
        "failed: RuntimeError: no luck",
        "fine",
    ]


def test_a_process_that_died_within_a_task_costs_one_period(hub: Hub) -> None:
    """Planted: a claim without an end, as kill -9 leaves it."""

    def die(_database: Database) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_due(hub.database, Task("audit.seal", MINUTE_MS, die))
    assert hub.row(task_runs, task="audit.seal").result == tasks.RUNNING
    assert run_due(hub.database, _task("audit.seal")) is None
    hub.clock.advance(MINUTE_MS)
    assert run_due(hub.database, _task("audit.seal")) == "1 seals"


def test_sealing_and_expiry_catch_up_after_downtime(hub: Hub) -> None:
    grant = hub.award(ends_at=hub.now + HOUR_MS)
    hub.clock.advance(3 * DAY_MS)
    assert run_due(hub.database, _task("grants.expire")) == "1 grants"
    assert hub.grant(grant.id).granted_gpu_us == 0
    assert run_due(hub.database, _task("audit.seal")) == "1 seals"
    assert len(hub.rows(seals)) == 1
    hub.clock.advance(MINUTE_MS)
    assert run_due(hub.database, _task("grants.expire")) == "0 grants"


def test_reconciliation_catches_up_day_by_day_and_waits_for_late_evidence(hub: Hub) -> None:
    """The hub's day begins at 2026-11-22 00:00 UTC, which is 09:00 in Seoul."""
    grant = hub.award()
    job = hub.submit(walltime_s=3600)
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS)
    hub.finish(job)
    hub.clock.set(hub.now + 3 * DAY_MS)
    assert tasks.days_due(hub.database) == ["2026-11-22", "2026-11-23", "2026-11-24"]
    assert run_due(hub.database, _task("reconcile")) == "3 days"
    assert tasks.days_due(hub.database) == []
    hub.clock.set(hub.now // DAY_MS * DAY_MS + 15 * HOUR_MS + 2 * HOUR_MS - 1)
    assert tasks.days_due(hub.database) == []
    hub.clock.advance(1)
    assert tasks.days_due(hub.database) == ["2026-11-25"]


def test_every_task_of_the_hub_runs_on_an_empty_and_on_a_busy_database(hub: Hub) -> None:
    for _ in range(2):
        for task in TASKS:
            result = run_due(hub.database, task)
            assert result is not None
            assert not result.startswith("failed"), result
        grant = hub.award()
        job = hub.submit(walltime_s=3600)
        hub.run(job, grant)
        hub.clock.advance(2 * DAY_MS)
    with hub.database.read() as connection:
        found = {item.name: item for item in tasks.read_tasks(connection).items}
    assert set(found) == {task.name for task in TASKS}
    assert all(item.last_run_at is not None and item.result != tasks.RUNNING for item in found.values())


def test_retention_forgets_what_is_past_its_time_and_nothing_else(hub: Hub) -> None:
    for label, node in (("Kim's laptop", "n0"), ("kept", "n1")):
        body = NewToken(role=Role.AGENT, node=node, label=label)
        hub.database.write(lambda tx, body=body: create_token(tx, "op", body))  # type: ignore[misc]
    dead = hub.row(tokens, label="Kim's laptop").id
    now = hub.now
    hub.database.write(
        lambda tx: tx.connection.execute(
            text("UPDATE tokens SET revoked_at_ms = :at WHERE id = :token"), {"at": now, "token": dead}
        )
    )
    row = {"job_id": "j", "attempt": 1, "gpu_uuid": "GPU-1", "agent_epoch": "epoch-001", "node": "n0"}
    counts = {"gpu_class": "h100", "seq": 1, "busy_ms": 1, "observed_ms": 2, "received_at_ms": now}
    hours = [now + day * DAY_MS for day in (0, 1, 1826)]
    hub.database.write(
        lambda tx: tx.connection.execute(
            evidence.insert(), [row | counts | {"hour_ms": hour} for hour in hours]
        )
    )
    hub.clock.set(now + 730 * DAY_MS)
    assert retention.forget(hub.database) == retention.Forgotten(0, 0, 0)
    hub.clock.set(now + 1827 * DAY_MS)
    assert retention.forget(hub.database) == retention.Forgotten(1, 1, 0)
    assert sorted(found.hour_ms for found in hub.rows(evidence)) == hours[1:]
    assert hub.row(tokens, id=dead).label == ""
    assert len(hub.rows(tokens, label="kept")) == 1


def test_retention_keeps_the_newest_run_of_each_task(hub: Hub) -> None:
    task = Task("old", DAY_MS, lambda _database: "done")
    for _ in range(3):
        run_due(hub.database, task)
        hub.clock.advance(DAY_MS)
    hub.clock.advance(100 * DAY_MS)
    assert retention.forget(hub.database).task_runs == 2
    assert len(hub.rows(task_runs, task="old")) == 1


def test_corner_case_cluster_unseen_for_15_minutes_is_a_finding_once_per_outage(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(walltime_s=7200)
    hub.run(job, grant)
    hub.clock.advance(15 * MINUTE_MS)
    assert watching.find_behind(hub.database) == 0
    hub.clock.advance(1)
    assert watching.find_behind(hub.database) == 1
    hub.clock.advance(HOUR_MS)
    assert watching.find_behind(hub.database) == 0
    row = hub.row(findings, code="cluster_behind")
    assert row.subject == "sim"
    assert "2026-11-22T00:00:00.000Z" in row.detail
    hub.report()
    hub.clock.advance(16 * MINUTE_MS)
    assert watching.find_behind(hub.database) == 1
    hub.finish(job)
    hub.clock.advance(DAY_MS)
    assert watching.find_behind(hub.database) == 0, "nothing waits for it"


def test_one_item_that_fails_keeps_no_other_from_its_turn_and_is_named(hub: Hub) -> None:
    def work(tx: Tx, number: int) -> int:
        tx.connection.execute(task_runs.insert(), {"task": f"t{number}", "period_at_ms": 0} | RUN)
        assert number != 2, "two is not done"
        return number

    with pytest.raises(ExceptionGroup, match="1 of 3") as failed:
        hub.database.write_each([1, 2, 3], work)
    assert [row.task for row in hub.rows(task_runs)] == ["t1", "t3"]
    assert failed.value.exceptions[0].__notes__ == ["while writing 2"]
    assert hub.database.write_each([4, 5], work) == [4, 5]
