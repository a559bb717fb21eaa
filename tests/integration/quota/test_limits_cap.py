"""The cap on a grant's concurrent GPUs: counted at start, under concurrency too."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.db import Database
from quota.dispatch import decisions, lease
from quota.errors import GrantCapReached
from quota.jobs.caps import gpus_in_use
from quota.programs import awards, limits
from quota.schemas.programs import Award, Grant
from quota.schemas.scheduling import DecisionBatch, ItemResult
from tests.builders import DAY_MS, HOUR_MS, OPERATOR, Hub, a_hub, lost
from tests.property.ledger.ledger_checks import violations

THREADS = 8


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url, nodes={f"n{number}": {"h100": 8} for number in range(8)})
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def test_a_start_past_the_cap_is_refused_with_numbers_and_holds_nothing(hub: Hub) -> None:
    grant = _capped(hub, 8)
    first, second = hub.submit("alpha", gpus_per_pod=5), hub.submit("alpha", gpus_per_pod=4)
    hub.start(first, grant)
    held = hub.grant(grant.id).held_gpu_us
    result = hub.try_start(second, grant, "n1")
    assert (result.outcome, result.code) == ("refused", "grant_cap")
    assert result.numbers == {
        "grant_id": grant.id,
        "gpus_in_use": 5,
        "max_gpus": 8,
        "needed_gpus": 4,
    }
    assert hub.grant(grant.id).held_gpu_us == held
    assert hub.job(second.id).state.value == "queued"
    hub.start(hub.submit("alpha", gpus_per_pod=3), grant, "n1")


def test_starts_of_one_batch_count_towards_the_cap_and_refused_ones_do_not(hub: Hub) -> None:
    grant = _capped(hub, 8)
    jobs = [hub.submit("alpha", gpus_per_pod=size) for size in (5, 4, 3, 1)]
    items = [hub.start_item(job, grant, f"n{number}") for number, job in enumerate(jobs)]
    outcomes = [result.outcome for result in hub.decide(*items).results]
    assert outcomes == ["accepted", "refused", "accepted", "refused"]


def test_gpus_count_until_their_capacity_is_free(hub: Hub) -> None:
    grant = _capped(hub, 8)
    job, waiting = hub.submit("alpha", gpus_per_pod=8), hub.submit("alpha")
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS // 2)
    hub.report(lost(job, hub.now))
    assert hub.try_start(waiting, grant, "n1").code == "grant_cap", "a lost attempt may still run"
    assert _in_use(hub, grant) == 8
    done = hub.award("beta", "100")
    other = hub.submit("beta")
    hub.start(other, done, "n1")
    assert _in_use(hub, grant) == 8, "another grant's do not count"


def test_an_ended_attempt_makes_room(hub: Hub) -> None:
    grant = _capped(hub, 8)
    job, waiting = hub.submit("alpha", gpus_per_pod=8), hub.submit("alpha", gpus_per_pod=8)
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS)
    hub.finish(job)
    assert _in_use(hub, grant) == 0
    hub.start(waiting, grant)


def test_a_job_larger_than_every_cap_is_refused_at_submission(hub: Hub) -> None:
    _capped(hub, 4)
    with pytest.raises(GrantCapReached) as refused:
        hub.submit("alpha", gpus_per_pod=5)
    assert refused.value.numbers == {"needed_gpus": 5, "max_gpus": 4}
    hub.award("alpha", "100")
    hub.submit("alpha", gpus_per_pod=5)


def test_a_changed_cap_counts_from_the_next_start_and_stops_nothing(hub: Hub) -> None:
    grant = _capped(hub, 8)
    running, waiting = hub.submit("alpha", gpus_per_pod=6), hub.submit("alpha", gpus_per_pod=2)
    hub.start(running, grant)
    _change(hub, grant, 4)
    assert hub.job(running.id).state.value == "starting"
    assert hub.try_start(waiting, grant, "n1").code == "grant_cap"
    before = hub.contents()
    _change(hub, grant, 4)
    assert hub.contents() == before, "the same cap again changes nothing"
    _change(hub, grant, None)
    hub.start(waiting, grant, "n1")
    told = [(json.loads(row.before), json.loads(row.after)) for row in hub.rows(audit, action="grant.cap")]
    assert told == [({"max_gpus": 8}, {"max_gpus": 4}), ({"max_gpus": 4}, {"max_gpus": None})]
    _, objects = hub.snapshot()
    shown = objects[("grant", grant.id)].grant
    assert shown is not None
    assert shown.max_gpus is None


def test_eight_threads_never_pass_the_cap(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grant's own lock suffices: the one on the epoch, which lets one batch pass at a time, is taken away."""
    monkeypatch.setattr(lease, "check_epoch", lambda tx, epoch: None)
    grant = _capped(hub, 12)
    jobs = [hub.submit("alpha", gpus_per_pod=2) for _ in range(4 * THREADS)]
    others = [hub.database, Database(hub.database.url, hub.clock)]
    if hub.database.dialect == "sqlite":  # its writers queue inside one process only
        others.pop().close()
    results: list[ItemResult] = []
    failures: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def prepared(number: int, turn: int) -> tuple[DecisionBatch, bytes]:
        item = hub.start_item(jobs[4 * number + turn], grant, f"n{number}", attempt=1)
        batch = DecisionBatch(epoch=hub.epoch, stream=f"s{number}", seq=turn + 1, items=(item,))
        return batch, batch.model_dump_json().encode()

    ready = [[prepared(number, turn) for turn in range(4)] for number in range(THREADS)]

    def run(number: int) -> None:
        database = others[number % len(others)]
        barrier.wait()
        try:
            for batch, body in ready[number]:
                reply = database.write(lambda tx, b=batch, raw=body: decisions.decide(tx, b, raw)).reply
                results.extend(reply.results)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in others[1:]:
        database.close()
    assert failures == []
    assert sum(result.outcome == "accepted" for result in results) == 6
    refused = [result for result in results if result.outcome == "refused"]
    assert {result.code for result in refused} == {"grant_cap"}
    assert all(result.numbers["gpus_in_use"] == 12 for result in refused)
    assert _in_use(hub, grant) == 12


def _capped(hub: Hub, max_gpus: int) -> Grant:
    body = Award(
        program_id="ax",
        organization_id="alpha",
        gpu_hours=1000,
        ends_at=hub.now + 90 * DAY_MS,
        max_gpus=max_gpus,
        reason="a PoC",
    )
    return hub.database.write(lambda tx: awards.award(tx, OPERATOR, body))


def _change(hub: Hub, grant: Grant, max_gpus: int | None) -> None:
    hub.database.write(lambda tx: limits.change_cap(tx, OPERATOR, grant.id, max_gpus, "a milestone"))


def _in_use(hub: Hub, grant: Grant) -> int:
    with hub.database.read() as connection:
        return gpus_in_use(connection, grant.id)
