"""Extensions and refunds over HTTP and from the command line: who may, once per key, dry runs, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from quota.client import QuotaClient
from quota.schemas.job_changes import JobExtension, JobRefund
from quota.schemas.jobs import Job
from tests.builders import GPU_HOUR_US, HOUR_MS, MINUTE_MS, START_MS, Api, a_problem, an_api

MORE = JobExtension(walltime_s=1800, reason="not converged")
BACK = JobRefund(
    attempt=1,
    starts_at=START_MS,
    ends_at=START_MS + 30 * MINUTE_MS,
    kind="fault",
    reason="a GPU fell off the bus",
    evidence="finding:12",
)


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with an_api(sqlite_url) as served:
        yield served


@pytest.fixture
def job(api: Api) -> Job:
    """One GPU for an hour, running, on a grant of 2 hours."""
    grant = api.hub.award(hours="2")
    made = api.hub.submit()
    api.hub.run(made, grant)
    return made


def test_a_member_extends_once_per_key_and_reads_it_back(api: Api, job: Job) -> None:
    alpha = api.firms["alpha"]
    told = alpha.extend_job(job.id, MORE, "key-1")
    assert alpha.extend_job(job.id, MORE, "key-1") == told
    assert alpha.read_job(job.id).attempts[0].extensions == (told.extension,)
    with a_problem("idempotency_key_reused", 422):
        alpha.extend_job(job.id, MORE.model_copy(update={"walltime_s": 60}), "key-1")


def test_a_dry_run_answers_200_and_does_nothing(api: Api, job: Job) -> None:
    before = api.hub.contents()
    told = api.operator.extend_job(job.id, MORE, "key-1", dry_run=True)
    assert (told.dry_run, told.extension.held_gpu_us) == (True, GPU_HOUR_US // 2)
    path = f"/v1/jobs/{job.id}/extensions?dry_run=true"
    answer = api.call(api.operator, "POST", path, json=MORE.model_dump(mode="json"))
    assert answer.status_code == 200
    assert api.hub.contents() == before


def test_a_refused_extension_names_what_fits(api: Api, job: Job) -> None:
    path = f"/v1/jobs/{job.id}/extensions"
    for query in ("", "?dry_run=true"):
        problem = api.refused(
            api.operator, "POST", path + query, json={"walltime_s": 3601, "reason": "too much"}
        )
        assert (problem["http_status"], problem["code"]) == (409, "insufficient_balance")
        assert "3600" in str(problem["numbers"]["fitting_walltime_s"])


@pytest.mark.parametrize(
    ("who", "code"), [("beta", "not_found"), ("auditor", "forbidden"), ("agent", "forbidden")]
)
def test_nobody_else_extends(api: Api, job: Job, who: str, code: str) -> None:
    with a_problem(code):
        _client(api, who).extend_job(job.id, MORE)


@pytest.mark.parametrize("who", ["alpha", "auditor", "scheduler"])
def test_only_operators_refund(api: Api, job: Job, who: str) -> None:
    with a_problem("forbidden", 403):
        _client(api, who).refund_job(job.id, BACK)


def test_an_operator_refunds_once_per_key_after_a_dry_run(api: Api, job: Job) -> None:
    api.hub.clock.advance(HOUR_MS)
    api.hub.finish(job)
    before = api.hub.contents()
    asked = api.operator.refund_job(job.id, BACK, dry_run=True)
    assert api.hub.contents() == before
    told = api.operator.refund_job(job.id, BACK, "key-1")
    assert told.transfers == asked.transfers
    assert api.operator.refund_job(job.id, BACK, "key-1") == told
    assert api.firms["alpha"].read_job(job.id).charged_gpu_us == GPU_HOUR_US // 2
    with a_problem("nothing_to_refund", 409):
        api.operator.refund_job(job.id, BACK, "key-2")


def test_both_are_done_from_the_command_line(
    api: Api, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("GPUHUB_URL", api.base_url)
    secret = api.operator._http.headers["Authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("GPUHUB_TOKEN", secret)
    assert "would get 30m more" in _run("extend", job.id, "30m", "--reason", "why", "--dry-run").stdout
    told = _run("extend", job.id, "30m", "--reason", "not converged").stdout
    assert "1h 30m in all" in told
    assert "extended   by 30m" in _run("job", job.id).stdout
    wrong = _run("extend", job.id, "soon", "--reason", "why", status=2)
    assert "soon" in wrong.stderr
    refused = _run("extend", job.id, "2h", "--reason", "why", status=1)
    assert "1800 s fit" in refused.stderr
    api.hub.clock.advance(HOUR_MS)
    api.hub.finish(job)
    asked = ("--from", "2026-11-22T00:00:00Z", "--until", "2026-11-22T00:30:00Z", "--kind", "preempted")
    why = ("--reason", "preempted by mistake", "--evidence", "ticket 9")
    assert "would get 0.5 GPU-h back" in _run("refund", job.id, *asked, *why, "--dry-run").stdout
    made = json.loads(_run("refund", job.id, *asked, *why, "--json").stdout)
    assert made["refunded_gpu_us"] == str(GPU_HOUR_US // 2)


def _client(api: Api, who: str) -> QuotaClient:
    if who in api.firms:
        return api.firms[who]
    client: QuotaClient = getattr(api, who)
    return client


def _run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(firm_app(), arguments)
    assert result.exit_code == status, result.output
    return result
