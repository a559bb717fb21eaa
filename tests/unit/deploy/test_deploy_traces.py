"""A trace as the hub lives through it: names and limits that the hub takes. How it is read: test_replay_traces.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.synthetic import synthetic_trace
from deploy.traces import read_trace, window
from scheduler.replay.traces import BadTrace

OWN = "organisation,submit_s,gpus,run_s,limit_s\n"
ITP = "job_id,submission_time,duration,num_gpu\n"


def a_trace(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_organizations_have_names_that_the_hub_takes(tmp_path: Path) -> None:
    names = ("alpha-lab", "Alpha Lab 2", "3rd", "알파", "x" * 60)
    jobs = read_trace(a_trace(tmp_path, OWN + "".join(f"{name},1,1,60,\n" for name in names)))
    assert {job.id: job.organization for job in jobs} == {
        "alpha-lab:0000002": "alpha-lab",
        "alpha-lab-2:0000003": "alpha-lab-2",
        "org-3rd:0000004": "org-3rd",
        "org-x:0000005": "org-x",
        f"{'x' * 36}:0000006": "x" * 36,
    }


def test_each_file_of_microsofts_trace_is_an_organization(tmp_path: Path) -> None:
    a_trace(tmp_path, ITP + "a,5,600,4\n", "cluster01.csv")
    a_trace(tmp_path, ITP + "a,3,60,1\n", "195job.csv")
    jobs = read_trace(tmp_path)
    assert [(job.organization, job.submit_s) for job in jobs] == [("org-195job", 3), ("cluster01", 5)]


def test_two_organizations_never_become_one(tmp_path: Path) -> None:
    path = a_trace(tmp_path, OWN + "alpha-lab,1,1,60,\nAlpha Lab,1,1,60,\n")
    with pytest.raises(
        BadTrace, match=r"'Alpha Lab' and 'alpha-lab' are both 'alpha-lab' on the hub; rename one"
    ):
        read_trace(path)


@pytest.mark.parametrize(
    ("run_s", "limit_h"),
    [(0, 1), (3600, 1), (3601, 4), (90_000, 72), (604_800, 168), (604_801, 720), (9_999_999, 720)],
)
def test_a_limit_is_one_that_the_hub_takes(tmp_path: Path, run_s: int, limit_h: int) -> None:
    (job,) = read_trace(a_trace(tmp_path, OWN + f"alpha,1,1,{run_s},\n"))
    assert job.limit_s == limit_h * 3600


def test_a_longer_limit_that_the_trace_names_is_refused(tmp_path: Path) -> None:
    assert read_trace(a_trace(tmp_path, OWN + "alpha,1,1,60,2592000\n"))[0].limit_s == 720 * 3600
    path = a_trace(tmp_path, OWN + "alpha,1,1,60,2592001\n")
    with pytest.raises(
        BadTrace, match=r"trace.csv:2: limit_s: '2592001' is over 720 h; give at most 2592000 s"
    ):
        read_trace(path)


def test_the_window_begins_with_a_day(tmp_path: Path) -> None:
    text = OWN + "".join(f"alpha-lab,{s},1,60,\n" for s in (86_399, 86_400, 90_000, 93_600))
    jobs = read_trace(a_trace(tmp_path, text))
    assert [j.submit_s for j in window(jobs, 1, 2)] == [86_400, 90_000]
    with pytest.raises(ValueError, match=r"no job .* the trace has days 0 to 1"):
        window(jobs, 5, 24)


def test_the_same_seed_makes_the_same_trace() -> None:
    jobs = synthetic_trace(7, 2, 6, 64)
    assert jobs == synthetic_trace(7, 2, 6, 64)
    assert jobs != synthetic_trace(8, 2, 6, 64)
    assert all(2 * 86_400 <= j.submit_s < 2 * 86_400 + 6 * 3600 and 1 <= j.gpus <= 32 for j in jobs)
    assert len({j.id for j in jobs}) == len(jobs)
