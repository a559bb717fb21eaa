"""Small clusters and objects for the simulator's unit tests."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.simulator import rules
from scheduler.simulator.behavior import PREFIX
from scheduler.simulator.events import Event, NodeAdded, ObjectCreated, PodSpec
from scheduler.simulator.fleet import read_fleet
from scheduler.simulator.model import Model
from scheduler.simulator.state import Pod

START_MS = 1_000_000
FLEET = ("n-[0-1]:h100=4", "n-2:a100=2,h100-1g.10gb=7")


def a_model(*specs: str) -> Model:
    """A cluster whose nodes were added at START_MS."""
    model = Model(past_kept_ms=6_000_000)
    for node, gpus in read_fleet(specs or FLEET).items():
        model.do(NodeAdded(START_MS, node, gpus))
    model.advance(START_MS)
    return model


def a_pod(index: int = 0, node: str = "n-0", gpu_class: str = "h100", count: int = 1) -> PodSpec:
    """A pod that wants GPUs."""
    return PodSpec(index, node, gpu_class, count)


def an_object(
    now_ms: int,
    job: str = "job-a",
    pods: Iterable[PodSpec] = (),
    attempt: int = 1,
    grace_s: int = 30,
    **words: str,
) -> ObjectCreated:
    """An object that runs 100 s and starts and stops without delay, unless `words` say otherwise."""
    words = {"duration_s": "100", "start_s": "0", "stop_s": "0"} | words
    return ObjectCreated(
        t=now_ms,
        name=f"{job}-{attempt}",
        job_id=job,
        attempt=attempt,
        suspend=False,
        abandoned=False,
        spec_hash="hash",
        walltime_ms=3_600_000,
        grace_ms=grace_s * 1000,
        pods=tuple(pods) or (a_pod(),),
        annotations=tuple((PREFIX + word, text) for word, text in words.items()),
    )


def create(model: Model, wanted: ObjectCreated) -> str:
    """Carry out a creation at its time and return the object's name."""
    model.advance(wanted.t)
    model.do(rules.create(model, wanted))
    model.advance(wanted.t)
    return wanted.name


def do(model: Model, event: Event | None) -> None:
    """Carry out what a rule answered, and what follows at the same moment."""
    if event is not None:
        model.do(event)
        model.advance(event.t)


def pod(model: Model, name: str, index: int = 0) -> Pod:
    """One pod's state."""
    return model.objects[name].pods[index]
