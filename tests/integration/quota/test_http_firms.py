"""Three firms, an operator, an auditor and a scheduler over HTTP: what each does and what each never learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from quota.client import QuotaClient
from quota.schemas.fleet import NewGpuClass
from quota.schemas.identity import NewToken, Role
from quota.schemas.jobs import Job
from quota.schemas.programs import Award, Grant, GrantCut, TopUp
from quota.schemas.scheduling import DecisionBatch, JobState, ReportBatch, StopItem, StopReason
from tests import databases
from tests.builders import (
    DAY_MS,
    FIRMS,
    GPU_HOUR_US,
    HOUR_MS,
    MINUTE_MS,
    Api,
    a_problem,
    a_submission,
    an_api,
    ended,
    lost,
    started,
)
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made
        with made.hub.database.read() as connection:
            assert violations(connection) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One hub for tests that change nothing; every firm has a grant and a job."""
    folder: Path = tmp_path_factory.mktemp("http")
    with ExitStack() as stack:
        made = stack.enter_context(an_api(databases.new_sqlite(folder)))
        for firm in FIRMS:
            made.firms[firm].submit_job(a_submission(grant_id=_award(made, firm, "10").id))
        yield made


def _award(api: Api, firm: str, hours: str, ends_in_ms: int = 90 * DAY_MS) -> Grant:
    body = Award(
        program_id="ax",
        organization_id=firm,
        gpu_hours=hours,
        ends_at=api.hub.now + ends_in_ms,
        reason="won a call",
    )
    return api.operator.award_grant(body)


def _start(api: Api, job: Job, grant: Grant, *nodes: str) -> str:
    item = api.hub.start_item(job, grant, *nodes)
    reply = api.scheduler.send_decisions(_batch(api, item))
    return reply.results[0].outcome + reply.results[0].code


def _batch(api: Api, *items: Any) -> bytes:
    seq = api.hub.sequences["decisions"] = api.hub.sequences.get("decisions", 0) + 1
    batch = DecisionBatch(epoch=api.hub.epoch, stream="decisions", seq=seq, items=items)
    return batch.model_dump_json().encode()


def _stop(api: Api, job: Job, reason: StopReason = StopReason.CANCELLED) -> None:
    item = StopItem(job_id=job.id, attempt=1, reason=reason, stop_at=api.hub.now, grace_ms=30_000)
    api.scheduler.send_decisions(_batch(api, item))


def _report(api: Api, *items: Any) -> None:
    seq = api.hub.sequences["cluster:sim"] = api.hub.sequences["cluster:sim"] + 1
    batch = ReportBatch(
        epoch=api.hub.epoch,
        stream="cluster:sim",
        seq=seq,
        cluster="sim",
        items=items,
        observed_through=api.hub.now,
    )
    api.scheduler.send_reports(batch.model_dump_json().encode())


# --- a week of three firms ---------------------------------------------------------------------------


def test_three_firms_live_side_by_side(api: Api) -> None:
    alpha, beta, gamma = (api.firms[firm] for firm in FIRMS)
    grants = {firm: _award(api, firm, "100") for firm in FIRMS}
    gang = alpha.submit_job(a_submission(gpus_per_pod=4, pods=2, walltime_s=7200), key="gang")
    assert alpha.submit_job(a_submission(gpus_per_pod=4, pods=2, walltime_s=7200), key="gang") == gang
    failing = beta.submit_job(a_submission(gpus_per_pod=2))
    restarting = gamma.submit_job(a_submission(gpus_per_pod=2, restartable=True))
    assert (gang.state, gang.cost_limit_gpu_us) == (JobState.QUEUED, 16 * GPU_HOUR_US)

    assert _start(api, gang, grants["alpha"]) == "accepted"
    assert _start(api, failing, grants["beta"], "n1") == "accepted"
    assert _start(api, restarting, grants["gamma"], "n1") == "accepted"
    _report(api, *(started(job, api.hub.now, api.hub.now) for job in (gang, failing, restarting)))
    api.hub.clock.advance(30 * MINUTE_MS)
    _report(
        api,
        ended(gang, api.hub.now),
        ended(failing, api.hub.now, exit_code=1, reason="failed"),
        lost(restarting, api.hub.now),
    )

    done = alpha.read_job(gang.id)
    assert (done.state, done.end_reason, done.charged_gpu_us) == (
        JobState.ENDED,
        "succeeded",
        4 * GPU_HOUR_US,
    )
    failed = beta.read_job(failing.id)
    assert (failed.end_reason, failed.charged_gpu_us) == ("failed", GPU_HOUR_US)
    again = gamma.read_job(restarting.id)
    assert (again.state, again.charged_gpu_us) == (JobState.QUEUED, 0)
    assert _start(api, restarting, grants["gamma"], "n0") == "accepted"
    assert gamma.read_job(restarting.id).attempt == 2
    assert [
        alpha.read_grant(grants["alpha"].id).used_gpu_us,
        beta.read_grant(grants["beta"].id).used_gpu_us,
    ] == [
        4 * GPU_HOUR_US,
        GPU_HOUR_US,
    ]
    assert {job.id for job in beta.list_jobs().items} == {failing.id}
    assert [job.id for job in api.operator.list_jobs(organization_id="alpha").items] == [gang.id]


def test_a_firm_cancels_while_queued_starting_and_running(api: Api) -> None:
    alpha = api.firms["alpha"]
    grant = _award(api, "alpha", "100")
    queued, starting, running = (alpha.submit_job(a_submission()) for _ in range(3))
    _start(api, starting, grant)
    _start(api, running, grant)
    _report(api, started(running, api.hub.now, api.hub.now))
    assert [alpha.cancel_job(job.id).state for job in (queued, starting, running)] == [
        JobState.ENDED,
        JobState.STARTING,
        JobState.RUNNING,
    ]
    assert api.scheduler.read_snapshot().items, "the scheduler sees who asked"
    _stop(api, starting)
    _stop(api, running)
    api.hub.clock.advance(10_000)
    _report(
        api,
        ended(starting, api.hub.now, reason="never_started", exit_code=None),
        ended(running, api.hub.now, reason="stopped", exit_code=143),
    )
    for job, charged in ((queued, 0), (starting, 0), (running, 10_000_000)):
        read = alpha.read_job(job.id)
        assert (read.state, read.end_reason, read.charged_gpu_us) == (JobState.ENDED, "cancelled", charged)
    assert alpha.read_grant(grant.id).held_gpu_us == 0


def test_a_grant_that_is_spent_while_jobs_wait_says_what_is_missing(api: Api) -> None:
    alpha = api.firms["alpha"]
    grant = _award(api, "alpha", "10")
    first, second = (alpha.submit_job(a_submission(gpus_per_pod=6)) for _ in range(2))
    assert _start(api, first, grant) == "accepted"
    assert _start(api, second, grant, "n1") == "refusedinsufficient_balance"
    api.hub.clock.advance(1000)
    _report(api, started(first, api.hub.now, api.hub.now))
    api.hub.clock.advance(HOUR_MS)
    _report(api, ended(first, api.hub.now))
    with a_problem("insufficient_balance", 409) as caught:
        alpha.submit_job(a_submission(gpus_per_pod=5))
    assert _numbers(caught[0]) == {"needed_gpu_us": 5 * GPU_HOUR_US, "left_gpu_us": 4 * GPU_HOUR_US}
    assert alpha.read_job(second.id).state is JobState.QUEUED

    assert api.operator.top_up_grant(grant.id, TopUp(gpu_hours="2", reason="r")).available_gpu_us == (
        6 * GPU_HOUR_US
    )
    assert _start(api, second, grant, "n1") == "accepted"
    with a_problem("insufficient_balance", 409) as caught:
        api.operator.cut_grant(grant.id, GrantCut(gpu_hours="0.5", reason="idle"))
    assert _numbers(caught[0])["left_gpu_us"] == 0
    assert _numbers(caught[0])["needed_gpu_us"] == GPU_HOUR_US // 2


def test_a_cut_takes_what_is_free_and_gives_it_to_the_programme(api: Api) -> None:
    grant = _award(api, "alpha", "10")
    before = api.operator.list_programs().items[0]
    cut = api.operator.cut_grant(grant.id, GrantCut(gpu_hours="10", reason="idle"), key="c")
    assert (cut.granted_gpu_us, cut.available_gpu_us) == (0, 0)
    assert api.operator.cut_grant(grant.id, GrantCut(gpu_hours="10", reason="idle"), key="c") == cut
    after = api.operator.list_programs().items[0]
    assert after.remaining_gpu_us == before.remaining_gpu_us + 10 * GPU_HOUR_US
    assert after.budget_gpu_us == after.awarded_gpu_us + after.remaining_gpu_us == before.budget_gpu_us


def test_an_award_beyond_the_budget_says_what_is_left(api: Api) -> None:
    with a_problem("insufficient_balance", 409) as caught:
        _award(api, "alpha", "100001")
    assert _numbers(caught[0]) == {
        "account": "program:ax",
        "needed_gpu_us": 100_001 * GPU_HOUR_US,
        "left_gpu_us": 100_000 * GPU_HOUR_US,
    }
    assert api.operator.list_grants().items == ()


def test_a_firm_without_a_grant_cannot_submit(api: Api) -> None:
    with a_problem("no_grant", 409):
        api.firms["alpha"].submit_job(a_submission())
    _award(api, "alpha", "5", ends_in_ms=HOUR_MS)
    api.firms["alpha"].submit_job(a_submission())
    api.hub.clock.advance(HOUR_MS)
    with a_problem("no_grant", 409):
        api.firms["alpha"].submit_job(a_submission())


# --- statements ----------------------------------------------------------------------------------------


def test_a_statements_lines_add_up_and_each_line_is_rounded_once(api: Api) -> None:
    """Price 333: the platform fault, the requeue and the hour marks each make a line of their own."""
    body = NewGpuClass(id="h100", name="H100", rate_thousandths=1000, price_krw=333)
    api.operator.put_gpu_class(body)
    grant = _award(api, "alpha", "100")
    job = api.firms["alpha"].submit_job(a_submission(restartable=True, walltime_s=3 * 3600))
    _start(api, job, grant)
    api.hub.clock.advance(7)
    _report(api, started(job, api.hub.now, api.hub.now))
    api.hub.clock.advance(90 * MINUTE_MS)
    _report(api, lost(job, api.hub.now - 5 * MINUTE_MS))
    api.operator.top_up_grant(grant.id, TopUp(gpu_hours="1.5", reason="r"))
    api.operator.cut_grant(grant.id, GrantCut(gpu_hours="0.25", reason="r"))
    _start(api, job, grant, "n1")
    statement = api.firms["alpha"].read_statement(grant.id)
    types = [line.type.value for line in statement.lines]
    assert types[:2] == ["deposit", "hold"]
    assert types[-3:] == ["deposit", "pullback", "hold"]
    assert {"settle", "release", "refund"} <= set(types)
    assert [line.seq for line in statement.lines] == sorted(line.seq for line in statement.lines)
    for total, part in (
        (statement.granted_gpu_us, [line.granted_gpu_us for line in statement.lines]),
        (statement.held_gpu_us, [line.held_gpu_us for line in statement.lines]),
        (statement.used_gpu_us, [line.used_gpu_us for line in statement.lines]),
        (statement.total_krw, [line.krw for line in statement.lines]),
    ):
        assert total == sum(part)
    read = api.firms["alpha"].read_grant(grant.id)
    assert (read.granted_gpu_us, read.held_gpu_us, read.used_gpu_us) == (
        statement.granted_gpu_us,
        statement.held_gpu_us,
        statement.used_gpu_us,
    )
    assert statement.available_gpu_us == read.available_gpu_us
    charges = [line for line in statement.lines if line.slice is not None]
    assert len(charges) >= 4
    for line in charges:
        part = line.slice
        assert part is not None
        assert part.milliseconds == part.ends_at - part.starts_at
        assert abs(line.used_gpu_us) == part.milliseconds * part.gpus * part.rate_thousandths
        twice = 2 * part.milliseconds * part.gpus * part.price_krw
        assert abs(line.krw) == (twice + HOUR_MS) // (2 * HOUR_MS), "half up, once"
        assert (line.krw < 0) == (line.used_gpu_us < 0)
    assert [line.krw for line in statement.lines if line.slice is None] == [0] * (
        len(statement.lines) - len(charges)
    )


# --- what a firm never learns ----------------------------------------------------------------------------


def _targets(api: Api, firm: str) -> list[tuple[str, str]]:
    grant = api.firms[firm].list_grants().items[0].id
    job = api.firms[firm].list_jobs().items[0].id
    return [
        ("GET", f"/v1/grants/{grant}"),
        ("GET", f"/v1/grants/{grant}/statement"),
        ("GET", f"/v1/jobs/{job}"),
        ("POST", f"/v1/jobs/{job}/cancel"),
    ]


def test_another_firms_objects_are_as_unknown_as_none(shared: Api) -> None:
    before = shared.hub.contents()
    for method, path in _targets(shared, "beta"):
        other = shared.call(shared.firms["alpha"], method, path)
        own_id = path.split("/")[3]
        nobody = shared.call(shared.firms["alpha"], method, path.replace(own_id, "job-nobody"))
        assert (other.status_code, nobody.status_code) == (404, 404), path
        assert other.text.replace(own_id, "job-nobody") == nobody.text, "not even the words differ"
    assert shared.hub.contents() == before


def test_the_same_requests_succeed_for_their_owner(shared: Api) -> None:
    """Without this, the test above could pass on any broken path."""
    for method, path in _targets(shared, "beta")[:3]:
        assert shared.call(shared.firms["beta"], method, path).status_code == 200


def test_lists_show_a_firm_its_own(shared: Api) -> None:
    alpha = shared.firms["alpha"]
    assert {job.organization_id for job in alpha.list_jobs().items} == {"alpha"}
    assert {grant.organization_id for grant in alpha.list_grants().items} == {"alpha"}
    assert [item.id for item in alpha.list_organizations().items] == ["alpha"]
    assert alpha.list_jobs(organization_id="beta").items == ()
    assert alpha.list_grants(organization_id="beta").items == ()
    assert len(shared.operator.list_jobs().items) == 3


def test_a_firm_cannot_submit_for_another_or_on_its_grant(shared: Api) -> None:
    grant = shared.firms["beta"].list_grants().items[0].id
    before = shared.hub.contents()
    for fields, field in (
        ({"organization_id": "beta"}, "organization_id"),
        ({"grant_id": grant}, "grant_id"),
    ):
        body = a_submission(**fields).model_dump_json()
        problem = shared.refused(
            shared.firms["alpha"],
            "POST",
            "/v1/jobs",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        assert (problem["status"], problem["errors"][0]["field"]) == (404, field)
    assert shared.hub.contents() == before


def test_pages_of_jobs_go_back_in_time_without_gaps(api: Api) -> None:
    _award(api, "alpha", "100")
    made = [api.firms["alpha"].submit_job(a_submission()).id for _ in range(7)]
    seen: list[str] = []
    page = api.firms["alpha"].list_jobs(limit=3)
    while True:
        seen += [job.id for job in page.items]
        if page.next is None:
            break
        page = api.firms["alpha"].list_jobs(limit=3, after=page.next)
    assert seen == sorted(made, reverse=True)


def test_a_revoked_or_expired_token_is_nobody(api: Api) -> None:
    for body in (
        NewToken(role=Role.AUDITOR, expires_at=api.hub.now + 1000),
        NewToken(role=Role.AUDITOR),
    ):
        token = api.operator.create_token(body)
        client = QuotaClient(api.base_url, token.secret)
        assert client.read_caller().role is Role.AUDITOR
        if body.expires_at is None:
            api.operator.revoke_token(token.id)
        else:
            api.hub.clock.advance(1000)
        with a_problem("unauthenticated", 401):
            client.read_caller()
        client.close()
    assert not any(token.model_dump_json().count("ghub_") > 1 for token in api.operator.list_tokens().items)


def _numbers(problem: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = problem.problem.numbers
    return {key: int(value) if key.endswith("_gpu_us") else value for key, value in numbers.items()}
