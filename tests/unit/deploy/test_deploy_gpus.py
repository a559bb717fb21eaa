"""`gpuhub gpus` against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from tests import databases
from tests.builders import MINUTE_MS, Api, an_api
from tests.integration.quota.gpu_world import break_gpu, see

CSV = "gpu_uuid,serial,asset_number,site,node\nGPU-n0-0,S1,A-1,gwangju-1,n0\nGPU-stored,S2,A-2,gwangju-1,\n"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """Two nodes with two GPUs each, seen by their agents; the first GPU of n0 is bad, then that of n1."""
    with an_api(databases.new_sqlite(tmp_path)) as made:
        header = made.operator._http.headers["Authorization"]
        monkeypatch.setenv("GPUHUB_URL", made.base_url)
        monkeypatch.setenv("GPUHUB_TOKEN", header.removeprefix("Bearer "))
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        for node in ("n0", "n1"):
            see(made.hub, node, 2)
        made.hub.clock.advance(MINUTE_MS)
        for node in ("n0", "n1"):
            break_gpu(made.hub, f"GPU-{node}-0", node)
        yield made


def gpuhub(*arguments: str) -> Result:
    done = CliRunner().invoke(firm_app(), ("gpus", *arguments))
    assert done.exit_code in (0, 1, 2), done.output
    return done


def ok(*arguments: str) -> str:
    done = gpuhub(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_who_is_out_of_use_and_why(api: Api) -> None:
    listed = ok("list")
    assert listed.count("GPU-") == 4
    assert "in use, verdict withheld" in listed
    out = json.loads(ok("list", "--quarantined", "--json"))
    assert [(gpu["gpu_uuid"], gpu["quarantine"], gpu["health"]) for gpu in out] == [
        ("GPU-n0-0", "agent", "unhealthy")
    ]
    shown = ok("show", "GPU-n0-0")
    for text in ("xid_hardware", "79", "quarantined by agent"):
        assert text in shown
    told = ok("policy")
    for line in (("GPUs that count", "4"), ("withheld, for you to decide", "1")):
        assert any(line[0] in row and row.rstrip().endswith(line[1]) for row in told.splitlines()), told


def test_an_operator_decides(api: Api) -> None:
    assert "quarantined by operator: it is bad" in ok("quarantine", "GPU-n1-0", "--reason", "it is bad")
    assert "in use" in ok("release", "GPU-n1-0", "--reason", "reseated")
    ok("policy", "auto_thousandths=50", "observe_only=true", "--reason", "a new driver")
    policy = json.loads(ok("policy", "--json"))["policy"]
    assert policy == {
        "auto_thousandths": 50,
        "observe_only": True,
        "stop_after_s": 600,
        "vanished_wall_s": 600,
    }
    assert gpuhub("show", "GPU-none").exit_code == 1
    for wrong in (["observe_only=true"], ["x=1", "--reason", "r"], ["observe_only=maybe", "--reason", "r"]):
        assert gpuhub("policy", *wrong).exit_code == 2


def test_an_inventory_is_imported_and_corrected(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "inventory.csv"
    file.write_text(CSV)
    assert ok("import", str(file), "--reason", "delivery") == "2 changed, 0 as they were\n"
    assert ok("import", str(file), "--reason", "again") == "0 changed, 2 as they were\n"
    assert "A-2" in ok("list", "--state", "vanished")
    assert ok("list", "--state", "unknown").count("GPU-") == 3
    assert ok("list", "--site", "gwangju-1").count("GPU-") == 2
    ok("register", "GPU-stored", "--gone", "--reason", "sold")
    assert "A-2" not in ok("list", "--state", "vanished")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("gpu_uuid,colour\nGPU-1234,red\n", "unknown column 'colour'"),
        ("serial\nS1\n", "no column gpu_uuid"),
        ("gpu_uuid\n", "no GPU stands in it"),
        ("gpu_uuid\nGPU 1\n", "line 2: gpu_uuid"),
    ],
)
def test_a_file_that_cannot_be_used_changes_nothing(
    api: Api, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "inventory.csv"
    file.write_text(content)
    done = gpuhub("import", str(file), "--reason", "r")
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert gpuhub("import", str(tmp_path / "missing.csv"), "--reason", "r").exit_code == 2
