"""Tranches: hours that stay locked until their milestone is reached, released in order, drawn on one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.errors import (
    AlreadyExists,
    BadRequest,
    GrantNotActive,
    InsufficientBalance,
    NotFound,
    PreconditionFailed,
)
from quota.ledger.tables import transfer_legs, transfers
from quota.programs import awards, changes, tranches
from quota.programs.limits import read_tree
from quota.programs.tranches import TrancheOrder, tranche_tag
from quota.schemas.limits import NewTranche, Tranche, TrancheChange
from quota.schemas.programs import Award, Grant, TopUp
from tests.builders import DAY_MS, GPU_HOUR_US, HOUR_MS, OPERATOR, Hub, a_hub
from tests.integration.quota.limits_builders import balance, divide, limits_of, path, release, run_on
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def test_tranches_are_opened_by_one_transfer_and_all_but_the_first_are_locked(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    made = divide(hub, grant, 40, 60).items
    assert [(part.position, part.label, part.released) for part in made] == [
        (1, "part of 40", True),
        (2, "part of 60", False),
    ]
    row = hub.row(transfers, id=f"{grant.account_id}:tranches")
    assert (row.type, row.amount_gpu_us, row.reason) == ("transfer", 100 * GPU_HOUR_US, "by milestones")
    legs = {leg.account_id: leg.d_granted for leg in hub.rows(transfer_legs, transfer_id=row.id)}
    assert legs == {
        path(grant, None, 1)[0]: 40 * GPU_HOUR_US,
        path(grant, None, 2)[0]: 60 * GPU_HOUR_US,
    }
    with pytest.raises(AlreadyExists):
        divide(hub, grant, 40, 60)


def test_an_award_comes_with_its_tranches_or_not_at_all(hub: Hub) -> None:
    grant = _award_in_tranches(hub, 40, 60)
    assert [part.released for part in limits_of(hub, grant).tranches] == [True, False]
    assert [
        part.released for part in limits_of(hub, _award_in_tranches(hub, 1, 99, first=False)).tranches
    ] == [
        False,
        False,
    ]
    before = hub.contents()
    with pytest.raises(BadRequest) as refused:
        _award_in_tranches(hub, 40, 59)
    assert refused.value.numbers["total_gpu_us"] == 99 * GPU_HOUR_US
    assert hub.contents() == before


def test_nothing_is_held_on_a_locked_tranche_or_past_all_of_them(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit("alpha", gpus_per_pod=8, walltime_s=10 * 3600)
    divide(hub, grant, 40, 60)
    for locked in (path(grant, None, 2), path(grant)):
        assert hub.try_start(job, grant, path=locked).code == "not_found"
    result = hub.try_start(job, grant, path=path(grant, None, 1))
    assert (result.code, result.numbers["left_gpu_us"]) == ("insufficient_balance", 40 * GPU_HOUR_US)
    assert balance(hub, grant.account_id) == (100, 0, 0), "a hold covers every account of its path or none"


def test_submission_counts_what_later_tranches_will_release(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 40, 60)
    hub.submit("alpha", gpus_per_pod=8, walltime_s=12 * 3600)
    with pytest.raises(InsufficientBalance):
        hub.submit("alpha", gpus_per_pod=8, walltime_s=13 * 3600)


def test_a_release_moves_what_is_left_so_that_one_tranche_suffices(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 40, 60)
    running = hub.submit("alpha", gpus_per_pod=4, walltime_s=4 * 3600)
    run_on(hub, running, grant, path(grant, None, 1))
    release(hub, grant, 2)
    assert balance(hub, path(grant, None, 1)[0]) == (16, 16, 0)
    assert balance(hub, path(grant, None, 2)[0]) == (84, 0, 0)
    row = hub.row(transfers, id=f"{path(grant, None, 2)[0]}:release")
    assert (row.type, row.amount_gpu_us) == ("transfer", 24 * GPU_HOUR_US)
    assert (row.actor, row.reason, row.evidence) == ("operator", "milestone reached", "report 7")
    big = hub.submit("alpha", gpus_per_pod=8, walltime_s=10 * 3600)
    hub.start(big, grant, "n1", path=path(grant, None, 2))


def test_what_comes_free_later_on_an_old_tranche_is_drawn_on_there(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 40, 60)
    running = hub.submit("alpha", gpus_per_pod=4, walltime_s=4 * 3600)
    run_on(hub, running, grant, path(grant, None, 1))
    release(hub, grant, 2)
    hub.clock.advance(HOUR_MS)
    hub.finish(running)
    assert balance(hub, path(grant, None, 1)[0]) == (16, 0, 4)
    assert balance(hub, grant.account_id) == (100, 0, 4)
    next_job = hub.submit("alpha", gpus_per_pod=4, walltime_s=3 * 3600)
    hub.start(next_job, grant, path=path(grant, None, 1))
    _, objects = hub.snapshot()
    shown = objects[("grant", grant.id)].grant
    assert shown is not None
    assert [p.accounts[0].id for p in shown.paths] == [path(grant, None, 1)[0], path(grant, None, 2)[0]]


def test_releasing_twice_is_releasing_once(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 40, 60)
    first = release(hub, grant, 2)
    before = hub.contents()
    assert release(hub, grant, 2) == first
    assert release(hub, grant, 1) == first, "the one that was released from the start too"
    assert hub.contents() == before


def test_tranches_are_released_in_their_order(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 20, 30, 50, first_released=False)
    with pytest.raises(TrancheOrder) as refused:
        release(hub, grant, 3)
    assert refused.value.numbers["position"] == 1
    with pytest.raises(NotFound):
        release(hub, grant, 4)
    for position in (1, 2, 3):
        release(hub, grant, position)
    assert balance(hub, path(grant, None, 3)[0]) == (100, 0, 0)
    assert hub.rows(transfers, id=f"{path(grant, None, 1)[0]}:release") == [], "nothing moved with the first"
    told = hub.rows(audit, action="grant.release")
    assert [json.loads(row.detail) for row in told] == [
        {"evidence": "report 7", "position": position} for position in (1, 2, 3)
    ]
    second = path(grant, None, 2)[0]
    assert json.loads(told[1].before)[second] == {
        "granted_gpu_us": str(30 * GPU_HOUR_US),
        "released": False,
    }
    assert json.loads(told[1].after)[second] == {"granted_gpu_us": str(50 * GPU_HOUR_US), "released": True}


def test_a_later_division_is_at_most_what_was_not_taken_before(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    running = hub.submit("alpha", gpus_per_pod=8, walltime_s=2 * 3600)
    hub.run(running, grant)
    with pytest.raises(InsufficientBalance) as refused:
        divide(hub, grant, 40, 45)
    assert refused.value.numbers["left_gpu_us"] == 84 * GPU_HOUR_US
    divide(hub, grant, 40, 44)
    hub.clock.advance(HOUR_MS)
    hub.finish(running)
    assert limits_of(hub, grant).left_for_tranches_gpu_us == 8 * GPU_HOUR_US
    changed = _put(hub, grant, 1, 48)
    assert changed.balance is not None
    assert changed.balance.granted_gpu_us == 48 * GPU_HOUR_US
    with pytest.raises(InsufficientBalance):
        _put(hub, grant, 2, 45)


def test_a_tranche_is_lowered_at_most_to_what_it_used_and_holds(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 40, 60)
    tag = _tag(hub, grant, 1)
    run_on(hub, hub.submit("alpha", gpus_per_pod=8), grant, path(grant, None, 1))
    with pytest.raises(InsufficientBalance) as refused:
        _put(hub, grant, 1, 7)
    assert refused.value.numbers["left_gpu_us"] == 32 * GPU_HOUR_US
    _put(hub, grant, 1, 8, tag)
    with pytest.raises(PreconditionFailed):
        _put(hub, grant, 1, 9, tag)


@pytest.mark.parametrize(("named", "got"), [(None, 1), (2, 2)])
def test_a_top_up_comes_into_a_tranche_so_that_it_can_be_drawn_on(
    hub: Hub, named: int | None, got: int
) -> None:
    grant = hub.award("alpha", "100")
    divide(hub, grant, 40, 60)
    body = TopUp(gpu_hours=10, tranche=named, reason="more")
    hub.database.write(lambda tx: changes.top_up(tx, OPERATOR, grant.id, body))
    expected = {1: 40, 2: 60} | {got: {1: 40, 2: 60}[got] + 10}
    assert {part: balance(hub, path(grant, None, part)[0])[0] for part in (1, 2)} == expected
    assert balance(hub, grant.account_id) == (110, 0, 0)


def test_a_top_up_of_a_tranche_that_is_not_there_changes_nothing(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    before = hub.contents()
    body = TopUp(gpu_hours=10, tranche=2, reason="more")
    with pytest.raises(NotFound):
        hub.database.write(lambda tx: changes.top_up(tx, OPERATOR, grant.id, body))
    assert hub.contents() == before


def test_nothing_is_released_after_the_end(hub: Hub) -> None:
    grant = hub.award("alpha", "100", ends_at=hub.now + DAY_MS)
    divide(hub, grant, 40, 60)
    hub.clock.advance(DAY_MS)
    with pytest.raises(GrantNotActive):
        release(hub, grant, 2)
    with pytest.raises(GrantNotActive):
        _put(hub, grant, 2, 1)


def _award_in_tranches(hub: Hub, *hours: int, first: bool = True) -> Grant:
    body = Award(
        program_id="ax",
        organization_id="alpha",
        gpu_hours=100,
        ends_at=hub.now + 90 * DAY_MS,
        tranches=tuple(NewTranche(gpu_hours=part, label="a part") for part in hours),
        first_tranche_released=first,
        reason="a PoC",
    )
    return hub.database.write(lambda tx: awards.award(tx, OPERATOR, body))


def _put(hub: Hub, grant: Grant, position: int, hours: int, if_match: str | None = None) -> Tranche:
    body = TrancheChange(gpu_hours=hours, reason="divided anew")
    return hub.database.write(
        lambda tx: tranches.put_tranche(tx, OPERATOR, grant.id, position, body, if_match)
    )


def _tag(hub: Hub, grant: Grant, position: int) -> str:
    with hub.database.read() as connection:
        return tranche_tag(read_tree(connection, grant.id).tranche(position))
