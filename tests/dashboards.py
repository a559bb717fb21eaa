"""Reads the committed dashboards as Grafana would and says what is wrong with them; knows nothing of their making."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"
GRID_WIDTH = 24
BUILT_IN = {"__rate_interval", "__range", "__interval", "__all", "__url_time_range"}
"""Variables that Grafana itself sets."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_METRIC = re.compile(r"\b(?:hub_[a-z0-9_]+|up)\b(?=\s*[{\[(),]|\s|$)")
_STRING = re.compile(r'"[^"]*"')


@dataclass(frozen=True, slots=True)
class Target:
    """One question of one panel."""

    board: str
    panel: str
    ref_id: str
    look: str
    """The panel's type in Grafana."""
    expr: str
    legend: str
    """Of a line `{{label}} …`; of a table empty."""
    instant: bool

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.board} / {self.panel} / {self.ref_id}"


def boards(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Every dashboard by its file's name without the ending."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard without its headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets(board: Mapping[str, Any]) -> Iterator[Target]:
    """Every question of a dashboard."""
    for panel in panels(board):
        for target in panel["targets"]:
            yield Target(
                board["uid"],
                panel["title"],
                target["refId"],
                panel["type"],
                target["expr"],
                target.get("legendFormat", ""),
                target["instant"],
            )


def variables_of(text: str) -> set[str]:
    """The variables that a text names."""
    return {first or second for first, second in _VARIABLE.findall(text)}


def substituted(text: str, values: Mapping[str, str]) -> str:
    """The text as Grafana would send it. Raises KeyError for a variable without a value."""
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], text)


def metrics_of(expr: str) -> set[str]:
    """The series that an expression names."""
    return set(_METRIC.findall(_STRING.sub('""', expr)))


def labels_of(expr: str) -> set[str]:
    """The labels that an expression matches, groups or joins by."""
    bare = _STRING.sub('""', expr)
    lists = re.findall(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^)]*)\)", bare)
    lists += re.findall(r"^label_values\(.*,\s*(\w+)\)$", bare)
    matchers = re.findall(r"\{([^}]*)\}", bare)
    named = {label.strip() for text in lists for label in text.split(",") if label.strip()}
    return named | {found for text in matchers for found in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", text)}


def faults_of(name: str, board: Mapping[str, Any]) -> list[str]:
    """What is wrong with one dashboard by itself."""
    return [
        f"{name}: {fault}"
        for check in (_identity, _words, _sources, _variables, _grid, _tables)
        for fault in check(name, board)
    ]


def _identity(name: str, board: Mapping[str, Any]) -> Iterator[str]:
    if board["uid"] != name:
        yield f"its uid is {board['uid']}"
    if "gpuhub" not in board["tags"]:
        yield "it lacks the tag that links go by"
    if not any(link["type"] == "dashboards" and link["tags"] == ["gpuhub"] for link in board["links"]):
        yield "it has no link to the others"
    for what in ("id", "title"):
        for value, times in Counter(panel[what] for panel in board["panels"]).items():
            if times > 1:
                yield f"{what} {value!r} is that of {times} panels"


def _words(name: str, board: Mapping[str, Any]) -> Iterator[str]:
    if not board["description"]:
        yield "it has no description"
    for panel in panels(board):
        defaults = panel["fieldConfig"]["defaults"]
        if len(panel.get("description", "").split()) < 4:
            yield f"{panel['title']} has no description"
        if not defaults.get("unit"):
            yield f"{panel['title']} has no unit"
        if not panel["targets"]:
            yield f"{panel['title']} asks nothing"
        if defaults.get("unit") == "percentunit" and "thresholds" not in defaults:
            yield f"{panel['title']} has no thresholds"


def _sources(name: str, board: Mapping[str, Any]) -> Iterator[str]:
    for panel in panels(board):
        for holder in (panel, *panel["targets"]):
            if holder["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"{panel['title']} has a fixed data source"


def _variables(name: str, board: Mapping[str, Any]) -> Iterator[str]:
    listed = [variable["name"] for variable in board["templating"]["list"]]
    defined = set(listed) | BUILT_IN
    if listed[0] != "datasource":
        yield "its first variable is not the data source"
    used = variables_of(json.dumps([panels(board), board["templating"]]))
    for variable in sorted(used - defined):
        yield f"${variable} is not defined"
    for variable in sorted(set(listed) - used):
        yield f"${variable} is not used"


def _grid(name: str, board: Mapping[str, Any]) -> Iterator[str]:
    places = {panel["title"]: panel["gridPos"] for panel in board["panels"]}
    for title, at in places.items():
        if at["x"] < 0 or at["y"] < 0 or at["w"] < 1 or at["h"] < 1 or at["x"] + at["w"] > GRID_WIDTH:
            yield f"{title} is not on the grid"
    for (one, at), (other, there) in combinations(places.items(), 2):
        beside = at["x"] + at["w"] <= there["x"] or there["x"] + there["w"] <= at["x"]
        above = at["y"] + at["h"] <= there["y"] or there["y"] + there["h"] <= at["y"]
        if not (beside or above):
            yield f"{one} and {other} overlap"


def _tables(name: str, board: Mapping[str, Any]) -> Iterator[str]:
    for panel in panels(board):
        if panel["type"] != "table":
            continue
        options = {one["id"]: one["options"] for one in panel["transformations"]}
        headings = options["organize"]["renameByName"]
        columns = (
            [f"Value #{target['refId']}" for target in panel["targets"]]
            if len(panel["targets"]) > 1
            else ["Value"]
        )
        for column in columns:
            if column not in headings or column not in options["filterFieldsByName"]["include"]["names"]:
                yield f"{panel['title']} does not show {column}"
        units = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
        for column in columns:
            if headings.get(column) not in units:
                yield f"{panel['title']} has no unit for {column}"
        for target in panel["targets"]:
            if target.get("format") != "table":
                yield f"{panel['title']} asks {target['refId']} not as a table"


def undeclared(board: Mapping[str, Any], declared: Mapping[str, set[str]]) -> list[str]:
    """Series and labels in a dashboard that nobody serves; `declared` has the labels of each series."""
    wrong = []
    queries = [(variable["name"], variable["definition"]) for variable in _asking(board)]
    for name, text in [
        *queries,
        *((target.name, target.expr + _by(target.legend)) for target in targets(board)),
    ]:
        metrics = metrics_of(text)
        wrong += [f"{name}: {metric} is not served" for metric in sorted(metrics - set(declared))]
        known = {"le", "job", "instance"}.union(*(declared.get(metric, set()) for metric in metrics))
        wrong += [f"{name}: no series has the label {label}" for label in sorted(labels_of(text) - known)]
        if not metrics:
            wrong.append(f"{name}: asks for no series")
    return wrong


def _asking(board: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable


def _by(legend: str) -> str:
    labels = re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)
    return f" by ({', '.join(labels)})" if labels else ""
