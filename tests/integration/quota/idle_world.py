"""A hub with an agent whose GPUs do what a test says, minute by minute; and what every stop must have behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, text

from quota.clock import HOUR_MS
from quota.dispatch.evidence import deliver
from quota.idle import policy
from quota.idle.tables import warnings
from quota.jobs import exempting, idling
from quota.jobs.tables import jobs
from quota.schemas.identity import Caller, Role
from quota.schemas.idle import Exemption, ExemptionEnd, IdlePolicy, IdlePolicyPut, NewExemption
from quota.schemas.jobs import Job
from quota.schemas.usage import EvidenceBatch, EvidenceReply, EvidenceRow
from tests.builders import DAY_MS, MINUTE_MS, OPERATOR, Hub, a_hub
from tests.property.ledger.ledger_checks import violations

AGENT = Caller(token_id="agent", role=Role.AGENT, organization_id=None, node="n*")
STEP_MS = 5 * MINUTE_MS


@dataclass
class Agent:
    """Measures GPUs of one job and delivers cumulative rows; may die, which begins a new epoch."""

    hub: Hub
    job: Job
    gpus: int = 1
    epoch: int = 1
    seq: int = 0
    rows: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    undelivered: set[tuple[str, int]] = field(default_factory=set)

    def measure(self, from_ms: int, until_ms: int, busy: float | list[float]) -> None:
        """All GPUs alike, or each its own share; cut at the hour."""
        shares = [busy] * self.gpus if isinstance(busy, float) else busy
        while from_ms < until_ms:
            hour_ms = from_ms // HOUR_MS * HOUR_MS
            end_ms = min(until_ms, hour_ms + HOUR_MS)
            for gpu, share in enumerate(shares):
                cell = self.rows[(f"GPU-{gpu}000", hour_ms)]
                cell[0] += int((end_ms - from_ms) * share)
                cell[1] += end_ms - from_ms
                self.undelivered.add((f"GPU-{gpu}000", hour_ms))
            from_ms = end_ms

    def batch(self) -> EvidenceBatch:
        """What is to be delivered."""
        self.seq += 1
        attempt = self.hub.row(jobs, id=self.job.id).attempt
        return EvidenceBatch(rows=tuple(self._row(attempt, *cell) for cell in sorted(self.undelivered)))

    def deliver(self) -> EvidenceReply:
        """Deliver all that changed since."""
        batch = self.batch()
        self.undelivered.clear()
        return send(self.hub, batch)

    def die(self) -> None:
        """The outbox is lost."""
        self.epoch, self.seq = self.epoch + 1, 0
        self.rows.clear()
        self.undelivered.clear()

    def _row(self, attempt: int, gpu: str, hour_ms: int) -> EvidenceRow:
        busy, observed = self.rows[(gpu, hour_ms)]
        return EvidenceRow(
            job_id=self.job.id,
            attempt=attempt,
            gpu_uuid=gpu,
            gpu_class="h100",
            node="n0",
            hour=hour_ms,
            agent_epoch=f"epoch-{self.epoch:04}",
            seq=self.seq,
            busy_ms=busy,
            observed_ms=observed,
        )


def send(hub: Hub, batch: EvidenceBatch) -> EvidenceReply:
    """One delivery."""
    return hub.database.write(lambda tx: deliver(tx, AGENT, batch))


def live(
    agent: Agent,
    minutes: int,
    busy: float | list[float] = 0.0,
    *,
    delivers: bool = True,
    judges: bool = True,
    every: int = 15,
) -> list[str]:
    """Let so many minutes pass; each five the agent delivers, each `every`, and at last, the hub judges.

    Answers what the hub did.
    """
    hub, done = agent.hub, []
    for passed in range(5, minutes + 1, 5):
        begin = hub.now
        agent.measure(begin, hub.clock.advance(STEP_MS), busy)
        if delivers:
            agent.deliver()
        if judges and (passed % every == 0 or passed == minutes):
            done.append(idling.judge_all(hub.database))
    return done


def a_running_job(hub: Hub, gpus: int = 1, **fields: Any) -> Agent:
    """A job that runs, and its agent."""
    grant = hub.award(hours="1000")
    job = hub.submit(walltime_s=fields.pop("walltime_s", 48 * 3600), gpus_per_pod=gpus, **fields)
    hub.run(job, grant)
    return Agent(hub, job, gpus)


def set_policy(hub: Hub, **fields: Any) -> None:
    """Change the rules."""
    body = IdlePolicyPut(policy=IdlePolicy.model_validate(fields), reason="a test")
    hub.database.write(lambda tx: policy.put_policy(tx, OPERATOR, body))


def exempt(hub: Hub, kind: str, subject: str, for_ms: int = DAY_MS) -> Exemption:
    """Make an exemption."""
    body = NewExemption(kind=kind, subject=subject, expires_at=hub.now + for_ms, reason="a demonstration")
    return hub.database.write(lambda tx: exempting.create(tx, OPERATOR, body))


def end_exemption(hub: Hub, made: Exemption) -> Exemption:
    """End it."""
    body = ExemptionEnd(reason="it is over")
    return hub.database.write(lambda tx: exempting.end(tx, OPERATOR, made.id, body))


def given(hub: Hub, job: Job) -> list[tuple[int, bool]]:
    """Steps of the job's warnings in order, and whether each is in force."""
    rows = sorted(hub.rows(warnings, job_id=job.id), key=lambda row: row.number)
    return [(row.step, row.withdrawn_at_ms is None) for row in rows]


def stops_without_cause(connection: Connection, gap_ms: int = 600_000) -> list[str]:
    """Attempts that were asked to stop as idle without two warnings in force, apart from each other and the stop.

    In plain SQL on the rows; the moment of the stop is the audit trail's.
    """
    asked = connection.execute(
        text("SELECT subject, at_ms, detail FROM audit WHERE action = 'attempt.ask_stop'")
    ).all()
    wrong = []
    for row in asked:
        if '"asked": "idle_reclaimed"' not in row.detail:
            continue
        rows = connection.execute(
            text(
                "SELECT step, at_ms, idle_since_ms FROM idle_warnings WHERE job_id = :job AND at_ms < :at"
                " AND (withdrawn_at_ms IS NULL OR withdrawn_at_ms > :at) ORDER BY number"
            ),
            {"job": row.subject, "at": row.at_ms},
        ).all()
        steps = [each.step for each in rows]
        moments = [each.at_ms for each in rows] + [row.at_ms]
        apart = all(after - before >= gap_ms for before, after in pairwise(moments))
        if steps != [1, 2] or not apart:
            wrong.append(f"{row.subject} at {row.at_ms}: {steps} at {moments}")
    return wrong


@contextmanager
def a_judged_hub(url: str) -> Iterator[Hub]:
    """A hub whose books and stops must be right at the end."""
    hub = a_hub(url)
    yield hub
    with hub.database.read() as connection:
        assert violations(connection) == []
        assert stops_without_cause(connection) == []
    hub.close()
