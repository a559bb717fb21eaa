"""The switches over HTTP: who may, by which version, and that a dry run stays one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.schemas.fleet import NodeChange
from quota.schemas.switches import FreezeChange, GrantEdit, PlacementChange, RequeueRequest
from tests import databases
from tests.builders import Api, a_problem, an_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path)) as made:
        yield made


def test_the_etag_of_a_grant_is_what_if_match_asks_for(api: Api) -> None:
    grant = api.hub.award()
    path = f"/v1/grants/{grant.id}"
    read = api.call(api.operator, "GET", path).headers["ETag"]
    first = api.call(
        api.operator, "PATCH", path, json={"max_gpus": 4, "reason": "r"}, headers={"If-Match": read}
    )
    assert first.status_code == 200, first.text
    assert first.headers["ETag"] == api.call(api.operator, "GET", path).headers["ETag"] != read
    with a_problem("precondition_failed", 412):
        api.operator.edit_grant(grant.id, GrantEdit(max_gpus=5, reason="r"), read)
    assert api.operator.read_grant(grant.id).max_gpus == 4


def test_a_field_that_was_not_set_is_not_sent_as_null(api: Api) -> None:
    grant = api.hub.award()
    api.operator.edit_grant(grant.id, GrantEdit(max_gpus=4, reason="r"))
    edited = api.operator.edit_grant(grant.id, GrantEdit(ends_at=grant.ends_at - 1, reason="r"))
    assert (edited.grant.max_gpus, edited.grant.ends_at) == (4, grant.ends_at - 1)


def _every_switch(client: Any, job_id: str, grant_id: str, *, dry_run: bool) -> list[Any]:
    pause = PlacementChange(paused=True, reason="r")
    freeze = FreezeChange(frozen=True, reason="r")
    return [
        lambda: client.requeue_job(job_id, RequeueRequest(reason="r"), dry_run=dry_run),
        lambda: client.freeze_organization("alpha", freeze, dry_run=dry_run),
        lambda: client.pause_hub(pause, dry_run=dry_run),
        lambda: client.pause_cluster("sim", pause, dry_run=dry_run),
        lambda: client.pause_gpu_class("h100", pause, dry_run=dry_run),
        lambda: client.change_node("sim", "n0", NodeChange(cordoned=True, reason="r"), dry_run=dry_run),
        lambda: client.edit_grant(grant_id, GrantEdit(max_gpus=4, reason="r"), dry_run=dry_run),
    ]


def test_every_dry_run_equals_what_then_happens_and_moves_nothing(api: Api) -> None:
    grant = api.hub.award()
    job = api.hub.submit()
    api.hub.run(job, grant)
    dry = _every_switch(api.operator, job.id, grant.id, dry_run=True)
    real = _every_switch(api.operator, job.id, grant.id, dry_run=False)
    for look, throw in zip(dry, real, strict=True):
        before = api.hub.contents()
        told = look()
        assert api.hub.contents() == before
        done = throw()
        assert (told.dry_run, done.dry_run, done.changed) == (True, False, True)
        assert told.model_copy(update={"dry_run": False}) == done
        after = api.hub.contents()
        assert after != before
        assert not throw().changed
        assert api.hub.contents() == after


@pytest.mark.parametrize("who", ["member", "auditor"])
def test_only_operators_throw_switches_or_look_what_they_would_do(api: Api, who: str) -> None:
    grant = api.hub.award()
    job = api.hub.submit()
    api.hub.run(job, grant)
    client = api.firms["alpha"] if who == "member" else api.auditor
    before = api.hub.contents()
    for dry_run in (True, False):
        for call in _every_switch(client, job.id, grant.id, dry_run=dry_run):
            with a_problem("forbidden", 403):
                call()
    assert api.hub.contents() == before


def test_auditors_see_what_is_paused_and_members_do_not(api: Api) -> None:
    api.operator.pause_cluster("sim", PlacementChange(paused=True, reason="heat"))
    shown = {(item.kind, item.id): item for item in api.auditor.list_placement().items}
    assert shown["cluster", "sim"].reason == "heat"
    assert [kind for kind, _ in shown] == ["hub", "cluster", "gpu_class", "gpu_class"]
    with a_problem("forbidden", 403):
        api.firms["alpha"].list_placement()
