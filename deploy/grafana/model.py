"""What a dashboard of the hub is made of, before Grafana's own words for it. Pure data; knows no library."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

GRID_WIDTH = 24
TAG = "gpuhub"


class Look(StrEnum):
    """How a panel shows what its queries answer."""

    STAT = "stat"
    """One number, as it is now."""
    LINES = "timeseries"
    STACK = "stack"
    """Lines whose sum means something, one upon the other."""
    BARS = "bargauge"
    """A bar per series, as it is now."""
    TIMELINE = "state-timeline"
    """States over time."""
    TABLE = "table"
    """A row per set of labels, a column per query, as it is now."""


class Unit(StrEnum):
    """Grafana's names of the units that are used."""

    NUMBER = "short"
    PER_SECOND = "ops"
    RATIO = "percentunit"
    SECONDS = "s"
    HOURS = "h"
    DATE = "dateTimeAsIso"
    """Milliseconds since 1970."""
    WATTS = "watt"
    JOULES = "joule"
    CELSIUS = "celsius"
    BYTES = "bytes"
    WON = "currencyKRW"


GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"

Steps = tuple[tuple[float, str], ...]
"""From which value on which colour; below the first it is green."""

GOOD_AT_ALL: Steps = ()
BAD_FROM_ONE: Steps = ((1, RED),)


@dataclass(frozen=True, slots=True)
class Query:
    """One question to Prometheus."""

    expr: str
    legend: str = ""
    """Of a line: `{{label}}` stands for the label's value. Of a table: the column's heading."""
    unit: Unit | None = None
    """Of a table's column, if it is not the panel's."""


@dataclass(frozen=True, slots=True)
class Lead:
    """A link to another dashboard that takes what was clicked on along."""

    title: str
    uid: str
    variable: str
    """What is set there."""
    taken: str
    """From where, in Grafana's words."""

    @property
    def url(self) -> str:
        """As Grafana fills it in; the time range goes along."""
        return f"/d/{self.uid}?var-{self.variable}={self.taken}&${{__url_time_range}}"


TO_FIRM = Lead("The firm", "gpuhub-firm", "organization", "${__field.labels.organization}")
TO_FIRM_OF_ROW = Lead("The firm", "gpuhub-firm", "organization", "${__data.fields.Firm}")
TO_NODE_OF_ROW = Lead("The node", "gpuhub-nodes", "node", "${__data.fields.Node}")


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture with its questions. Titles are unique in a dashboard: links and tests know a panel by it."""

    title: str
    description: str
    """For somebody who does not know the metrics: what is seen, and what it means when it is high."""
    unit: Unit
    queries: tuple[Query, ...]
    look: Look = Look.LINES
    width: int = 8
    height: int = 8
    steps: Steps = GOOD_AT_ALL
    texts: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Values that are words: the word and its colour."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of a table: the labels that are columns, in order, with their headings; all others are left out."""
    most: float | None = None
    """The scale's end, if it has one."""
    leads_to: Lead | None = None
    """Where a click on a series or a row leads."""

    @property
    def id(self) -> int:
        """The same as long as the title is: addresses of single panels stay good."""
        return zlib.crc32(self.title.encode()) & 0x3FFFFFFF


@dataclass(frozen=True, slots=True)
class Section:
    """Panels that answer one question, under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """What the reader chooses at the top of a dashboard."""

    name: str
    label: str
    description: str
    query: str = ""
    """`label_values(…)`; empty if the choices are fixed."""
    choices: tuple[tuple[str, str], ...] = ()
    """Fixed choices as (text, value), the first one chosen."""
    several: bool = False
    """Whether several may be chosen at once, or all, as at first."""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    sections: tuple[Section, ...]
    variables: tuple[Variable, ...] = ()
    tags: tuple[str, ...] = ()
    hours: int = 6
    """How far back it looks at first."""

    def panels(self) -> Iterator[Panel]:
        """All panels in reading order."""
        for section in self.sections:
            yield from section.panels


@dataclass(frozen=True, slots=True)
class Cell:
    """Where on the grid something stands."""

    x: int
    y: int
    w: int
    h: int


def layout(board: Board) -> Iterator[tuple[Section | Panel, Cell]]:
    """Every heading and panel with its place: left to right, a new line where the next panel does not fit."""
    y = 0
    for section in board.sections:
        yield section, Cell(0, y, GRID_WIDTH, 1)
        x, y, line = 0, y + 1, 0
        for panel in section.panels:
            if x + panel.width > GRID_WIDTH:
                x, y, line = 0, y + line, 0
            yield panel, Cell(x, y, panel.width, panel.height)
            x, line = x + panel.width, max(line, panel.height)
        y += line


WINDOW = Variable(
    "window",
    "Window",
    "Over which time sums and paces are taken.",
    choices=(("1 day", "86400"), ("3 days", "259200"), ("7 days", "604800"), ("30 days", "2592000")),
)
"""In seconds: `[${window}s]` is a range, `/ $window` makes it a mean."""


def once(expr: str, *labels: str) -> str:
    """What every replica of a service says from one database, said once."""
    return f"max by ({', '.join(labels)}) ({expr})" if labels else f"max({expr})"


def or_zero(expr: str) -> str:
    """0 where there is nothing to count."""
    return f"{expr} or vector(0)"
