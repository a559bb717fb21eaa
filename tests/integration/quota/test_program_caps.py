"""Caps of a programme: read, changed, audited, and where they bind; both databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from quota.audit.tables import audit
from quota.errors import BadRequest, JobTooLarge, NotFound, PreconditionFailed, QueueFull, WalltimeTooLong
from quota.identity import caps as hub_caps
from quota.jobs import organization_caps
from quota.programs import awards, caps
from quota.schemas.caps import (
    CapsPut,
    HubCaps,
    OrganizationCaps,
    OrganizationCapsPut,
    ProgramCaps,
    ProgramCapsDocument,
    ProgramCapsPut,
)
from quota.schemas.programs import NewProgram
from quota.schemas.scheduling import JobState
from tests.builders import OPERATOR, Api, Hub, a_hub, a_problem, a_submission, an_api
from tests.integration.quota.test_opportunistic import put_fund


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def narrow(hub: Hub, program: str = "ax", if_match: str | None = None, **wanted: Any) -> ProgramCapsDocument:
    body = ProgramCapsPut(caps=ProgramCaps(**wanted), reason="a course")
    return hub.database.write(lambda tx: caps.put_caps(tx, OPERATOR, program, body, if_match))


def read(hub: Hub, program: str = "ax") -> ProgramCapsDocument:
    with hub.database.read() as connection:
        return caps.read_caps(connection, program)


def of_hub(hub: Hub, **wanted: Any) -> None:
    body = CapsPut(caps=HubCaps(**wanted), reason="a test")
    hub.database.write(lambda tx: hub_caps.put_caps(tx, OPERATOR, body))


def of_firm(hub: Hub, **wanted: Any) -> None:
    body = OrganizationCapsPut(caps=OrganizationCaps(**wanted), reason="a test")
    hub.database.write(lambda tx: organization_caps.put_caps(tx, OPERATOR, "alpha", body, None))


def open_program(hub: Hub) -> None:
    """A programme without caps beside the one that has them."""
    body = NewProgram(id="open", name="Open", budget_gpu_hours="10000")
    hub.database.write(lambda tx: awards.create_program(tx, OPERATOR, body))


# --- the document -----------------------------------------------------------------------------------


def test_a_new_programme_has_no_caps(hub: Hub) -> None:
    assert read(hub).caps == ProgramCaps()
    with pytest.raises(NotFound):
        read(hub, "none")
    with pytest.raises(NotFound):
        narrow(hub, "none", job_gpus=1)


def test_a_change_is_audited_with_before_and_after_and_the_same_again_is_nothing(hub: Hub) -> None:
    stored = narrow(hub, job_gpus=2, queued_jobs=4)
    assert stored == read(hub)
    row = hub.row(audit, action="program.caps")
    assert (row.subject, row.reason) == ("ax", "a course")
    none = {"job_gpus": None, "job_walltime_s": None, "queued_jobs": None}
    assert json.loads(row.before) == none
    assert json.loads(row.after) == none | {"job_gpus": 2, "queued_jobs": 4}
    before = hub.contents()
    assert narrow(hub, job_gpus=2, queued_jobs=4) == stored
    assert hub.contents() == before


def test_who_read_an_older_one_changes_nothing(hub: Hub) -> None:
    old = read(hub).etag
    new = narrow(hub, job_gpus=2).etag
    before = hub.contents()
    with pytest.raises(PreconditionFailed):
        narrow(hub, if_match=old, job_gpus=3)
    assert hub.contents() == before
    assert narrow(hub, if_match=new, job_gpus=3).caps.job_gpus == 3


# --- where they bind --------------------------------------------------------------------------------


def test_a_job_of_the_programme_is_no_larger_and_no_longer(hub: Hub) -> None:
    hub.award()
    narrow(hub, job_gpus=2, job_walltime_s=7200)
    with pytest.raises(JobTooLarge) as large:
        hub.submit(gpus_per_pod=1, pods=3)
    assert (large.value.status, large.value.field) == (422, "pods")
    assert large.value.numbers == {"needed_gpus": 3, "max_gpus": 2, "program_id": "ax"}
    with pytest.raises(WalltimeTooLong) as long:
        hub.submit(walltime_s=7201)
    assert (long.value.status, long.value.field) == (422, "walltime_s")
    assert long.value.numbers == {"walltime_s": 7201, "max_walltime_s": 7200, "program_id": "ax"}
    hub.submit(gpus_per_pod=2, walltime_s=7200)


@pytest.mark.parametrize(
    ("program", "of_the_hub", "own", "bound", "named"),
    [
        (2, 4, None, 2, True),
        (4, 2, None, 2, False),
        (3, 3, None, 3, False),
        (4, 2, 6, 4, True),
        (6, 2, 4, 4, False),
        (None, 2, None, 2, False),
        (2, None, None, 2, True),
    ],
)
def test_the_tighter_cap_binds_and_is_named(
    hub: Hub, program: int | None, of_the_hub: int | None, own: int | None, bound: int, named: bool
) -> None:
    hub.award(hours="1000")
    narrow(hub, job_gpus=program, job_walltime_s=program and program * 3600)
    of_hub(hub, job_gpus=of_the_hub, job_walltime_s=(of_the_hub or 700) * 3600)
    of_firm(hub, job_gpus=own, job_walltime_s=own and own * 3600)
    asked: list[dict[str, Any]] = [{"gpus_per_pod": bound + 1}, {"walltime_s": bound * 3600 + 1}]
    for fields in asked:
        with pytest.raises((JobTooLarge, WalltimeTooLong)) as refused:
            hub.submit(**fields)
        assert ("program_id" in refused.value.numbers) == named
    hub.submit(gpus_per_pod=bound, walltime_s=bound * 3600)


def test_one_more_than_may_wait_for_a_programme_is_refused(hub: Hub) -> None:
    grant = hub.award()
    hub.award(organization="beta")
    narrow(hub, queued_jobs=2)
    first, _ = hub.submit(), hub.submit(grant_id=grant.id)
    with pytest.raises(QueueFull) as full:
        hub.submit()
    assert full.value.numbers == {
        "organization_id": "alpha",
        "program_id": "ax",
        "queued_jobs": 2,
        "max_queued_jobs": 2,
    }
    hub.submit("beta"), hub.submit("beta")
    hub.start(first, grant)
    assert hub.submit().state is JobState.QUEUED


def test_an_opportunistic_job_keeps_to_the_caps_of_the_programme_that_pays(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    narrow(hub, job_gpus=2, queued_jobs=1)
    with pytest.raises(JobTooLarge) as large:
        hub.submit(opportunistic=True, gpus_per_pod=3)
    assert large.value.numbers["program_id"] == "ax"
    hub.submit(opportunistic=True, gpus_per_pod=2)
    with pytest.raises(QueueFull):
        hub.submit(opportunistic=True)


def test_a_job_that_names_no_grant_keeps_to_the_caps_of_all_its_programmes(hub: Hub) -> None:
    open_program(hub)
    narrowed = hub.award(hours="100")
    wide = hub.award(hours="100", program="open")
    narrow(hub, job_gpus=1, queued_jobs=1)
    with pytest.raises(JobTooLarge) as refused:
        hub.submit(gpus_per_pod=2)
    assert refused.value.numbers["program_id"] == "ax"
    with pytest.raises(JobTooLarge):
        hub.submit(gpus_per_pod=2, grant_id=narrowed.id)
    for _ in range(2):
        hub.submit(gpus_per_pod=2, grant_id=wide.id)
    hub.submit(gpus_per_pod=1)
    with pytest.raises(QueueFull):
        hub.submit(gpus_per_pod=1)
    hub.submit(gpus_per_pod=1, grant_id=wide.id)


def test_an_extension_keeps_to_the_walltime_of_the_programme_of_its_grant(hub: Hub) -> None:
    open_program(hub)
    grant = hub.award(hours="100")
    wide = hub.award(hours="100", program="open")
    jobs = hub.submit(walltime_s=3600, grant_id=grant.id), hub.submit(walltime_s=3600, grant_id=wide.id)
    hub.run(jobs[0], grant)
    hub.run(jobs[1], wide)
    narrow(hub, job_walltime_s=5400)
    with pytest.raises(BadRequest, match="a job of programme ax may run for at most 5400 s; 1800 s more fit"):
        hub.extend(jobs[0], 1801)
    assert hub.extend(jobs[0], 1800).walltime_s == 5400
    assert hub.extend(jobs[1], 7200).walltime_s == 10_800


def test_what_waits_or_runs_stays_when_a_cap_is_lowered(hub: Hub) -> None:
    grant = hub.award()
    runs, waits = hub.submit(gpus_per_pod=4), hub.submit(gpus_per_pod=4)
    hub.run(runs, grant)
    narrow(hub, job_gpus=1)
    hub.start(waits, grant)
    assert hub.job(waits.id).state is JobState.STARTING
    assert hub.job(runs.id).state is JobState.RUNNING


def test_a_quote_is_refused_as_the_submission_would_be(api: Api) -> None:
    api.hub.award()
    api.operator.put_program_caps("ax", ProgramCapsPut(caps=ProgramCaps(job_gpus=1), reason="a course"))
    with a_problem("job_too_large", 422):
        api.firms["alpha"].quote_job(a_submission(gpus_per_pod=2))
    assert api.firms["alpha"].quote_job(a_submission(gpus_per_pod=1)).gpus == 1


# --- over HTTP, and from the command line -----------------------------------------------------------


def test_operators_change_them_and_members_see_those_of_their_own_programmes(api: Api) -> None:
    api.hub.award()
    body = ProgramCapsPut(
        caps=ProgramCaps(job_gpus=1, job_walltime_s=14_400, queued_jobs=4), reason="a course"
    )
    stored = api.operator.put_program_caps("ax", body)
    assert api.auditor.read_program_caps("ax") == stored
    with a_problem("forbidden", 403):
        api.firms["alpha"].read_program_caps("ax")
    with a_problem("forbidden", 403):
        api.firms["alpha"].put_program_caps("ax", body)
    with a_problem("forbidden", 403):
        api.auditor.put_program_caps("ax", body)
    with a_problem("precondition_failed", 412):
        api.operator.put_program_caps("ax", body, "an older one")
    api.firms["alpha"].submit_job(a_submission())
    (mine,) = api.firms["alpha"].read_organization_caps("alpha").programs
    assert (mine.program_id, mine.caps, mine.queued_jobs) == ("ax", body.caps, 1)
    assert api.firms["beta"].read_organization_caps("beta").programs == (), "it has no grant there"


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", "a job of programme ax may take at most 1"), ("ko", "사업 ax의 작업은 최대 1개")],
)
def test_a_refusal_names_the_programme_in_both_languages(api: Api, language: str, words: str) -> None:
    api.hub.award()
    api.operator.put_program_caps("ax", ProgramCapsPut(caps=ProgramCaps(job_gpus=1), reason="a course"))
    asked = {"name": "j", "gpu_class": "h100", "gpus_per_pod": 2, "walltime_s": 60}
    problem = api.refused(
        api.firms["alpha"], "POST", "/v1/jobs", json=asked, headers={"Accept-Language": language}
    )
    assert words in problem["detail"]
    assert problem["numbers"] == {"needed_gpus": 2, "max_gpus": 1, "program_id": "ax"}


@pytest.fixture
def gpuhub(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Result]]:
    with an_api(sqlite_url) as served:
        served.hub.award()
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("GPUHUB_URL", served.base_url)
        secret = served.operator._http.headers["Authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("GPUHUB_TOKEN", secret)
        yield lambda *words: CliRunner().invoke(firm_app(), list(words))


def test_they_are_shown_and_set_by_name(gpuhub: Callable[..., Result]) -> None:
    why = ("--reason", "a course")
    its = ("--program", "ax")
    assert "no cap of its own" in gpuhub("caps", "show", *its).stdout
    assert gpuhub("caps", "set", "job_gpus=1", "job_walltime_s=14400", *its, *why).exit_code == 0
    again = gpuhub("caps", "set", "job_gpus=none", "queued_jobs=4", *its, *why, "--json")
    assert json.loads(again.stdout)["caps"] == {"job_gpus": None, "job_walltime_s": 14_400, "queued_jobs": 4}
    shown = gpuhub("caps", "show", "--organization", "alpha").stdout
    for text in ("tighter, for jobs that a programme may pay for", "ax", "4h"):
        assert text in shown
    wrong = gpuhub("caps", "set", "max_gpus=12", *its, *why)
    assert (wrong.exit_code, "NAME=VALUE" in wrong.stderr) == (2, True)
    both = gpuhub("caps", "show", *its, "--organization", "alpha")
    assert (both.exit_code, "not both" in both.stderr) == (2, True)
