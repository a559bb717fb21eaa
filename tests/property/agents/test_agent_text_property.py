"""What the agent shows Prometheus is, byte by byte, what the library would show."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from agents.series import Book, Series
from agents.text_format import OPENMETRICS, TEXT, format_for, render
from quota.exposition import counter, gauge, info

texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.one_of(st.integers(-(10**20), 10**20), st.floats())


class _Families:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def by_the_library(families: list[Metric], content_type: str) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    latest = generate_openmetrics if content_type == OPENMETRICS else generate_latest
    return bytes(latest(registry))


GAUGE = gauge("hub_gauge_ratio", "What it is.", "zone", "gpu_uuid")
COUNTER = counter("hub_things_total", 'A "thing".', "node")
INFO = info("hub_device_info", "What\\it is.", "zone", optional=("serial",))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.tuples(texts, texts, values), max_size=4), max_size=4),
    st.sampled_from([TEXT, OPENMETRICS]),
)
def test_every_byte_of_rows_is_the_librarys_scrape_after_scrape(
    scrapes: list[list[tuple[str, str, float]]], content_type: str
) -> None:
    book = Book()
    for rows in scrapes:
        series = [Series(family) for family in (GAUGE, COUNTER, INFO)]
        for one, two, value in rows:
            series[0].add(book.labels(GAUGE.labels, (one, two)), value)
            series[0].add(book.labels(GAUGE.labels, (two, one)), None)
            series[1].add(book.labels(COUNTER.labels, (one,)), value)
            names = (*INFO.labels, *INFO.optional) if two else INFO.labels
            series[2].add(book.labels(names, (one, two) if two else (one,)), 1.0)
        book.turn_page()
        by_hand = [GAUGE.gauge(), COUNTER.counter(), INFO.info()]
        for one, two, value in rows:
            by_hand[0].add_metric([one, two], value)
            by_hand[1].add_metric([one], value)
            by_hand[2].add_metric([], {"zone": one} | ({"serial": two} if two else {}))
        expected = by_the_library(by_hand, content_type)
        assert render(series, content_type) == expected
        assert by_the_library(series, content_type) == expected


def test_labels_that_no_scrape_needs_are_forgotten() -> None:
    book = Book()
    first = book.labels(("node",), ("a",))
    book.turn_page()
    assert book.labels(("node",), ("a",)) is first
    book.turn_page()
    book.turn_page()
    assert book.labels(("node",), ("a",)) is not first


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, texts, values), max_size=4), texts, st.sampled_from([TEXT, OPENMETRICS]))
def test_every_byte_is_the_librarys(
    samples: list[tuple[str, str, float]], text: str, content_type: str
) -> None:
    ratio = GaugeMetricFamily("hub_gauge_ratio", text, labels=["zone", "gpu_uuid"])
    things = CounterMetricFamily("hub_things", text, labels=["node"])
    for one, two, value in samples:
        ratio.add_metric([one, two], value)
        things.add_metric([one], value)
    families: list[Metric] = [
        ratio,
        things,
        InfoMetricFamily("hub_build", text, {"version": text}),
        HistogramMetricFamily("hub_lasting_seconds", text, [("0.5", 1.0), ("+Inf", 2e7)], 3.25),
        GaugeMetricFamily("hub_bare", text, 1),
    ]
    assert render(families, content_type) == by_the_library(families, content_type)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4;q=0.3,*/*;q=0.1", TEXT),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", OPENMETRICS),
    ],
)
def test_who_asks_for_openmetrics_gets_it(accept: str, content_type: str) -> None:
    assert format_for(accept) == content_type
