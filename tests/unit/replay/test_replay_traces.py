"""Reading traces for a replay: what is understood, and how a malformed line is told."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from scheduler.replay.traces import BadTrace, Kind, TraceJob, limit_of, read_trace, recognize

# the first lines of the real files
ITP = """job_id,submission_time,duration,num_gpu
965d744f-0445-c1a8-12af-97e4c536c66e,1932025,2429,64
fb10987f-20ac-3703-eb67-146a77a6e17c,2000581,1532,1
"""
MURI = """job_id,num_gpu,submit_time,iterations,model_name,batch_size,duration,interval,iteration_time,\
resource_time_0,resource_time_1,resource_time_2,priority
0,1,0,5853661,dqn,128,2868294000,46122000,490,446,8,0,1
1,8,201694000,8787693,dqn,128,4472936000,201694000,509,435,8,0.5,0
"""
CSV = "organization,submit_s,gpus,run_s,limit_s\n"


def a_file(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def an_archive(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "raw-traces.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_each_file_of_an_itp_archive_is_an_organization(tmp_path: Path) -> None:
    path = an_archive(tmp_path, {"cluster10.csv": ITP, "cluster02.csv": ITP, "LICENSE": "MIT"})
    assert recognize(path) is Kind.ITP
    jobs = read_trace(path)
    assert jobs == read_trace(tmp_path), "the directory that holds the archive is the same trace"
    assert jobs[:2] == [
        TraceJob("cluster02:0000002", "cluster02", 1_932_025, 64, 2429, 3600),
        TraceJob("cluster10:0000002", "cluster10", 1_932_025, 64, 2429, 3600),
    ]
    assert len(jobs) == 4


def test_muri_is_in_milliseconds_and_of_one_organization(tmp_path: Path) -> None:
    path = a_file(tmp_path, MURI, "trace1.csv.gz")
    assert recognize(path) is Kind.MURI
    assert read_trace(path) == [
        TraceJob("trace1:0000002", "trace1", 0, 1, 2_868_294, 2_868_294),
        TraceJob("trace1:0000003", "trace1", 201_694, 8, 4_472_936, 4_472_936),
    ]


def test_several_muri_traces_are_not_merged(tmp_path: Path) -> None:
    a_file(tmp_path, MURI, "trace1.csv.gz")
    a_file(tmp_path, MURI, "trace2.csv.gz")
    with pytest.raises(BadTrace, match=r"holds 2 traces; name one of them, as in .*trace1\.csv\.gz"):
        read_trace(tmp_path)


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_csv_with_and_without_a_limit(tmp_path: Path, name: str) -> None:
    path = a_file(tmp_path, CSV + "Alpha Lab,20,8,600,900\nbeta,10,1,3601,\n\n", name)
    assert recognize(path) is Kind.CSV
    assert read_trace(path) == [
        TraceJob("beta:0000003", "beta", 10, 1, 3601, 4 * 3600),
        TraceJob("Alpha Lab:0000002", "Alpha Lab", 20, 8, 600, 900),
    ]


def test_rows_of_several_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        a_file(tmp_path, CSV + "alpha,1,2,3,\n", name)
    jobs = read_trace(tmp_path)
    assert [(job.organization, job.gpus) for job in jobs] == [("alpha", 2), ("alpha", 2)]
    assert len({job.id for job in jobs}) == 2


def test_columns_stand_in_any_order_beside_any_others(tmp_path: Path) -> None:
    path = a_file(tmp_path, "num_gpu,model_name,duration,submission_time\n2,bert,70,1\n", "one.csv")
    assert read_trace(path) == [TraceJob("one:0000002", "one", 1, 2, 70, 3600)]


def test_the_spelling_of_gpuhub_up_is_understood(tmp_path: Path) -> None:
    path = a_file(tmp_path, "organisation,submit_s,gpus,run_s\nalpha,1,2,3\n")
    assert [job.organization for job in read_trace(path)] == ["alpha"]


def test_rows_of_one_second_keep_their_order(tmp_path: Path) -> None:
    path = a_file(tmp_path, CSV + "".join(f"a,7,{gpus},1,\n" for gpus in range(1, 30)))
    assert [job.gpus for job in read_trace(path)] == list(range(1, 30))


def test_openb_is_recognized_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    a_file(tmp_path / "csv", "sn,cpu_milli\n", "openb_node_list_all_node.csv.gz")
    assert recognize(tmp_path) is Kind.OPENB
    assert recognize(tmp_path / "csv") is Kind.OPENB
    with pytest.raises(BadTrace, match="packed, not replayed"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("run_s", "limit_s"),
    [(0, 3600), (3600, 3600), (3601, 14_400), (90_000, 259_200), (604_800, 604_800), (604_801, 604_801)],
)
def test_a_limit_is_the_run_time_rounded_up(run_s: int, limit_s: int) -> None:
    assert limit_of(run_s) == limit_s


@pytest.mark.parametrize(
    ("text", "line", "wrong"),
    [
        (CSV + "a,1,1,60,\na,x,1,60,\n", 3, "submit_s: 'x' is not a number of zero or more; give seconds"),
        (CSV + "a,1,0,60,\n", 2, "gpus: '0' is no number of GPUs; give a whole number from 1"),
        (CSV + "a,1,1.5,60,\n", 2, "gpus: '1.5' is no number of GPUs"),
        (CSV + "a,1,9999999999999999999999,60,\n", 2, "is no number of GPUs"),
        (CSV + "a,-1,1,60,\n", 2, "submit_s: '-1' is not a number"),
        (CSV + "a,1,1,nan,\n", 2, "run_s: 'nan' is not a number"),
        (CSV + "a,1,1,99999999999,\n", 2, "run_s: '99999999999' is longer than 300 years"),
        (CSV + "a,1,1,60,0\n", 2, "limit_s: '0' is no time to run in; give a limit of at least 1 s, or none"),
        (CSV + "a,1,1\n", 2, "3 cells; the header has 5"),
        (CSV + ",1,1,60,\n", 2, "organization: '' is no name; give 1 to 60 printable characters"),
        (CSV + 'a,1,1,"60,\n', 2, "quotes have to be closed"),
        ("organization,gpus,gpus,submit_s,run_s\n", 1, "header: 'gpus' stands there twice"),
        ("a,b\n1,2\n", 1, "header: 'a,b' is of no known kind; it needs the columns of itp: submission_time,"),
        ("", 1, "is of no known kind"),
        (ITP + "x,0,60,zero\n", 4, "num_gpu: 'zero' is no number of GPUs"),
        (
            MURI.replace("201694000", "soon"),
            3,
            "submit_time: 'soon' is not a number of zero or more; give milli",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str, line: int, wrong: str) -> None:
    path = a_file(tmp_path, text)
    with pytest.raises(BadTrace) as told:
        read_trace(path)
    assert str(told.value).startswith(f"{path}:{line}: ")
    assert wrong in str(told.value)
    assert "\n" not in str(told.value)


def test_a_malformed_line_of_an_archive_names_the_member(tmp_path: Path) -> None:
    path = an_archive(tmp_path, {"cluster01.csv": ITP, "cluster02.csv": ITP + "x,0,sixty,1\n"})
    with pytest.raises(BadTrace, match=r"raw-traces.tar.gz/cluster02.csv:4: duration: 'sixty'"):
        read_trace(path)


def test_the_kind_given_overrides_the_header(tmp_path: Path) -> None:
    path = a_file(tmp_path, ITP)
    with pytest.raises(BadTrace, match="header: has no 'submit_time'; a muri trace needs submit_time,"):
        read_trace(path, Kind.MURI)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match=r"nowhere: cannot be read: No such file"):
        read_trace(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadTrace, match=r"holds no trace; there should be raw-traces.tar.gz"):
        read_trace(tmp_path / "empty")
    with pytest.raises(BadTrace, match="holds no jobs"):
        read_trace(a_file(tmp_path, CSV))
    with pytest.raises(BadTrace, match=r"holds no \.csv file"):
        read_trace(an_archive(tmp_path, {"README": "x"}))
    (tmp_path / "binary.csv").write_bytes(CSV.encode() + b"\xff\xfe\n")
    with pytest.raises(BadTrace, match=r"binary.csv:2: byte 0xff is not text"):
        read_trace(tmp_path / "binary.csv")
    whole = a_file(tmp_path, CSV + "a,1,1,60,\n" * 5000, "cut.csv.gz")
    archive = an_archive(tmp_path, {"cluster01.csv": ITP * 5000})
    for cut in (whole, archive):
        cut.write_bytes(cut.read_bytes()[:-40])
        with pytest.raises(BadTrace, match="cannot be read"):
            read_trace(cut)
