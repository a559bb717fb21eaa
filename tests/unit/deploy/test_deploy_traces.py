"""Reading traces: what is understood, and how a malformed line is told."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from deploy.synthetic import synthetic_trace
from deploy.traces import TraceTrouble, gang, limit_s, read_trace, window

OWN = "organisation,submit_s,gpus,run_s,limit_s\n"
ITP = "job_id,submission_time,duration,num_gpu\n"


def a_trace(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def an_archive(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "raw-traces.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_own_columns_with_and_without_a_limit(tmp_path: Path) -> None:
    jobs = read_trace(a_trace(tmp_path, OWN + "alpha-lab,20,8,600,900\nbeta,10,1,3601,\n"))
    assert [(j.organization, j.submit_s, j.gpus, j.run_s, j.limit_s) for j in jobs] == [
        ("beta", 10, 1, 3601, 4 * 3600),
        ("alpha-lab", 20, 8, 600, 900),
    ]


def test_each_file_of_an_archive_is_an_organization(tmp_path: Path) -> None:
    files = {"cluster01.csv": ITP + "a,5,600,4\n", "195job.csv": ITP + "a,3,60,1\n", "LICENSE": "MIT"}
    jobs = read_trace(an_archive(tmp_path, files))
    assert [(j.organization, j.submit_s) for j in jobs] == [("org-195job", 3), ("cluster01", 5)]
    assert len({j.key for j in jobs}) == 2


def test_a_folder_of_files_and_additional_columns(tmp_path: Path) -> None:
    a_trace(tmp_path, "num_gpu,model_name,duration,submission_time\n2,bert,70,1\n", "one.csv")
    a_trace(tmp_path, ITP + "x,0,60,1\n", "two.csv")
    assert [(j.organization, j.gpus) for j in read_trace(tmp_path)] == [("two", 1), ("one", 2)]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (OWN + "alpha-lab,1,1,60,\nalpha-lab,x,1,60,\n", 3, "submit_s 'x' is not a number"),
        (OWN + "alpha-lab,1,0,60,\n", 2, "gpus '0' must be at least 1"),
        (OWN + "alpha-lab,1,1.5,60,\n", 2, "gpus '1.5' is not a whole number"),
        (OWN + "alpha-lab,-1,1,60,\n", 2, "submit_s '-1' is not a number"),
        (OWN + "alpha-lab,1,1,nan,\n", 2, "run_s 'nan' is not a number"),
        (OWN + "alpha-lab,1,1\n", 2, "3 cells where the header has 5"),
        (OWN + "Alpha Lab,1,1,60,\n", 2, "organisation 'Alpha Lab' must be"),
        (OWN + "alpha-lab,1,1,60,9999999\n", 2, "limit_s 9999999 is over 720 h"),
        ("a,b\n1,2\n", 1, "the header needs"),
        ("", 1, "the header needs"),
        (ITP + 'a,1,60,"1\n', 2, "unexpected end of data"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = a_trace(tmp_path, text)
    with pytest.raises(TraceTrouble) as told:
        read_trace(path)
    assert str(told.value).startswith(f"{path}:{line}: ")
    assert reason in str(told.value)
    assert "\n" not in str(told.value)


def test_a_malformed_line_in_an_archive_names_the_member(tmp_path: Path) -> None:
    path = an_archive(tmp_path, {"cluster01.csv": ITP + "a,1,60,zero\n"})
    with pytest.raises(TraceTrouble, match=r"raw-traces.tar.gz/cluster01.csv:2: num_gpu 'zero'"):
        read_trace(path)


def test_a_broken_archive_and_other_bytes_are_told(tmp_path: Path) -> None:
    whole = an_archive(tmp_path, {"cluster01.csv": ITP + "a,1,60,1\n" * 5000})
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(TraceTrouble, match=r"cut.tar.gz"):
        read_trace(cut)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(OWN.encode() + b"\xff\xfe\n")
    with pytest.raises(TraceTrouble, match=r"binary.csv:2: byte 0xff is not UTF-8"):
        read_trace(binary)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceTrouble, match=r"holds no .csv file"):
        read_trace(tmp_path / "empty")
    with pytest.raises(TraceTrouble, match="holds no jobs"):
        read_trace(a_trace(tmp_path, OWN))


def test_the_window_begins_with_a_day(tmp_path: Path) -> None:
    text = OWN + "".join(f"alpha-lab,{s},1,60,\n" for s in (86_399, 86_400, 90_000, 93_600))
    jobs = read_trace(a_trace(tmp_path, text))
    assert [j.submit_s for j in window(jobs, 1, 2)] == [86_400, 90_000]
    with pytest.raises(ValueError, match=r"no job .* the trace has days 0 to 1"):
        window(jobs, 5, 24)


@pytest.mark.parametrize(
    ("run_s", "limit_h"), [(0, 1), (3600, 1), (3601, 4), (90_000, 72), (700_000, 720), (9_999_999, 720)]
)
def test_limits_are_rounded_up(run_s: int, limit_h: int) -> None:
    assert limit_s(run_s) == limit_h * 3600


@pytest.mark.parametrize("gpus", range(1, 130))
def test_a_gang_has_exactly_the_gpus_and_no_pod_wider_than_a_node(gpus: int) -> None:
    pods, gpus_per_pod = gang(gpus, 8)
    assert pods * gpus_per_pod == gpus
    assert gpus_per_pod <= 8
    if gpus % 8 == 0 or gpus < 8:
        assert pods == -(-gpus // 8)


def test_the_same_seed_makes_the_same_trace() -> None:
    jobs = synthetic_trace(7, 2, 6, 64)
    assert jobs == synthetic_trace(7, 2, 6, 64)
    assert jobs != synthetic_trace(8, 2, 6, 64)
    assert all(2 * 86_400 <= j.submit_s < 2 * 86_400 + 6 * 3600 and 1 <= j.gpus <= 32 for j in jobs)
    assert len({j.key for j in jobs}) == len(jobs)
