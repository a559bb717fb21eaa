"""Attacks that worked once: leaks between parties, more held on a closed share, doubled requests, missing traces."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pytest

from quota.audit import seals
from quota.audit.tables import audit
from quota.errors import PreconditionFailed, RateLimited, WrongState
from quota.jobs import service as jobs
from quota.jobs import switches
from quota.ledger.reading import TransferFilter, list_transfers
from quota.programs import changes, endings, policies
from quota.reports import statements
from quota.schemas.identity import Caller
from quota.schemas.ledger import TransferType
from quota.schemas.policies import GrantPolicy, PolicyPut
from quota.schemas.programs import GrantCut, LimitCut
from quota.schemas.scheduling import JobState, StopReason
from quota.schemas.statements import StatementFormat, StatementLanguage
from quota.schemas.switches import RequeueReply, RequeueRequest
from quota.schemas.transfers import Transfer
from quota.settings import Settings
from quota.throttle import Throttle
from tests.builders import DAY_MS, GPU_HOUR_US, HOUR_MS, OPERATOR, Hub, a_hub, a_member, a_submission, ended
from tests.integration.quota.limits_builders import give, path, run_on

ADDRESS = "203.0.113.9"


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def test_a_party_is_not_told_what_the_whole_grant_lost_or_expired(hub: Hub) -> None:
    grant = hub.award(hours="100", ends_at=hub.now + DAY_MS)
    share = give(hub, grant, "beta", 10)
    cut = GrantCut(
        gpu_hours="40",
        reason="the call shrank",
        children=(LimitCut(account_id=share.account_id, gpu_hours="3"),),
    )
    hub.database.write(lambda tx: changes.cut(tx, OPERATOR, grant.id, cut))
    hub.clock.advance(DAY_MS)
    assert endings.expire_due(hub.database) == 1
    lead, party = _amounts(hub, "alpha"), _amounts(hub, "beta")
    assert lead[TransferType.PULLBACK] == 40 * GPU_HOUR_US
    assert lead[TransferType.EXPIRE] == 60 * GPU_HOUR_US
    assert party[TransferType.PULLBACK] == 3 * GPU_HOUR_US
    assert party[TransferType.EXPIRE] == 7 * GPU_HOUR_US


def test_what_comes_free_on_a_closed_share_extends_nobody(hub: Hub) -> None:
    grant = hub.award(hours="100")
    give(hub, grant, "beta", 10)
    first, second = (hub.submit("beta", walltime_s=7200) for _ in range(2))
    for job in (first, second):
        run_on(hub, job, grant, path(grant, "beta"))
    give(hub, grant, "beta", 0)
    hub.clock.advance(HOUR_MS)
    hub.finish(first)
    with pytest.raises(WrongState, match="closed"):
        hub.extend(second, 600)
    give(hub, grant, "beta", 10)
    assert hub.extend(second, 600).walltime_s == 7800


def test_a_requeue_that_is_sent_again_leaves_the_next_attempt_alone(hub: Hub) -> None:
    grant, job = hub.award(), hub.submit()
    hub.run(job, grant)
    assert _requeue(hub, job.id, attempt=1).changed
    assert hub.stop(job, StopReason.REQUEUED).outcome == "accepted"
    hub.report(ended(job, hub.now, exit_code=143, reason="failed"))
    hub.run(job, grant)
    with pytest.raises(WrongState, match="attempt 1"):
        _requeue(hub, job.id, attempt=1)
    assert hub.job(job.id).state is JobState.RUNNING
    assert hub.attempt(job.id, 2).stop_asked is None


def test_the_trail_knows_from_where_a_job_was_submitted_cancelled_and_sent_back(hub: Hub) -> None:
    grant = hub.award()
    member, operator = _from_afar(a_member()), _from_afar(OPERATOR)
    job = hub.database.write(lambda tx: jobs.submit(tx, member, a_submission()))
    hub.run(job, grant)
    body = RequeueRequest(reason="a better node")
    hub.database.write(lambda tx: switches.requeue(tx, operator, job.id, body, hub.queue))
    hub.database.write(lambda tx: jobs.cancel(tx, member, job.id, hub.queue))
    rows = {row.action: (row.actor, row.address) for row in hub.rows(audit, subject=job.id)}
    assert rows["job.submit"] == rows["job.cancel"] == (member.token_id, ADDRESS)
    assert rows["attempt.ask_stop"] == (operator.token_id, ADDRESS)


def test_the_trail_names_the_shares_that_a_cut_took_from(hub: Hub) -> None:
    grant = hub.award(hours="100")
    share = give(hub, grant, "beta", 10)
    cut = GrantCut(
        gpu_hours="3", reason="less", children=(LimitCut(account_id=share.account_id, gpu_hours="3"),)
    )
    hub.database.write(lambda tx: changes.cut(tx, OPERATOR, grant.id, cut))
    row = hub.row(audit, action="grant.cut")
    assert f'"children": {{"{share.account_id}": "{3 * GPU_HOUR_US}"}}' in row.detail


def test_a_policy_that_is_not_there_matches_no_version(hub: Hub) -> None:
    body = PolicyPut(policy=GrantPolicy(overdraft_thousandths=1000), reason="generous")
    for asked in ("*", '"0123"'):
        with pytest.raises(PreconditionFailed):
            hub.database.write(lambda tx, asked=asked: policies.put_policy(tx, OPERATOR, "new", body, asked))  # type: ignore[misc]
    assert hub.database.write(lambda tx: policies.put_policy(tx, OPERATOR, "new", body)).version == 1


@pytest.mark.parametrize(
    "first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_no_reason_or_evidence_starts_a_formula_in_a_spreadsheet(sqlite_url: str, first: str) -> None:
    hub = a_hub(sqlite_url)
    grant, attack = hub.award(hours="100"), f"{first}HYPERLINK(1)"
    cut = GrantCut(gpu_hours="3", reason=attack, evidence=attack)
    hub.database.write(lambda tx: changes.cut(tx, OPERATOR, grant.id, cut))
    seals.seal_due(hub.database)
    written = statements.read_statement(
        hub.database,
        OPERATOR,
        grant.id,
        as_of_ms=hub.now,
        since_ms=None,
        form=StatementFormat.CSV,
        language=StatementLanguage.KO,
    )
    cells = [
        cell
        for row in csv.reader(io.StringIO(written.content.decode("utf-8-sig"), newline=""))
        for cell in row
    ]
    assert cells.count(f"'{attack}") == 2
    assert attack not in cells
    hub.close()


def test_who_rotates_its_token_over_and_over_asks_no_faster() -> None:
    throttle = Throttle(Settings(member_requests_per_s=1, member_requests_burst=5), monotonic_s=lambda: 0.0)
    for number in range(5):
        throttle.take(_token(number))
        throttle.hand_on(f"tok-{number}", f"tok-{number + 1}")
    with pytest.raises(RateLimited):
        throttle.take(_token(5))
    with pytest.raises(RateLimited):
        throttle.take(_token(0))
    throttle.take(a_member())


def _token(number: int) -> Caller:
    return a_member().model_copy(update={"token_id": f"tok-{number}"})


def _from_afar(caller: Caller) -> Caller:
    return caller.model_copy(update={"address": ADDRESS})


def _amounts(hub: Hub, organization: str) -> dict[TransferType, int]:
    with hub.database.read() as connection:
        page = list_transfers(connection, a_member(organization), TransferFilter(), None, 100)
    return {item.type: _same(item) for item in page.items}


def _same(item: Transfer) -> int:
    assert item.amount_gpu_us == item.amount_gpu_hours
    return item.amount_gpu_us


def _requeue(hub: Hub, job_id: str, attempt: int) -> RequeueReply:
    body = RequeueRequest(reason="a better node", attempt=attempt)
    return hub.database.write(lambda tx: switches.requeue(tx, OPERATOR, job_id, body, hub.queue))
