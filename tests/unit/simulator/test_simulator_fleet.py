"""Texts that name nodes, and the devices they have."""

from __future__ import annotations

import pytest

from scheduler.simulator.fleet import DEFAULT_NODES, GIB, hardware, read_fleet, read_racks


def test_default_fleet_has_four_nodes_and_one_cut_into_slices():
    fleet = read_fleet(DEFAULT_NODES)
    classes = {node: {gpu.gpu_class for gpu in gpus} for node, gpus in fleet.items()}
    assert {node: len(gpus) for node, gpus in fleet.items()} == {
        "sim-0": 8,
        "sim-1": 8,
        "sim-2": 8,
        "sim-3": 8,
        "sim-4": 28,
    }
    assert (classes["sim-1"], classes["sim-2"], classes["sim-4"]) == ({"h100"}, {"a100"}, {"h100-1g.10gb"})
    assert all(gpu.gpu_uuid.startswith("MIG-") for gpu in fleet["sim-4"])
    assert all(gpu.gpu_uuid.startswith("GPU-") for gpu in fleet["sim-0"])


def test_gpu_ids_are_unique_and_always_the_same():
    once, again = (read_fleet(["n-[0-124]:h100=8"]) for _ in range(2))
    assert once == again
    assert len({gpu.gpu_uuid for gpus in once.values() for gpu in gpus}) == 1000


def test_range_keeps_leading_zeros():
    assert list(read_fleet(["rack-[08-10].b:l40s=1"])) == ["rack-08.b", "rack-09.b", "rack-10.b"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("n-0", "is not NODES.@RACK.:CLASS=COUNT"),
        ("n-0:h100", "is not CLASS=COUNT"),
        ("n-0:h100=0", "is not CLASS=COUNT"),
        ("n-0:h100=4,h100=4", "named twice"),
        ("n-[3-1]:h100=4", "backwards"),
        ("N_0:h100=4", "no node name"),
    ],
)
def test_unreadable_fleet_is_refused(spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_fleet([spec])


def test_a_rack_is_named_behind_its_nodes():
    specs = ["n-[0-1]@r1:h100=4", "n-2@Rack_B.2:h100=4", "n-3:h100=4"]
    assert list(read_fleet(specs)) == ["n-0", "n-1", "n-2", "n-3"]
    assert read_racks(specs) == {"n-0": "r1", "n-1": "r1", "n-2": "Rack_B.2"}


@pytest.mark.parametrize("rack", ["", "-b", "b/2", "b" * 64])
def test_what_is_no_racks_name_is_refused(rack):
    with pytest.raises(ValueError, match="no rack's name"):
        read_racks([f"n-0@{rack}:h100=4"])


def test_node_named_twice_is_refused():
    with pytest.raises(ValueError, match="'n-1' is named twice"):
        read_fleet(["n-[0-1]:h100=4", "n-1:a100=4"])


def test_slice_has_its_part_of_the_whole():
    part, whole = hardware("h100-1g.10gb"), hardware("h100")
    assert part.model == f"{whole.model} MIG 1g.10gb"
    assert part.memory_total_bytes == 10 * GIB
    assert part.full_watts == pytest.approx(whole.full_watts / 7)
