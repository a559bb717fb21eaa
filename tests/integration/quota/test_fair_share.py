"""How the hub shares: read, changed, audited, told to the scheduler, refused with what is right; and promised room."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.dispatch import feed
from quota.dispatch.fair_share import SUBJECT, put_fair_share, read_fair_share
from quota.dispatch.ranking import put_ranking
from quota.errors import BadRequest, PreconditionFailed
from quota.schemas.fair_share import FairShare, FairShareDocument, FairSharePut, Preemption, ProgramShare
from quota.schemas.scheduling import RankingDocument, Reservation, SnapshotPage
from tests.builders import HOUR_MS, OPERATOR, START_MS, Api, Hub, a_hub, a_problem, an_api

QUICK = FairShare(lane=None, preemption=Preemption(gang_gpus=2, notice_ms=2000))


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def _read(hub: Hub) -> FairShareDocument:
    with hub.database.read() as connection:
        return read_fair_share(connection)


def _put(hub: Hub, share: FairShare, if_match: str | None = None) -> FairShareDocument:
    body = FairSharePut(fair_share=share, reason="a test")
    return hub.database.write(lambda tx: put_fair_share(tx, OPERATOR, body, if_match))


def test_a_new_hub_shares_as_the_program_says(hub: Hub) -> None:
    assert (_read(hub).version, _read(hub).fair_share) == (1, FairShare())
    assert hub.snapshot()[1][("policy", "default")].policy.fair_share == FairShare()


def test_a_change_is_versioned_audited_and_told_in_the_feed(hub: Hub) -> None:
    cursor, _ = hub.snapshot()
    hub.clock.advance(5)
    stored = _put(hub, QUICK)
    assert (stored.version, stored.fair_share, stored.changed_at) == (2, QUICK, START_MS + 5)
    told = feed.read_feed(hub.database, cursor, 100).items
    assert [(item.kind, item.policy and item.policy.fair_share) for item in told] == [("policy", QUICK)]
    assert hub.snapshot()[1][("policy", "default")].policy.fair_share == QUICK
    row = hub.row(audit, action="fair_share.put")
    assert (row.subject, row.reason) == (SUBJECT, "a test")
    assert json.loads(row.before) == FairShare().model_dump(mode="json")
    assert json.loads(row.after) == QUICK.model_dump(mode="json")


def test_the_same_again_changes_nothing(hub: Hub) -> None:
    stored = _put(hub, QUICK)
    before = hub.contents()
    assert _put(hub, QUICK) == stored
    assert hub.contents() == before


def test_what_somebody_else_changed_meanwhile_is_not_overwritten(hub: Hub) -> None:
    seen = _read(hub)
    _put(hub, QUICK, seen.etag)
    with pytest.raises(PreconditionFailed):
        _put(hub, FairShare(), seen.etag)
    assert _read(hub).fair_share == QUICK


def test_weights_and_reserved_parts_are_of_programmes_and_organizations_that_there_are(hub: Hub) -> None:
    share = FairShare(
        programs={"ax": ProgramShare(weight_thousandths=1500, reserved_thousandths=1000)},
        organization_weights={"alpha": 2000},
    )
    _put(hub, share)
    assert hub.snapshot()[1][("policy", "default")].policy.fair_share == share
    for wrong, field, name in (
        (FairShare(programs={"poc": ProgramShare()}), "fair_share.programs", {"program_id": "poc"}),
        (
            FairShare(organization_weights={"delta": 1000}),
            "fair_share.organization_weights",
            {"organization_id": "delta"},
        ),
    ):
        with pytest.raises(BadRequest) as refused:
            _put(hub, wrong)
        assert (refused.value.status, refused.value.field, refused.value.numbers) == (422, field, name)
    assert _read(hub).fair_share == share


def test_operators_change_it_over_http_and_firms_do_not_see_it(api: Api) -> None:
    found = api.auditor.read_fair_share()
    body = FairSharePut(fair_share=QUICK, reason="small numbers")
    assert api.operator.put_fair_share(body, found.etag).fair_share == QUICK
    with a_problem("precondition_failed", 412):
        api.operator.put_fair_share(body, found.etag)
    with a_problem("forbidden", 403):
        api.auditor.put_fair_share(body)
    with a_problem("forbidden", 403):
        api.firms["alpha"].read_fair_share()
    assert api.auditor.read_fair_share().version == 2


@pytest.mark.parametrize(
    ("share", "field", "english"),
    [
        ({"preemption": {"times_per_day": 4}}, "preemption.times_per_day", "less than or equal to 3"),
        ({"preemption": {"notice_ms": "2 s"}}, "preemption.notice_ms", "valid integer"),
        ({"preemption": {"grace": 1}}, "preemption.grace", "not permitted"),
        ({"ranking": "luck"}, "ranking", "'grant', 'decay' or 'fifo'"),
        ({"gang_first_gpus": True}, "gang_first_gpus", "valid integer"),
        ({"hold_share_thousandths": 1001}, "hold_share_thousandths", "less than or equal to 1000"),
        ({"reservations": -1}, "reservations", "greater than or equal to 0"),
        (
            {"programs": {"ax": {"reserved_thousandths": 600}, "bx": {"reserved_thousandths": 401}}},
            "programs",
            "come to 1001 thousandths",
        ),
        (
            {"programs": {"ax": {"weight_thousandths": 9}}},
            "programs.ax.weight_thousandths",
            "greater than or equal",
        ),
        ({"organization_weights": {"alpha": 0.5}}, "organization_weights.alpha", "valid integer"),
        (
            {
                "lane": {
                    "tapers": [
                        {"walltime_ms": HOUR_MS, "spare_thousandths": 0},
                        {"walltime_ms": HOUR_MS, "spare_thousandths": 0},
                    ]
                }
            },
            "lane.tapers",
            "tapers stand by growing walltime_ms",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(
    api: Api, share: dict[str, object], field: str, english: str
) -> None:
    body = {"fair_share": share, "reason": "a test"}
    told = {}
    for language in ("en", "ko"):
        headers = {"Accept-Language": language}
        problem = api.refused(api.operator, "PUT", "/v1/fair-share", json=body, headers=headers)
        assert (problem["http_status"], problem["code"]) == (422, "invalid_request")
        (error,) = problem["errors"]
        assert error["field"] == f"fair_share.{field}"
        told[language] = error["message"]
    assert english in told["en"]
    assert any("가" <= letter <= "힣" for letter in told["ko"])
    assert api.operator.read_fair_share().version == 1


# --- promised room ----------------------------------------------------------------------------------


def _promise(hub: Hub, cycle: int, *kept: Reservation, base: int | None = None) -> None:
    document = RankingDocument(
        epoch=hub.epoch,
        cycle=cycle,
        base_cycle=base,
        at=hub.now,
        order=(),
        reasons={},
        reservations=kept,
    )
    # as it comes over the wire
    again = RankingDocument.model_validate_json(document.model_dump_json())
    hub.database.write(lambda tx: put_ranking(tx, again))


def _kept(job_id: str, number: int = 0) -> Reservation:
    return Reservation(
        job_id=job_id,
        cluster="sim",
        gpu_class="h100",
        starts_at=START_MS + HOUR_MS,
        gpus_by_node={"n0": 8, "n1": 4},
        made_at=START_MS,
        number=number,
    )


def _first_page(hub: Hub, limit: int = 5000) -> SnapshotPage:
    return feed.read_snapshot(hub.database, None, limit)


def test_promised_room_outlives_the_scheduler_that_promised_it(hub: Hub) -> None:
    assert _first_page(hub).reservations == ()
    first, second = _kept("job-a"), _kept("job-b", 1)
    _promise(hub, 1, first, second)
    hub.take_lease(instance="instance-2")
    page = _first_page(hub)
    assert page.reservations == (first, second)
    again = SnapshotPage.model_validate_json(page.model_dump_json())
    assert again.reservations == (first, second)


def test_the_last_ranking_counts_and_only_the_first_page_tells(hub: Hub) -> None:
    _promise(hub, 1, _kept("job-a"))
    _promise(hub, 2, _kept("job-b"), base=1)
    page = _first_page(hub, limit=2)
    assert [each.job_id for each in page.reservations] == ["job-b"]
    assert page.next is not None
    assert feed.read_snapshot(hub.database, page.next, 2).reservations == ()
    _promise(hub, 3, base=2)
    assert _first_page(hub).reservations == ()
