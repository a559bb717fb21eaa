"""Caps of the hub and of organizations: read, changed, audited, told to the scheduler, and kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from quota.audit.tables import audit
from quota.db import Database
from quota.dispatch import feed
from quota.errors import JobTooLarge, NotFound, PreconditionFailed, QueueFull, WalltimeTooLong
from quota.identity import caps
from quota.jobs import organization_caps
from quota.jobs import service as jobs
from quota.jobs.quoting import quote
from quota.schemas.caps import (
    CapsDocument,
    CapsPut,
    HubCaps,
    OrganizationCaps,
    OrganizationCapsDocument,
    OrganizationCapsPut,
)
from quota.schemas.scheduling import JobState, WaitReason
from tests.builders import (
    HOUR_MS,
    OPERATOR,
    START_MS,
    Api,
    Hub,
    a_hub,
    a_member,
    a_problem,
    a_submission,
    an_api,
    lost,
    node_reports,
)

POOL = {f"n{number}": {"h100": 8} for number in range(5)}
A_FIFTH = HubCaps(organization_pool_from_gpus=40)


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url, nodes=POOL)
    yield made
    made.close()


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def _read(hub: Hub) -> CapsDocument:
    with hub.database.read() as connection:
        return caps.read_caps(connection)


def _show(hub: Hub, firm: str = "alpha") -> OrganizationCapsDocument:
    with hub.database.read() as connection:
        return organization_caps.show_caps(connection, firm, hub.now)


def _put(hub: Hub, wanted: HubCaps, if_match: str | None = None) -> CapsDocument:
    body = CapsPut(caps=wanted, reason="a test")
    return hub.database.write(lambda tx: caps.put_caps(tx, OPERATOR, body, if_match))


def _give(
    hub: Hub, firm: str = "alpha", *, if_match: str | None = None, **own: Any
) -> OrganizationCapsDocument:
    body = OrganizationCapsPut(caps=OrganizationCaps(**own), reason="a test")
    return hub.database.write(lambda tx: organization_caps.put_caps(tx, OPERATOR, firm, body, if_match))


# --- the documents ----------------------------------------------------------------------------------


def test_a_new_hub_has_the_caps_of_the_program(hub: Hub) -> None:
    assert (_read(hub).version, _read(hub).caps) == (1, HubCaps())
    policy = hub.snapshot()[1][("policy", "default")].policy
    assert policy is not None
    assert (policy.organization_pool_thousandths, policy.organization_pool_from_gpus) == (200, 100)
    found = _show(hub)
    assert (found.caps, found.in_effect.max_gpus) == (OrganizationCaps(), None), "40 GPUs are a small pool"
    assert (found.in_effect.job_gpus, found.in_effect.queued_jobs) == (None, 5000)


def test_a_change_of_the_hubs_is_versioned_audited_and_told_in_the_feed(hub: Hub) -> None:
    cursor, _ = hub.snapshot()
    hub.clock.advance(5)
    stored = _put(hub, A_FIFTH)
    assert (stored.version, stored.caps, stored.changed_at) == (2, A_FIFTH, START_MS + 5)
    (told,) = feed.read_feed(hub.database, cursor, 100).items
    assert told.policy is not None
    assert (told.kind, told.policy.organization_pool_from_gpus) == ("policy", 40)
    row = hub.row(audit, action="caps.put")
    assert (row.subject, row.reason) == ("caps", "a test")
    assert (json.loads(row.before), json.loads(row.after)) == (HubCaps().model_dump(), A_FIFTH.model_dump())
    before = hub.contents()
    assert _put(hub, A_FIFTH) == stored
    assert hub.contents() == before, "the same again changes nothing"
    with pytest.raises(PreconditionFailed):
        _put(hub, HubCaps(), "an older one")


def test_a_change_of_an_organizations_own_is_audited_and_told_in_the_feed(hub: Hub) -> None:
    cursor, _ = hub.snapshot()
    stored = _give(hub, max_gpus=12, pool_thousandths=1000, queued_jobs=3)
    (told,) = feed.read_feed(hub.database, cursor, 100).items
    assert told.organization is not None
    assert (told.organization.max_gpus, told.organization.pool_thousandths) == (12, 1000)
    assert (stored.in_effect.max_gpus, stored.in_effect.queued_jobs) == (12, 3)
    row = hub.row(audit, action="organization.caps")
    assert (row.subject, json.loads(row.after)["queued_jobs"], json.loads(row.before)["queued_jobs"]) == (
        "alpha",
        3,
        None,
    )
    before = hub.contents()
    assert _give(hub, max_gpus=12, pool_thousandths=1000, queued_jobs=3) == stored
    assert hub.contents() == before, "the same again changes nothing"
    with pytest.raises(PreconditionFailed):
        _give(hub, if_match="an older one")
    assert _give(hub, if_match=stored.etag).caps == OrganizationCaps()
    with pytest.raises(NotFound):
        _give(hub, "nobody")


@pytest.mark.parametrize(
    ("hubs", "own", "cap"),
    [
        (A_FIFTH, {}, 8),
        (HubCaps(), {}, None),
        (A_FIFTH, {"pool_thousandths": 501}, 21),
        (HubCaps(), {"pool_thousandths": 1}, 8),
        (A_FIFTH, {"pool_thousandths": 1000}, None),
        (A_FIFTH, {"max_gpus": 30}, 8),
        (A_FIFTH, {"max_gpus": 3}, 3),
        (HubCaps(), {"max_gpus": 30}, 30),
        (HubCaps(organization_pool_thousandths=1000), {"max_gpus": 30}, 30),
    ],
)
def test_the_lower_of_its_own_cap_and_its_part_of_the_pool_binds(
    hub: Hub, hubs: HubCaps, own: dict[str, int], cap: int | None
) -> None:
    _put(hub, hubs)
    _give(hub, **own)
    assert _show(hub).in_effect.max_gpus == cap


def test_the_pool_is_that_of_the_nodes_that_take_jobs(hub: Hub) -> None:
    _put(hub, HubCaps(organization_pool_thousandths=500, organization_pool_from_gpus=0))
    assert _show(hub).in_effect.max_gpus == 20
    four, last = {name: POOL[name] for name in ("n0", "n1", "n2", "n3")}, {"n4": POOL["n4"]}
    down = [node.model_copy(update={"schedulable": False}) for node in node_reports(last)]
    hub.report(nodes=[*node_reports(four), *down])
    assert _show(hub).in_effect.max_gpus == 16
    hub.report(nodes=[*node_reports(four | {"n3": {"h100": 8, "a100": 2}}), *down])
    assert _show(hub).in_effect.max_gpus == 17
    hub.report(nodes=[node.model_copy(update={"schedulable": False}) for node in node_reports(POOL)])
    assert _show(hub).in_effect.max_gpus is None, "where nothing takes jobs there is nothing to share"


# --- starts -----------------------------------------------------------------------------------------


def test_a_start_past_the_cap_is_refused_with_numbers_and_holds_nothing(hub: Hub) -> None:
    first, second = hub.award("alpha", "1000"), hub.award("alpha", "1000")
    _give(hub, max_gpus=8)
    big, small, fits = (hub.submit("alpha", gpus_per_pod=size) for size in (5, 4, 3))
    hub.start(big, first)
    held = hub.grant(second.id).held_gpu_us
    result = hub.try_start(small, second, "n1")
    assert (result.outcome, result.code) == ("refused", "organization_cap")
    assert result.numbers == {
        "organization_id": "alpha",
        "gpus_in_use": 5,
        "max_gpus": 8,
        "needed_gpus": 4,
    }
    assert hub.grant(second.id).held_gpu_us == held
    assert hub.job(small.id).state is JobState.QUEUED
    theirs = hub.award("beta", "1000")
    hub.start(hub.submit("beta", gpus_per_pod=8), theirs, "n2")
    hub.start(fits, second, "n1")


def test_starts_of_one_batch_count_and_refused_ones_do_not(hub: Hub) -> None:
    grants = [hub.award("alpha", "1000"), hub.award("alpha", "1000")]
    _give(hub, max_gpus=8)
    waiting = [hub.submit("alpha", gpus_per_pod=size) for size in (5, 4, 3, 1)]
    items = [hub.start_item(job, grants[n % 2], f"n{n}") for n, job in enumerate(waiting)]
    outcomes = [result.outcome for result in hub.decide(*items).results]
    assert outcomes == ["accepted", "refused", "accepted", "refused"]
    assert _show(hub).gpus_in_use == 8


def test_a_part_of_the_pool_binds_starts(hub: Hub) -> None:
    grant = hub.award("alpha", "1000")
    _put(hub, HubCaps(organization_pool_from_gpus=40))
    waiting = [hub.submit("alpha", gpus_per_pod=4) for _ in range(3)]
    items = [hub.start_item(job, grant, f"n{n}") for n, job in enumerate(waiting)]
    results = hub.decide(*items).results
    assert [result.outcome for result in results] == ["accepted", "accepted", "refused"]
    assert results[2].numbers["max_gpus"] == 8


def test_gpus_count_until_their_capacity_is_free(hub: Hub) -> None:
    grant = hub.award("alpha", "1000")
    _give(hub, max_gpus=8)
    job, waiting = hub.submit("alpha", gpus_per_pod=8), hub.submit("alpha")
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS // 2)
    hub.report(lost(job, hub.now))
    assert hub.try_start(waiting, grant, "n1").code == "organization_cap", "a lost attempt may still run"
    assert _show(hub).gpus_in_use == 8


def test_a_lowered_cap_counts_from_the_next_start_and_stops_nothing(hub: Hub) -> None:
    grant = hub.award("alpha", "1000")
    running, waiting = hub.submit("alpha", gpus_per_pod=6), hub.submit("alpha", gpus_per_pod=2)
    hub.start(running, grant)
    _give(hub, max_gpus=4)
    assert hub.job(running.id).state is JobState.STARTING
    assert hub.try_start(waiting, grant, "n1").code == "organization_cap"
    _give(hub)
    hub.start(waiting, grant, "n1")


def test_a_quote_tells_the_cap_that_keeps_it_waiting(hub: Hub) -> None:
    grant = hub.award("alpha", "1000")
    _give(hub, max_gpus=8)
    hub.start(hub.submit("alpha", gpus_per_pod=6), grant)

    def waits_for(gpus: int) -> tuple[WaitReason, dict[str, int | str]] | None:
        with hub.database.read() as connection:
            waiting = quote(
                connection, "alpha", a_submission(gpus_per_pod=gpus), hub.queue, hub.clock
            ).estimate.waiting
        return None if waiting is None else (waiting.code, waiting.numbers)

    numbers = {"organization": "alpha", "cap": 8, "in_use": 6, "needed": 3}
    assert waits_for(3) == (WaitReason.ORGANIZATION_CAP, numbers)
    assert waits_for(2) is None


# --- submissions ------------------------------------------------------------------------------------


def test_a_job_larger_than_the_organizations_cap_is_refused_with_the_cap(hub: Hub) -> None:
    hub.award("alpha", "1000")
    _give(hub, max_gpus=7)
    with pytest.raises(JobTooLarge) as refused:
        hub.submit("alpha", gpus_per_pod=8)
    assert (refused.value.status, refused.value.field) == (422, "gpus_per_pod")
    assert refused.value.numbers == {"needed_gpus": 8, "max_gpus": 7}
    with pytest.raises(JobTooLarge) as gang:
        hub.submit("alpha", gpus_per_pod=1, pods=8)
    assert gang.value.field == "pods"
    hub.submit("alpha", gpus_per_pod=7)


def test_nodes_that_are_down_now_let_a_job_be_submitted(hub: Hub) -> None:
    hub.award("alpha", "1000")
    _put(hub, HubCaps(organization_pool_thousandths=400, organization_pool_from_gpus=0))
    four, last = {name: POOL[name] for name in ("n0", "n1", "n2", "n3")}, {"n4": POOL["n4"]}
    down = [node.model_copy(update={"schedulable": False}) for node in node_reports(last)]
    hub.report(nodes=[*node_reports(four), *down])
    assert _show(hub).in_effect.max_gpus == 13
    hub.submit("alpha", gpus_per_pod=8, pods=2)
    with pytest.raises(JobTooLarge):
        hub.submit("alpha", gpus_per_pod=1, pods=17)


def test_a_job_is_no_larger_and_no_longer_than_its_caps(hub: Hub) -> None:
    hub.award("alpha", "1000")
    hub.award("beta", "1000")
    _put(hub, HubCaps(job_gpus=4, job_walltime_s=7200))
    _give(hub, "beta", job_gpus=8, job_walltime_s=3600)
    with pytest.raises(JobTooLarge) as large:
        hub.submit("alpha", gpus_per_pod=5)
    assert large.value.numbers == {"needed_gpus": 5, "max_gpus": 4}
    hub.submit("alpha", gpus_per_pod=4, walltime_s=7200)
    hub.submit("beta", gpus_per_pod=8, walltime_s=3600)
    with pytest.raises(WalltimeTooLong) as long:
        hub.submit("beta", walltime_s=3601)
    assert (long.value.status, long.value.field) == (422, "walltime_s")
    assert long.value.numbers == {"walltime_s": 3601, "max_walltime_s": 3600, "organization_id": "beta"}


def test_an_extension_keeps_to_the_walltime_that_a_job_may_have(hub: Hub) -> None:
    grant = hub.award("alpha", "1000")
    job = hub.submit("alpha", walltime_s=3600)
    hub.run(job, grant)
    _give(hub, job_walltime_s=5400)
    with pytest.raises(Exception, match="at most 5400 s; 1800 s more fit"):
        hub.extend(job, 1801)
    assert hub.extend(job, 1800).walltime_s == 5400


def test_no_more_jobs_wait_than_may(hub: Hub) -> None:
    grant = hub.award("alpha", "1000")
    hub.award("beta", "1000")
    _give(hub, queued_jobs=2)
    first, second = hub.submit("alpha"), hub.submit("alpha")
    with pytest.raises(QueueFull) as full:
        hub.submit("alpha")
    assert full.value.numbers == {"organization_id": "alpha", "queued_jobs": 2, "max_queued_jobs": 2}
    for _ in range(3):
        hub.submit("beta")
    hub.start(first, grant)
    third = hub.submit("alpha")
    with pytest.raises(QueueFull):
        hub.submit("alpha")
    hub.cancel(second.id)
    hub.submit("alpha")
    assert hub.job(third.id).state is JobState.QUEUED


def test_submissions_at_the_same_moment_do_not_pass_the_limit(hub: Hub) -> None:
    hub.award("alpha", "1000")
    _give(hub, queued_jobs=5)
    others = [hub.database, Database(hub.database.url, hub.clock)]
    if hub.database.dialect == "sqlite":  # its writers queue inside one process only
        others.pop().close()
    barrier, told, failures = threading.Barrier(8), list[str](), list[BaseException]()

    def submit(number: int) -> None:
        barrier.wait()
        for _ in range(3):
            try:
                others[number % len(others)].write(lambda tx: jobs.submit(tx, a_member(), a_submission()))
                told.append("queued")
            except QueueFull:
                told.append("full")
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in others[1:]:
        database.close()
    assert failures == []
    assert (told.count("queued"), told.count("full")) == (5, 19)
    assert _show(hub).queued_jobs == 5


# --- over HTTP, and from the command line -----------------------------------------------------------


def test_operators_change_caps_over_http_and_a_firm_sees_its_own(api: Api) -> None:
    body = OrganizationCapsPut(caps=OrganizationCaps(max_gpus=5), reason="a small firm")
    stored = api.operator.put_organization_caps("alpha", body)
    assert api.firms["alpha"].read_organization_caps("alpha") == stored
    with a_problem("not_found", 404):
        api.firms["beta"].read_organization_caps("alpha")
    with a_problem("forbidden", 403):
        api.firms["alpha"].put_organization_caps("alpha", body)
    with a_problem("forbidden", 403):
        api.firms["alpha"].read_caps()
    with a_problem("precondition_failed", 412):
        api.operator.put_organization_caps("alpha", body, "an older one")
    found = api.auditor.read_caps()
    again = CapsPut(caps=HubCaps(job_gpus=16), reason="as decided")
    assert api.operator.put_caps(again, found.etag).caps.job_gpus == 16


@pytest.mark.parametrize(
    ("path", "wrong", "field", "english"),
    [
        (
            "/v1/caps",
            {"organization_pool_thousandths": 0},
            "organization_pool_thousandths",
            "greater than or equal",
        ),
        (
            "/v1/caps",
            {"organization_pool_thousandths": 1001},
            "organization_pool_thousandths",
            "less than or equal",
        ),
        ("/v1/caps", {"job_gpus": "8"}, "job_gpus", "valid integer"),
        ("/v1/caps", {"job_walltime_s": 2_592_001}, "job_walltime_s", "less than or equal to 2592000"),
        ("/v1/caps", {"max_gpus": 8}, "max_gpus", "not permitted"),
        ("/v1/organizations/alpha/caps", {"queued_jobs": 0}, "queued_jobs", "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(
    api: Api, path: str, wrong: dict[str, object], field: str, english: str
) -> None:
    problem = api.refused(api.operator, "PUT", path, json={"caps": wrong, "reason": "a test"})
    (error,) = problem["errors"]
    assert (problem["http_status"], error["field"]) == (422, f"caps.{field}")
    assert english in error["message"]


def test_a_refused_submission_names_field_cap_and_what_helps(api: Api) -> None:
    api.hub.award("alpha", "1000")
    api.operator.put_organization_caps(
        "alpha", OrganizationCapsPut(caps=OrganizationCaps(max_gpus=5, queued_jobs=1), reason="a small firm")
    )
    large = {"name": "j", "gpu_class": "h100", "gpus_per_pod": 6, "walltime_s": 60}
    problem = api.refused(api.firms["alpha"], "POST", "/v1/jobs", json=large)
    assert (problem["http_status"], problem["code"], problem["errors"][0]["field"]) == (
        422,
        "job_too_large",
        "gpus_per_pod",
    )
    assert problem["numbers"] == {"needed_gpus": 6, "max_gpus": 5}
    api.firms["alpha"].submit_job(a_submission())
    with a_problem("queue_full", 409):
        api.firms["alpha"].submit_job(a_submission())


@pytest.fixture
def gpuhub(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Result]]:
    with an_api(sqlite_url) as served:
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("GPUHUB_URL", served.base_url)
        secret = served.operator._http.headers["Authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("GPUHUB_TOKEN", secret)
        yield lambda *words: CliRunner().invoke(firm_app(), list(words))


def test_caps_are_shown_and_set_by_name(gpuhub: Callable[..., Result]) -> None:
    why = ("--reason", "as decided")
    assert "organization_pool_thousandths" in gpuhub("caps", "show").stdout
    set_ = gpuhub("caps", "set", "organization_pool_thousandths=250", "job_gpus=64", *why, "--json")
    assert json.loads(set_.stdout)["caps"]["organization_pool_thousandths"] == 250
    assert (
        json.loads(gpuhub("caps", "set", "job_gpus=none", *why, "--json").stdout)["caps"]["job_gpus"] is None
    )
    assert json.loads(gpuhub("caps", "show", "--json").stdout)["version"] == 3
    own = ("--organization", "alpha")
    assert gpuhub("caps", "set", "max_gpus=12", "job_walltime_s=7200", *own, *why).exit_code == 0
    shown = gpuhub("caps", "show", *own).stdout
    for text in ("own caps of alpha", "the hub's", "12", "2h", "5000"):
        assert text in shown
    wrong = gpuhub("caps", "set", "max_gpus=12", *why)
    assert (wrong.exit_code, "NAME=VALUE" in wrong.stderr) == (2, True)
    refused = gpuhub("caps", "set", "job_gpus=many", *why)
    assert (refused.exit_code, "job_gpus" in refused.stderr) == (2, True)
