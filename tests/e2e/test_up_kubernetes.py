"""`gpuhub up --kubernetes` and `--kubeconfig`, as somebody calls them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_up_world import Up, clean_environment, gpuhub, until

from tests.kubernetes_plane import ControlPlane, a_plane

pytestmark = [pytest.mark.kubernetes, pytest.mark.e2e, pytest.mark.timeout(240)]


def test_check_settles_a_job_of_each_organization_on_a_real_kubernetes(tmp_path: Path) -> None:
    environment = clean_environment(TMPDIR=str(tmp_path))
    done = gpuhub("up", "--kubernetes", "--check", "--timeout", "100", environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check passed: a job of each organization was settled" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    made.close()


def mentioned(folder: Path) -> list[str]:
    """Command lines of processes that name this folder."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                lines.append(line)
    return lines


def test_killed_hub_takes_its_kubernetes_along_and_the_next_start_goes_on(up: Up) -> None:
    up.start("--kubernetes")
    done = up.run(
        *("submit", "long", "--walltime", "10m", "--annotation", "simulate.gpuhub/duration_s=25", "--", "x")
    )
    assert done.returncode == 0, done.stderr
    job = next(one for one in up.ask("jobs") if one["name"] == "long")
    until(lambda: up.ask("job", job["id"])["state"] == "running", "the job runs", 60)
    assert up.process is not None
    up.process.send_signal(signal.SIGKILL)
    up.process.wait()
    until(lambda: not mentioned(up.data_dir), "nothing is left")
    up.start("--kubernetes")
    until(lambda: up.ask("job", job["id"])["state"] == "ended", "the job ends", 90)
    ended = up.ask("job", job["id"])
    assert (ended["end_reason"], len(ended["attempts"])) == ("succeeded", 1)
    assert up.stop() == 0
    done = gpuhub("up", "--data-dir", str(up.data_dir))
    assert done.returncode == 2
    assert "was begun with another cluster (k8s)" in done.stderr


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with a_plane(tmp_path / "plane", "node-[0-1]:h100=8", "node-2:h100-1g.10gb=7") as plane:
        yield plane


def test_cluster_that_is_there_is_used_as_it_is(up: Up, plane: ControlPlane) -> None:
    up.start("--kubeconfig", str(plane.kubeconfig))
    until(lambda: len(up.ask("node", "list", who="operator")) == 3, "the nodes are known")
    assert up.ask("jobs", who="operator") == []
    done = up.run(
        *("submit", "short", "--gpus", "2", "--walltime", "5m", "--image", "none.invalid/x:1"),
        *("--", "true"),
    )
    assert done.returncode == 0, done.stderr
    (job,) = up.ask("jobs")
    until(lambda: up.ask("job", job["id"])["state"] == "running", "it runs", 60)
    (pod,) = plane.api.get("/api/v1/namespaces/hub-alpha-lab/pods")[1]["items"]
    assert pod["spec"]["containers"][0]["image"] == "none.invalid/x:1"
    assert up.run("cancel", job["id"]).returncode == 0
    until(lambda: up.ask("job", job["id"])["state"] == "ended", "it ends", 90)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--kubernetes", "--kubeconfig", "x"), "take one of them"),
        (("--kubernetes", "--trace", "synthetic"), "leave out --kubernetes"),
        (("--kubernetes", "--clock-speed", "2"), "the wall's speed"),
        (("--kubeconfig", "x", "--check"), "use it with --kubernetes"),
        (("--kubeconfig", "/nowhere/kubeconfig"), "/nowhere/kubeconfig"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    tmp_path: Path, options: tuple[str, ...], line: str
) -> None:
    data = () if "--check" in options else ("--data-dir", str(tmp_path / "data"))
    done = gpuhub("up", *options, *data)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
