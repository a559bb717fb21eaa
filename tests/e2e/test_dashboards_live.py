"""Every expression of every dashboard, asked of a real Prometheus that reads the real programs under a known load."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from dashboard_expected import RATE_S, VALUES
from dashboard_expected_inside import EXPECTED
from dashboard_lived import Between, Lived, Loosely, Perhaps, look
from dashboard_world import LAB, LAB_GPUS, NODES_OF_CLUSTER, STEADY_S, World, a_world

from tests.dashboards import boards, panels, substituted
from tests.prometheus_server import Labels, Prometheus

pytestmark = [pytest.mark.e2e, pytest.mark.prometheus, pytest.mark.timeout(300)]

BOARDS = boards()
PANELS = [(name, panel["title"]) for name, board in BOARDS.items() for panel in panels(board)]
TRIES = 4
"""An hour of the hub's clock may end, or a picture be drawn anew, while we look."""


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """The hub after the script, at a moment around which nothing changed."""
    with a_world(tmp_path_factory.mktemp("dashboards")) as world:
        world.found()
        world.prometheus.await_query("hub_sched_organization_starts_total", lambda found: len(found) == 4)
        world.play()
        yield at_rest(world)


def at_rest(world: World) -> Lived:
    """Wait until all rates tell of the same load; a while before, the lab's meters run on."""
    world.prometheus.await_query("hub_sched_forecast_timestamp_seconds")
    time.sleep(STEADY_S)
    world.lab.work()
    time.sleep(RATE_S / 2)
    for _ in range(TRIES):
        at_s = float(int(time.time()))
        seen = look(world, at_s)
        time.sleep(2)
        all_answered = not world.prometheus.query("up == 0", at_s)
        if all_answered and seen.stands_like(look(world, at_s)):
            return seen
    raise AssertionError("the hub does not come to rest")


def test_every_panel_is_expected_and_nothing_else() -> None:
    expected = [(name, title) for name, panels_of in EXPECTED.items() for title in panels_of]
    assert sorted(expected) == sorted(PANELS)


@pytest.mark.parametrize(("name", "title"), PANELS, ids=lambda text: text.removeprefix("gpuhub-"))
def test_shows_what_the_script_did(name: str, title: str, lived: Lived) -> None:
    wrong = wrong_in(name, title, lived)
    assert not wrong, "\n".join(wrong)


PLANTED = (
    # replicas counted twice
    ("gpuhub-overview", "GPUs in the hub", "sum(max by", "sum(sum by"),
    ("gpuhub-firm", "Granted", "sum(max by", "sum(sum by"),
    # the wall's time for the hub's
    ("gpuhub-overview", "Longest wait now", "scalar(max(hub_quota_business_timestamp_seconds))", "time()"),
    ("gpuhub-operators", "GPUs held but not busy", "/ scalar", "/ 4 / scalar"),
    ("gpuhub-trust", "Busy and of nobody", " / scalar", " * scalar"),
    # another series, firm, state, unit
    ("gpuhub-firm", "Charged", "_used_", "_held_"),
    ("gpuhub-firm", "Burn-down", 'organization="$organization"', 'organization="gamma"'),
    ("gpuhub-overview", "Jobs waiting", "queued", "starting"),
    ("gpuhub-trust", "Busy and of nobody", "unattributed_busy", "busy"),
    ("gpuhub-nodes", "Health", "unhealthy", "degraded"),
    ("gpuhub-operators", "Quarantine withheld", "withheld", "taken"),
    ("gpuhub-overview", "GPU hours that no grant pays", "/ 3600", "/ 60"),
    # labels by which series cannot be told apart, or that are gone
    ("gpuhub-nodes", "Utilisation by GPU", "node, gpu_uuid", "node"),
    ("gpuhub-operators", "Held and idle now", "group_left (organization)", "group_left ()"),
    ("gpuhub-operators", "Idle by the rules", "max by (state)", "max"),
)


@pytest.mark.parametrize(("name", "title", "right", "wrong"), PLANTED)
def test_a_wrong_expression_shows_something_else(
    name: str, title: str, right: str, wrong: str, lived: Lived
) -> None:
    assert wrong_in(name, title, lived, lambda expr: expr.replace(right, wrong)) != []


OFFERED = {
    "organization": {"alpha", "beta", "gamma", "delta"},
    "program": {"ai-seoul", "campus"},
    "node": {*NODES_OF_CLUSTER, LAB},
}
"""What a reader can choose."""


def test_variables_offer_what_there_is(lived: Lived) -> None:
    offered = {}
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                offered[variable["name"]] = choices(variable["definition"], lived)
    uuids = {gpu.uuid for gpu in lived.gpus}
    assert offered == OFFERED | {"gpu": uuids | set(LAB_GPUS)}


def choices(definition: str, lived: Lived) -> set[str]:
    """The values that Grafana finds for `label_values(SELECTOR, LABEL)`."""
    asked = re.fullmatch(r"label_values\((.*), (\w+)\)", substituted(definition, VALUES))
    assert asked, definition
    found = lived.world.prometheus.series(asked[1])
    return {labels[asked[2]] for labels in found}


def test_differences_are_seen() -> None:
    assert differences({"a": 1.0, "b": math.nan}, {"a": 1}) == []
    assert differences({"a": 1.0}, {"a": 2}) != []
    assert differences({"a": 1.0, "b": 0.0}, {"a": 1}) != []
    assert differences({"a": 1.0, "b": 0.0}, Loosely({"a": 1})) == []
    assert differences({"a": 1.0, "b": 2.0}, Loosely({"a": 1})) != []
    assert differences({}, Loosely({"a": 0})) != []
    assert differences({"a": 3.0}, {"a": Between(1, 2)}) != []
    assert differences({}, Perhaps({"a": 1})) == []
    assert differences({"a": 2.0}, Perhaps({"a": 1})) != []
    assert differences({"b": 2.0}, Perhaps({"a": 1})) != []


def wrong_in(
    name: str, title: str, lived: Lived, change: Callable[[str], str] = lambda expr: expr
) -> list[str]:
    """Where a panel shows something else than what happened; `change` spoils its expressions."""
    panel = next(panel for panel in panels(BOARDS[name]) if panel["title"] == title)
    expected = EXPECTED[name][title](lived)
    assert len(panel["targets"]) == len(expected)
    wrong = []
    for target, wanted in zip(panel["targets"], expected, strict=True):
        expr = change(target["expr"])
        found = shown_by(panel, target | {"expr": expr}, lived.world.prometheus, lived.at_s)
        lines = differences(found, wanted)
        wrong += [f"{title}: {expr}", *lines] if lines else []
    return wrong


def shown_by(
    panel: Mapping[str, Any], target: Mapping[str, Any], prometheus: Prometheus, at_s: float
) -> dict[str, float]:
    """What a reader sees of one query at that moment: values by legend or by the cells of a row."""
    expr = substituted(target["expr"], VALUES)
    if target["instant"]:
        found = prometheus.query(expr, at_s)
    else:
        asked = prometheus.query_range(expr, at_s - 4, at_s, 4)
        found = {labels: points[-1][1] for labels, points in asked.items() if points[-1][0] == at_s}
    if panel["type"] == "table":
        organized = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
        order = sorted(organized["indexByName"], key=organized["indexByName"].__getitem__)
        columns = [label for label in order if not label.startswith("Value")]
        keys = [" ".join(dict(labels).get(column, "") for column in columns) for labels in found]
    elif panel["type"] == "stat" and len(found) == 1:
        keys = [""]
    else:
        keys = [legend(target["legendFormat"], labels) for labels in found]
    shown = dict(zip(keys, found.values(), strict=True))
    for key, times in Counter(keys).items():
        if times > 1:
            shown[f"{times} series that a reader cannot tell apart: {key}"] = math.inf
    return shown


def legend(template: str, labels: Labels) -> str:
    """As Grafana writes it: an unknown label is nothing."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: dict(labels).get(found[1], ""), template)


def differences(found: Mapping[str, float], wanted: Mapping[str, object]) -> list[str]:
    """Where the two are not the same; NaN is nothing."""
    there = {key: value for key, value in found.items() if not math.isnan(value)}
    if isinstance(wanted, Loosely):
        there = {key: value for key, value in there.items() if value or key in wanted}
    return [
        f"  {key}: {there.get(key, 'nothing')}, expected {wanted.get(key, 'nothing')}"
        for key in sorted({*there, *wanted})
        if key not in wanted
        or (key not in there and not isinstance(wanted, Perhaps))
        or (key in there and wanted[key] != there[key])
    ]
