"""Editing a grant's end and cap: shown first, then done, by version, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from quota.audit.tables import audit
from quota.errors import BadRequest, NotFound, PreconditionFailed
from quota.jobs import grant_edits
from quota.programs.service import tag_of_grant
from quota.schemas.programs import Grant
from quota.schemas.switches import GrantEdit, GrantEditReply
from tests.builders import DAY_MS, GPU_HOUR_US, HOUR_MS, OPERATOR, Hub, a_hub
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def _edit(
    hub: Hub, grant: Grant | str, *, dry: bool = False, if_match: str | None = None, **fields: Any
) -> GrantEditReply:
    body = GrantEdit.model_validate({"reason": "the call says so"} | fields)
    grant_id = grant if isinstance(grant, str) else grant.id
    do = hub.database.preview if dry else hub.database.write
    return do(lambda tx: grant_edits.edit_grant(tx, OPERATOR, grant_id, body, if_match))


def test_a_dry_edit_tells_what_the_edit_then_does_and_leaves_no_trace(hub: Hub) -> None:
    grant = hub.award(hours="100")
    short, long = hub.submit(walltime_s=3600), hub.submit(walltime_s=86_400, gpus_per_pod=2)
    hub.run(short, grant)
    hub.run(long, grant)
    fits, too_long = hub.submit(walltime_s=3600), hub.submit(walltime_s=86_400)
    wide = hub.submit(walltime_s=3600, gpus_per_pod=8)
    asked = {"ends_at": hub.now + 12 * HOUR_MS, "max_gpus": 4}
    before = hub.contents()
    told = _edit(hub, grant, dry=True, **asked)
    assert hub.contents() == before
    assert told == _edit(hub, grant, **asked)
    assert told.changed
    assert told.past_the_end.ids == (f"{long.id}-1",)
    assert set(told.no_longer_fit.ids) == {too_long.id, wide.id}
    assert fits.id not in told.no_longer_fit.ids
    assert told.expires_gpu_us == 51 * GPU_HOUR_US
    stands = hub.grant(grant.id)
    assert (stands.ends_at, stands.max_gpus) == (asked["ends_at"], 4)


def test_the_new_cap_and_end_bind_the_next_start(hub: Hub) -> None:
    grant = hub.award()
    two, long = hub.submit(gpus_per_pod=2), hub.submit(walltime_s=7200)
    _edit(hub, grant, max_gpus=1)
    assert hub.try_start(two, grant).code == "grant_cap"
    _edit(hub, grant, ends_at=hub.now + HOUR_MS, max_gpus=None)
    assert hub.try_start(long, grant).code == "grant_not_active"
    assert hub.try_start(two, grant).outcome == "accepted"


def test_what_is_left_out_stays_and_null_lifts_the_cap(hub: Hub) -> None:
    grant = hub.award()
    _edit(hub, grant, max_gpus=3)
    assert _edit(hub, grant, ends_at=grant.ends_at + DAY_MS).grant.max_gpus == 3
    after = _edit(hub, grant, max_gpus=None).grant
    assert (after.max_gpus, after.ends_at) == (None, grant.ends_at + DAY_MS)


def test_ending_a_grant_now_expires_what_the_dry_run_said(hub: Hub) -> None:
    grant = hub.award(hours="10")
    hub.run(hub.submit(), grant)
    hub.clock.advance(HOUR_MS // 2)
    told = _edit(hub, grant, dry=True, ends_at=hub.now)
    assert told.expires_gpu_us == 9 * GPU_HOUR_US
    assert _edit(hub, grant, ends_at=hub.now) == told
    assert told.grant.available_gpu_us == 0


def test_the_same_values_again_write_nothing(hub: Hub) -> None:
    grant = hub.award()
    asked = {"ends_at": grant.ends_at + DAY_MS, "max_gpus": 2}
    assert _edit(hub, grant, **asked).changed
    before = hub.contents()
    assert not _edit(hub, grant, **asked).changed
    assert hub.contents() == before


def test_an_edit_is_audited_and_shown_in_the_feed(hub: Hub) -> None:
    grant = hub.award()
    _edit(hub, grant, max_gpus=2)
    [row] = hub.rows(audit, action="grant.cap")
    assert (row.actor, row.subject, row.reason) == ("operator", grant.id, "the call says so")
    _, items = hub.snapshot()
    assert items["grant", grant.id].grant.max_gpus == 2  # type: ignore[union-attr]


def test_an_edit_of_another_version_is_refused_dry_or_not(hub: Hub) -> None:
    grant = hub.award()
    tag = tag_of_grant(grant)
    hub.run(hub.submit(), grant)  # its balance is no part of its version
    _edit(hub, grant, max_gpus=2, if_match=tag)
    before = hub.contents()
    for dry in (True, False):
        with pytest.raises(PreconditionFailed):
            _edit(hub, grant, max_gpus=1, dry=dry, if_match=tag)
    assert hub.contents() == before


def test_what_cannot_be_is_refused_and_changes_nothing(hub: Hub) -> None:
    grant = hub.award()
    before = hub.contents()
    for dry in (True, False):
        with pytest.raises(BadRequest):
            # the cap would be possible; with a wrong end nothing is changed at all
            _edit(hub, grant, ends_at=hub.now - 1, max_gpus=1, dry=dry)
        with pytest.raises(NotFound):
            _edit(hub, "grant-none", max_gpus=1, dry=dry)
    assert hub.contents() == before


@pytest.mark.parametrize("fields", [{}, {"ends_at": None}, {"max_gpus": 0}, {"max_gpus": True}])
def test_an_edit_names_what_it_changes(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GrantEdit.model_validate({"reason": "r"} | fields)
