"""What agents read of simulated nodes."""

from __future__ import annotations

import json

import pytest
from simulator_builders import START_MS, a_model, a_pod, an_object, create, do, pod

from scheduler.simulator import rules
from scheduler.simulator.readings import Readings

T = START_MS + 5_000


def read(model, after_ms, now_ms, node="n-0"):
    model.advance(now_ms)
    return json.loads(Readings(10_000).node_text(model.nodes[node], after_ms, now_ms))


def test_samples_are_the_means_of_their_periods():
    model = a_model()
    create(model, an_object(T, load="steady:0.5", duration_s="12"))
    answer = read(model, START_MS, START_MS + 35_000)
    assert answer["gpus"][0]["samples"] == [
        [START_MS + 10_000, 0.25],
        [START_MS + 20_000, 0.35],
        [START_MS + 30_000, 0.0],
    ]
    assert [gpu["samples"][0][1] for gpu in answer["gpus"][1:]] == [0.0, 0.0, 0.0]


def test_every_reader_gets_the_same_samples_however_often_it_asks():
    model = a_model()
    create(model, an_object(T, load="burst:17:0.3", duration_s="70"))
    create(model, an_object(T, "job-b", [a_pod(count=3)], load="ramp:0:1", duration_s="55"))
    pieces = {0: [], 1: []}
    for now_ms in range(START_MS, START_MS + 120_000, 7_000):
        for index, gpu in enumerate(read(model, max(START_MS, now_ms - 7_000), now_ms)["gpus"][:2]):
            pieces[index] += gpu["samples"]
    whole = read(model, START_MS, START_MS + 119_000)["gpus"]
    assert [pieces[0], pieces[1]] == [whole[0]["samples"], whole[1]["samples"]]


def test_workload_is_named_while_it_lasts_and_listed_afterwards():
    model = a_model()
    name = create(model, an_object(T, pods=[a_pod(count=2)], duration_s="30"))
    workload = {"job_id": "job-a", "attempt": 1, "pod_index": 0, "since_ms": T}
    now = read(model, START_MS, T + 10_000)
    assert [gpu["workload"] for gpu in now["gpus"]] == [workload, workload, None, None]
    assert now["past"] == []
    later = read(model, T + 10_000, T + 40_000)
    assert [gpu["workload"] for gpu in later["gpus"]] == [None] * 4
    assert later["past"] == [
        {"gpu_uuid": uuid} | workload | {"until_ms": T + 30_000} for uuid in pod(model, name).gpu_uuids
    ]
    assert read(model, T + 40_000, T + 50_000)["past"] == []


def test_at_most_600_samples_are_answered():
    model = a_model()
    samples = read(model, 0, START_MS + 100_000_000)["gpus"][0]["samples"]
    assert len(samples) == 600
    assert samples[-1][0] == START_MS + 100_000_000


def test_driver_starts_anew_with_every_boot():
    model = a_model()
    before = read(model, 0, T)
    do(model, rules.lose_node(model, T, "n-0", 0))
    do(model, rules.return_node(model, T + 20_000, "n-0"))
    after = read(model, 0, T + 50_000)
    assert before["boot_id"] != after["boot_id"]
    assert [at_ms for at_ms, _ in after["gpus"][0]["samples"]] == [
        START_MS + 30_000,
        START_MS + 40_000,
        START_MS + 50_000,
    ]


def test_fleet_answers_for_all_nodes_and_names_the_lost():
    model = a_model()
    do(model, rules.lose_node(model, T, "n-1", 0))
    readings = Readings(10_000)
    answer = json.loads(readings.fleet_text(list(model.nodes.values()), START_MS, T))
    assert answer["now_ms"] == T
    assert answer["nodes"][0] == json.loads(readings.node_text(model.nodes["n-0"], START_MS, T))
    assert answer["nodes"][1] == {"node": "n-1", "lost": True}


def test_busy_gpu_draws_more_power_and_memory():
    model = a_model()
    create(model, an_object(T, load="steady:1", duration_s="500"))
    busy, idle = read(model, 0, T + 100_000)["gpus"][:2]
    assert busy["power_watts"] == pytest.approx(700)
    assert idle["power_watts"] == pytest.approx(70)
    assert idle["memory_used_bytes"] == 0 < busy["memory_used_bytes"] <= busy["memory_total_bytes"]
    assert isinstance(busy["memory_used_bytes"], int)
