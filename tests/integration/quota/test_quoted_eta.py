"""When a job would start that is not submitted yet: what a quote takes from the forecast, and when it says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from quota.dispatch.forecasts import put_forecast
from quota.dispatch.tables import forecast
from quota.fleet.tables import gpu_classes
from quota.jobs.quoting import quote
from quota.schemas.forecasts import EtaBasis, EtaItem, ForecastDocument, NewcomerItem
from quota.schemas.quotes import NoEta, Quote, StartOutlook
from tests.builders import DAY_MS, HOUR_MS, MINUTE_MS, Hub, a_hub, a_submission
from tests.integration.quota.test_opportunistic import put_fund


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def an_item(hub: Hub, in_ms: int = HOUR_MS, **more: Any) -> NewcomerItem:
    eta = EtaItem(low=hub.now, median=hub.now + in_ms, high=hub.now + 2 * in_ms, basis=EtaBasis.EXACT)
    fields = {"organization_id": "alpha", "gpu_classes": ("h100",), "gpus_to": 8, "eta": eta, "jobs": 12}
    return NewcomerItem.model_validate(fields | more)


def foretell(hub: Hub, *items: NewcomerItem) -> None:
    document = ForecastDocument(epoch=hub.epoch, as_of=hub.now, etas={}, newcomers=items)
    hub.database.write(lambda tx: put_forecast(tx, document))


def quoted(hub: Hub, organization: str = "alpha", **fields: Any) -> Quote:
    body = a_submission(**fields)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        return quote(connection, organization, body, hub.queue, hub.clock)


@pytest.fixture
def full(hub: Hub) -> Hub:
    """All GPUs of one class are in use."""
    grant = hub.award(hours="10000", organization="beta")
    hub.award(hours="10000")
    for node in ("n0", "n1"):
        hub.run(hub.submit("beta", gpus_per_pod=8, walltime_s=48 * 3600), grant, node)
    return hub


def median_in_h(found: Quote) -> float | NoEta | None:
    return found.no_eta if found.eta is None else (found.eta.median - found.as_of) / HOUR_MS


def test_a_quote_tells_a_band_with_its_basis_and_its_age(full: Hub) -> None:
    foretell(full, an_item(full, walltime_over_ms=MINUTE_MS, walltime_to_ms=HOUR_MS))
    as_of = full.now
    full.clock.advance(10 * MINUTE_MS)
    found = quoted(full)
    assert found.eta is not None
    assert found.no_eta is None
    # it waits as long as one that came when the forecast was made
    assert [at - full.now for at in (found.eta.low, found.eta.median, found.eta.high)] == [
        0,
        HOUR_MS,
        2 * HOUR_MS,
    ]
    assert (found.eta.as_of, found.eta.age_s, found.eta.jobs) == (as_of, 600, 12)
    assert (found.eta.gpus_from, found.eta.gpus_to) == (1, 8)
    assert (found.eta.walltime_over_s, found.eta.walltime_to_s) == (60, 3600)
    assert found.eta.basis is EtaBasis.EXACT


def test_the_first_likeness_that_fits_counts(full: Hub) -> None:
    foretell(
        full,
        an_item(full, HOUR_MS, gpus_over=1, gpus_to=4, walltime_to_ms=HOUR_MS),
        an_item(full, 2 * HOUR_MS, gpus_over=1, gpus_to=4),
        an_item(full, 3 * HOUR_MS, gpus_over=4, gpus_to=None),
    )
    assert median_in_h(quoted(full, gpus_per_pod=4)) == 1
    assert median_in_h(quoted(full, gpus_per_pod=4, walltime_s=3601)) == 2
    assert median_in_h(quoted(full, gpus_per_pod=8, pods=2)) == 3
    assert median_in_h(quoted(full, gpus_per_pod=1)) is NoEta.NONE_ALIKE


@pytest.mark.parametrize(
    ("item", "asked"),
    [
        ({"organization_id": "beta"}, {}),
        ({"gpu_classes": ("a100",)}, {}),
        ({"gpu_classes": ("h100", "a100")}, {}),
        ({"topology": "same_node"}, {"pods": 2}),
        ({}, {"pods": 2, "topology": "same_node"}),
        ({"program_id": "ax"}, {}),
        ({"walltime_over_ms": HOUR_MS}, {"walltime_s": 3600}),
        ({"walltime_to_ms": HOUR_MS}, {"walltime_s": 3601}),
    ],
)
def test_what_differs_is_not_alike(full: Hub, item: dict[str, Any], asked: dict[str, Any]) -> None:
    foretell(full, an_item(full, **item))
    assert median_in_h(quoted(full, **asked)) is NoEta.NONE_ALIKE


def test_a_requirement_and_a_preference_are_told_apart(full: Hub) -> None:
    foretell(full, an_item(full, HOUR_MS, topology="same_node"), an_item(full, 2 * HOUR_MS, topology="any"))
    for topology, wait_h in (("same_node", 1), ("prefer_same_node", 2), ("any", 2)):
        assert median_in_h(quoted(full, pods=2, topology=topology)) == wait_h
    assert median_in_h(quoted(full, pods=1, topology="same_node")) == 2, "one pod asks for nothing"


def test_an_opportunistic_job_is_compared_with_its_like(full: Hub) -> None:
    put_fund(full)
    foretell(full, an_item(full, 5 * HOUR_MS, program_id="ax"))
    found = quoted(full, opportunistic=True)
    assert median_in_h(found) == 5


def test_what_starts_now_has_no_eta(hub: Hub) -> None:
    hub.award()
    foretell(hub, an_item(hub))
    found = quoted(hub)
    assert (found.estimate.starts, median_in_h(found)) == (StartOutlook.NOW, NoEta.STARTS_NOW)


def test_what_time_does_not_help_has_no_eta(full: Hub) -> None:
    foretell(full, an_item(full, gpus_to=None))
    large = {"gpus_per_pod": 8, "pods": 2}
    assert median_in_h(quoted(full, **large)) == 1
    found = quoted(full, walltime_s=30 * DAY_MS // 1000, **large)
    assert (found.estimate.starts, median_in_h(found)) == (StartOutlook.NEVER, NoEta.NOT_BY_TIME)
    pause = update(gpu_classes).where(gpu_classes.c.id == "h100").values(paused=True)
    full.database.write(lambda tx: tx.connection.execute(pause))
    found = quoted(full)
    assert (found.estimate.starts, median_in_h(found)) == (StartOutlook.LATER, NoEta.NOT_BY_TIME)


def test_without_a_forecast_that_is_what_is_told(full: Hub) -> None:
    assert median_in_h(quoted(full)) is NoEta.NO_FORECAST


def test_a_forecast_of_another_day_is_none(full: Hub) -> None:
    foretell(full, an_item(full))
    full.clock.advance(DAY_MS)
    assert median_in_h(quoted(full)) == 1
    full.clock.advance(1)
    assert median_in_h(quoted(full)) is NoEta.FORECAST_TOO_OLD


def test_a_forecast_of_a_program_that_knew_none_says_nothing(full: Hub) -> None:
    foretell(full, an_item(full))
    full.database.write(lambda tx: tx.connection.execute(update(forecast).values(newcomers=None)))
    assert median_in_h(quoted(full)) is NoEta.NONE_ALIKE


def test_a_quote_is_read_and_changes_nothing(full: Hub) -> None:
    foretell(full, an_item(full))
    before = full.contents()
    quoted(full)
    assert full.contents() == before
