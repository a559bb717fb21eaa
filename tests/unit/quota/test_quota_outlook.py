"""Which grant pays and when there is room: the pure part of a quote."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from quota.jobs.outlook import Ask, Occupied, Purse, Times, binding, judge, room_at_ms, size_band, start_by_ms
from quota.schemas.quotes import GrantVerdict
from quota.schemas.scheduling import WaitReason

ASK = Ask(pods=1, gpus_per_pod=2, walltime_ms=1000, cost_gpu_us=100)
PURSE = Purse("g", 0, 10_000, (500,), 500, None, None)


def _verdict(**fields: object) -> GrantVerdict:
    return judge(ASK, [replace(PURSE, **fields)], 100)[0].verdict  # type: ignore[arg-type]


def test_a_purse_pays_up_to_its_last_unit_and_moment() -> None:
    assert _verdict(rooms_gpu_us=(100,)) is GrantVerdict.CHOSEN
    assert _verdict(rooms_gpu_us=(99,)) is GrantVerdict.SHORT
    assert _verdict(rooms_gpu_us=(60, 60)) is GrantVerdict.SHORT
    assert _verdict(rooms_gpu_us=()) is GrantVerdict.NO_OPEN_PATH
    assert _verdict(ends_at_ms=1100) is GrantVerdict.CHOSEN
    assert _verdict(ends_at_ms=1099) is GrantVerdict.ENDS_FIRST
    assert _verdict(starts_at_ms=101) is GrantVerdict.NOT_STARTED
    assert _verdict(max_gpus=4, gpus_left=2) is GrantVerdict.CHOSEN
    assert _verdict(max_gpus=4, gpus_left=1) is GrantVerdict.CAPPED


def test_the_order_of_purses_does_not_matter() -> None:
    purses = [
        replace(PURSE, grant_id=f"g{number}", ends_at_ms=ends, rooms_gpu_us=(room,))
        for number, (ends, room) in enumerate(
            [(5000, 50), (5000, 300), (5000, 200), (6000, 100), (5000, 200)]
        )
    ]
    expected = judge(ASK, purses, 100)
    assert [one.purse.grant_id for one in expected] == ["g0", "g2", "g4", "g1", "g3"]
    assert [one.verdict.value for one in expected] == ["short", "chosen"] + ["could_pay"] * 3
    for seed in range(20):
        random.Random(seed).shuffle(purses)
        assert judge(ASK, purses, 100) == expected


def test_the_obstacle_nearest_to_paying_is_told() -> None:
    capped = replace(PURSE, grant_id="a", max_gpus=1, gpus_left=1)
    short, shorter = replace(PURSE, grant_id="b", rooms_gpu_us=(9,)), replace(PURSE, rooms_gpu_us=(3,))
    ends, coming = replace(PURSE, grant_id="d", ends_at_ms=200), replace(PURSE, starts_at_ms=500)
    steps = [capped, short, shorter, ends, coming]
    told = [binding(judge(ASK, steps[first:], 100)) for first in range(len(steps) + 1)]
    assert [found[0] for found in told if found] == [
        WaitReason.GRANT_CAP,
        WaitReason.GRANT_EXHAUSTED,
        WaitReason.GRANT_EXHAUSTED,
        WaitReason.GRANT_ENDS_FIRST,
        WaitReason.GRANT_NOT_STARTED,
        WaitReason.NO_GRANT,
    ]
    assert told[1] is not None
    assert told[1][1] is not None
    assert told[1][1].purse is short
    assert binding(judge(ASK, [*steps, PURSE], 100)) is None


def test_it_must_start_in_time_for_the_last_grant_that_could_pay() -> None:
    too_small = replace(PURSE, ends_at_ms=90_000, unused_gpu_us=99)
    assert start_by_ms(ASK, judge(ASK, [PURSE, too_small], 100)) == 9000
    assert start_by_ms(ASK, judge(ASK, [too_small], 100)) is None


def test_a_gang_needs_its_room_on_one_cluster() -> None:
    gang = Ask(pods=2, gpus_per_pod=2, walltime_ms=1, cost_gpu_us=1)
    free = {("a", "n0", None): 3, ("b", "n0", None): 3}
    assert room_at_ms(gang, free, (), 5) is None
    assert room_at_ms(gang, free | {("b", "n1", None): 2}, (), 5) == 5


def test_a_gang_that_must_share_a_rack_needs_its_room_in_one() -> None:
    gang = Ask(pods=2, gpus_per_pod=2, walltime_ms=1, cost_gpu_us=1, in_rack=True)
    free = {("a", "n0", "r1"): 2, ("a", "n1", "r2"): 2, ("a", "n2", None): 8}
    ends = [Occupied(("a", "n3", "r2"), 2, 40)]
    assert room_at_ms(gang, free, ends, 5) is None
    assert room_at_ms(gang, free | {("a", "n3", "r2"): 0}, ends, 5) == 40


def test_room_comes_with_the_first_end_that_completes_it() -> None:
    free = {("a", "n0", None): 0, ("a", "n1", None): -1}
    ends = [
        Occupied(("a", "n1", None), 2, 10),
        Occupied(("a", "n0", None), 1, 20),
        Occupied(("a", "shut", None), 8, 25),
        Occupied(("a", "n0", None), 1, 30),
        Occupied(("a", "n0", None), 8, None),
    ]
    assert room_at_ms(ASK, free, ends, 5) == 30
    assert room_at_ms(ASK, free, reversed(ends), 5) == 30
    assert room_at_ms(ASK, free, ends[:3], 5) is None


@pytest.mark.parametrize(
    ("fields", "until"),
    [
        ({}, 100 + 600 + 1000 + 30),
        ({"last_started_ms": 150}, 150 + 1000 + 30),
        ({"last_started_ms": 150, "stop_ends_ms": 400}, 400),
        ({"last_started_ms": 150, "stop_ends_ms": 9000}, 150 + 1000 + 30),
        ({"ended": True}, None),
        ({"stop_ends_ms": 299}, None),
    ],
)
def test_an_open_attempt_ends_at_its_earliest_limit(fields: dict[str, object], until: int | None) -> None:
    times = replace(Times(100, None, 1000, 30, None, False), **fields)  # type: ignore[arg-type]
    assert times.until_ms(start_limit_ms=600, now_ms=300) == until


def test_bands_of_sizes_cover_every_size_once() -> None:
    bands = {size_band(gpus) for gpus in range(1, 2000)}
    covered = [gpus for low, high in bands for gpus in range(low, high + 1)]
    assert len(covered) == len(set(covered))
    assert all(size_band(gpus)[0] <= gpus <= size_band(gpus)[1] for gpus in range(1, 2000))
    assert (size_band(1), size_band(2), size_band(3), size_band(8)) == ((1, 1), (2, 2), (3, 4), (5, 8))
