"""The openb trace is packed as the FGD paper does, and fuller than FGD packs it on every mix."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scheduler.core.fragmentation import NodeState, PodType
from scheduler.replay import packing
from scheduler.replay.traces import BadTrace

OPENB = Path(__file__).parents[4] / "shared/traces/openb"
needs_trace = pytest.mark.skipif(
    not OPENB.is_dir(), reason=f"the openb trace is absent: nothing at {OPENB}, so no figure was checked"
)


@needs_trace
@pytest.mark.long
@pytest.mark.timeout(600)
def test_all_17_mixes_are_packed_at_least_as_full_as_fgd_packs_them() -> None:
    results = packing.run(OPENB, seeds=3, policies=["gpuhub"])
    margins = {result.mix: result.margin_over_fgd or 0.0 for result in results}
    assert len(margins) == 17
    assert [mix for mix, margin in margins.items() if margin < 0] == []
    assert sum(margins.values()) / 17 >= 0.3


@needs_trace
@pytest.mark.parametrize("policy", ["random", "best-fit", "fgd"])
@pytest.mark.parametrize("mix", ["default", "gpuspec33"])
def test_the_authors_own_figures_are_met(mix: str, policy: str) -> None:
    (result,) = packing.run(OPENB, seeds=1, policies=[policy], mixes=[mix])
    assert result.published_at_130_percent is not None
    assert result.allocated_at_130_percent == pytest.approx(result.published_at_130_percent, abs=0.6)


def test_pods_arrive_all_once_and_then_again_up_to_130_percent() -> None:
    pods = [PodType(1000 + index, 0, 1, 1000) for index in range(10)]
    arriving = packing.arrivals(pods, 20_000, np.random.default_rng(1))
    assert sorted(arriving[:10], key=str) == sorted(pods, key=str)
    assert arriving[:10] != pods
    assert len(arriving) == 26
    fewer = packing.arrivals(pods, 5_000, np.random.default_rng(1))
    assert len(fewer) == 6
    assert len(set(fewer)) == 6


def test_nothing_is_placed_where_it_does_not_fit() -> None:
    nodes = [NodeState("A", 8000, 100, (1000, 1000)), NodeState("B", 1000, 100, (1000,))]
    pods = [
        PodType(4000, 10, 1, 600, frozenset("A")),
        PodType(1000, 10, 1, 1000, frozenset("B")),
        PodType(1000, 200, 1, 1000),  # no node has the memory
        PodType(1000, 10, 4, 1000),  # no node has the GPUs
    ]
    for policy in packing.POLICIES:
        for seed in range(5):
            _, placed = packing.pack(nodes, pods, packing.Rating(policy, Counter(pods)), seed)
            assert placed <= 2 * 600 + 1000
            assert placed % 600 in (0, 400), policy


@needs_trace
def test_a_seed_gives_the_same_whatever_was_remembered() -> None:
    nodes, pods = packing.read_nodes(OPENB)[:200], packing.read_pods(OPENB, "gpuspec33")[:1000]
    count = Counter(pods)
    rating = packing.Rating("gpuhub", count)
    first = [packing.pack(nodes, pods, rating, seed) for seed in (1, 2, 1)]
    assert first[0] == first[2]
    assert first[1] == packing.pack(nodes, pods, packing.Rating("gpuhub", count), 2)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two nodes and three kinds of pods, written as openb is."""
    (tmp_path / "csv").mkdir()
    _write(
        tmp_path / "csv/openb_node_list_gpu_node.csv.gz",
        ["sn,cpu_milli,memory_mib,gpu,model", "n1,32000,65536,2,T4", "n0,64000,65536,4,A10"],
    )
    _write(
        tmp_path / "csv/openb_pod_list_tiny.csv.gz",
        [
            "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec",
            "p0,1000,1024,1,500,T4|A10",
            "p1,2000,1024,2,1000,",
            "p2,500,512,0,,",
        ],
    )
    head = "workload,policy,alloc_pct_at_100pct_arrived,alloc_pct_at_130pct_arrived,stdev_at_130"
    published = [head, "openb_pod_list_tiny,06-FGD,90.0,95.0,0"]
    (tmp_path / "published_alloc_mean_of_10_seeds.csv").write_text("\n".join(published) + "\n")
    return tmp_path


def test_a_trace_is_read_as_it_is_written(small: Path) -> None:
    assert packing.read_nodes(small) == [
        NodeState("A10", 64000, 65536, (1000,) * 4),
        NodeState("T4", 32000, 65536, (1000,) * 2),
    ]
    assert packing.read_pods(small, "tiny") == [
        PodType(1000, 1024, 1, 500, frozenset({"T4", "A10"})),
        PodType(2000, 1024, 2, 1000),
        PodType(500, 512, 0, 0),
    ]


def test_the_command_prints_a_table_and_json(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert packing.main(["--path", str(small), "--seeds", "2", "--policies", "fgd", "gpuhub"]) == 0
    text = capsys.readouterr().out
    assert "tiny         gpuhub" in text
    assert "gpuhub over published FGD at 130 %" in text
    assert packing.main(["--path", str(small), "--seeds", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == list(packing.POLICIES)
    assert rows[2]["published_at_130_percent"] == 95.0
    assert rows[3]["published_at_130_percent"] is None


@pytest.mark.parametrize(
    "pod",
    ["p,x,1,1,500,", "p,1,1,1", "p,1,1,1,0,", "p,1,1,1,1001,", "p,1,1,2,500,", "p,1,1,1,,", "p,1,1,0,,"],
)
def test_a_pod_that_makes_no_sense_is_refused_by_line(small: Path, pod: str) -> None:
    head = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec"
    _write(small / "csv/openb_pod_list_tiny.csv.gz", [head, pod])
    where = "no pod asks for a GPU" if pod == "p,1,1,0,," else ":2: "
    with pytest.raises(BadTrace, match=where):
        packing.read_pods(small, "tiny")


def test_a_mix_that_is_absent_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        packing.main(["--path", str(small), "--mixes", "gone"])
    assert "openb_pod_list_gone.csv.gz: cannot be read" in capsys.readouterr().err


def _write(path: Path, lines: list[str]) -> None:
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows(line.split(",") for line in lines)
