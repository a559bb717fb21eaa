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

from agents.text_format import OPENMETRICS, TEXT, format_for, render

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


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, texts, values), max_size=4), texts, st.sampled_from([TEXT, OPENMETRICS]))
def test_every_byte_is_the_librarys(
    samples: list[tuple[str, str, float]], text: str, content_type: str
) -> None:
    gauge = GaugeMetricFamily("hub_gauge_ratio", text, labels=["zone", "gpu_uuid"])
    counter = CounterMetricFamily("hub_things", text, labels=["node"])
    for one, two, value in samples:
        gauge.add_metric([one, two], value)
        counter.add_metric([one], value)
    families: list[Metric] = [
        gauge,
        counter,
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
