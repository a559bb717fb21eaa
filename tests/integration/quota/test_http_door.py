"""The door itself: stale requests, the long poll, failures, the typed client, and what the service says of itself."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event
from structlog.testing import capture_logs

from quota.client import QuotaClient, ServiceUnavailable
from quota.dispatch import routes as dispatch
from quota.schemas.identity import NewToken, Role
from quota.schemas.scheduling import DecisionBatch, RankingDocument
from tests import databases
from tests.builders import START_MS, Api, a_problem, an_api
from tests.integration.quota.door_world import BODIES, operations

ALSO = {"write_statement"}
"""Methods that ask for what another one asks for, in another form."""
JOB = {"name": "a", "gpu_class": "h100", "walltime_s": 60}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One hub whose tests change nothing that another test could see."""
    folder: Path = tmp_path_factory.mktemp("door")
    with an_api(databases.new_sqlite(folder)) as made:
        made.hub.award("alpha", "10")
        yield made


@pytest.fixture
def fresh(sqlite_url: str) -> Iterator[Api]:
    with an_api(sqlite_url) as made:
        yield made


# --- stale ---------------------------------------------------------------------------------------------


def test_stale_epochs_and_sequences_are_conflicts(api: Api) -> None:
    hub = api.hub
    before = hub.contents()
    for epoch, seq, code in ((hub.epoch + 1, 1, "stale_epoch"), (hub.epoch, 2, "stale_sequence")):
        batch = DecisionBatch(epoch=epoch, stream="never", seq=seq, items=())
        with a_problem(code, 409):
            api.scheduler.send_decisions(batch.model_dump_json().encode())
    with a_problem("stale_epoch", 409):
        api.scheduler.put_ranking(_ranking(999))
    assert hub.contents() == before


def _ranking(epoch: int) -> Any:
    return RankingDocument.model_validate(BODIES["put_ranking"] | {"epoch": epoch})


def test_a_cursor_outside_the_feed_is_gone(api: Api) -> None:
    with a_problem("cursor_expired", 410) as caught:
        api.scheduler.follow_feed(10**9, wait_s=0.1)
    assert set(caught[0].problem.numbers) == {"oldest", "head"}


# --- the long poll -----------------------------------------------------------------------------------------


def test_a_long_poll_is_answered_by_the_change_it_waits_for(fresh: Api) -> None:
    head = fresh.hub.snapshot()[0]
    pages: list[Any] = []
    thread = threading.Thread(target=lambda: pages.append(fresh.scheduler.follow_feed(head, wait_s=20)))
    thread.start()
    grant = fresh.hub.award("alpha", "1")
    thread.join(15)
    assert not thread.is_alive(), "answered long before its wait was over"
    assert [item.id for item in pages[0].items] == [grant.id]


def test_a_long_poll_without_news_ends_with_an_empty_page(fresh: Api) -> None:
    head = fresh.hub.snapshot()[0]
    page = fresh.scheduler.follow_feed(head, wait_s=0.1)
    assert (page.cursor, page.items) == (head, ())


def test_a_long_poll_rests_after_changes_that_show_nothing(
    fresh: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new token moves the head and changes no object: the poll goes on from there instead of spinning."""
    head = fresh.hub.snapshot()[0]
    fresh.operator.create_token(NewToken(role=Role.AUDITOR))
    reads = []
    read_feed = dispatch.feed.read_feed

    def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        return read_feed(*arguments)

    monkeypatch.setattr(dispatch.feed, "read_feed", counted)
    page = fresh.scheduler.follow_feed(head, wait_s=0.4)
    assert (page.cursor, page.items) == (head + 1, ())
    assert len(reads) <= 3


# --- failures ------------------------------------------------------------------------------------------------


def test_an_unexpected_error_hides_its_inside(fresh: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("SELECT secret FROM tokens WHERE password='hunter2'")

    monkeypatch.setattr(dispatch.feed, "read_snapshot", broken)
    with capture_logs() as logs:
        problem = fresh.refused(fresh.scheduler, "GET", "/v1/scheduler/snapshot")
    assert [(entry["event"], entry["path"]) for entry in logs] == [("unexpected", "/v1/scheduler/snapshot")]
    assert (problem["http_status"], problem["code"]) == (500, "internal_error")
    assert "hunter2" not in json.dumps(problem)
    assert "RuntimeError" not in json.dumps(problem)
    with capture_logs(), pytest.raises(ServiceUnavailable):
        fresh.scheduler.read_snapshot()


def test_a_commit_that_fails_answers_500_and_leaves_nothing(fresh: Api) -> None:
    fresh.hub.award("alpha", "10")
    engine = fresh.application.state.hub.database.engine
    before = fresh.hub.contents()

    def lose_the_disk(connection: Any) -> None:
        if connection.get_execution_options().get("hub_writes"):
            raise OSError("disk full")

    event.listen(engine, "commit", lose_the_disk)
    with capture_logs():
        problem = fresh.refused(
            fresh.firms["alpha"], "POST", "/v1/jobs", json=JOB, headers={"Idempotency-Key": "k"}
        )
    event.remove(engine, "commit", lose_the_disk)
    assert (problem["http_status"], problem["code"]) == (500, "internal_error")
    assert fresh.hub.contents() == before
    request = {"json": JOB, "headers": {"Idempotency-Key": "k"}}
    try:
        again = fresh.call(fresh.firms["alpha"], "POST", "/v1/jobs", **request)
    except (
        httpx2.ReadError
    ):  # the server closes a connection after a 500; the same key makes asking again safe
        again = fresh.call(fresh.firms["alpha"], "POST", "/v1/jobs", **request)
    assert again.status_code == 201
    assert len(fresh.firms["alpha"].list_jobs().items) == 1


def test_a_service_that_is_gone_is_unavailable(sqlite_url: str) -> None:
    with QuotaClient("http://127.0.0.1:1", "x", timeout_s=2.0) as client, pytest.raises(ServiceUnavailable):
        client.read_clock()


# --- the typed client, and what the service says of itself ---------------------------------------------------


def test_every_path_of_the_client_is_in_the_document(api: Api) -> None:
    paths = {one.path for one in operations(api).values()}
    source = "".join(inspect.getsource(kind) for kind in QuotaClient.__mro__ if kind is not object)
    used = {
        "/".join("{}" if part.startswith("{") else part for part in literal.split("?")[0].split("/"))
        for literal in _literals(source)
    }
    known = {"/".join("{}" if part.startswith("{") else part for part in path.split("/")) for path in paths}
    assert len(used) > 20
    assert used <= known


def _literals(source: str) -> list[str]:
    return [part.split('"')[0] for part in source.split('"') if part.startswith("/v1/")]


def test_probes_and_clock_need_no_token(api: Api) -> None:
    with QuotaClient(api.base_url, "nobody") as nobody:
        assert api.call(nobody, "GET", "/-/healthy").json()["status"] == "ok"
        ready = api.call(nobody, "GET", "/-/ready").json()
        clock = nobody.read_clock()
    assert ready == {"status": "ok", "checks": {"database": "ok", "schema": "ok"}}
    assert (clock.now, clock.business_at, clock.speed) == (START_MS, START_MS, 1)


def test_metrics_are_prometheus_text_without_secrets(api: Api) -> None:
    text = api.call(api.operator, "GET", "/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    granted = families["hub_quota_grant_limit_gpu_seconds"].samples
    assert [sample.value for sample in granted] == [36_000.0]
    assert "ghub_" not in text


def test_a_token_is_stored_as_its_digest_only(fresh: Api) -> None:
    made = fresh.operator.create_token(NewToken(role=Role.AUDITOR, label="x"))
    everything = repr(fresh.hub.contents())
    assert made.secret not in everything
    assert made.prefix == made.secret[:12]
    assert made.secret not in fresh.call(fresh.operator, "GET", "/v1/tokens").text
    assert made.secret not in fresh.call(fresh.operator, "GET", "/v1/audit").text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "member"}, "organization_id"),
        ({"role": "auditor", "organization_id": "alpha"}, "organization_id"),
        ({"role": "operator", "node": "n0"}, "node"),
        ({"role": "king"}, "role"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(api: Api, body: dict[str, str], field: str) -> None:
    problem = api.refused(api.operator, "POST", "/v1/tokens", json=body)
    assert (problem["http_status"], problem["errors"][0]["field"]) == (422, field)
