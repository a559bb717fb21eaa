"""Forecasts and the past they draw on, as the quota service keeps and shows them; both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quota.dispatch.forecasts import put_forecast
from quota.errors import StaleEpoch
from quota.jobs.recent import recent_jobs
from quota.schemas.forecasts import EtaBasis, EtaItem, ForecastDocument, ForecastReply, JobEta
from quota.schemas.jobs import Job
from tests.builders import HOUR_MS, Hub, a_hub
from tests.integration.quota.test_opportunistic import put_fund


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def _foretell(hub: Hub, as_of_ms: int, in_ms: dict[str, int], epoch: int | None = None) -> ForecastReply:
    etas = {
        job_id: EtaItem(
            low=as_of_ms, median=as_of_ms + wait_ms, high=as_of_ms + 2 * wait_ms, basis=EtaBasis.EXACT
        )
        for job_id, wait_ms in in_ms.items()
    }
    document = ForecastDocument(epoch=hub.epoch if epoch is None else epoch, as_of=as_of_ms, etas=etas)
    return hub.database.write(lambda tx: put_forecast(tx, document))


def _shown(hub: Hub, job: Job) -> JobEta | None:
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
    return hub.job(job.id).eta


def test_a_waiting_job_shows_when_it_is_likely_to_start_and_as_of_when(hub: Hub) -> None:
    hub.award()
    a, b = hub.submit(), hub.submit()
    assert _shown(hub, a) is None
    _foretell(hub, hub.now, {a.id: HOUR_MS})
    assert _shown(hub, a) == JobEta(
        low=hub.now, median=hub.now + HOUR_MS, high=hub.now + 2 * HOUR_MS, basis=EtaBasis.EXACT, as_of=hub.now
    )
    assert _shown(hub, b) is None


def test_a_later_forecast_replaces_and_an_earlier_one_that_comes_late_does_not(hub: Hub) -> None:
    hub.award()
    job, first_ms = hub.submit(), hub.now
    _foretell(hub, first_ms, {job.id: HOUR_MS})
    later_ms = hub.clock.advance(HOUR_MS)
    _foretell(hub, later_ms, {job.id: 2 * HOUR_MS})
    assert _foretell(hub, first_ms, {job.id: 1}) == ForecastReply(as_of=later_ms)
    eta = _shown(hub, job)
    assert eta is not None
    assert (eta.as_of, eta.median) == (later_ms, later_ms + 2 * HOUR_MS)


def test_a_forecast_of_a_clock_that_was_set_back_does_not_stand_for_ever(hub: Hub) -> None:
    hub.award()
    job = hub.submit()
    _foretell(hub, hub.now + 365 * 24 * HOUR_MS, {job.id: HOUR_MS})
    _foretell(hub, hub.now, {job.id: HOUR_MS})
    eta = _shown(hub, job)
    assert eta is not None
    assert eta.as_of == hub.now


def test_a_forecast_of_a_former_leader_is_refused_and_changes_nothing(hub: Hub) -> None:
    hub.award()
    job, former = hub.submit(), hub.epoch
    _foretell(hub, hub.now, {job.id: HOUR_MS})
    hub.take_lease(instance="instance-2")
    before = hub.contents()
    with pytest.raises(StaleEpoch):
        _foretell(hub, hub.now + 1, {}, epoch=former)
    assert hub.contents() == before


def test_who_does_not_wait_shows_no_eta(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    _foretell(hub, hub.now, {job.id: HOUR_MS})
    hub.start(job, grant)
    assert _shown(hub, job) is None


@pytest.mark.parametrize("order", [("median", "low"), ("high", "median")])
def test_a_band_out_of_order_is_refused(order: tuple[str, str]) -> None:
    moments = {"low": 1, "median": 2, "high": 3} | {order[0]: 1, order[1]: 2}
    with pytest.raises(ValueError, match="in this order"):
        EtaItem(**moments, basis=EtaBasis.RATE)


def test_the_past_tells_what_was_asked_for_and_how_long_it_ran(hub: Hub) -> None:
    grant = hub.award()
    ran, waits = hub.submit(walltime_s=3600), hub.submit(gpus_per_pod=2)
    hub.run(ran, grant)
    began_ms = hub.attempt(ran.id).last_started_at_ms
    hub.clock.advance(HOUR_MS // 2)
    hub.finish(ran)
    with hub.database.read() as connection:
        found = recent_jobs(connection, 10).items
    assert [(each.gpus_per_pod, each.walltime_ms, each.ran_ms) for each in found] == [
        (2, waits.walltime_s * 1000, None),
        (ran.gpus_per_pod, HOUR_MS, hub.attempt(ran.id).ended_at_ms - began_ms),
    ]
    with hub.database.read() as connection:
        assert recent_jobs(connection, 1).items == found[:1]


def test_the_past_tells_the_shape_of_a_job_and_opportunistic_ones_apart(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    plain = hub.submit()
    classes = {"gpu_class": "a100", "gpu_classes": ["a100", "h100"]}
    gang = hub.submit(gpus_per_pod=1, pods=2, topology="same_node", **classes)
    spare = [hub.submit(opportunistic=True) for _ in range(3)]
    with hub.database.read() as connection:
        found, two = recent_jobs(connection, 10), recent_jobs(connection, 2)
        newest = recent_jobs(connection, 1)
    assert [(each.topology.value, each.fallback_classes, each.program_id) for each in found.items] == [
        ("same_node", ("h100",), None),
        ("any", (), None),
    ]
    assert [each.pods for each in found.items] == [gang.pods, plain.pods]
    assert [each.program_id for each in found.opportunistic] == ["ax"] * len(spare)
    assert two.items == found.items, "opportunistic ones take no place of theirs"
    assert two.opportunistic == found.opportunistic[:2]
    assert newest.opportunistic == found.opportunistic[:1]


def test_opportunistic_jobs_older_than_the_past_that_is_told_are_left_out(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    hub.submit(opportunistic=True)
    hub.submit(), hub.submit()
    with hub.database.read() as connection:
        assert recent_jobs(connection, 2).opportunistic == ()
        assert len(recent_jobs(connection, 3).opportunistic) == 1


def test_an_opportunistic_job_shows_its_eta_too(hub: Hub) -> None:
    hub.award()
    put_fund(hub)
    job = hub.submit(opportunistic=True)
    _foretell(hub, hub.now, {job.id: HOUR_MS})
    eta = _shown(hub, job)
    assert eta is not None
    assert eta.median == hub.now + HOUR_MS
