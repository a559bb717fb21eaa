"""What was published for Muri's traces, and when it may stand beside a replay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.replay.figures import Figures, figures_of
from scheduler.replay.published import JOBS, TRACES, beside, name_of, published
from scheduler.replay.settings import Settings
from scheduler.replay.traces import TraceJob, read_trace
from tests.unit.replay.replay_world import play

MURI = Path(__file__).parents[4] / "shared/traces/philly-muri"


def jobs(count: int) -> list[TraceJob]:
    return [TraceJob(f"trace3:{n:07d}", "trace3", 0, 8, 3600, 3600) for n in range(count)]


def figures(settings: Settings) -> list[Figures]:
    return [figures_of(play(jobs(16), settings, "gpuhub"))]


def test_every_trace_has_the_same_policies_and_muri_is_the_quickest() -> None:
    for trace in TRACES:
        rows = {row.policy: row for row in published(trace)}
        assert set(rows) == {"SRTF", "SRSF", "Tiresias-L", "Themis", "AntMan", "Muri-S", "Muri-L"}
        assert min(rows.values(), key=lambda row: row.jct_s).policy == "Muri-S"
        assert all(row.jct_s < row.makespan_s for row in rows.values())


def test_a_trace_is_known_by_its_name_and_its_jobs() -> None:
    for trace in TRACES:
        count = JOBS[trace.removesuffix("_pr")]
        assert name_of(Path(f"{trace}.csv.gz"), jobs(count)) == trace
        assert name_of(Path(f"{trace}.csv"), jobs(count)) == trace
        assert name_of(Path(f"{trace}.csv"), jobs(count - 1)) is None
    assert name_of(Path("trace5.csv"), jobs(992)) is None
    assert name_of(Path("trace1.csv"), jobs(992)) is None


@pytest.mark.skipif(not MURI.is_dir(), reason="the traces are not here")
@pytest.mark.parametrize("trace", TRACES)
def test_the_real_traces_are_known(trace: str) -> None:
    path = MURI / f"{trace}.csv.gz"
    assert name_of(path, read_trace(path)) == trace


def test_ours_stand_above_theirs_in_seconds() -> None:
    text = beside("trace3", figures(Settings(8, 8)), Settings(8, 8))
    lines = [line.split() for line in text.splitlines()]
    # 16 jobs of 8 GPUs and an hour on 8 nodes: half of them wait an hour
    assert ["test", "5,400", "7,200"] in lines
    assert ["SRSF,", "published", "185,022", "8,174,135"] in lines
    assert ["Muri-S*,", "published", "85,503", "8,174,135"] in lines
    assert "know every run time" in text


@pytest.mark.parametrize(
    "settings",
    [Settings(4, 8), Settings(8, 8, load=2.0), Settings(8, 8, seed=1), Settings(8, 8, until_days=9)],
)
def test_another_replay_is_not_compared(settings: Settings) -> None:
    text = beside("trace3", figures(settings), settings)
    assert "play it with --nodes 8 to compare" in text
    assert "SRSF" not in text


def test_the_command_shows_both(tmp_path: Path) -> None:
    path = tmp_path / "trace3.csv"
    path.write_text("job_id,num_gpu,submit_time,duration\n" + "1,8,0,2000\n" * 992)
    line = [sys.executable, "-m", "deploy.cli", "replay", str(path), "--nodes", "8", "--policy", "fifo-skip"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=True)
    shown = [row.split() for row in done.stdout.splitlines()]
    assert ["fifo-skip", "125", "248"] in shown
    assert ["SRTF,", "published", "193,082", "8,174,135"] in shown
