"""Families with many series, quick to write at every scrape: what their labels look like in text is kept in between.

A `Series` is a family of prometheus_client's and shows the library its samples; `text_format` writes from the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from quota.exposition import Family

_SUFFIXES = ("_total", "_info")


class Labels:
    """The labels of a series, and how they are written."""

    __slots__ = ("text", "values")

    def __init__(self, names: Sequence[str], values: Sequence[str]) -> None:
        self.values = dict(zip(names, values, strict=True))
        self.text = labels_text(sorted(self.values.items()))


class Book:
    """Labels by their names and values, as long as every scrape needs them; used by one thread at a time."""

    def __init__(self) -> None:
        self._now: dict[tuple[Sequence[str], Sequence[str]], Labels] = {}
        self._before = self._now

    def labels(self, names: tuple[str, ...], values: tuple[str, ...]) -> Labels:
        """These labels."""
        key = (names, values)
        found = self._now.get(key)
        if found is None:
            found = self._now[key] = self._before.get(key) or Labels(names, values)
        return found

    def turn_page(self) -> None:
        """A scrape is over: what it did not need is forgotten."""
        self._before, self._now = self._now, {}


class Series(Metric):
    """A counter, a gauge or an info whose rows are added one by one."""

    def __init__(self, family: Family) -> None:
        self.rows: list[tuple[Labels, float]] = []
        self.series_name = family.name
        name = family.name
        for suffix in _SUFFIXES:
            name = name.removesuffix(suffix)
        super().__init__(name, family.meaning, family.kind.value)

    def add(self, labels: Labels, value: float | None) -> None:
        """One more series; what is not known has none."""
        if value is not None:
            self.rows.append((labels, value))

    @property
    def samples(self) -> list[Sample]:
        """The rows as the library wants them."""
        return [Sample(self.series_name, dict(labels.values), value) for labels, value in self.rows]

    @samples.setter
    def samples(self, given: list[Sample]) -> None:
        assert not given, "rows are added"


def labels_text(labels: Iterable[tuple[str, str]]) -> str:
    """Labels as both formats write them, in the order given; nothing if there are none."""
    parts = ",".join([f'{name}="{_escaped(value)}"' for name, value in labels])
    return f"{{{parts}}}" if parts else ""


def _escaped(value: str) -> str:
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
