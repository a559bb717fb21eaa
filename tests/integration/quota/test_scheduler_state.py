"""The state of scheduling as one document: whole, of one moment, without secrets or, if asked, names; and audited."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from quota.audit.tables import audit
from quota.bookings.service import create_booking
from quota.clock import Clock, instant_text
from quota.dispatch import snapshots
from quota.dispatch.ranking import put_ranking
from quota.dispatch.snapshots import KEPT, WITHHELD, take_state
from quota.schemas.bookings import NewBooking
from quota.schemas.scheduling import (
    AttemptObject,
    BookedRoom,
    JobObject,
    PendingItem,
    RankingDocument,
    Reservation,
    Waiting,
    WaitReason,
)
from quota.schemas.snapshots import SchedulerState
from scheduler.cache import Cache
from scheduler.core.model import Plan
from scheduler.planner import Planner
from scheduler.snapshots.decision import decide_on
from scheduler.snapshots.file import parse_state
from scheduler.views import ClusterView
from tests.builders import DAY_MS, HOUR_MS, OPERATOR, Api, Hub, a_hub, a_problem, an_api

SECRET = "hunter2-is-a-secret"
FIRMS = ("alpha", "beta", "gamma", "delta-x")


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url, firms=FIRMS)
    yield made
    made.close()


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def _fill(hub: Hub) -> None:
    """Grants that are behind and ahead, jobs that run, and more that wait than there is room for."""
    rng = random.Random(7)
    grants = {firm: hub.award(firm, str(200 * number)) for number, firm in enumerate(FIRMS, 1)}
    hub.clock.advance(DAY_MS)
    for firm, nodes in (("beta", ("n0",)), ("alpha", ("n1",))):
        job = hub.submit(firm, gpus_per_pod=3, walltime_s=7200)
        hub.run(job, grants[firm], *nodes)
    for _ in range(24):
        hub.clock.advance(rng.randrange(1, 60_000))
        hub.submit(
            rng.choice(FIRMS),
            gpus_per_pod=rng.choice((1, 2, 3, 8)),
            pods=rng.choice((1, 1, 2)),
            walltime_s=rng.choice((600, 3600, 40_000)),
        )
    hub.clock.advance(HOUR_MS)
    hub.report(through=hub.now)


def _state(hub: Hub, **asked: Any) -> SchedulerState:
    return parse_state(json.dumps(take_state(hub.database, 1, **asked)).encode(), "the test's")


def test_it_decides_what_the_live_planner_decides(hub: Hub) -> None:
    _fill(hub)
    cursor, items = hub.snapshot()
    cache, view = Cache(), ClusterView("sim")
    cache.replace(cursor, items.values())
    view.seen_ms = hub.now
    live = Planner(cache, {"sim": view}, Clock(), random.Random(0)).plan(hub.now)
    plan = decide_on(_state(hub)).plan
    assert plan.starts
    assert len(plan.reasons) > 10
    assert len({reason.code for reason in plan.reasons.values()}) > 1
    assert plan == live


def test_it_names_the_queue_that_was_shown_and_the_room_that_was_promised(hub: Hub) -> None:
    assert _state(hub).shown is None
    hub.award("alpha")
    job = hub.submit("alpha")
    kept = Reservation(
        job_id=job.id,
        cluster="sim",
        gpu_class="h100",
        starts_at=hub.now + HOUR_MS,
        gpus_by_node={"n0": 8},
        made_at=hub.now,
        number=0,
    )
    waiting = Waiting(code=WaitReason.NO_FREE_GPU, numbers={"gpu_class": "h100", "needed": 1, "free": 0})
    document = RankingDocument(
        epoch=hub.epoch, cycle=3, at=hub.now, order=(job.id,), reasons={job.id: waiting}, reservations=(kept,)
    )
    hub.database.write(lambda tx: put_ranking(tx, document))
    state = _state(hub)
    assert state.reservations == (kept,)
    assert state.shown is not None
    assert (state.shown.cycle, state.shown.order) == (3, (job.id,))
    assert state.shown.reasons == {job.id: waiting}


def test_it_holds_the_coming_times_of_bookings_and_where_their_room_is(hub: Hub) -> None:
    grant = hub.award("alpha", "1000").id
    starts, ends = instant_text(hub.now + HOUR_MS), instant_text(hub.now + 3 * HOUR_MS)
    for firm in ("alpha", "beta"):
        body = NewBooking.model_validate(
            {
                "organization_id": firm,
                "name": "class",
                "gpu_class": "h100",
                "gpus_per_pod": 8,
                "pods": 1,
                "starts_at": starts,
                "ends_at": ends,
                "grant_id": grant if firm == "alpha" else None,
                "reason": "a course",
            }
        )
        made = hub.database.write(lambda tx, body=body: create_booking(tx, OPERATOR, body))
    (first, *_) = made.occurrences
    room = BookedRoom(booking_id=first.id, cluster="sim", gpus_by_node={"n1": 8})
    document = RankingDocument(
        epoch=hub.epoch, cycle=1, at=hub.now, order=(), reasons={}, reservations=(), booked=(room,)
    )
    hub.database.write(lambda tx: put_ranking(tx, document))
    long = hub.submit("alpha", gpus_per_pod=8, walltime_s=20 * 3600)
    hub.report(through=hub.now)
    for pseudonyms in (False, True):
        state = _state(hub, pseudonyms=pseudonyms)
        assert state.booked == (room,)
        coming = [item.booking for item in state.items if item.booking is not None]
        assert sorted(each.organization_id for each in coming) == (
            ["organization-1", "organization-2"] if pseudonyms else ["alpha", "beta"]
        )
        assert (grant in state.model_dump_json()) is not pseudonyms
        plan = decide_on(state).plan
        assert {each.booking_id: dict(each.gpus_by_node) for each in plan.booked}[first.id] == {"n1": 8}
        assert plan.reasons[long.id].code == WaitReason.BOOKED.value


def test_pages_do_not_show(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(hub)
    whole = take_state(hub.database, 1)
    monkeypatch.setattr(snapshots, "PAGE", 3)
    assert take_state(hub.database, 1) == whole


def test_it_holds_nothing_of_what_a_firm_wrote_for_its_job(hub: Hub) -> None:
    grant = hub.award("alpha", "1000")
    written = {
        "image": f"registry.example/{SECRET}:1",
        "command": ["train", f"--key={SECRET}"],
        "environment": {"PASSWORD": SECRET, SECRET: "x"},
        "annotations": {f"firm/{SECRET}": SECRET},
        "name": SECRET,
    }
    job = hub.submit("alpha", **written)
    hub.submit("alpha", **written)
    hub.start(job, grant)
    hub.report(PendingItem(job_id=job.id, attempt=1, detail=f"pod 0: cannot pull {SECRET}"))
    _, live = hub.snapshot()
    assert any(SECRET in item.model_dump_json() for item in live.values()), "the scheduler is told it"
    assert SECRET not in json.dumps(take_state(hub.database, 1))


@pytest.mark.parametrize(("kind", "model"), [("job", JobObject), ("attempt", AttemptObject)])
def test_of_each_field_it_is_said_whether_it_is_kept(kind: Any, model: type[BaseModel]) -> None:
    """A new field: name it in KEPT of quota/dispatch/snapshots.py if the core needs it, else in WITHHELD."""
    assert set(model.model_fields) == KEPT[kind] | (WITHHELD & set(model.model_fields))
    assert not KEPT[kind] & WITHHELD


def test_pseudonyms_hide_every_name_and_change_no_decision(hub: Hub) -> None:
    _fill(hub)
    plain, hidden = _state(hub), _state(hub, pseudonyms=True)
    text = hidden.model_dump_json()
    names = {item.id for item in plain.items if item.kind in ("organization", "grant")} | {"ax"}
    accounts = {
        account.id
        for item in plain.items
        if item.grant is not None
        for path in item.grant.paths
        for account in path.accounts
    }
    assert len(names) == 9
    assert [name for name in names | accounts if f'"{name}"' in text] == []
    assert (hidden.pseudonyms, plain.pseudonyms) == (True, False)
    open_plan, hidden_plan = decide_on(plain).plan, decide_on(hidden).plan
    assert hidden_plan.order == open_plan.order
    assert _placed(hidden_plan) == _placed(open_plan)
    assert {job: why.code for job, why in hidden_plan.reasons.items()} == {
        job: why.code for job, why in open_plan.reasons.items()
    }


def _placed(plan: Plan) -> list[tuple[object, ...]]:
    return [(start.job_id, start.cluster, start.pods) for start in plan.starts]


def test_operators_and_auditors_take_it_and_the_trail_knows(api: Api) -> None:
    with a_problem("forbidden", 403):
        api.firms["alpha"].read_scheduler_state()
    taken = api.operator.read_scheduler_state()
    assert {item.kind for item in taken.items} >= {"policy", "cluster", "gpu_class", "node", "organization"}
    target = io.BytesIO()
    assert api.auditor.save_scheduler_state(target, pseudonyms=True) == len(target.getvalue())
    saved = parse_state(target.getvalue(), "the answer")
    rows = api.hub.rows(audit, action="scheduler_state.read")
    assert [json.loads(row.detail)["sha256"] for row in rows] == [taken.sha256, saved.sha256]
    assert [json.loads(row.detail)["pseudonyms"] for row in rows] == [False, True]
    assert len({row.actor for row in rows}) == 2


def test_taking_it_changes_nothing_but_the_trail(hub: Hub) -> None:
    _fill(hub)
    before = hub.contents()
    take_state(hub.database, 1)
    assert hub.contents() == before
