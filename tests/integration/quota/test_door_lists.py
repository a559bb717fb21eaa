"""Lists: page by page in a stable order, by filters, with page tokens that are checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.client import QuotaClient
from quota.client.paging import every
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.jobs import Job
from quota.schemas.programs import GrantState, NewProgram
from quota.schemas.scheduling import JobState
from tests import databases
from tests.builders import DAY_MS, START_MS, Api, a_submission, an_api
from tests.integration.quota.door_world import operations

LISTS = ("list_jobs", "list_programs", "list_grants", "list_clusters", "list_gpu_classes", "list_nodes")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A hub with a few of everything."""
    folder: Path = tmp_path_factory.mktemp("lists")
    url = databases.new_sqlite(folder) if request.param == "sqlite" else databases.new_postgres()
    with an_api(url, member_requests_per_s=0) as made:
        _fill(made)
        yield made
    if request.param == "postgres":
        databases.drop_postgres(url)


def _fill(api: Api) -> None:
    hub, operator = api.hub, api.operator
    for number in range(5):
        operator.create_program(NewProgram(id=f"px-{number}", name="P", budget_gpu_hours="1000"))
        operator.create_cluster(NewCluster(id=f"c-{number}", kind="simulated"))
        body = NewGpuClass(id=f"g-{number}", name="G", rate_thousandths=1000, price_krw=number)
        operator.put_gpu_class(body)
    for firm in ("alpha", "beta"):
        for number in range(3):
            starts = START_MS + number * DAY_MS
            hub.award(firm, "100", program=f"px-{number}", starts_at=starts, ends_at=START_MS + 5 * DAY_MS)
    for number in range(7):
        hub.clock.set(START_MS + number * 1000)
        firm = "alpha" if number % 2 else "beta"
        api.firms[firm].submit_job(a_submission(gpu_class="a100" if number == 5 else "h100"))


def _paged(client: QuotaClient, operation: str, limit: int, **filters: Any) -> list[Any]:
    """All items of a list, page by page; no page but the last is short."""
    items: list[Any] = []
    after = None
    while True:
        page = getattr(client, operation)(after=after, limit=limit, **filters)
        items.extend(page.items)
        if page.next is None:
            return items
        assert len(page.items) == limit
        after = page.next


@pytest.mark.parametrize("operation", LISTS)
def test_pages_hold_what_one_page_holds(api: Api, operation: str) -> None:
    whole = list(getattr(api.operator, operation)(limit=200).items)
    assert len(whole) >= 3
    for limit in (1, 2, len(whole) - 1, len(whole)):
        assert _paged(api.operator, operation, limit) == whole
    assert list(every(getattr(api.operator, operation))) == whole


def test_every_list_of_objects_takes_after_and_limit_and_answers_next(api: Api) -> None:
    document = api.application.openapi()
    for operation in LISTS:
        one = operations(api)[operation]
        names = {item["name"] for item in one.document["parameters"]}
        assert {"after", "limit"} <= names, operation
        reply = one.document["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert "next" in document["components"]["schemas"][reply.rpartition("/")[2]]["properties"], operation


@pytest.mark.parametrize("operation", LISTS)
@pytest.mark.parametrize("token", ["", "A B", "../x", "\x00", "x" * 400, "'; DROP TABLE jobs"])
def test_a_page_token_is_checked(api: Api, operation: str, token: str) -> None:
    one = operations(api)[operation]
    problem = api.refused(api.operator, "GET", one.path, params={"after": token})
    assert (problem["http_status"], problem["errors"][0]["field"]) == (422, "after")


@pytest.mark.parametrize("operation", LISTS)
@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "1.5", ""])
def test_a_page_size_is_checked(api: Api, operation: str, limit: str) -> None:
    one = operations(api)[operation]
    problem = api.refused(api.operator, "GET", one.path, params={"limit": limit})
    assert (problem["http_status"], problem["errors"][0]["field"]) == (422, "limit")


def test_what_is_made_while_somebody_pages_moves_nothing(api: Api) -> None:
    first = api.operator.list_jobs(limit=3)
    made = api.firms["alpha"].submit_job(a_submission())
    rest = api.operator.list_jobs(after=first.next, limit=200)
    ids = [job.id for job in (*first.items, *rest.items)]
    assert len(ids) == len(set(ids))
    assert made.id not in ids, "newest first: it belongs before the first page"


# --- filters ---------------------------------------------------------------------------------------------


def _ids(jobs: Iterable[Job]) -> set[str]:
    return {job.id for job in jobs}


def _jobs(api: Api, **filters: Any) -> set[str]:
    return _ids(_paged(api.operator, "list_jobs", 2, **filters))


def test_jobs_by_organization_class_and_state(api: Api) -> None:
    known = list(every(api.operator.list_jobs))
    assert _jobs(api, organization_id="beta") == _ids(job for job in known if job.organization_id == "beta")
    assert len(_jobs(api, gpu_class="a100")) == 1
    for state in JobState:
        assert _jobs(api, state=state) == _ids(job for job in known if job.state is state)
    assert _jobs(api, organization_id="alpha", gpu_class="a100") == _jobs(api, gpu_class="a100")


def test_jobs_by_when_they_were_submitted(api: Api) -> None:
    """From a time on, until before a time; two periods that meet have no job in common and leave none out."""
    known = list(every(api.operator.list_jobs))
    at = START_MS + 3000
    early, late = _jobs(api, submitted_until=at), _jobs(api, submitted_from=at)
    assert early == _ids(job for job in known if job.submitted_at < at)
    assert late == _ids(job for job in known if job.submitted_at >= at)
    assert early
    assert _jobs(api, submitted_from=at, submitted_until=at + 1) < late


def test_jobs_by_the_grant_they_asked_for_or_ran_on(api: Api) -> None:
    hub = api.hub
    grant = hub.award("gamma", "100")
    asked = hub.submit("gamma", grant_id=grant.id)
    ran = hub.submit("gamma")
    hub.submit("gamma")
    hub.start(ran, grant, "n1")
    assert _jobs(api, grant_id=grant.id) == {asked.id, ran.id}
    own = api.firms["gamma"].list_jobs(grant_id=grant.id).items
    assert [job.id for job in own] == sorted((asked.id, ran.id), reverse=True)
    assert api.firms["alpha"].list_jobs(grant_id=grant.id).items == ()


def test_grants_by_organization_program_and_state(api: Api) -> None:
    known = list(every(api.operator.list_grants))
    filters = {"program_id": "px-1", "organization_id": "alpha", "state": GrantState.COMING}
    for name, value in filters.items():
        found = _paged(api.operator, "list_grants", 2, **{name: value})
        assert found == [grant for grant in known if getattr(grant, name) == value]
        assert found
    both = api.operator.list_grants("alpha", program_id="px-1", state=GrantState.COMING).items
    assert [(grant.organization_id, grant.program_id) for grant in both] == [("alpha", "px-1")]


def test_grants_by_state_follow_the_clock(sqlite_url: str) -> None:
    with an_api(sqlite_url) as api:
        grant = api.hub.award("alpha", "1", starts_at=START_MS + 1000, ends_at=START_MS + 2000)
        for now_ms, state in (
            (START_MS, GrantState.COMING),
            (START_MS + 999, GrantState.COMING),
            (START_MS + 1000, GrantState.ACTIVE),
            (START_MS + 1999, GrantState.ACTIVE),
            (START_MS + 2000, GrantState.ENDED),
        ):
            api.hub.clock.set(now_ms)
            assert api.operator.read_grant(grant.id).state is state
            for asked in GrantState:
                found = [item.id for item in api.operator.list_grants(state=asked).items]
                assert found == ([grant.id] if asked is state else [])


def test_nodes_by_cluster(api: Api) -> None:
    assert [node.node for node in every(api.operator.list_nodes, cluster="sim")] == ["a0", "n0", "n1"]
    assert list(every(api.operator.list_nodes, cluster="c-0")) == []


@pytest.mark.parametrize(
    ("operation", "name", "value"),
    [
        ("list_jobs", "submitted_from", "yesterday"),
        ("list_jobs", "submitted_until", "2026-11-22"),
        ("list_jobs", "state", "flying"),
        ("list_jobs", "gpu_class", "H 100"),
        ("list_grants", "state", "open"),
        ("list_grants", "program_id", "A X"),
        ("list_nodes", "cluster", "A/B"),
    ],
)
def test_a_bad_filter_is_named(api: Api, operation: str, name: str, value: str) -> None:
    problem = api.refused(api.operator, "GET", operations(api)[operation].path, params={name: value})
    assert (problem["http_status"], problem["errors"][0]["field"]) == (422, name)
