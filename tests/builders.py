"""A hub for tests: real databases, the real services, a clock set by hand; and the same hub over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, Table, select

from quota.app import create_app
from quota.client import QuotaClient, ServiceProblem
from quota.clock import HOUR_MS, Clock, instant_ms, wall_ms
from quota.db import Database, Tx
from quota.dispatch import decisions, feed, lease, reports
from quota.dispatch.ranking import StoredQueue
from quota.fleet import service as fleet
from quota.identity import service as identity
from quota.identity import tokens
from quota.jobs import extending, refunding
from quota.jobs import service as jobs
from quota.jobs.tables import attempts
from quota.programs import awards, changes
from quota.programs import service as programs
from quota.schema import metadata
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.identity import Caller, NewOrganization, NewToken, Role
from quota.schemas.job_changes import ExtendedJob, JobExtension, JobRefund, RefundedJob
from quota.schemas.jobs import Job, JobDetail, JobSubmission
from quota.schemas.ledger import RefundKind
from quota.schemas.programs import Award, Grant, GrantCut, NewProgram, TopUp
from quota.schemas.scheduling import (
    ClassCount,
    DecisionBatch,
    DecisionItem,
    DecisionReply,
    EndedItem,
    FeedItem,
    FreedItem,
    ItemResult,
    LeaseReply,
    LeaseRequest,
    LostItem,
    NodeReport,
    PodPlacement,
    ReportBatch,
    ReportItem,
    ReportReply,
    StartedItem,
    StartItem,
    StopItem,
    StopReason,
)
from quota.settings import Settings
from tests.served import quiet, served

START_MS = instant_ms("2026-11-22T00:00:00.000Z")
MINUTE_MS = 60_000
DAY_MS = 24 * HOUR_MS
GPU_HOUR_US = 3_600_000_000
"""One hour on one H100, in GPU-microseconds."""

FIRMS = ("alpha", "beta", "gamma")
NODES: dict[str, dict[str, int]] = {"n0": {"h100": 8}, "n1": {"h100": 8}, "a0": {"a100": 8}}
RATES = {"h100": (1000, 4000), "a100": (550, 2100)}
OPERATOR = Caller(token_id="operator", role=Role.OPERATOR, organization_id=None)
AUDITOR = Caller(token_id="auditor", role=Role.AUDITOR, organization_id=None)


class HandClock(Clock):
    """Business time that moves only when a test says so."""

    __slots__ = ("_hand",)

    def __init__(self, now_ms: int = START_MS) -> None:
        super().__init__(now_ms, wall_ms(), 1)
        object.__setattr__(self, "_hand", now_ms)

    def now_ms(self) -> int:
        return int(self._hand)

    def set(self, now_ms: int) -> None:
        object.__setattr__(self, "_hand", now_ms)

    def advance(self, milliseconds: int) -> int:
        self.set(self.now_ms() + milliseconds)
        return self.now_ms()


@dataclass
class Hub:
    """The services over one database, as operators, firms, the scheduler and a cluster use them."""

    database: Database
    clock: HandClock
    cluster: str = "sim"
    epoch: int = 0
    sequences: dict[str, int] = field(default_factory=dict)
    last_decisions: bytes = b""
    last_report: bytes = b""
    queue: StoredQueue = field(default_factory=StoredQueue)

    @property
    def now(self) -> int:
        return self.clock.now_ms()

    def close(self) -> None:
        self.database.close()

    # --- reading -------------------------------------------------------------------------------

    def rows(self, table: Table, **equal: object) -> list[Any]:
        with self.database.read() as connection:
            return table_rows(connection, table, **equal)

    def row(self, table: Table, **equal: object) -> Any:
        found = self.rows(table, **equal)
        assert len(found) == 1, f"{len(found)} rows of {table.name} are {equal}"
        return found[0]

    def job(self, job_id: str) -> JobDetail:
        with self.database.read() as connection:
            return jobs.read_job(connection, OPERATOR, job_id, self.queue)

    def attempt(self, job_id: str, number: int = 1) -> Any:
        return self.row(attempts, job_id=job_id, attempt=number)

    def grant(self, grant_id: str) -> Grant:
        with self.database.read() as connection:
            return programs.read_grant(connection, grant_id, self.now)

    def contents(self, *without: Table) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table: what must not change when nothing may change."""
        left_out = {table.name for table in without}
        with self.database.read() as connection:
            return {
                table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
                for table in metadata.sorted_tables
                if table.name not in left_out
            }

    def snapshot(self, limit: int = 5000) -> tuple[int, dict[tuple[str, str], FeedItem]]:
        """The feed's cursor and everything, page by page."""
        page = feed.read_snapshot(self.database, None, limit)
        cursor, items = page.cursor, list(page.items)
        while page.next is not None:
            page = feed.read_snapshot(self.database, page.next, limit)
            items.extend(page.items)
        keyed = {(item.kind, item.id): item for item in items}
        assert len(keyed) == len(items), "no object stands on two pages"
        return cursor, keyed

    # --- operators and firms -------------------------------------------------------------------

    def award(
        self,
        organization: str = "alpha",
        hours: str = "100",
        *,
        program: str = "ax",
        starts_at: int | None = None,
        ends_at: int | None = None,
    ) -> Grant:
        body = Award(
            program_id=program,
            organization_id=organization,
            gpu_hours=hours,
            starts_at=starts_at,
            ends_at=self.now + 90 * DAY_MS if ends_at is None else ends_at,
            reason="a test",
        )
        _begin_a_millisecond()
        return self.database.write(lambda tx: awards.award(tx, OPERATOR, body))

    def top_up(self, grant: Grant, hours: str) -> Grant:
        body = TopUp(gpu_hours=hours, reason="a test")
        return self.database.write(lambda tx: changes.top_up(tx, OPERATOR, grant.id, body))

    def cut(self, grant: Grant, hours: str) -> Grant:
        body = GrantCut(gpu_hours=hours, reason="a test")
        return self.database.write(lambda tx: changes.cut(tx, OPERATOR, grant.id, body))

    def submit(self, organization: str = "alpha", **fields: Any) -> Job:
        body = a_submission(**fields)
        _begin_a_millisecond()
        return self.database.write(lambda tx: jobs.submit(tx, a_member(organization), body))

    def cancel(self, job_id: str, caller: Caller = OPERATOR) -> Job:
        return self.database.write(lambda tx: jobs.cancel(tx, caller, job_id, self.queue))

    def extend(self, job: Job, walltime_s: int, caller: Caller = OPERATOR) -> ExtendedJob:
        body = JobExtension(walltime_s=walltime_s, reason="a test")
        return self.database.write(lambda tx: extending.extend(tx, caller, job.id, body))

    def refund(
        self,
        job: Job,
        starts_at: int,
        ends_at: int,
        kind: RefundKind = RefundKind.FAULT,
        *,
        attempt: int = 1,
        evidence: str = "finding:1",
    ) -> RefundedJob:
        body = JobRefund(
            attempt=attempt,
            starts_at=starts_at,
            ends_at=ends_at,
            kind=kind,
            reason="a test",
            evidence=evidence,
        )
        return self.database.write(lambda tx: refunding.refund(tx, OPERATOR, job.id, body))

    def ask_stop(self, job: Job, reason: StopReason) -> bool:
        return self.database.write(
            lambda tx: jobs.ask_stop(tx, job.id, reason, actor=OPERATOR, why="a test", evidence="paper:1")
        )

    # --- the scheduler -------------------------------------------------------------------------

    def take_lease(
        self,
        holder: str = "scheduler-0",
        instance: str = "instance-1",
        epoch: int | None = None,
        ttl_s: float = 15.0,
    ) -> LeaseReply:
        body = LeaseRequest(holder=holder, instance=instance, epoch=epoch)
        reply = self.database.write(lambda tx: lease.take_lease(tx, body, ttl_s))
        self.epoch = reply.epoch
        self.sequences = dict(reply.streams)
        return reply

    def decide(
        self, *items: DecisionItem, stream: str = "decisions", epoch: int | None = None
    ) -> DecisionReply:
        batch = DecisionBatch(
            epoch=self.epoch if epoch is None else epoch,
            stream=stream,
            seq=self.sequences.get(stream, 0) + 1,
            items=items,
        )
        reply = self.send_decisions(batch.model_dump_json().encode())
        self.sequences[stream] = batch.seq
        return reply

    def send_decisions(self, body: bytes) -> DecisionReply:
        self.last_decisions = body
        batch = DecisionBatch.model_validate_json(body)
        return self.database.write(lambda tx: decisions.decide(tx, batch, body)).reply

    def try_start(self, job: Job, grant: Grant, *nodes: str, **fields: Any) -> ItemResult:
        return self.decide(self.start_item(job, grant, *nodes, **fields)).results[0]

    def start(self, job: Job, grant: Grant, *nodes: str, **fields: Any) -> int:
        """Start a job's next attempt; answers the attempt's number."""
        result = self.try_start(job, grant, *nodes, **fields)
        assert result.outcome == "accepted", result
        return result.attempt

    def start_item(
        self,
        job: Job,
        grant: Grant,
        *nodes: str,
        attempt: int | None = None,
        path: Sequence[str] | None = None,
        gpu_class: str | None = None,
    ) -> StartItem:
        """A start that puts the pods on `nodes` in turn (default: all on n0), on the job's first class by default."""
        names = nodes or ("n0",)
        number = self.job(job.id).attempt + 1 if attempt is None else attempt
        return StartItem(
            job_id=job.id,
            attempt=number,
            grant_id=grant.id,
            account_path=(grant.account_id,) if path is None else tuple(path),
            cluster=self.cluster,
            pods=tuple(
                PodPlacement(
                    index=index,
                    node=names[index % len(names)],
                    gpu_class=gpu_class or job.gpu_class,
                    count=job.gpus_per_pod,
                )
                for index in range(job.pods)
            ),
        )

    def stop(
        self,
        job: Job,
        reason: StopReason = StopReason.CANCELLED,
        *,
        attempt: int = 1,
        stop_at: int | None = None,
        grace_ms: int = 30_000,
    ) -> ItemResult:
        item = StopItem(
            job_id=job.id,
            attempt=attempt,
            reason=reason,
            stop_at=self.now if stop_at is None else stop_at,
            grace_ms=grace_ms,
        )
        return self.decide(item).results[0]

    # --- a cluster -----------------------------------------------------------------------------

    def report(
        self,
        *items: ReportItem,
        through: int | None = None,
        nodes: Sequence[NodeReport] | None = None,
        cluster: str | None = None,
        clock_speed: int = 1,
    ) -> ReportReply:
        name = self.cluster if cluster is None else cluster
        stream = f"cluster:{name}"
        batch = ReportBatch(
            epoch=self.epoch,
            stream=stream,
            seq=self.sequences.get(stream, 0) + 1,
            cluster=name,
            nodes=None if nodes is None else tuple(nodes),
            items=items,
            observed_through=self.now if through is None else through,
        )
        reply = self.send_report(batch.model_dump_json().encode(), clock_speed)
        self.sequences[stream] = batch.seq
        return reply

    def send_report(self, body: bytes, clock_speed: int = 1) -> ReportReply:
        self.last_report = body
        batch = ReportBatch.model_validate_json(body)
        return self.database.write(lambda tx: reports.report(tx, batch, body, clock_speed)).reply

    def run(self, job: Job, grant: Grant, *nodes: str) -> int:
        """Start an attempt and see all of its containers start now; answers the attempt's number."""
        attempt = self.start(job, grant, *nodes)
        self.report(started(job, self.now, self.now, attempt=attempt))
        return attempt

    def finish(self, job: Job, *, attempt: int = 1, exit_code: int = 0) -> ReportReply:
        """The attempt's pods have ended now, by themselves."""
        reason = "completed" if exit_code == 0 else "failed"
        return self.report(ended(job, self.now, attempt=attempt, exit_code=exit_code, reason=reason))


def a_hub(
    url: str,
    *,
    firms: Sequence[str] = FIRMS,
    budget_hours: str = "100000",
    nodes: dict[str, dict[str, int]] | None = None,
    now_ms: int = START_MS,
) -> Hub:
    """A hub with a programme, firms, two GPU classes and a simulated cluster that has reported its nodes."""
    clock = HandClock(now_ms)
    hub = Hub(Database(url, clock), clock)

    def seed(tx: Tx) -> None:
        for name, (rate, price) in RATES.items():
            body = NewGpuClass(id=name, name=name.upper(), rate_thousandths=rate, price_krw=price)
            fleet.put_gpu_class(tx, OPERATOR, body)
        awards.create_program(tx, OPERATOR, NewProgram(id="ax", name="AX", budget_gpu_hours=budget_hours))
        for firm in firms:
            identity.create_organization(tx, OPERATOR, NewOrganization(id=firm, name=firm.title()))
        fleet.create_cluster(tx, OPERATOR, NewCluster(id="sim", kind="simulated"))

    hub.database.write(seed)
    hub.take_lease()
    hub.report(nodes=node_reports(NODES if nodes is None else nodes))
    return hub


def _begin_a_millisecond() -> None:
    """Ids of one wall millisecond sort by chance, and a submission takes less: what is made later has a later one."""
    last = wall_ms()
    while wall_ms() == last:
        time.sleep(0.0001)


def node_reports(nodes: dict[str, dict[str, int]], foreign: int = 0) -> tuple[NodeReport, ...]:
    return tuple(
        NodeReport(
            node=node,
            schedulable=True,
            classes=tuple(
                ClassCount(gpu_class=gpu_class, total=total, foreign=foreign)
                for gpu_class, total in classes.items()
            ),
        )
        for node, classes in nodes.items()
    )


def a_member(organization: str = "alpha") -> Caller:
    return Caller(token_id=f"member-{organization}", role=Role.MEMBER, organization_id=organization)


def a_submission(**fields: Any) -> JobSubmission:
    return JobSubmission.model_validate({"name": "a job", "gpu_class": "h100", "walltime_s": 3600} | fields)


def started(job: Job, first: int, last: int | None = None, *, attempt: int = 1) -> StartedItem:
    return StartedItem(job_id=job.id, attempt=attempt, first_started_at=first, last_started_at=last)


def ended(
    job: Job,
    at: int,
    *,
    attempt: int = 1,
    first: int | None = None,
    last: int | None = None,
    exit_code: int | None = 0,
    reason: str = "completed",
) -> EndedItem:
    return EndedItem(
        job_id=job.id,
        attempt=attempt,
        first_started_at=first,
        last_started_at=last,
        ended_at=at,
        exit_code=exit_code,
        reason=reason,
    )


def lost(job: Job, last_seen: int, *, attempt: int = 1) -> LostItem:
    return LostItem(job_id=job.id, attempt=attempt, last_seen_at=last_seen)


def freed(job: Job, *, attempt: int = 1) -> FreedItem:
    return FreedItem(job_id=job.id, attempt=attempt)


def table_rows(connection: Connection, table: Table, **equal: object) -> list[Any]:
    """All rows of a table whose columns are `equal`."""
    statement = select(table)
    for name, value in equal.items():
        statement = statement.where(table.c[name] == value)
    return list(connection.execute(statement).all())


# --- over HTTP -------------------------------------------------------------------------------------


@dataclass
class Api:
    """A served hub with a client per role; `firms` are three members of three organizations."""

    hub: Hub
    base_url: str
    operator: QuotaClient
    auditor: QuotaClient
    scheduler: QuotaClient
    agent: QuotaClient
    firms: dict[str, QuotaClient]
    application: Any

    def call(self, client: QuotaClient, method: str, path: str, **request: Any) -> Any:
        """A raw request with this client's token, for what the typed client would not send."""
        return client._http.request(method, path, **request)

    def refused(self, client: QuotaClient, method: str, path: str, **request: Any) -> Any:
        """The problem document of a request that must be refused."""
        answer = self.call(client, method, path, **request)
        assert answer.status_code >= 400, answer.text
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        return answer.json() | {"http_status": answer.status_code}


@contextmanager
def an_api(url: str, **settings: Any) -> Iterator[Api]:
    """The seeded hub behind uvicorn on a free port of loopback, in a thread."""
    hub = a_hub(url)
    secrets = _tokens(hub)
    made = Settings(database=url, tasks=False, feed_poll_s=0.05, **settings)
    application = create_app(made, clock=hub.clock)
    with ExitStack() as ended:
        ended.callback(hub.close)
        base_url = ended.enter_context(served(quiet(application)))
        clients = {
            name: ended.enter_context(QuotaClient(base_url, secret, timeout_s=30.0))
            for name, secret in secrets.items()
        }
        yield Api(
            hub,
            base_url,
            clients["operator"],
            clients["auditor"],
            clients["scheduler"],
            clients["agent"],
            {firm: clients[firm] for firm in FIRMS},
            application,
        )


def _tokens(hub: Hub) -> dict[str, str]:
    bodies = {role.value: NewToken(role=role) for role in (Role.OPERATOR, Role.AUDITOR, Role.SCHEDULER)}
    bodies["agent"] = NewToken(role=Role.AGENT, node="n*")
    bodies |= {firm: NewToken(role=Role.MEMBER, organization_id=firm) for firm in FIRMS}
    return {
        name: hub.database.write(lambda tx, body=body: tokens.create_token(tx, "test", body)).secret
        for name, body in bodies.items()
    }


@contextmanager
def a_problem(code: str, status: int | None = None) -> Iterator[list[ServiceProblem]]:
    """The client is refused with this code; the problem is in the list afterwards."""
    caught: list[ServiceProblem] = []
    with suppress(ServiceProblem):
        try:
            yield caught
        except ServiceProblem as problem:
            caught.append(problem)
            raise
    assert caught, f"nothing was refused; {code} was expected"
    assert caught[0].code == code, caught[0]
    assert status is None or caught[0].status == status, caught[0]


def dumped(models: Sequence[BaseModel]) -> list[dict[str, Any]]:
    return [model.model_dump(mode="json") for model in models]
