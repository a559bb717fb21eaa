"""`gpuhub scheduler explain`, `gpuhub whatif` and `gpuhub replay` on files: what is typed, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy import replay, snapshots, whatif
from quota.schemas.what_if import WhatIfReply
from scheduler.snapshots.file import packed
from tests.unit.scheduler.saved_states import a_node, a_running, a_saved, a_small_hub, a_waiting

HOUR_MS = 3_600_000


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A full node of 8 for two hours more, a free one of 4; two jobs of 8 and one of 2 wait."""
    waiting = [a_waiting("job-a", gpus_per_pod=8), a_waiting("job-b", "beta", gpus_per_pod=8)]
    nodes = [a_node(used=8), a_node("n1", 4)]
    hub = a_small_hub(
        *a_running("job-run", "n0", 8), *waiting, a_waiting("job-c", "beta", gpus_per_pod=2), nodes=nodes
    )
    path = tmp_path / "state.json.gz"
    path.write_bytes(packed(a_saved(hub), path))
    return path


def _whatif(*words: object) -> Result:
    return CliRunner().invoke(whatif.app, [str(word) for word in words])


def _explain(*words: object) -> Result:
    return CliRunner().invoke(snapshots.app, ["explain", *(str(word) for word in words)])


def _replay(*words: object) -> Result:
    return CliRunner().invoke(replay.app, [str(word) for word in words])


def _lines(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()]


def test_an_explanation_names_queue_start_room_and_grants(state: Path) -> None:
    lines = _lines(_explain(state))
    assert ["1", "job-b", "beta", "8", "h100", "1h", "reserved:"] in [line[:7] for line in lines]
    assert ["job-c", "beta", "g-beta", "sim", "h100", "n1:", "2", "2.00"] in lines
    assert ["sim", "h100", "12", "8", "0", "4", "0", "1"] in lines
    assert ["g-alpha", "alpha", "365d", "21h", "100,000.00", "0", "32.00", "0.0%", "50.0%", "1"] in lines


def test_one_job_and_few_lines(state: Path) -> None:
    one = _explain(state, "--job", "job-c").stdout
    assert "job-c" in one
    assert "job-a" not in one
    few = _explain(state, "--most", "1").stdout
    assert "and 1 more; --most 0 shows all" in few
    running = _explain(state, "--job", "job-run")
    assert running.exit_code == 2
    assert "does not wait" in running.stderr


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("organization,submit_s,gpus,run_s\n")
    for result in (_explain(path), _whatif(path, "--policy", "gpuhub")):
        assert result.exit_code == 2
        assert result.stderr.startswith(f"gpuhub: {path} is not JSON")


def test_a_what_if_shows_both_and_the_difference(state: Path) -> None:
    lines = _lines(_whatif(state, "--nodes", "h100=+1", "--horizon", "10h"))
    assert lines[0] == ["1", "nodes", "with", "8", "h100", "more", "in", "cluster", "sim"]
    # one of the two at once, the other when it has ended: one, one and two hours
    assert ["all", "3", "3", *["2h", "40m", "->", "1h", "20m", "(-1h", "20m)"]] in [
        line[:10] for line in lines
    ]
    assert not any(line[:1] == ["32+"] for line in lines)


def test_the_json_is_the_services_answer(state: Path) -> None:
    done = _whatif(
        state, "--set", "grant/g-beta/max_gpus=none", "--horizon", "90m", "--runs", "0.25", "--json"
    )
    reply = WhatIfReply.model_validate_json(done.stdout)
    assert (reply.until - reply.taken_at, reply.runs_thousandths) == (2 * HOUR_MS, 250)
    assert reply.changed_to == ("grant g-beta: max_gpus none -> none",)
    assert reply.difference.all_jobs.mean_wait_ms == 0


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("grant/g-beta/gpu_hours=200000", "grant g-beta: gpu_hours 100000 -> 200000"),
        ("grant/g-beta/ends_at=2027-06-01T00:00:00Z", "-> 2027-06-01T00:00:00.000Z"),
        ("class/h100/rate_thousandths=900", "gpu_class h100: rate_thousandths 1000 -> 900"),
        ("cluster/sim/paused=true", "cluster sim: paused False -> True"),
        ("organization/beta/frozen=true", "organization beta: frozen False -> True"),
        ("hub/paused=true", "hub: paused False -> True"),
        ("fair-share/lane=off", "fair_share.lane on -> off"),
        ("fair-share/preemption.notice_ms=900000", "fair_share.preemption.notice_ms 600000 -> 900000"),
        ("fair-share/organization_weights.beta=2000", "fair_share.organization_weights.beta 1000 -> 2000"),
        (
            "fair-share/programs.p1.reserved_thousandths=250",
            "fair_share.programs.p1.reserved_thousandths 0 -> 250",
        ),
    ],
)
def test_everything_that_can_be_set(state: Path, typed: str, told: str) -> None:
    done = _whatif(state, "--set", typed)
    assert done.exit_code == 0, done.output
    assert told in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "say what would be otherwise: --set, --policy, --nodes or --changes"),
        (("--set", "x"), "--set x: this is not TARGET=VALUE with one of these targets: grant/ID/gpu_hours"),
        (("--set", "grant/g-beta/colour=1"), "--set grant/g-beta/colour=1: this is not TARGET=VALUE"),
        (("--set", "grant/g-beta/gpu_hours=much"), "gpu_hours=much: gpu_hours: GPU hours are a decimal"),
        (
            ("--set", "grant/g-7/gpu_hours=1"),
            "gpu_hours=1: id: the state has no grant g-7; there are g-alpha",
        ),
        (("--set", "fair-share/luck=1"), "--set fair-share/luck=1: there is no 'luck'; there are ranking"),
        (
            ("--set", "fair-share/programs.luck.weight_thousandths=2000"),
            "2000: changes.programs.luck: no grant of the state is of programme luck; there are grants of p1",
        ),
        (
            ("--set", "fair-share/organization_weights.luck=2000"),
            "the state has no organization luck; there are alpha, beta",
        ),
        (("--set", "fair-share/lane.gpus=0"), "lane.gpus=0: changes.lane.gpus: Input should be greater than"),
        (("--policy", "luck"), "--policy luck: preset: there is no policy luck; there are fifo-skip"),
        (("--nodes", "h100=4"), "--nodes h100=4: this is not CLASS=+N, CLASS=+NxGPUS or CLASS=-N"),
        (("--nodes", "h100=-0"), "--nodes h100=-0: change must be more or less than 0"),
        (("--policy", "gpuhub", "--horizon", "2y"), "--horizon: '2y' is not a duration"),
        (("--policy", "gpuhub", "--horizon", "900d"), "--horizon: 900d is more than 366 days"),
    ],
)
def test_what_cannot_be_asked_says_what_would_be_right(
    state: Path, words: tuple[str, ...], told: str
) -> None:
    refused = _whatif(state, *words)
    assert refused.exit_code == 2
    assert told in refused.stderr


def test_changes_come_from_a_file_too(state: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes.toml"
    changes.write_text(
        '[[changes]]\nkind = "grant"\nid = "g-beta"\nmax_gpus = 2\n\n'
        '[[changes]]\nkind = "jobs"\norganization_id = "alpha"\ngpu_class = "h100"\nwalltime_s = 60\ncount = 3\n'
    )
    done = _whatif(state, "--changes", changes)
    assert done.stdout.splitlines()[:2] == [
        "grant g-beta: max_gpus none -> 2",
        "3 jobs of alpha more, each 1 x 1 h100 for 60 s",
    ]
    as_json = tmp_path / "changes.json"
    as_json.write_text(json.dumps({"changes": [{"kind": "hub", "paused": True}]}))
    assert _whatif(state, "--changes", as_json).stdout.startswith("hub: paused False -> True")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("c.toml", "changes = ", "c.toml is not TOML"),
        ("c.json", "{", "c.json is not JSON"),
        ("c.toml", "kind = 'hub'", "holds a list `changes` and nothing else"),
        ("c.json", '{"changes": [{"kind": "hub"}]}', "changes.0: paused: Field required"),
        ("c.json", '{"changes": [{"kind": "luck"}]}', "changes.0: Input tag 'luck'"),
    ],
)
def test_a_wrong_file_of_changes_is_refused(
    state: Path, tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    refused = _whatif(state, "--changes", tmp_path / name)
    assert refused.exit_code == 2
    assert told in refused.stderr


def test_a_saved_state_is_replayed_under_several_policies(state: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = _replay("--json", out, state, "--policy", "hub,fifo-skip", "--most", "2")
    lines = _lines(done)
    assert ["all", "GPUs", "3", "of", "3", "3", "of", "3"] in lines
    assert "what starts when under hub, the first 2 of 3" in done.stdout
    policies = json.loads(out.read_text())["policies"]
    assert [each["policy"] for each in policies] == ["hub", "fifo-skip"]
    taken_at_ms = json.loads(out.read_text())["taken_at_ms"]
    starts = {job["job_id"]: job["start_ms"] - taken_at_ms for job in policies[0]["jobs"]}
    assert starts["job-c"] == 0
    assert sorted(starts.values()) == [0, 2 * HOUR_MS, 3 * HOUR_MS]
    assert {each["until_ms"] - taken_at_ms for each in policies} == {4 * HOUR_MS}


def test_what_never_starts_is_counted_and_named(tmp_path: Path) -> None:
    hub = a_small_hub(a_waiting("job-a"), a_waiting("job-x", gpus_per_pod=16))
    path = tmp_path / "state.json"
    path.write_bytes(a_saved(hub))
    done = _replay(path)
    assert "1 of 2 jobs never start" in done.stdout
    assert ["job-x", "alpha", "16", "-", "never", "-"] in _lines(done)


def test_a_replayed_state_knows_no_trace_options_and_the_other_way_round(state: Path, tmp_path: Path) -> None:
    assert "No such option: --gpus" in _replay(state, "--gpus", "8").stderr
    assert "there is no 'luck'; there are hub, fifo-skip" in _replay(state, "--policy", "luck").stderr
    trace = tmp_path / "day.csv"
    trace.write_text("organization,submit_s,gpus,run_s\nalpha,0,1,60\n")
    done = _replay(trace, "--gpus", "4", "--json", state)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{trace}: 1 jobs on 4 GPUs")
