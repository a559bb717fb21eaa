"""`gpuhub replay` as people call it: a process of its own on small traces."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

TRACE = """organization,submit_s,gpus,run_s,limit_s
alpha-lab,0,3,100,3600
beta-robotics,1,4,10,
alpha-lab,2,1,5,
beta-robotics,3,1,50,3600
"""


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", "replay", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "day.csv"
    path.write_text(TRACE)
    return path


def test_policies_side_by_side_with_every_output(trace: Path, tmp_path: Path) -> None:
    outputs = {name: tmp_path / name for name in ("figures.json", "figures.csv", "plots")}
    done = replay(
        *(str(trace), "--gpus", "4", "--days", "1", "--policy", "fifo-skip,grant-easy"),
        *("--json", str(outputs["figures.json"]), "--csv", str(outputs["figures.csv"])),
        *("--svg", str(outputs["plots"])),
    )
    assert done.returncode == 0, done.stderr
    assert "fifo-skip: day 0.0 (0% of the term), 4 of 4 jobs started" in done.stderr
    head, _, rest = done.stdout.partition("\n")
    assert head == f"{trace}: 4 jobs on 4 GPUs, counted only"
    mean = [line for line in rest.splitlines() if line.startswith("  all GPUs")][1]
    assert mean.split() == ["all", "GPUs", "0.01", "0.02"]
    document = json.loads(outputs["figures.json"].read_text())
    assert [each["policy"] for each in document["policies"]] == ["fifo-skip", "grant-easy"]
    assert all(each["used"] == pytest.approx((300 + 40 + 5 + 50) / 3600) for each in document["policies"])
    rows = list(csv.DictReader(outputs["figures.csv"].read_text().splitlines()))
    values = {
        r["policy"]: float(r["value"])
        for r in rows
        if (r["section"], r["figure"]) == ("Wait, mean h", "all GPUs")
    }
    assert values["fifo-skip"] == pytest.approx((0 + 99 + 0 + 4) / 4 / 3600)
    for name in ("wait.svg", "delivered.svg", "utilization.svg"):
        assert ElementTree.parse(outputs["plots"] / name).getroot().tag.endswith("svg")


def test_on_nodes_a_job_that_can_never_start_is_named(trace: Path) -> None:
    trace.write_text(TRACE + "gamma,5,16,10,\n")
    done = replay(str(trace), "--nodes", "1", "--gpus-per-node", "4", "--policy", "gpuhub")
    assert done.returncode == 0, done.stderr
    assert "gpuhub: 1 jobs never started and count as waiting to the end:\n  gamma:0000006" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--gpus", "4", "--policy", "best"), "--policy: there is no 'best'; there are fifo-skip, "),
        (("--gpus", "4", "--policy", "gpuhub,gpuhub"), "--policy: 'gpuhub' is given twice"),
        ((), "say how large the pool is: --gpus 1000, or --nodes 125 --gpus-per-node 8"),
        (
            ("--gpus", "4", "--nodes", "2"),
            "--gpus counts GPUs, --nodes places jobs on nodes; give one of them",
        ),
        (("--gpus", "4", "--json", "nowhere/figures.json"), "nowhere/figures.json cannot be written"),
        (("--gpus", "4", "--format", "muri"), "day.csv:1: header: has no 'submit_time'"),
        (("--format", "openb"), "an openb trace is a directory"),
        (("--format", "openb", "--policy", "gpuhub,best"), "there is no 'best'; there are random, best-fit"),
        (("--format", "openb", "--svg", "plots"), "neither --csv nor --svg"),
    ],
)
def test_wrong_usage_is_told_in_one_line(trace: Path, arguments: tuple[str, ...], told: str) -> None:
    done = replay(str(trace), *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_malformed_trace_is_told_with_its_line(trace: Path) -> None:
    trace.write_text(TRACE + "alpha-lab,soon,1,60,\n")
    done = replay(str(trace), "--gpus", "4")
    assert done.returncode == 2
    assert done.stderr == (
        f"gpuhub replay: {trace}:6: submit_s: 'soon' is not a number of zero or more; give seconds, as in 3600\n"
    )


def test_the_help_shows_how_to_call_it() -> None:
    done = replay("--help")
    assert done.returncode == 0
    for words in (
        "gpuhub replay",
        "organization,submit_s,gpus,run_s",
        "fifo-skip",
        "--until-days",
        "Exit codes",
    ):
        assert words in done.stdout
