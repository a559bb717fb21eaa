"""A seeded hub for benchmarks: one organization with a large grant, nodes with room for every batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select

from quota.app import create_app
from quota.cli import server_config
from quota.client import QuotaClient
from quota.clock import wall_ms
from quota.db import Database
from quota.dispatch import decisions, lease, reports
from quota.fleet import service as fleet
from quota.identity import caps, tokens
from quota.identity import service as identity
from quota.jobs import service as jobs
from quota.ledger.tables import holds
from quota.programs import awards
from quota.schemas import scheduling as wire
from quota.schemas.caps import CapsPut, HubCaps
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.identity import Caller, NewOrganization, NewToken, Role
from quota.schemas.jobs import JobSubmission
from quota.schemas.programs import Award, NewProgram
from quota.settings import Settings
from tests.builders import HandClock

DAY_MS = 86_400_000
NODES = 16


class World:
    """A hub in process, with the two batches that a benchmark repeats."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = HandClock(wall_ms())
        self.database = Database(url, self.clock)
        write = self.database.write
        self.caller = Caller(token_id="bench", role=Role.OPERATOR, organization_id=None)
        write(lambda tx: fleet.create_cluster(tx, self.caller, NewCluster(id="sim", kind="simulated")))
        gpu_class = NewGpuClass(id="h100", name="H100", rate_thousandths=1000, price_krw=4000)
        write(lambda tx: fleet.put_gpu_class(tx, self.caller, gpu_class))
        write(
            lambda tx: identity.create_organization(
                tx, self.caller, NewOrganization(id="alpha-lab", name="Alpha")
            )
        )
        lifted = CapsPut(caps=HubCaps(organization_pool_thousandths=1000), reason="it is alone here")
        write(lambda tx: caps.put_caps(tx, self.caller, lifted))
        opened = NewProgram(id="ax", name="AX", budget_gpu_hours=24_000_000)
        write(lambda tx: awards.create_program(tx, self.caller, opened))
        award = Award(
            program_id="ax",
            organization_id="alpha-lab",
            gpu_hours=1_000_000,
            ends_at=self.database.clock.now_ms() + 90 * DAY_MS,
            reason="benchmark",
        )
        self.grant = write(lambda tx: awards.award(tx, self.caller, award))
        self.secrets = {
            role: write(lambda tx, role=role: tokens.create_token(tx, "bench", NewToken(role=role))).secret
            for role in (Role.OPERATOR, Role.SCHEDULER)
        }
        request = wire.LeaseRequest(holder="bench", instance="instance-1")
        self.epoch = write(lambda tx: lease.take_lease(tx, request, 3600)).epoch
        self.report(self._nodes())

    def _nodes(self) -> wire.ReportBatch:
        nodes = tuple(
            wire.NodeReport(
                node=f"n{number}", schedulable=True, classes=(wire.ClassCount(gpu_class="h100", total=8),)
            )
            for number in range(NODES)
        )
        return self._batch(1, nodes=nodes)

    def submission(self) -> JobSubmission:
        """A one-GPU job of an hour."""
        return JobSubmission(name="bench", gpu_class="h100", walltime_s=3600, organization_id="alpha-lab")

    def submit(self, count: int) -> list[str]:
        """Queue jobs; answers their ids."""
        body = self.submission()
        return [self.database.write(lambda tx: jobs.submit(tx, self.caller, body)).id for _ in range(count)]

    def starts(self, job_ids: list[str], number: int) -> wire.DecisionBatch:
        """A batch that starts these jobs."""
        items = tuple(
            wire.StartItem(
                job_id=job_id,
                attempt=1,
                grant_id=self.grant.id,
                account_path=(self.grant.account_id,),
                cluster="sim",
                pods=(wire.PodPlacement(index=0, node=f"n{place % NODES}", gpu_class="h100", count=1),),
            )
            for place, job_id in enumerate(job_ids)
        )
        return wire.DecisionBatch(epoch=self.epoch, stream="decisions", seq=number, items=items)

    def ends(self, job_ids: list[str], number: int) -> wire.ReportBatch:
        """A batch that reports these jobs as started and ended; the clock moves to after their end."""
        now = self.clock.now_ms()
        items = tuple(
            wire.EndedItem(
                job_id=job_id,
                attempt=1,
                first_started_at=now,
                last_started_at=now,
                ended_at=now + 1,
                exit_code=0,
                reason="completed",
            )
            for job_id in job_ids
        )
        self.clock.advance(2)  # the watermark may not lie in the future
        return self._batch(number + 1, items=items)

    def decide(self, batch: wire.DecisionBatch) -> wire.DecisionReply:
        """Through the service, without HTTP."""
        return self.database.write(lambda tx: decisions.decide(tx, batch, b"%d" % batch.seq)).reply

    def report(self, batch: wire.ReportBatch) -> wire.ReportReply:
        """Through the service, without HTTP."""
        return self.database.write(lambda tx: reports.report(tx, batch, b"%d" % batch.seq, 1)).reply

    def resolved_holds(self) -> int:
        """How many holds are resolved."""
        with self.database.read() as connection:
            statement = select(func.count()).select_from(holds).where(holds.c.resolved.is_(True))
            return int(connection.execute(statement).scalar_one())

    @contextmanager
    def serve(self, app: FastAPI | None = None) -> Iterator[QuotaClient]:
        """The real service on a free port of loopback."""
        application = app or create_app(
            Settings(database=self.url, tasks=False, member_requests_per_s=0, staff_requests_per_s=0),
            self.clock,
        )
        config = server_config(application, application.state.hub.settings)
        config.port = 0
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        self.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            with QuotaClient(f"http://127.0.0.1:{self.port}", self.secrets[Role.SCHEDULER]) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def _batch(
        self,
        seq: int,
        items: tuple[wire.EndedItem, ...] = (),
        nodes: tuple[wire.NodeReport, ...] | None = None,
    ) -> wire.ReportBatch:
        return wire.ReportBatch(
            epoch=self.epoch,
            stream="cluster:sim",
            seq=seq,
            cluster="sim",
            items=items,
            nodes=nodes,
            observed_through=self.database.clock.now_ms(),
        )
