"""Whatever is asked of the cluster, its journal says everything, and so does every prefix of it."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_builders import START_MS, a_model, an_object

from scheduler.simulator import rules
from scheduler.simulator.events import (
    EndReason,
    Event,
    NodeLost,
    NodeNoticed,
    PodEnded,
    PodSpec,
    PodStarted,
    event_of,
    line_of,
)
from scheduler.simulator.model import Model
from scheduler.simulator.view import nodes_view, objects_view

PLACES = [("n-0", "h100", 4), ("n-1", "h100", 4), ("n-2", "a100", 2), ("n-2", "h100-1g.10gb", 7)]
NODES = ["n-0", "n-1", "n-2"]
LATER_MS = 10_000_000_000

jobs = st.sampled_from(["job-a", "job-b", "job-c", "job-d", "job-e"])
seconds = st.sampled_from(["0", "1", "2.5", "7", "30"])
places = st.sampled_from(PLACES).flatmap(
    lambda place: st.tuples(st.just(place[0]), st.just(place[1]), st.integers(1, place[2] + 1))
)
commands = st.one_of(
    st.tuples(
        st.just("create"),
        jobs,
        st.lists(places, min_size=1, max_size=3),
        seconds,
        seconds,
        seconds,
        st.sampled_from(["0", "0", "5"]),
    ),
    st.tuples(st.just("suspend"), jobs, st.booleans(), st.sampled_from([0, 2_000, 30_000])),
    st.tuples(st.just("delete"), jobs),
    st.tuples(st.just("fail"), jobs, st.integers(0, 2)),
    st.tuples(st.just("lose"), st.sampled_from(NODES), st.sampled_from([0, 5_000])),
    st.tuples(st.just("return"), st.sampled_from(NODES)),
    st.tuples(st.just("foreign"), st.sampled_from(PLACES), st.integers(0, 2)),
)
histories = st.lists(st.tuples(st.sampled_from([0, 1, 500, 2_500, 20_000]), commands), max_size=25)


def asked(model: Model, now_ms: int, command: tuple) -> Event | None:
    match command:
        case ("create", job, wanted, start_s, stop_s, duration_s, exit_code):
            pods = [PodSpec(index, *place) for index, place in enumerate(wanted)]
            words = {"start_s": start_s, "stop_s": stop_s, "duration_s": duration_s, "exit_code": exit_code}
            return rules.create(model, an_object(now_ms, job, pods, **words))
        case ("suspend", job, abandoned, grace_ms):
            return rules.suspend(model, now_ms, f"{job}-1", abandoned=abandoned, grace_ms=grace_ms)
        case ("delete", job):
            return rules.delete(model, now_ms, f"{job}-1")
        case ("fail", job, index):
            return rules.fail_pod(model, now_ms, f"{job}-1", index, 9)
        case ("lose", node, silent_ms):
            return rules.lose_node(model, now_ms, node, silent_ms)
        case ("return", node):
            return rules.return_node(model, now_ms, node)
        case ("foreign", (node, gpu_class, _), count):
            return rules.set_foreign(model, now_ms, node, gpu_class, count)
    raise AssertionError(command)


def live(history: list) -> Iterator[Model]:
    """A model after each step of the history."""
    model, now_ms = a_model(), START_MS
    yield model
    for pause_ms, command in history:
        now_ms += pause_ms
        model.advance(now_ms)
        try:
            event = asked(model, now_ms, command)
        except (rules.Refusal, rules.NameTaken):
            event = None
        if event is not None:
            model.do(event)
            model.advance(now_ms)
        yield model


def lived(history: list) -> tuple[Model, list[Event]]:
    """A model that went through the history, and all its events."""
    *_, model = live(history)
    return model, model.drain()


def replayed(events: list[Event]) -> Model:
    """A model made from what the journal would hold."""
    model = Model(past_kept_ms=6_000_000)
    lines = [line_of(event, n) for n, event in enumerate(events, 1)]
    model.replay(event_of(line)[1] for line in lines)
    return model


def state(model: Model) -> tuple:
    return model.version, model.nodes_version, model.nodes, list(model.objects.items()), model.deletions


def made_until(model: Model, now_ms: int) -> list[Event]:
    model.advance(now_ms)
    return model.drain()


def is_command(event: Event) -> bool:
    follows = isinstance(event, PodStarted | NodeNoticed) or (
        isinstance(event, PodEnded) and event.reason is not EndReason.FAULT
    )
    return not follows


@given(histories)
@settings(max_examples=300, deadline=None)
def test_replay_is_the_live_state_and_has_the_same_future(history):
    model, events = lived(history)
    again = replayed(events)
    assert state(again) == state(model)
    assert made_until(again, LATER_MS) == made_until(model, LATER_MS)
    assert state(again) == state(model)


@given(histories, st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_what_a_torn_journal_lost_after_its_last_command_happens_again(history, where):
    model, events = lived(history)
    kept = 3 + round(where * (len(events) - 3))
    next_command = next((n for n in range(kept, len(events)) if is_command(events[n])), len(events))
    until_ms = events[next_command].t if next_command < len(events) else model.now_ms
    assert made_until(replayed(events[:kept]), until_ms) == events[kept:next_command]


def everything(model: Model) -> dict[str, dict]:
    objects = objects_view(model, 0, 0)["objects"]
    return {thing["name"]: {key: thing[key] for key in thing if key != "version"} for thing in objects}


def lasting(model: Model) -> list:
    """What is said of nodes, without the time at which it is said."""
    return [
        node | {"last_seen_ms": node["ready"] or node["last_seen_ms"]}
        for node in nodes_view(model, 0)["nodes"]
    ]


@given(histories)
@settings(max_examples=300, deadline=None)
def test_listing_since_a_version_brings_a_reader_up_to_date(history):
    known: dict[str, dict] = {}
    version = nodes_version = 0
    nodes: list = []
    for model in live(history):
        changes = objects_view(model, version, model.now_ms)
        if changes["complete"]:
            known.clear()
        known |= {
            thing["name"]: {key: thing[key] for key in thing if key != "version"}
            for thing in changes["objects"]
        }
        for name in changes["gone"]:
            known.pop(name, None)
        assert known == everything(model)
        if changes["nodes_version"] != nodes_version:
            nodes = lasting(model)
        assert nodes == lasting(model)
        version, nodes_version = changes["version"], changes["nodes_version"]


@given(histories)
@settings(max_examples=300, deadline=None)
def test_every_history_obeys_the_cluster_s_laws(history):
    model, events = lived(history)
    events += made_until(model, LATER_MS)
    times = [event.t for event in events]
    assert times == sorted(times)
    on_gpu: dict[str, tuple] = {}
    lost: set[str] = set()
    begun: set[tuple] = set()
    for event in events:
        match event:
            case NodeLost(node=node):
                lost.add(node)
            case PodStarted(name=name, pod_index=index, gpu_uuids=uuids, node=node):
                assert event.job_id in name
                assert len(set(uuids)) == len(uuids)
                assert not set(uuids) & set(on_gpu), "two pods on one GPU"
                on_gpu |= {uuid: (name, index) for uuid in uuids}
                begun.add((name, index))
            case PodEnded(name=name, pod_index=index, reason=reason, node=node):
                assert (name, index) in begun, "an end without a start, or a second end"
                begun.remove((name, index))
                assert reason is not EndReason.NODE_LOST or node in lost
                on_gpu = {uuid: who for uuid, who in on_gpu.items() if who != (name, index)}
    assert not begun, "everything that starts ends"
    assert all(gpu.current is None for node in model.nodes.values() for gpu in node.gpus.values())
