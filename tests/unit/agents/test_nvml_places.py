"""A GPU that does not say its name is never taken for one that does."""

from __future__ import annotations

from itertools import permutations

import pytest

from agents.gpus.nvml import wire
from agents.gpus.nvml.places import Places
from tests.unit.agents.nvml_world import a_gpu, a_mig_device

LOST = 15


def well(index: int, name: str) -> list[wire.Gpu]:
    return [a_gpu(index, gpu_uuid=name)]


def lost(index: int, remembered: str) -> list[wire.Gpu]:
    return [wire.Gpu(index, remembered, errors={"handle": LOST}, lost=True)]


def told(places: Places, *reads: list[wire.Gpu]) -> dict[str, bool]:
    """Lost or not by name, of one cycle; every name once."""
    gpus = places.named(reads)
    names = [gpu.gpu_uuid for gpu in gpus if gpu.gpu_uuid]
    assert len(names) == len(set(names)), names
    return {gpu.gpu_uuid: gpu.lost for gpu in gpus}


@pytest.fixture
def places() -> Places:
    made = Places()
    assert told(made, well(0, "A"), well(1, "B"), well(2, "C")) == dict.fromkeys("ABC", False)
    return made


def test_one_that_stays_where_it_was_is_told_by_its_place(places: Places) -> None:
    assert told(places, well(0, "A"), lost(1, "B"), well(2, "C")) == {"A": False, "B": True, "C": False}


def test_one_that_is_lost_when_places_change_is_told_by_who_is_missing(places: Places) -> None:
    for _ in range(3):
        # B moved to where A was; at B's place is A, which is lost
        assert told(places, well(0, "B"), lost(1, "B"), well(2, "C")) == {"A": True, "B": False, "C": False}
    # it is back, and another is lost at its new place
    assert told(places, lost(0, "B"), well(1, "A"), well(2, "C")) == {"A": False, "B": True, "C": False}


@pytest.mark.parametrize("order", list(permutations("ABC")))
@pytest.mark.parametrize("gone", ["A", "B", "C", "AB", "BC", "AC"])
def test_whoever_is_lost_wherever_they_are_now(places: Places, order: tuple[str, ...], gone: str) -> None:
    reads = [
        lost(index, "ABC"[index]) if name in gone else well(index, name) for index, name in enumerate(order)
    ]
    assert told(places, *reads) == {name: name in gone for name in "ABC"}


def test_two_places_that_remember_the_same_name_are_two(places: Places) -> None:
    told(places, well(0, "B"), lost(1, "B"), well(2, "C"))
    assert told(places, lost(0, "B"), lost(1, "B"), well(2, "C")) == {"A": True, "B": True, "C": False}


def test_where_it_is_not_certain_nobody_is_named(places: Places) -> None:
    assert told(places, well(0, "B"), lost(1, "B"), []) == {"B": False, "": True}, "C has not answered"
    assert told(places, well(0, "B"), lost(1, "B"), well(2, "D")) == {"B": False, "": True, "D": False}, (
        "A or C?"
    )
    fresh = Places()
    assert told(fresh, well(0, "B"), lost(1, "")) == {"B": False, "": True}, "it was never seen"


def test_another_error_than_loss_is_nobody_elses_either(places: Places) -> None:
    refused = [wire.Gpu(1, "B", errors={"uuid": 999})]
    gpus = places.named([well(0, "B"), refused, well(2, "C")])
    assert [(gpu.gpu_uuid, gpu.errors) for gpu in gpus] == [("B", {}), ("A", {"uuid": 999}), ("C", {})]


def test_parts_of_gpus_and_reads_that_came_late_are_passed_on(places: Places) -> None:
    part = a_mig_device("MIG-1")
    late = [*well(0, "A"), *well(0, "A")]
    assert places.named([late, [*well(1, "B"), part], well(2, "C")]) == [
        *late,
        *well(1, "B"),
        part,
        *well(2, "C"),
    ]
