"""Booked room from quota's feed to the cluster and back to quota, across a scheduler's death."""

from __future__ import annotations

from quota.schemas.scheduling import BookedRoom, JobState, WaitReason
from tests.unit.scheduler.quota_objects import a_booking, a_grant, a_path, an_organization
from tests.unit.scheduler.scheduler_world import World

HOUR_MS = 3_600_000
MINUTE_MS = 60_000


def a_world_with_a_class(in_ms: int) -> tuple[World, int]:
    """Alpha has booked a node of the two for two hours; beta may pay for whatever it asks for. And when it begins."""
    world = World()
    world.cluster.run_ms = 10**12
    now_ms = world.time.now_ms
    beta = a_grant(now_ms, id="g2", organization_id="beta", paths=(a_path("beta", "b1"),))
    starts_at = now_ms + in_ms
    booking = a_booking("class-1", starts_at, starts_at + 2 * HOUR_MS)
    world.quota.put(
        ("organization", "beta", an_organization("beta", now_ms)),
        ("grant", "g2", beta),
        ("booking", "class-1", booking),
    )
    world.boot()
    world.rounds(4)
    return world, starts_at


def room_of(world: World) -> BookedRoom:
    (room,) = world.quota.booked()
    return room


def nodes_of(world: World, job_id: str) -> set[str]:
    attempt = world.quota.attempt(f"{job_id}-1")
    return set() if attempt is None else {pod.node for pod in attempt.pods}


def until(world: World, at_ms: int) -> None:
    """Time passes, in steps that no lease outlives, and then some rounds."""
    while world.time.now_ms < at_ms:
        world.round(min(5_000, at_ms - world.time.now_ms))
    world.rounds(12)


def test_room_is_kept_from_others_told_to_quota_and_given_to_its_own() -> None:
    world, starts_at = a_world_with_a_class(30 * MINUTE_MS)
    world.quota.submit("long-0", organization_id="beta", gpus_per_pod=8, walltime_ms=8 * HOUR_MS)
    world.quota.submit("long-1", organization_id="beta", gpus_per_pod=8, walltime_ms=8 * HOUR_MS)
    world.rounds(20)
    room = room_of(world)
    assert (room.booking_id, room.cluster, room.short_gpus) == ("class-1", "sim", 0)
    assert nodes_of(world, "long-0") | set(room.gpus_by_node) == {"n0", "n1"}
    told = {job: why for document in world.quota.rankings for job, why in document.reasons.items()}
    assert told["long-1"].code is WaitReason.BOOKED
    assert told["long-1"].numbers == {"gpu_class": "h100", "from_ms": starts_at, "gpus": 8}
    world.quota.submit("seat", organization_id="alpha", gpus_per_pod=4, walltime_ms=HOUR_MS)
    world.rounds(8)
    assert nodes_of(world, "seat") == set(), "it is not its time yet"
    until(world, starts_at)
    assert nodes_of(world, "seat") == set(room.gpus_by_node)
    assert room_of(world).used
    waiting = world.quota.job("long-1")
    assert waiting is not None
    assert waiting.state is JobState.QUEUED


def test_the_next_scheduler_keeps_the_room_where_it_is() -> None:
    world, _ = a_world_with_a_class(60 * MINUTE_MS)
    world.rounds(8)
    room = room_of(world)
    moved = room.model_copy(update={"gpus_by_node": {"n1": 8} if "n0" in room.gpus_by_node else {"n0": 8}})
    world.quota.rankings[-1] = world.quota.rankings[-1].model_copy(update={"booked": (moved,)})
    world.time.now_ms += 60_000
    world.boot()
    world.rounds(20)
    assert room_of(world) == moved


def test_released_room_stays_released_whoever_leads() -> None:
    world, starts_at = a_world_with_a_class(0)
    world.quota.submit("long-0", organization_id="beta", gpus_per_pod=8, walltime_ms=8 * HOUR_MS)
    world.quota.submit("long-1", organization_id="beta", gpus_per_pod=8, walltime_ms=8 * HOUR_MS)
    until(world, starts_at + 14 * MINUTE_MS)
    assert not room_of(world).released
    until(world, starts_at + 15 * MINUTE_MS)
    assert room_of(world).released
    assert nodes_of(world, "long-0") | nodes_of(world, "long-1") == {"n0", "n1"}
    world.time.now_ms += 60_000
    world.boot()
    world.rounds(20)
    assert room_of(world) == BookedRoom(booking_id="class-1", cluster="sim", gpus_by_node={}, released=True)


def test_a_cancelled_booking_keeps_nothing() -> None:
    world, _ = a_world_with_a_class(30 * MINUTE_MS)
    world.quota.submit("gang", organization_id="beta", gpus_per_pod=8, pods=2, walltime_ms=8 * HOUR_MS)
    world.rounds(12)
    assert nodes_of(world, "gang") == set()
    world.quota.put(("booking", "class-1", None))
    world.rounds(12)
    assert nodes_of(world, "gang") == {"n0", "n1"}
    assert world.quota.booked() == ()
