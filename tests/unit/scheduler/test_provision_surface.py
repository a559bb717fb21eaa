"""Wrong use of `gpuhub scheduler provision` and `manifests` is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.cli import app

CLUSTER = 'kubeconfig = "nowhere"\n[classes.x]\nlabels = {gpu = "x"}\ncpu_milli = 1\nmemory_mib = 1\n'


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    path = tmp_path / "main.toml"
    path.write_text(CLUSTER)
    return path


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--organization", "Acme"], "--organization: 'Acme' is not the id of an organization"),
        (["--organization", "a"], "--organization: 'a' is not the id of an organization"),
        (["--dry-run", "--every-s", "5"], "--dry-run is done once: leave out --every-s"),
        (["--quota-url", "http://127.0.0.1:1"], "--token-env: the environment has no GPUHUB_TOKEN"),
        ([], "nowhere"),
    ],
)
def test_wrong_use_is_told(
    cluster_file: Path, options: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPUHUB_TOKEN", raising=False)
    result = CliRunner().invoke(app, ["provision", "--cluster-file", str(cluster_file), *options])
    assert result.exit_code == 2
    assert result.stderr.startswith("gpuhub scheduler: ")
    assert why in result.stderr


def test_missing_file_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["manifests", "--cluster-file", str(tmp_path / "none.toml")])
    assert result.exit_code == 2
    assert "none.toml: No such file" in result.stderr


def test_manifests_need_no_cluster(cluster_file: Path) -> None:
    result = CliRunner().invoke(app, ["manifests", "--cluster-file", str(cluster_file)])
    assert result.exit_code == 0
    kinds = [thing["kind"] for thing in json.loads(result.stdout)["items"]]
    assert kinds[:3] == ["Namespace", "ServiceAccount", "ServiceAccount"]
