"""Bugs that other systems shipped, 10 to 18: each is asked of this service on both databases."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import BigInteger, Boolean, Integer, String, Text, update
from sqlalchemy.exc import IntegrityError

import quota
from quota.audit.tables import audit, findings
from quota.clock import HOUR_MS
from quota.db import Database
from quota.errors import HubError, InsufficientBalance, NothingToRefund, UnknownGpuClass
from quota.identity.tables import organizations
from quota.jobs import endings as running
from quota.ledger.tables import accounts, hold_accounts, holds, slices, transfer_legs, transfers
from quota.programs import awards, changes, endings
from quota.programs import service as programs
from quota.schemas.identity import Caller, Role
from quota.schemas.jobs import JobSubmission
from quota.schemas.ledger import RefundKind
from quota.schemas.programs import Adjustment, Award, GrantCut, GrantTransfer, TopUp
from tests.builders import DAY_MS, GPU_HOUR_US, MINUTE_MS, Hub, a_hub, ended, started
from tests.integration.quota.bug_evidence import deliver
from tests.integration.quota.grants_builders import balance, put_policy
from tests.property.ledger.ledger_checks import violations

THREADS = 8


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    """A hub whose ledger must break no invariant when the test is over."""
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def at_once(work: Any) -> list[object]:
    """What eight threads get that do `work(number)` at the same moment: an answer or a refusal."""
    barrier, answers = threading.Barrier(THREADS), [object()] * THREADS

    def run(number: int) -> None:
        barrier.wait()
        try:
            answers[number] = work(number)
        except HubError as refusal:
            answers[number] = refusal

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_bug_10_what_is_checked_is_taken_in_the_same_transaction(database_url: str) -> None:
    hub = a_hub(database_url, budget_hours="30")
    answers = at_once(lambda _number: hub.award("alpha", "10"))
    refused = [one for one in answers if isinstance(one, InsufficientBalance)]
    assert (len(answers) - len(refused), len(refused)) == (3, THREADS - 3)
    assert balance(hub, "program:ax") == (0, 0, 0)
    hub.close()


def test_bug_11_nothing_is_clamped_at_zero(hub: Hub) -> None:
    put_policy(hub, overdraft_thousandths=500)
    grant = hub.award("alpha", "2")
    job = hub.submit(walltime_s=3 * 3600)
    hub.run(job, grant)
    hub.clock.advance(3 * HOUR_MS)
    hub.finish(job)
    assert balance(hub, grant.account_id) == (2 * GPU_HOUR_US, 0, 3 * GPU_HOUR_US)
    assert hub.grant(grant.id).available_gpu_us == -GPU_HOUR_US, "what is over is shown as over"
    begins = hub.attempt(job.id).first_started_at_ms
    hub.refund(job, begins, begins + HOUR_MS, RefundKind.PREEMPTED)
    with pytest.raises(NothingToRefund):
        hub.refund(job, begins, begins + HOUR_MS, RefundKind.PREEMPTED)
    for column in ("used_gpu_us", "held_gpu_us"):
        below = update(accounts).where(accounts.c.id == grant.account_id).values({column: -1})
        with pytest.raises(IntegrityError):
            hub.database.write(lambda tx, below=below: tx.connection.execute(below))


def test_bug_12_a_burst_between_two_reports_counts_once_and_whole(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit(walltime_s=3600)
    hub.start(job, grant)
    begins = hub.now
    hub.clock.advance(10_000)
    usage = hub.row(organizations, id="alpha").decayed_usage_gpu_us
    assert usage == 0, "what is held is no usage yet: it would count twice"
    hub.report(started(job, begins + 1000, begins + 1000), ended(job, begins + 8003))
    assert balance(hub, grant.account_id)[2] == 7003 * 1000
    assert hub.row(organizations, id="alpha").decayed_usage_gpu_us == 7003 * 1000
    hub.report(ended(job, begins + 8003))
    assert hub.row(organizations, id="alpha").decayed_usage_gpu_us == 7003 * 1000


def test_bug_13_no_job_holds_gpus_of_no_class(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    for missing in ({}, {"gpu_class": None}, {"gpu_class": ""}):
        with pytest.raises(ValidationError):
            JobSubmission.model_validate({"name": "a job", "walltime_s": 60} | missing)
    with pytest.raises(UnknownGpuClass):
        hub.submit(gpu_class="gpu")
    job = hub.submit(gpu_class="a100")
    elsewhere = hub.start_item(job, grant, "n0")
    untyped = elsewhere.model_copy(
        update={"pods": tuple(pod.model_copy(update={"gpu_class": "h100"}) for pod in elsewhere.pods)}
    )
    assert hub.decide(untyped).results[0].outcome == "refused", "the class of the job, not of the node"
    hub.start(job, grant, "a0")
    held = hub.row(holds, job_id=job.id)
    assert (held.gpu_class, held.rate_thousandths) == ("a100", 550)


def test_bug_14_what_was_reported_is_stored_and_told_twice_counts_once(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit(walltime_s=3600)
    hub.run(job, grant)
    hub.clock.advance(10 * MINUTE_MS)
    assert deliver(hub, job.id, seq=2, busy_ms=5000).accepted == 1
    assert deliver(hub, job.id, seq=2, busy_ms=5000).unchanged == 1
    assert deliver(hub, job.id, seq=1, busy_ms=4000).unchanged == 1
    hub.finish(job)
    before = hub.contents()
    hub.send_report(hub.last_report)
    assert hub.contents() == before
    # another process sees at once what this one answered: nothing waits in memory
    other = Hub(Database(hub.database.url, hub.clock), hub.clock)
    assert other.contents() == before
    measured = other.job(job.id).measured
    assert [one.busy_ms for one in measured] == [5000]
    other.close()


def test_bug_15_a_job_that_dies_early_pays_what_it_lived(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit(walltime_s=10 * 3600, gpus_per_pod=8)
    hub.run(job, grant)
    hub.clock.advance(1234)
    hub.finish(job, exit_code=1)
    assert balance(hub, grant.account_id) == (100 * GPU_HOUR_US, 0, 1234 * 8 * 1000)


def test_bug_16_amounts_are_integers_and_time_is_the_hubs_own() -> None:
    exact = (BigInteger, Integer, String, Text, Boolean)
    for table in (accounts, transfers, transfer_legs, holds, hold_accounts, slices):
        inexact = [column.name for column in table.c if not isinstance(column.type, exact)]
        assert inexact == [], table.name
    asked = []
    root = Path(quota.__path__[0])
    for file in root.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        clocks = {
            "datetime.now",
            "datetime.utcnow",
            "datetime.today",
            "date.today",
            "time.time",
            "time.time_ns",
        }
        asked += [str(file.relative_to(root)) for name in names if name in clocks]
    assert asked == ["clock.py"], "one place asks the machine what time it is, and never in a local zone"


def test_bug_17_an_expired_grant_beside_others_frightens_and_stops_nobody(hub: Hub) -> None:
    put_policy(hub, when_grant_ends="stop_at_end")
    first, second = hub.award("alpha", "10", ends_at=hub.now + 2 * HOUR_MS), hub.award("alpha", "10")
    ending = hub.submit(walltime_s=3600, grant_id=first.id)
    staying = hub.submit(walltime_s=30 * 3600 // 4, grant_id=second.id)
    hub.run(ending, first)
    hub.run(staying, second, "n1")
    hub.clock.advance(30 * MINUTE_MS)
    hub.database.write(lambda tx: endings.change_end(tx, OPERATOR, first.id, hub.now + MINUTE_MS, "agreed"))
    running.stop_due(hub.database)
    assert [row.subject for row in hub.rows(findings, code="grant_ends_soon")] == [f"{ending.id}-1"]
    hub.clock.advance(2 * MINUTE_MS)
    assert endings.expire_due(hub.database) == 1
    running.stop_due(hub.database)
    assert hub.attempt(ending.id).stop_asked == "grant_ended"
    assert hub.attempt(staying.id).stop_asked is None
    with hub.database.read() as connection:
        payable = [row.id for row in programs.payable_grants(connection, "alpha", hub.now)]
    assert payable == [second.id]
    assert hub.submit(walltime_s=60).state == "queued", "the other grant pays as before"
    assert hub.grant(second.id).granted_gpu_us == 10 * GPU_HOUR_US


OPERATOR = Caller(token_id="tok-kim", role=Role.OPERATOR, organization_id=None)


def test_bug_18_who_approved_is_recorded_by_name_in_ledger_and_trail(hub: Hub) -> None:
    why: dict[str, Any] = {"reason": "decision 12", "evidence": "paper 12"}

    def do(work: Any) -> Any:
        return hub.database.write(work)

    body = Award(
        program_id="ax",
        organization_id="alpha",
        gpu_hours="10",
        ends_at=hub.now + DAY_MS,
        reason="decision 12",
    )
    known = len(hub.rows(transfers))
    grant, other = (do(lambda tx: awards.award(tx, OPERATOR, body)) for _ in range(2))
    do(lambda tx: changes.top_up(tx, OPERATOR, grant.id, TopUp(gpu_hours="2", **why)))
    do(lambda tx: changes.cut(tx, OPERATOR, grant.id, GrantCut(gpu_hours="1", **why)))
    move = GrantTransfer(gpu_hours="1", to_grant_id=other.id, **why)
    do(lambda tx: changes.transfer(tx, OPERATOR, grant.id, move))
    do(lambda tx: changes.adjust_grant(tx, OPERATOR, grant.id, Adjustment(gpu_hours="1", **why)))
    do(lambda tx: changes.adjust_program(tx, OPERATOR, "ax", Adjustment(gpu_hours="1", **why)))
    mine = sorted(hub.rows(transfers), key=lambda row: (row.seq, row.position))[known:]
    assert {(row.actor, row.reason) for row in mine} == {("tok-kim", "decision 12")}
    assert len(mine) == 7
    rows = [row for row in hub.rows(audit) if row.actor == "tok-kim"]
    assert {row.action for row in rows} == {
        "grant.award",
        "grant.top_up",
        "grant.cut",
        "grant.transfer",
        "grant.receive",
        "grant.adjust",
        "program.adjust",
    }
    assert {row.reason for row in rows} == {"decision 12"}
    hub.clock.set(grant.ends_at)
    endings.expire_due(hub.database)
    expiry = [row for row in hub.rows(transfers) if row.type == "expire"]
    assert {row.actor for row in expiry} == {"hub"}, "only what nobody decided is the hub's own"
