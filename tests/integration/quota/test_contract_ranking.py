"""Ranking, evidence, repeated requests; both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from quota.audit.tables import findings
from quota.clock import wall_ms
from quota.dispatch.evidence import deliver
from quota.dispatch.ranking import StoredQueue, put_ranking
from quota.errors import BadRequest, Forbidden, IdempotencyMismatch, RankingBaseUnknown, StaleEpoch
from quota.identity import idempotency
from quota.identity.idempotency import once
from quota.identity.tables import idempotency as kept
from quota.jobs import service as job_service
from quota.jobs.tables import jobs
from quota.schemas.identity import Caller, Role
from quota.schemas.jobs import Job, JobSubmission
from quota.schemas.scheduling import Pace, RankingDocument, Waiting, WaitReason
from quota.schemas.usage import EvidenceBatch, EvidenceReply, EvidenceRow
from quota.usage.tables import evidence
from tests.builders import DAY_MS, HOUR_MS, START_MS, Hub, a_hub, a_member, a_submission

AGENT = Caller(token_id="agent", role=Role.AGENT, organization_id=None, node="n0")


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


# --- ranking -----------------------------------------------------------------------------------------


def _rank(
    hub: Hub, cycle: int, order: list[str], *, base: int | None = None, epoch: int | None = None, **fields
):  # type: ignore[no-untyped-def]
    document = RankingDocument(
        epoch=hub.epoch if epoch is None else epoch,
        cycle=cycle,
        base_cycle=base,
        at=hub.now + cycle,
        order=tuple(order),
        reasons={
            job_id: Waiting(code=WaitReason.NO_FREE_GPU, numbers={"free": free})
            for job_id, free in fields.pop("reasons", {}).items()
        },
        **fields,
    )
    return hub.database.write(lambda tx: put_ranking(tx, document))


def _shown(hub: Hub, job: Job) -> tuple[int | None, str, int | str | None]:
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
    read = hub.job(job.id)
    assert read.waiting is not None
    return read.position, read.waiting.code.value, read.waiting.numbers.get("free")


def test_an_unranked_job_is_new(hub: Hub) -> None:
    hub.award()
    assert _shown(hub, hub.submit()) == (None, "new", None)


def test_changes_are_merged_into_the_cycle_they_start_from(hub: Hub) -> None:
    hub.award()
    a, b, c = hub.submit(), hub.submit(), hub.submit()
    _rank(hub, 1, [a.id, b.id, c.id], reasons={a.id: 1, b.id: 2, c.id: 3})
    assert [_shown(hub, job)[0] for job in (a, b, c)] == [1, 2, 3]
    _rank(hub, 2, [c.id, a.id], base=1, reasons={a.id: 7})
    assert _shown(hub, a) == (2, "no_free_gpu", 7)
    assert _shown(hub, b) == (None, "new", None)
    assert _shown(hub, c) == (1, "no_free_gpu", 3)


def test_a_whole_document_forgets_the_one_before(hub: Hub) -> None:
    hub.award()
    a, b = hub.submit(), hub.submit()
    _rank(hub, 1, [a.id, b.id], reasons={a.id: 1, b.id: 2})
    _rank(hub, 2, [b.id, a.id], reasons={b.id: 5})
    assert _shown(hub, a) == (2, "new", None)
    assert _shown(hub, b) == (1, "no_free_gpu", 5)


@pytest.mark.parametrize("base", [0, 2, 4])
def test_changes_to_another_cycle_are_refused_and_change_nothing(hub: Hub, base: int) -> None:
    _rank(hub, 3, [])
    before = hub.contents()
    with pytest.raises(RankingBaseUnknown):
        _rank(hub, 5, [], base=base)
    assert hub.contents() == before


def test_changes_before_any_document_are_refused(hub: Hub) -> None:
    with pytest.raises(RankingBaseUnknown):
        _rank(hub, 2, [], base=1)


def test_changes_to_another_epochs_cycle_are_refused(hub: Hub) -> None:
    _rank(hub, 1, [])
    hub.take_lease(instance="instance-2")
    with pytest.raises(RankingBaseUnknown):
        _rank(hub, 2, [], base=1)
    _rank(hub, 2, [])


def test_a_stale_epochs_ranking_is_refused(hub: Hub) -> None:
    with pytest.raises(StaleEpoch):
        _rank(hub, 1, [], epoch=hub.epoch + 1)


def test_a_grants_pace_is_kept(hub: Hub) -> None:
    grant = hub.award()
    _rank(
        hub, 1, [], paces={grant.id: Pace(lag_ms=-5, as_of=hub.now), "grant-nobody": Pace(lag_ms=1, as_of=1)}
    )
    pace = hub.grant(grant.id).pace
    assert pace is not None
    assert (pace.lag_ms, pace.as_of) == (-5, hub.now)
    assert hub.snapshot()[1][("grant", grant.id)].grant.pace.lag_ms == -5


def test_a_started_job_shows_no_position(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    _rank(hub, 1, [job.id])
    hub.start(job, grant)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
    read = hub.job(job.id)
    assert (read.position, read.waiting) == (None, None)


def test_another_process_reads_the_same_queue(hub: Hub) -> None:
    hub.award()
    job = hub.submit()
    _rank(hub, 1, ["job-x", job.id], reasons={job.id: 4})
    other = StoredQueue()
    with hub.database.read() as connection:
        other.refresh(connection)
    assert other.position(job.id) == 2
    waiting = other.waiting(job.id)
    assert waiting is not None
    assert waiting.numbers == {"free": 4}


# --- evidence ----------------------------------------------------------------------------------------


def _row(job: Job, **fields: object) -> EvidenceRow:
    row: dict[str, object] = {
        "job_id": job.id,
        "attempt": 1,
        "gpu_uuid": "GPU-0001",
        "gpu_class": "h100",
        "node": "n0",
        "hour": START_MS,
        "agent_epoch": "epoch-01",
        "seq": 1,
        "busy_ms": 10,
        "observed_ms": 20,
    }
    return EvidenceRow.model_validate(row | fields)


def _deliver(hub: Hub, *rows: EvidenceRow, caller: Caller = AGENT) -> EvidenceReply:
    return hub.database.write(lambda tx: deliver(tx, caller, EvidenceBatch(rows=rows)))


def _running(hub: Hub) -> Job:
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    return job


def _measured(hub: Hub, job: Job) -> list[tuple[str, int, int]]:
    return [(gpu.gpu_uuid, gpu.busy_ms, gpu.observed_ms) for gpu in hub.job(job.id).measured]


def test_evidence_is_replaced_by_a_greater_sequence_only(hub: Hub) -> None:
    job = _running(hub)
    assert _deliver(hub, _row(job, seq=5, busy_ms=100, observed_ms=200)).accepted == 1
    for seq in (5, 4, 1):
        reply = _deliver(hub, _row(job, seq=seq, busy_ms=999, observed_ms=999))
        assert (reply.accepted, reply.unchanged) == (0, 1)
    assert _measured(hub, job) == [("GPU-0001", 100, 200)]
    assert _deliver(hub, _row(job, seq=6, busy_ms=150, observed_ms=260)).accepted == 1
    assert _measured(hub, job) == [("GPU-0001", 150, 260)]


def test_replaying_evidence_changes_nothing(hub: Hub) -> None:
    job = _running(hub)
    rows = [
        _row(job, hour=START_MS + hour * HOUR_MS, gpu_uuid=f"GPU-{gpu:04}")
        for hour in (0, 1)
        for gpu in (1, 2)
    ]
    assert _deliver(hub, *rows).accepted == 4
    before = hub.contents()
    hub.clock.advance(60_000)
    assert _deliver(hub, *reversed(rows)).unchanged == 4
    assert hub.contents() == before


def test_hours_and_agent_epochs_add_up(hub: Hub) -> None:
    """An agent that lost its outbox starts a new epoch near zero: its rows are more, not instead."""
    job = _running(hub)
    _deliver(hub, _row(job), _row(job, agent_epoch="epoch-02", busy_ms=3, observed_ms=4))
    _deliver(hub, _row(job, hour=START_MS + HOUR_MS, busy_ms=100, observed_ms=100))
    assert _measured(hub, job) == [("GPU-0001", 113, 124)]


def test_one_delivery_may_carry_older_and_newer_rows_of_one_key(hub: Hub) -> None:
    job = _running(hub)
    reply = _deliver(hub, _row(job, seq=3, busy_ms=30, observed_ms=30), _row(job, seq=2))
    assert reply.accepted == 1
    assert hub.row(evidence).seq == 3


def test_an_agent_speaks_for_its_node_only(hub: Hub) -> None:
    job = _running(hub)
    before = hub.contents()
    with pytest.raises(Forbidden):
        _deliver(hub, _row(job), _row(job, node="n1"))
    assert hub.contents() == before
    with pytest.raises(Forbidden):
        _deliver(hub, _row(job), caller=AGENT.model_copy(update={"node": None}))
    assert hub.contents() == before
    anywhere = AGENT.model_copy(update={"node": "n*"})
    assert _deliver(hub, _row(job), caller=anywhere).accepted == 1
    stored = hub.rows(evidence)
    reply = _deliver(hub, _row(job, node="n1", seq=99), caller=anywhere)
    assert (reply.accepted, reply.unknown) == (0, 1), "the attempt was never placed there"
    assert hub.rows(evidence) == stored


def test_evidence_of_an_unknown_attempt_is_a_finding_not_usage(hub: Hub) -> None:
    job = _running(hub)
    nobody = job.model_copy(update={"id": "job-nobody"})
    reply = _deliver(hub, _row(job), _row(nobody), _row(job, attempt=2))
    assert (reply.accepted, reply.unknown) == (1, 2)
    assert {row.subject for row in hub.rows(findings)} == {"job-nobody-1", f"{job.id}-2"}
    assert len(hub.rows(evidence)) == 1


@pytest.mark.postgres
def test_concurrent_deliveries_of_one_row_keep_the_greatest(postgres_url: str) -> None:
    hub = a_hub(postgres_url)
    job = _running(hub)
    barrier = threading.Barrier(8)
    accepted: list[int] = []

    def send(number: int) -> None:
        rows = [
            _row(job, gpu_uuid=f"GPU-{gpu:04}", seq=number, busy_ms=number, observed_ms=20)
            for gpu in range(20)
        ]
        barrier.wait()
        accepted.append(_deliver(hub, *(rows if number % 2 else reversed(rows))).accepted)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == 8
    assert {(row.seq, row.busy_ms) for row in hub.rows(evidence)} == {(8, 8)}
    hub.close()


# --- repeated requests ---------------------------------------------------------------------------------


def _submit_once(hub: Hub, key: str | None, body: JobSubmission, caller: Caller | None = None) -> Job:
    who = caller or a_member()
    return hub.database.write(
        lambda tx: once(tx, who, key, "submit_job", body, Job, lambda: job_service.submit(tx, who, body))
    )


def test_the_same_key_with_the_same_body_is_one_job(hub: Hub) -> None:
    hub.award()
    first = _submit_once(hub, "k", a_submission())
    before = hub.contents()
    hub.clock.advance(1000)
    assert _submit_once(hub, "k", a_submission()) == first
    assert hub.contents() == before


def test_the_same_key_with_another_body_or_operation_is_refused(hub: Hub) -> None:
    hub.award()
    _submit_once(hub, "k", a_submission())
    with pytest.raises(IdempotencyMismatch):
        _submit_once(hub, "k", a_submission(walltime_s=7))
    with pytest.raises(IdempotencyMismatch):
        hub.database.write(
            lambda tx: once(tx, a_member(), "k", "other", a_submission(), Job, lambda: pytest.fail("done"))
        )


def test_keys_belong_to_their_caller(hub: Hub) -> None:
    hub.award()
    hub.award("beta")
    first = _submit_once(hub, "k", a_submission())
    assert _submit_once(hub, "k", a_submission(), a_member("beta")).id != first.id


def test_a_refused_request_keeps_no_key(hub: Hub) -> None:
    with pytest.raises(Exception, match="no grant"):
        _submit_once(hub, "k", a_submission())
    assert hub.rows(kept) == []
    hub.award()
    _submit_once(hub, "k", a_submission())


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_a_key_has_a_length(hub: Hub, key: str) -> None:
    with pytest.raises(BadRequest) as caught:
        _submit_once(hub, key, a_submission())
    assert caught.value.field == "Idempotency-Key"


def test_keys_are_forgotten_after_a_day(hub: Hub) -> None:
    hub.award()
    first = _submit_once(hub, "k", a_submission())
    hub.clock.advance(2 * DAY_MS)
    assert hub.database.write(idempotency.forget_old) == 0, "repeating a request is a matter of wall time"
    later = wall_ms() + DAY_MS + 60_000
    assert hub.database.write(lambda tx: idempotency.forget_old(tx, later)) == 1
    assert _submit_once(hub, "k", a_submission()).id != first.id


@pytest.mark.postgres
def test_one_key_at_the_same_moment_is_one_job(postgres_url: str) -> None:
    hub = a_hub(postgres_url)
    hub.award()
    made: list[str] = []
    failures: list[BaseException] = []
    for turn in range(5):
        barrier = threading.Barrier(6)

        def send(key: str = f"key-{turn}", barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                made.append(_submit_once(hub, key, a_submission()).id)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(made) == 30
    assert {row.id for row in hub.rows(jobs)} == set(made)
    assert len(set(made)) == 5
    hub.close()
