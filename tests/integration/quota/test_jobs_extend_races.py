"""Extensions at the same moment as stops, settling and ends, on eight threads and both databases."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from quota.audit.tables import audit
from quota.errors import GrantNotActive, InsufficientBalance, WrongState
from quota.identity.idempotency import once
from quota.jobs import extending
from quota.ledger.tables import holds, transfers
from quota.schemas.job_changes import ExtendedJob, JobExtension
from quota.schemas.jobs import Job
from quota.schemas.scheduling import StopReason
from tests.builders import MINUTE_MS, OPERATOR, Hub, a_hub, ended
from tests.property.ledger.ledger_checks import violations

EXTENDERS = 6
JOBS = 6


class _Race:
    """Six threads extend, one is the cluster, one the scheduler; all on one grant."""

    def __init__(self, url: str) -> None:
        self.hub = a_hub(url)
        grant = self.hub.award(hours="40")
        self.jobs = [self.hub.submit(walltime_s=3600, grace_s=0) for _ in range(JOBS)]
        for number, job in enumerate(self.jobs):
            self.hub.run(job, grant, f"n{number % 2}")
        self.taken: list[dict[str, list[int]]] = [defaultdict(list) for _ in range(EXTENDERS)]
        self.refused: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self.barrier = threading.Barrier(EXTENDERS + 2)
        self.over = threading.Event()

    def run(self) -> None:
        works = [*(lambda n=n: self.extend(n) for n in range(EXTENDERS)), self.settle, self.stop]
        threads = [threading.Thread(target=self.guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def guarded(self, work: Callable[[], None]) -> None:
        self.barrier.wait()
        try:
            work()
        except BaseException as error:
            self.failures.append(error)
            self.over.set()

    def extend(self, number: int) -> None:
        rng = random.Random(number)
        while not self.over.is_set():
            job, extra = rng.choice(self.jobs), rng.randrange(1, 900)
            try:
                self.hub.extend(job, extra)
                self.taken[number][job.id].append(extra)
            except (WrongState, InsufficientBalance, GrantNotActive) as error:
                self.refused[error.code] += 1

    def settle(self) -> None:
        """Time passes, slices close, and stopped or not the jobs end one after the other."""
        rng = random.Random(100)
        for job in (*self.jobs, None):
            for _ in range(4):
                self.hub.clock.advance(rng.randrange(5 * MINUTE_MS, 15 * MINUTE_MS))
                self.hub.report()
            if job is not None:
                self.hub.report(ended(job, self.hub.now, exit_code=1, reason="failed"))
        self.over.set()

    def stop(self) -> None:
        """Stops half of the jobs, some at a limit that may just have moved."""
        rng = random.Random(200)
        while not self.over.is_set():
            reason = rng.choice([StopReason.TIME_LIMIT, StopReason.CANCELLED])
            self.hub.stop(rng.choice(self.jobs[1::2]), reason, grace_ms=0)
            self.over.wait(0.02)


def test_extensions_against_stops_settling_and_ends_leave_every_sum_exact(database_url: str) -> None:
    race = _Race(database_url)
    race.run()
    assert race.failures == []
    assert race.refused["wrong_state"] > 0, "some must come too late"
    _judge(race.hub, race.jobs, race.taken)
    race.hub.close()


def _judge(hub: Hub, jobs: list[Job], taken: list[dict[str, list[int]]]) -> None:
    with hub.database.read() as connection:
        assert violations(connection) == []
    stopped = {row.subject: row.seq for row in hub.rows(audit, action="attempt.stop")}
    extends = hub.rows(transfers, type="extend")
    assert len(extends) > JOBS, "too few came in time to say anything"
    assert all(row.seq < stopped.get(row.job_id, row.seq + 1) for row in extends), "a stop is irrevocable"
    for job in jobs:
        attempt = hub.job(job.id).attempts[0]
        accepted = sorted(extra for mine in taken for extra in mine[job.id])
        assert sorted(entry.walltime_s for entry in attempt.extensions) == accepted
        assert attempt.walltime_s == 3600 + sum(accepted)
        assert attempt.held_gpu_us == attempt.walltime_s * 1_000_000
        assert attempt.settled_gpu_us <= attempt.held_gpu_us
        assert attempt.hold_resolved
        assert hub.row(holds, job_id=job.id).extensions == len(accepted)


@pytest.mark.postgres
def test_an_extension_that_waited_for_a_stop_is_refused(postgres_url: str) -> None:
    """The stop holds the job's row; the extension asked for meanwhile sees it recorded when its turn comes."""
    hub = a_hub(postgres_url)
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    body = JobExtension(walltime_s=60, reason="too late")
    stopping, refused = threading.Event(), threading.Event()

    def late() -> None:
        assert stopping.wait(20)
        with pytest.raises(WrongState):
            hub.database.write(lambda tx: extending.extend(tx, OPERATOR, job.id, body))
        refused.set()

    thread = threading.Thread(target=late)
    with hub.database.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql(f"SELECT 1 FROM jobs WHERE id = '{job.id}' FOR UPDATE")
        thread.start()
        stopping.set()
        assert not refused.wait(0.2), "it waits for the row"
        for table in ("jobs", "attempts"):
            column = "id" if table == "jobs" else "job_id"
            connection.exec_driver_sql(f"UPDATE {table} SET state = 'stopping' WHERE {column} = '{job.id}'")
    thread.join(20)
    assert refused.is_set()
    assert hub.rows(transfers, type="extend") == []
    hub.close()


@pytest.mark.postgres
def test_one_key_at_the_same_moment_is_one_extension(postgres_url: str) -> None:
    hub = a_hub(postgres_url)
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    body = JobExtension(walltime_s=60, reason="sent twice")
    barrier = threading.Barrier(8)
    told: list[ExtendedJob] = []

    def send() -> None:
        barrier.wait()
        told.append(
            hub.database.write(
                lambda tx: once(
                    tx,
                    OPERATOR,
                    "key-1",
                    f"extend_job {job.id}",
                    body,
                    ExtendedJob,
                    lambda: extending.extend(tx, OPERATOR, job.id, body),
                )
            )
        )

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 8
    assert {entry.model_dump_json() for entry in told} == {told[0].model_dump_json()}
    assert len(hub.rows(transfers, type="extend")) == 1
    hub.close()
