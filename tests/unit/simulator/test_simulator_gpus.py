"""GPUs of the simulated cluster that break and work again: what dies, what agents read, what the node offers."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter
from simulator_builders import START_MS, a_model, a_pod, an_object, create, do, pod

from agents.model import NodeReading
from scheduler.simulator import rules
from scheduler.simulator.events import EndReason, GpuBroke, event_of, line_of
from scheduler.simulator.model import Model
from scheduler.simulator.readings import Readings
from scheduler.simulator.rules import Refusal
from scheduler.simulator.view import nodes_view

T = START_MS + 5_000
WELL = {"xid": None, "lost": False, "recovery_action": 0, "withdrawn": False, "kills": True}


def a_break(model: Model, at_ms: int, gpu_uuid: str, **fields: object) -> None:
    model.advance(at_ms)
    do(model, rules.break_gpu(model, at_ms, "n-0", gpu_uuid, **(WELL | fields)))
    model.advance(at_ms)


def read(model: Model, now_ms: int) -> NodeReading:
    """As an agent reads it: every field by its type."""
    model.advance(now_ms)
    text = Readings(10_000, lambda moment_ms: moment_ms - START_MS).node_text(
        model.nodes["n-0"], START_MS, now_ms
    )
    return TypeAdapter(NodeReading).validate_json(text)


def total(model: Model) -> int:
    (node,) = [node for node in nodes_view(model, model.now_ms)["nodes"] if node["node"] == "n-0"]
    return node["classes"]["h100"]


def test_what_runs_on_a_gpu_that_breaks_dies_of_it():
    model = a_model()
    struck = create(model, an_object(T, pods=[a_pod(count=2)], duration_s="600"))
    other = create(model, an_object(T, "job-b", duration_s="600"))
    model.advance(T + 10_000)
    a_break(model, T + 20_000, pod(model, struck).gpu_uuids[1], xid=79)
    dead = pod(model, struck)
    assert (dead.ended_ms, dead.exit_code, dead.reason) == (T + 20_000, 139, EndReason.FAULT)
    assert pod(model, other).running


def test_agents_read_the_xid_with_its_time_also_after_the_gpu_was_mended():
    model = a_model()
    uuid = next(iter(model.nodes["n-0"].gpus))
    a_break(model, T, uuid, xid=79, recovery_action=1)
    a_break(model, T + 1_000, uuid, xid=79)
    gpu = read(model, T + 10_000).gpus[0]
    assert gpu.detail is not None
    assert [(xid.xid, xid.count, xid.last_wall_ms) for xid in gpu.detail.xids] == [(79, 2, 6_000)]
    assert gpu.detail.recovery_action == 1
    do(model, rules.mend_gpu(model, T + 20_000, "n-0", uuid))
    mended = read(model, T + 30_000).gpus[0].detail
    assert mended is not None
    assert (mended.recovery_action, len(mended.xids)) == (0, 1)
    assert rules.mend_gpu(model, T + 30_000, "n-0", uuid) is None


def test_a_lost_gpu_is_there_and_cannot_be_read():
    model = a_model()
    uuid = next(iter(model.nodes["n-0"].gpus))
    a_break(model, T, uuid, lost=True)
    lost, well = read(model, T + 10_000).gpus[:2]
    assert lost.detail is not None
    assert (lost.up, lost.detail.lost, lost.memory_used_bytes, lost.samples) == (False, True, None, [])
    assert well.detail is not None
    assert (well.up, well.detail.lost, well.detail.recovery_action) == (True, False, 0)


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_node_gives_its_bad_gpu_to_the_next_pod_unless_it_withdrew_it(withdrawn):
    model = a_model()
    uuid = next(iter(model.nodes["n-0"].gpus))
    a_break(model, T, uuid, xid=79, withdrawn=withdrawn)
    assert total(model) == (3 if withdrawn else 4)
    name = create(model, an_object(T, pods=[a_pod(count=3)]))
    model.advance(T + 10_000)
    assert (uuid in pod(model, name).gpu_uuids) == (not withdrawn)


def test_a_pod_waits_for_a_withdrawn_gpu_until_it_is_mended():
    model = a_model()
    uuid = next(iter(model.nodes["n-0"].gpus))
    a_break(model, T, uuid, withdrawn=True)
    name = create(model, an_object(T, pods=[a_pod(count=4)]))
    model.advance(T + 60_000)
    assert pod(model, name).pending
    do(model, rules.mend_gpu(model, T + 60_000, "n-0", uuid))
    model.advance(T + 60_000)
    assert pod(model, name).running


def test_what_happened_to_gpus_is_in_the_journal():
    model = a_model()
    uuid = next(iter(model.nodes["n-0"].gpus))
    event = rules.break_gpu(model, T, "n-0", uuid, **(WELL | {"xid": 48, "withdrawn": True}))
    line = line_of(event, 7)
    assert json.loads(line)["event"] == "gpu_broke"
    assert event_of(line) == (7, event)
    assert isinstance(event, GpuBroke)


def test_a_gpu_that_there_is_not_cannot_break():
    with pytest.raises(Refusal, match="no GPU"):
        rules.break_gpu(a_model(), T, "n-0", "GPU-none", **WELL)
