"""Files of saved states: read as they were written, and refused with what is wrong and what would be right."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quota.schemas.scheduling import Waiting, WaitReason
from quota.schemas.snapshots import ShownQueue, fingerprint
from scheduler.snapshots.decision import decide_on
from scheduler.snapshots.explaining import explained
from scheduler.snapshots.file import BadSnapshot, looks_like_state, packed, read_state
from tests.unit.scheduler.saved_states import (
    HOUR_MS,
    NOW_MS,
    a_node,
    a_running,
    a_saved,
    a_small_hub,
    a_state,
    a_waiting,
)


def _queue() -> bytes:
    busy = a_running("job-run", "n0", 8)
    return a_saved(a_small_hub(*busy, a_waiting("job-1"), a_waiting("job-2", "beta", gpus_per_pod=8)))


@pytest.mark.parametrize("name", ["state.json", "state.json.gz"])
def test_a_file_reads_as_it_was_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(_queue(), path))
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
    assert looks_like_state(path)
    assert read_state(path) == a_state(*read_state(path).items)


def test_keys_in_another_order_and_spaces_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(json.loads(_queue()), indent=4, sort_keys=True))
    assert looks_like_state(path)
    assert len(read_state(path).items) == 12


def _edited(change: Callable[[dict[str, Any]], object], *, signed: bool = True) -> bytes:
    document = json.loads(_queue())
    change(document)
    if signed:
        document["sha256"] = fingerprint(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"organization,submit_s,gpus,run_s\n", "is not JSON, or is cut short"),
        (b"[" * 100_000, "is not JSON, or is cut short"),
        (b"[]", "is JSON, but no saved state"),
        (
            b'{"kind": "header", "format": "gpuhub-ledger/1"}',
            'does not say "format": "gpuhub-scheduler-state"',
        ),
        (_queue()[:-20], "is not JSON, or is cut short"),
        (gzip.compress(_queue())[:-20], "is cut short"),
        (gzip.compress(_queue())[:10] + b"noise" * 20, "cannot be unpacked"),
        (_edited(lambda d: d.update(version=2)), "has version 2, this program reads up to 1"),
        (_edited(lambda d: d.pop("version")), "has no version"),
        (_edited(lambda d: d["items"].pop(), signed=False), "was changed after it was saved"),
        (_edited(lambda d: d.update(taken_at="yesterday")), "taken_at: a time is RFC 3339"),
        (
            _edited(lambda d: d["items"][3]["node"].pop("schedulable")),
            "items.3.node.schedulable: Field required",
        ),
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(BadSnapshot) as refused:
        read_state(path)
    assert str(path) in str(refused.value)
    assert told in str(refused.value)


def test_a_file_that_is_not_there_is_no_state(tmp_path: Path) -> None:
    assert not looks_like_state(tmp_path / "missing.json")
    with pytest.raises(BadSnapshot, match=r"missing\.json cannot be read: No such file"):
        read_state(tmp_path / "missing.json")


def test_nothing_is_decided_without_a_policy() -> None:
    state = a_small_hub()
    with pytest.raises(BadSnapshot, match="no policy"):
        decide_on(a_state(*(item for item in state.items if item.kind != "policy")))


def test_a_job_whose_start_was_refused_waits_as_the_hub_showed() -> None:
    refused = Waiting(
        code=WaitReason.START_REFUSED, numbers={"code": "capacity_taken", "until_ms": NOW_MS + 5000}
    )
    shown = ShownQueue(cycle=4, at=NOW_MS, order=("job-1",), reasons={"job-1": refused})
    state = a_state(*a_small_hub(a_waiting("job-1"), a_waiting("job-2")).items, shown=shown)
    decision = decide_on(state)
    assert [start.job_id for start in decision.plan.starts] == ["job-2"]
    assert decision.waiting(state)["job-1"] == refused
    over = shown.model_copy(
        update={"reasons": {"job-1": refused.model_copy(update={"numbers": {"until_ms": NOW_MS - 1}})}}
    )
    again = decide_on(a_state(*state.items, shown=over))
    assert {start.job_id for start in again.plan.starts} == {"job-1", "job-2"}


def test_an_explanation_has_the_plan_the_room_and_what_the_hub_showed() -> None:
    busy = a_running("job-run", "n0", 5)
    waiting = [a_waiting("job-1", gpus_per_pod=2), a_waiting("job-2", "beta", gpus_per_pod=8)]
    reason = Waiting(code=WaitReason.NO_NODE_FITS, numbers={})
    shown = ShownQueue(cycle=7, at=NOW_MS - 9, order=("job-2",), reasons={"job-2": reason})
    hub = a_small_hub(*busy, *waiting, nodes=[a_node(used=5), a_node("n1", 4)])
    state = a_state(*hub.items, shown=shown)
    found = explained(state, decide_on(state))
    assert [(start.job_id, start.gpus_by_node, start.grant_id) for start in found.starts] == [
        ("job-1", {"n0": 2}, "g-alpha")
    ]
    (queued,) = found.queue
    assert (queued.place, queued.job_id, queued.code) == (1, "job-2", WaitReason.RESERVED)
    assert queued.why.startswith("needs 8 h100, ")
    assert [each.job_id for each in found.reservations] == ["job-2"]
    assert found.reservations[0].starts_at == NOW_MS + 2 * HOUR_MS
    (room,) = found.room
    assert (room.total, room.used, room.free, room.unavailable, room.empty_nodes) == (12, 5, 7, 0, 1)
    assert found.shown is not None
    assert (found.shown.cycle, found.shown.jobs, found.shown.other_order, found.shown.other_reason) == (
        7,
        1,
        0,
        1,
    )
    assert {grant.grant_id for grant in found.grants} == {"g-alpha", "g-beta"}
    assert all(grant.elapsed_thousandths == 500 for grant in found.grants)
