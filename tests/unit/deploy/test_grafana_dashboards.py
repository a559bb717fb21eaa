"""The committed dashboards are what their source makes, and fit for Grafana."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from deploy.prometheus.contract import CONTRACTS
from deploy.prometheus.server import HERE as PROMETHEUS
from tests.dashboards import (
    FOLDER,
    boards,
    faults_of,
    labels_of,
    metrics_of,
    substituted,
    undeclared,
    variables_of,
)

BOARDS = boards()
SERVED = {
    series: {*family.labels, *family.optional}
    for contract in CONTRACTS
    for family in contract.families
    for series in family.series
} | {"up": set()}
Board = dict[str, Any]


def made(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", "deploy.grafana", *arguments), capture_output=True, text=True, check=False
    )


def test_committed_files_are_what_the_source_makes() -> None:
    done = made("--check")
    assert done.returncode == 0, done.stderr


def test_a_file_edited_by_hand_and_one_too_many_are_found_and_mended(tmp_path: Path) -> None:
    folder = tmp_path / "dashboards"
    shutil.copytree(FOLDER, folder)
    edited = folder / "gpuhub-firm.json"
    edited.write_text(edited.read_text("utf-8").replace("Granted", "Awarded"), "utf-8")
    (folder / "old.json").write_text("{}")
    (folder / "gpuhub-trust.json").unlink()
    done = made("--check", "--folder", str(folder))
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        "gpuhub-firm.json",
        "gpuhub-trust.json",
        "old.json",
    ]
    assert made("--folder", str(folder)).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in FOLDER.iterdir()
    }


def test_all_the_dashboards_are_there() -> None:
    assert list(BOARDS) == [
        f"gpuhub-{name}" for name in ("firm", "nodes", "operators", "overview", "scheduler", "trust")
    ]


@pytest.mark.parametrize("name", BOARDS)
def test_nothing_is_wrong_with(name: str) -> None:
    assert faults_of(name, BOARDS[name]) == []


@pytest.mark.parametrize("name", BOARDS)
def test_everything_asked_for_is_served(name: str) -> None:
    assert undeclared(BOARDS[name], SERVED) == []


@pytest.mark.parametrize(
    ("expr", "legend", "fault"),
    [
        ("sum(hub_quota_gpu)", "", "hub_quota_gpu is not served"),
        ("sum by (firm) (hub_quota_jobs)", "", "no series has the label firm"),
        ('sum(hub_quota_jobs{node="a"})', "", "no series has the label node"),
        ("hub_quota_jobs", "{{grant_id}}", "no series has the label grant_id"),
        ("vector(1)", "", "asks for no series"),
    ],
)
def test_what_nobody_serves_is_found(expr: str, legend: str, fault: str) -> None:
    board = copy.deepcopy(BOARDS["gpuhub-overview"])
    target = first(board, "stat")["targets"][0]
    target |= {"expr": expr, "legendFormat": legend}
    assert any(fault in line for line in undeclared(board, SERVED)), undeclared(board, SERVED)


def test_links_lead_to_what_is_there_and_take_what_is_shown() -> None:
    leads = [
        (panel, link["url"])
        for board in BOARDS.values()
        for panel in board["panels"]
        for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", ())
    ]
    assert leads
    for panel, url in leads:
        found = re.fullmatch(r"/d/([\w-]+)\?var-(\w+)=\$\{__(field\.labels|data\.fields)\.(\w+)\}&.*", url)
        assert found, url
        uid, variable, kind, taken = found.groups()
        assert variable in {one["name"] for one in BOARDS[uid]["templating"]["list"]}
        if kind == "data.fields":
            organize = next(one for one in panel["transformations"] if one["id"] == "organize")
            assert taken in organize["options"]["renameByName"].values(), (panel["title"], taken)
        else:
            assert all(f"{{{{{taken}}}}}" in one["legendFormat"] for one in panel["targets"]), panel["title"]


def test_a_variable_that_asks_for_nothing_served_is_found() -> None:
    board = copy.deepcopy(BOARDS["gpuhub-firm"])
    chosen = next(one for one in board["templating"]["list"] if one["name"] == "organization")
    chosen["definition"] = "label_values(hub_quota_grant_limit_gpu_seconds, firm)"
    assert undeclared(board, SERVED) == ["organization: no series has the label firm"]


def first(board: Board, look: str) -> Board:
    found: Board = next(panel for panel in board["panels"] if panel["type"] == look)
    return found


def a_second_id(board: Board) -> None:
    board["panels"][1]["id"] = board["panels"][2]["id"]


def an_overlap(board: Board) -> None:
    board["panels"][2]["gridPos"]["x"] -= 1


def beyond_the_grid(board: Board) -> None:
    board["panels"][-1]["gridPos"] |= {"x": 20, "y": 900, "w": 5}


def no_unit(board: Board) -> None:
    del first(board, "stat")["fieldConfig"]["defaults"]["unit"]


def no_description(board: Board) -> None:
    first(board, "stat")["description"] = "GPUs."


def a_fixed_source(board: Board) -> None:
    first(board, "stat")["targets"][0]["datasource"]["uid"] = "abc"


def an_unknown_variable(board: Board) -> None:
    first(board, "stat")["targets"][0]["expr"] = 'sum(up{job="$nobody"})'


def a_variable_for_nothing(board: Board) -> None:
    board["templating"]["list"].append({"name": "left_over"})


def a_hidden_column(board: Board) -> None:
    transformations = first(board, "table")["transformations"]
    next(one for one in transformations if one["id"] == "organize")["options"]["renameByName"].pop("Value #A")


def another_uid(board: Board) -> None:
    board["uid"] = "x"


def no_links(board: Board) -> None:
    board["links"] = []


PLANTED: dict[Callable[[Board], None], str] = {
    a_second_id: "panels",
    an_overlap: "overlap",
    beyond_the_grid: "not on the grid",
    no_unit: "has no unit",
    no_description: "has no description",
    a_fixed_source: "fixed data source",
    an_unknown_variable: "$nobody is not defined",
    a_variable_for_nothing: "$left_over is not used",
    a_hidden_column: "does not show Value #A",
    another_uid: "its uid is x",
    no_links: "no link",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_faults_are_found(plant: Callable[[Board], None]) -> None:
    board = copy.deepcopy(BOARDS["gpuhub-overview"])
    plant(board)
    faults = faults_of("gpuhub-overview", board)
    assert any(PLANTED[plant] in fault for fault in faults), faults


def test_a_grafana_pointed_at_the_folder_finds_dashboards_and_source() -> None:
    folder = FOLDER.parent / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards/gpuhub.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].replace("${GPUHUB_GRAFANA}", str(FOLDER.parent)) == str(FOLDER)
    (source,) = yaml.safe_load((folder / "datasources/gpuhub.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "${GPUHUB_PROMETHEUS_URL}")
    # rates are taken over four scrapes at least, so Grafana has to know how far they lie apart
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def test_programs_are_called_as_prometheus_calls_them() -> None:
    configured = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    asked = next(iter(first(BOARDS["gpuhub-overview"], "state-timeline")["targets"]))["expr"]
    assert {one["job_name"] for one in configured} == set(asked.split('"')[1].split("|"))


def test_expressions_are_read_as_far_as_needed() -> None:
    expr = 'sum by (a, le) (rate(hub_x_total{b="hub_no{c=",d=~"$n"}[${w}s])) / on (e) group_left () up > $t'
    assert metrics_of(expr) == {"hub_x_total", "up"}
    assert labels_of(expr) == {"a", "le", "b", "d", "e"}
    assert variables_of(expr) == {"n", "w", "t"}
    assert substituted("$n ${w}s", {"n": "1", "w": "2"}) == "1 2s"
