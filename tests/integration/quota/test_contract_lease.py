"""The scheduler's lease and the sequence rule, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from quota.dispatch.lease import Leader, read_leader, take_lease
from quota.dispatch.tables import scheduler_lease, streams
from quota.errors import LeaseHeld, StaleEpoch, StaleSequence
from quota.schemas.scheduling import DecisionBatch, LeaseRequest, StopReason
from tests.builders import Hub, a_hub, lost, started


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def _expire(hub: Hub) -> None:
    hub.database.write(
        lambda tx: tx.connection.execute(scheduler_lease.update().values(expires_wall_ms=1)).rowcount
    )


def test_another_holder_waits_while_the_lease_runs(hub: Hub) -> None:
    before = hub.contents()
    with pytest.raises(LeaseHeld) as caught:
        hub.take_lease(holder="scheduler-1", instance="instance-9")
    assert caught.value.numbers["holder"] == "scheduler-0"
    assert 0 < int(caught.value.numbers["left_ms"]) <= 15_000
    assert hub.contents() == before


def test_another_holder_takes_an_expired_lease_with_a_greater_epoch(hub: Hub) -> None:
    _expire(hub)
    assert hub.take_lease(holder="scheduler-1", instance="instance-9").epoch == 2
    assert hub.row(scheduler_lease).holder == "scheduler-1"


def test_a_lease_ends_by_the_databases_time_not_the_hubs(hub: Hub) -> None:
    hub.clock.advance(10**9)
    with pytest.raises(LeaseHeld):
        hub.take_lease(holder="scheduler-1", instance="instance-9")


def test_a_lease_of_no_length_is_free_at_once(hub: Hub) -> None:
    hub.take_lease(epoch=1, ttl_s=0.0)
    assert hub.take_lease(holder="scheduler-1", instance="instance-9").epoch == 2


def test_the_same_holder_restarted_takes_over_at_once(hub: Hub) -> None:
    assert hub.take_lease(instance="instance-2").epoch == 2
    assert hub.take_lease(instance="instance-3").epoch == 3


def test_a_repeated_request_keeps_its_epoch(hub: Hub) -> None:
    first = hub.take_lease(instance="instance-2")
    assert hub.take_lease(instance="instance-2").epoch == first.epoch


def test_renewing_moves_the_expiry_and_keeps_the_epoch(hub: Hub) -> None:
    before = hub.row(scheduler_lease).expires_wall_ms
    assert hub.take_lease(epoch=1, ttl_s=60).epoch == 1
    assert hub.row(scheduler_lease).expires_wall_ms > before + 30_000


def test_every_epoch_has_a_secret_of_its_own_which_its_holder_is_told_again(hub: Hub) -> None:
    first = hub.take_lease(instance="instance-2")
    assert len(first.door_secret) >= 32
    assert hub.take_lease(instance="instance-2").door_secret == first.door_secret, "a lost reply"
    assert hub.take_lease(instance="instance-2", epoch=2).door_secret == first.door_secret, "a renewal"
    assert hub.take_lease(instance="instance-3").door_secret != first.door_secret
    _expire(hub)
    taken = hub.take_lease(holder="scheduler-1", instance="instance-9")
    assert taken.door_secret == hub.row(scheduler_lease).door_secret != first.door_secret


def test_a_lease_that_an_older_program_wrote_gets_a_secret_when_it_is_renewed(hub: Hub) -> None:
    hub.database.write(
        lambda tx: tx.connection.execute(scheduler_lease.update().values(door_secret="")).rowcount
    )
    with hub.database.read() as connection:
        assert read_leader(connection) is None
    assert hub.take_lease(epoch=1).door_secret


def test_who_leads_is_known_until_its_lease_ends(hub: Hub) -> None:
    body = LeaseRequest(holder="scheduler-0", instance="instance-1", url="http://there:9090", epoch=1)
    secret = hub.database.write(lambda tx: take_lease(tx, body, 15.0)).door_secret
    with hub.database.read() as connection:
        assert read_leader(connection) == Leader("http://there:9090", secret)
    assert secret not in repr(Leader("http://there:9090", secret))
    _expire(hub)
    with hub.database.read() as connection:
        assert read_leader(connection) is None


def test_an_expired_lease_is_renewed_while_nobody_took_it(hub: Hub) -> None:
    _expire(hub)
    assert hub.take_lease(epoch=1).epoch == 1


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_renewing_an_epoch_that_is_not_the_current_one_is_refused(hub: Hub, epoch: int) -> None:
    hub.take_lease(instance="instance-2")
    with pytest.raises(StaleEpoch):
        hub.take_lease(instance="instance-2", epoch=epoch)


def test_renewing_anothers_epoch_is_refused(hub: Hub) -> None:
    with pytest.raises(StaleEpoch):
        hub.take_lease(holder="scheduler-1", instance="instance-9", epoch=1)


def test_batches_of_an_old_epoch_change_nothing(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    old = hub.epoch
    hub.take_lease(instance="instance-2")
    before = hub.contents()
    with pytest.raises(StaleEpoch):
        hub.decide(hub.start_item(job, grant), epoch=old)
    with pytest.raises(StaleEpoch):
        hub.decide(hub.start_item(job, grant), epoch=old + 2)
    hub.epoch = old
    with pytest.raises(StaleEpoch):
        hub.report()
    assert hub.contents() == before


def test_a_take_over_answers_the_last_sequence_of_every_stream(hub: Hub) -> None:
    hub.decide()
    hub.decide()
    assert hub.take_lease(instance="instance-2").streams == {"cluster:sim": 1, "decisions": 2}


def test_a_stream_takes_its_next_number_only(hub: Hub) -> None:
    for seq in (2, 3):
        with pytest.raises(StaleSequence) as caught:
            _send(hub, seq)
        assert caught.value.numbers["last"] == 0
    _send(hub, 1)
    _send(hub, 2)
    for seq in (1, 4):
        with pytest.raises(StaleSequence) as caught:
            _send(hub, seq)
        assert caught.value.numbers["last"] == 2
    assert hub.row(streams, stream="decisions").last_seq == 2


def test_streams_count_apart(hub: Hub) -> None:
    hub.decide(stream="one")
    hub.decide(stream="two")
    assert {row.stream: row.last_seq for row in hub.rows(streams)} == {"cluster:sim": 1, "one": 1, "two": 1}


def test_the_last_batch_again_is_answered_with_the_same_bytes(hub: Hub) -> None:
    """Starts, a refusal and a stop, with every kind of object that a reply carries."""
    grant = hub.award(hours="20")
    jobs = [
        hub.submit(gpus_per_pod=4, environment={"A": "한글 \u2028"}, annotations={"x": '"'}) for _ in range(3)
    ]
    first = hub.decide(*(hub.start_item(job, grant) for job in jobs))
    assert [result.outcome for result in first.results] == ["accepted", "accepted", "refused"]
    before = hub.contents()
    hub.clock.advance(123_456)
    assert hub.send_decisions(hub.last_decisions).model_dump_json() == first.model_dump_json()
    assert hub.contents() == before
    hub.report(started(jobs[0], hub.now, hub.now))
    again = hub.decide(hub.start_item(jobs[2], grant, "n1"))
    hub.stop(jobs[0], StopReason.TIME_LIMIT)
    with pytest.raises(StaleSequence):
        hub.send_decisions(_resent(hub, again.stream_seq))


def test_the_last_report_again_is_answered_with_the_same_bytes(hub: Hub) -> None:
    grant = hub.award()
    job, running = hub.submit(restartable=True), hub.submit(walltime_s=7200)
    hub.run(job, grant)
    hub.run(running, grant)
    hub.clock.advance(3_700_001)
    reply = hub.report(lost(job, hub.now - 1000))
    assert {item.kind for item in reply.objects} >= {"job", "attempt", "grant", "organization"}
    before = hub.contents()
    hub.clock.advance(999)
    assert hub.send_report(hub.last_report).model_dump_json() == reply.model_dump_json()
    assert hub.contents() == before


def test_another_body_under_the_last_number_is_refused(hub: Hub) -> None:
    _send(hub, 1)
    with pytest.raises(StaleSequence, match="another"):
        hub.send_decisions(_resent(hub, 1) + b" ")


@pytest.mark.postgres
def test_a_batch_sent_twice_at_the_same_moment_is_done_once(postgres_url: str) -> None:
    hub = a_hub(postgres_url)
    grant = hub.award()
    job = hub.submit()
    batch = DecisionBatch(epoch=1, stream="decisions", seq=1, items=(hub.start_item(job, grant),))
    body = batch.model_dump_json().encode()
    replies: list[str] = []
    barrier = threading.Barrier(4)

    def send() -> None:
        barrier.wait()
        replies.append(hub.send_decisions(body).model_dump_json())

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hub.close()
    assert len(replies) == 4
    assert len(set(replies)) == 1
    assert '"outcome":"accepted"' in replies[0]


@pytest.mark.postgres
def test_many_holders_at_the_same_moment_get_one_lease(postgres_url: str) -> None:
    hub = a_hub(postgres_url)
    hub.take_lease(epoch=1, ttl_s=0.0)
    barrier = threading.Barrier(6)
    outcomes: list[int | None] = []

    def take(number: int) -> None:
        barrier.wait()
        body = LeaseRequest(holder=f"scheduler-{number}", instance=f"instance-{number}")
        try:
            outcomes.append(hub.database.write(lambda tx: take_lease(tx, body, 15.0)).epoch)
        except LeaseHeld:
            outcomes.append(None)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hub.close()
    assert sorted(outcomes, key=str) == [2, None, None, None, None, None]


def _send(hub: Hub, seq: int) -> None:
    hub.send_decisions(_resent(hub, seq))


def _resent(hub: Hub, seq: int) -> bytes:
    return DecisionBatch(epoch=hub.epoch, stream="decisions", seq=seq, items=()).model_dump_json().encode()
