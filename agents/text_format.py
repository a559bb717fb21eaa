"""Families as Prometheus reads them, in its text format or as OpenMetrics: what the library writes, much faster.

The library checks every label's name in every sample; the agent's names are its own. Families here are counters,
gauges, infos and histograms without units, timestamps and exemplars. A test compares with the library, byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from agents.series import Series, labels_text

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_SUFFIXES = {"counter": "_total", "info": "_info"}
"""What belongs to the name of a family in the text format."""


def format_for(accept: str) -> str:
    """The content type for an Accept header."""
    return OPENMETRICS if "application/openmetrics-text" in accept else TEXT


def render(families: Iterable[Metric], content_type: str) -> bytes:
    """The families in one of the two formats."""
    is_open = content_type == OPENMETRICS
    lines: list[str] = []
    for family in families:
        name = family.name if is_open else family.name + _SUFFIXES.get(family.type, "")
        kind = "gauge" if family.type == "info" and not is_open else family.type
        text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        if is_open:
            text = text.replace('"', r"\"")
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")
        if isinstance(family, Series):
            name = family.series_name
            lines += [f"{name}{labels.text} {_number(value)}\n" for labels, value in family.rows]
            continue
        for sample in family.samples:
            labels = labels_text(sorted(sample.labels.items()))
            lines.append(f"{sample.name}{labels} {_number(sample.value)}\n")
    if is_open:
        lines.append("# EOF\n")
    return "".join(lines).encode()


def _number(value: float) -> str:
    if 0 <= value < 1e6:
        return repr(float(value))
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]
