"""How a program declares what it serves at `/metrics`: every family once, with its type, labels and meaning.

Collectors make their families from these declarations, and the contract in docs/metrics.md is written from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

LabelValues = TypeVar("LabelValues", bound=tuple[str, ...])


class Kind(StrEnum):
    """What Prometheus calls a type."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"
    """A gauge that is always 1: its labels are what it tells."""


_UNITS = (
    ("_timestamp_seconds", "seconds since 1970"),
    ("_gpu_seconds", "seconds of the reference GPU"),
    ("_seconds", "seconds"),
    ("_bytes", "bytes"),
    ("_ratio", "0 to 1"),
    ("_watts", "watts"),
    ("_joules", "joules"),
    ("_celsius", "°C"),
)


@dataclass(frozen=True, slots=True)
class Family:
    """One family of series."""

    name: str
    """As PromQL names it: a counter ends with `_total`, an info with `_info`."""
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Further labels, which a series lacks where they are not known."""

    def __post_init__(self) -> None:
        """A name says what it is: anything else is a slip of whoever declares it."""
        assert self.name.endswith("_total") == (self.kind is Kind.COUNTER), self.name
        assert self.name.endswith("_info") == (self.kind is Kind.INFO), self.name

    @property
    def unit(self) -> str:
        """In which unit its values are; empty for plain numbers."""
        base = self.name.removesuffix("_total")
        return next((unit for suffix, unit in _UNITS if base.endswith(suffix)), "")

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)

    def gauge(self, value: float | None = None) -> GaugeMetricFamily:
        """An empty family to add to, or one of a single value without labels."""
        assert self.kind is Kind.GAUGE, self.name
        return GaugeMetricFamily(self.name, self.meaning, value, labels=self._labels(value))

    def gauge_of(self, values: Mapping[LabelValues, float]) -> GaugeMetricFamily:
        """The family with these values by label values, in order."""
        made = self.gauge()
        for labels, value in sorted(values.items()):
            made.add_metric(labels, value)
        return made

    def counter(self, value: float | None = None) -> CounterMetricFamily:
        """An empty family to add to, or one of a single value without labels."""
        assert self.kind is Kind.COUNTER, self.name
        return CounterMetricFamily(self.name, self.meaning, value, labels=self._labels(value))

    def counter_of(self, values: Mapping[LabelValues, float]) -> CounterMetricFamily:
        """The family with these values by label values, in order."""
        made = self.counter()
        for labels, value in sorted(values.items()):
            made.add_metric(labels, value)
        return made

    def histogram(self) -> HistogramMetricFamily:
        """An empty family to add to."""
        assert self.kind is Kind.HISTOGRAM, self.name
        return HistogramMetricFamily(self.name, self.meaning, labels=self.labels)

    def info(self, *told: Mapping[str, str]) -> InfoMetricFamily:
        """The family with a series for each set of labels."""
        assert self.kind is Kind.INFO, self.name
        made = InfoMetricFamily(self.name.removesuffix("_info"), self.meaning)
        for labels in told:
            made.add_metric((), dict(labels))
        return made

    def _labels(self, value: float | None) -> tuple[str, ...] | None:
        assert value is None or not self.labels, f"{self.name} has labels"
        return None if value is not None else self.labels


def gauge(name: str, meaning: str, *labels: str) -> Family:
    """Declare a gauge."""
    return Family(name, Kind.GAUGE, meaning, labels)


def counter(name: str, meaning: str, *labels: str) -> Family:
    """Declare a counter."""
    return Family(name, Kind.COUNTER, meaning, labels)


def histogram(name: str, meaning: str, *labels: str) -> Family:
    """Declare a histogram."""
    return Family(name, Kind.HISTOGRAM, meaning, labels)


def info(name: str, meaning: str, *labels: str, optional: tuple[str, ...] = ()) -> Family:
    """Declare what is told by labels alone."""
    return Family(name, Kind.INFO, meaning, labels, optional)


def declared(names: Mapping[str, object]) -> tuple[Family, ...]:
    """Every family that a module declares, in order; `names` are the module's `globals()`."""
    return tuple(value for value in list(names.values()) if isinstance(value, Family))
