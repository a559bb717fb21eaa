"""Booked room beside what else a job or its organization may say: several classes, where its pods lie, caps, parts."""

from scheduler.core.model import Capacity, Topology, WaitReason
from scheduler.core.policy import Entitlement, Policy
from tests.unit.core.core_world import (
    a_class,
    a_grant,
    a_job,
    a_node,
    an_organization,
    nodes_of,
    plan_of,
    started,
)
from tests.unit.core.test_core_booked_room import BOTH, a_booking

A100 = a_class("a100")


def test_a_job_that_accepts_several_classes_uses_booked_room_of_any_of_them() -> None:
    nodes = [a_node("n1"), a_node("n2", gpu_class="a100", used=8)]
    job = a_job("j", gpus=8, gpu_class="a100", fallbacks=("h100",))
    plan = plan_of(A100, *nodes, a_booking(0, 3), job)
    assert [(start.job_id, start.pods[0].gpu_class) for start in plan.starts] == [("j", "h100")]
    assert started(plan_of(A100, *nodes, a_booking(0, 3), a_job("j", gpus=8, gpu_class="a100"))) == []


def test_it_starts_once_although_both_its_classes_are_booked() -> None:
    nodes = [a_node("n1", more={"a100": Capacity(8, 0, 0)})]
    bookings = [a_booking(0, 3, id="b1"), a_booking(0, 3, id="b2", gpu_class="a100")]
    jobs = [a_job(f"j{n}", gpus=8, gpu_class="a100", fallbacks=("h100",)) for n in range(3)]
    plan = plan_of(A100, *nodes, *bookings, *jobs)
    assert started(plan) == ["j0", "j1"]
    assert {start.pods[0].gpu_class for start in plan.starts} == {"a100", "h100"}


def test_others_kept_out_of_one_class_start_on_another() -> None:
    nodes = [a_node("n1"), a_node("n2", gpu_class="a100")]
    job = a_job("j", "o2", gpus=8, hours=8, fallbacks=("a100",))
    plan = plan_of(A100, *nodes, a_booking(), job, organizations=BOTH)
    assert nodes_of(plan, "j") == ["n2"]
    full = a_node("n2", gpu_class="a100", used=8)
    told = plan_of(A100, nodes[0], full, a_booking(), job, organizations=BOTH).reasons["j"]
    assert (told.code, told.numbers["gpu_class"], told.numbers["other_classes"]) == (
        WaitReason.BOOKED,
        "h100",
        1,
    )


def test_pods_that_have_to_be_together_are_so_in_booked_room() -> None:
    racks = [a_node(f"n{n}", gpus=4, rack=f"r{n % 2}") for n in range(4)]
    booking = a_booking(0, 3, gpus=2, pods=8)
    job = a_job("j", gpus=4, pods=2, topology=Topology.SAME_RACK)
    plan = plan_of(*racks, booking, job)
    assert set(nodes_of(plan, "j")) in ({"n0", "n2"}, {"n1", "n3"})
    assert started(plan_of(*racks, booking, a_job("j", gpus=4, pods=3, topology=Topology.SAME_RACK))) == []
    assert started(plan_of(*racks, booking, a_job("j", gpus=2, pods=3, topology=Topology.SAME_NODE))) == []
    alone = plan_of(*racks, booking, a_job("j", gpus=2, pods=2, topology=Topology.SAME_NODE))
    assert len(set(nodes_of(alone, "j"))) == 1


def test_a_gang_of_others_finds_no_rack_beside_a_booking() -> None:
    racks = [a_node(f"n{n}", gpus=4, rack=f"r{n % 2}") for n in range(4)]
    rack = a_job("j", "o2", gpus=4, pods=2, hours=8, topology=Topology.SAME_RACK)
    one = a_booking(gpus=4, pods=1)
    assert len(set(nodes_of(plan_of(*racks, one, rack, organizations=BOTH), "j"))) == 2
    both = [a_booking(gpus=4, pods=3)]
    plan = plan_of(*racks, *both, rack, organizations=BOTH)
    assert started(plan) == []
    assert plan.reasons["j"].code is WaitReason.BOOKED


def test_its_organizations_cap_binds_its_own_jobs_too() -> None:
    jobs = [a_job(f"j{n}", gpus=4) for n in range(2)]
    world = [a_node(), a_booking(0, 3), *jobs]
    assert started(plan_of(*world)) == ["j0", "j1"]
    plan = plan_of(*world, an_organization(max_gpus=6))
    assert started(plan) == ["j0"]
    assert plan.reasons["j1"].code is WaitReason.ORGANIZATION_CAP


def test_a_reserved_part_of_the_pool_is_not_taken_from_booked_room() -> None:
    owed = Policy(entitlements=(Entitlement("poc", reserved_thousandths=900),))
    world = [a_node("n1"), a_node("n2"), owed, a_grant("o2", program="poc")]
    jobs = [a_job(f"j{n}", "o2", gpus=8, hours=8) for n in range(2)]
    assert started(plan_of(*world, *jobs, organizations=BOTH)) == ["j0", "j1"]
    plan = plan_of(*world, *jobs, a_booking(), organizations=BOTH)
    assert started(plan) == ["j0"]
    assert plan.booked[0].gpus_by_node.keys().isdisjoint(nodes_of(plan, "j0"))


def test_its_own_jobs_go_before_those_of_a_reserved_part() -> None:
    owed = Policy(entitlements=(Entitlement("poc", reserved_thousandths=900),))
    own, other = a_job("own", gpus=8), a_job("other", "o2", gpus=8, hours=8)
    world = [a_node(), owed, a_grant("o2", program="poc"), own, other]
    assert started(plan_of(*world, organizations=BOTH)) == ["other"]
    assert started(plan_of(*world, a_booking(0, 3), organizations=BOTH)) == ["own"]
