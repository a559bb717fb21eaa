"""The rules of a GPU's health, one by one, and what survives between readings."""

from __future__ import annotations

import pytest

from agents.gpus.nvml.codes import XIDS, XidClass
from agents.health import Judgement, Memory, Signs, Timing, judge
from agents.health_rules import RULES, XID_RULES
from quota.schemas.gpus import GpuHealth

S = 1000
MINUTE = 60 * S
TIMING = Timing(hold_down_ms=10 * MINUTE, gap_ms=2 * MINUTE)
WELL = Signs(0)


def _live(memory: Memory, *readings: Signs) -> list[Judgement]:
    found = []
    for signs in readings:
        found.append(judge(memory, signs, TIMING))
        memory = found[-1].memory
    return found


def _watched(memory: Memory, from_ms: int, until_ms: int, **signs: object) -> list[Judgement]:
    """Read every 10 s in [from, until)."""
    return _live(memory, *(Signs(at_ms, **signs) for at_ms in range(from_ms, until_ms, 10 * S)))  # type: ignore[arg-type]


@pytest.mark.parametrize("xid", sorted(XIDS))
def test_an_xid_counts_by_its_class(xid: int) -> None:
    expected = {
        XidClass.HARDWARE: GpuHealth.UNHEALTHY,
        XidClass.CONTAINED: GpuHealth.DEGRADED,
    }.get(XIDS[xid].xid_class, GpuHealth.HEALTHY)
    found = judge(judge(Memory(), WELL, TIMING).memory, Signs(10 * S, xids={xid: 7 * S}), TIMING)
    assert found.memory.health is expected
    assert [(sign.xid, sign.since_ms, sign.at_ms) for sign in found.signs] == (
        [] if expected is GpuHealth.HEALTHY else [(xid, 7 * S, 7 * S)]
    )


def test_what_programs_do_to_themselves_is_no_sign() -> None:
    crashes = {
        13: 5 * S,
        31: 5 * S,
        43: 5 * S,
        45: 6 * S,
        68: 6 * S,
        109: 6 * S,
        63: 6 * S,
        92: 6 * S,
        9999: 6 * S,
    }
    found = _live(Memory(), WELL, Signs(10 * S, xids=crashes))[-1]
    assert (found.memory.health, found.signs) == (GpuHealth.HEALTHY, ())


@pytest.mark.parametrize(
    ("signs", "health"),
    [
        ({"lost": True, "readable": False}, GpuHealth.LOST),
        ({"recovery_action": 1}, GpuHealth.UNHEALTHY),
        ({"recovery_action": 4}, GpuHealth.UNHEALTHY),
        ({"recovery_action": 99}, GpuHealth.UNHEALTHY),
        ({"row_remap_failed": True}, GpuHealth.UNHEALTHY),
        ({"row_remap_pending": True}, GpuHealth.DEGRADED),
        ({"recovery_action": 0, "row_remap_pending": False, "row_remap_failed": False}, GpuHealth.HEALTHY),
    ],
)
def test_a_lasting_sign_is_told_once_and_holds_as_long_as_it_is_seen(
    signs: dict[str, object], health: GpuHealth
) -> None:
    found = _live(Memory(), WELL, *(Signs(at * 10 * S, **signs) for at in range(1, 200)))  # type: ignore[arg-type]
    assert {each.memory.health for each in found[1:]} == {health}
    assert sum(len(each.signs) for each in found) == (0 if health is GpuHealth.HEALTHY else 1)


def test_memory_errors_count_when_they_grow_and_not_when_the_driver_is_loaded_anew() -> None:
    counted = _live(
        Memory(), *(Signs(at * S, ecc_uncorrected=errors) for at, errors in enumerate([3, 3, 5, 0, 0, 1]))
    )
    assert [[sign.detail for sign in each.signs] for each in counted] == [
        [], [], ["2 uncorrectable memory errors"], [], [], ["1 uncorrectable memory errors"],
    ]  # fmt: skip
    assert counted[2].signs[0].since_ms == 1 * S
    assert counted[-1].memory.health is GpuHealth.DEGRADED


def test_an_event_holds_for_the_hold_down_and_no_longer() -> None:
    struck = judge(judge(Memory(), WELL, TIMING).memory, Signs(10 * S, xids={79: 10 * S}), TIMING)
    later = _watched(struck.memory, 20 * S, 11 * MINUTE, xids={79: 10 * S})
    healths = {each.memory.seen_ms: each.memory.health for each in later}
    assert healths[10 * MINUTE] is GpuHealth.UNHEALTHY
    assert healths[10 * MINUTE + 10 * S] is GpuHealth.HEALTHY
    assert [sum(each.changed for each in later), sum(len(each.signs) for each in later)] == [1, 0]


def test_the_same_xid_again_begins_the_hold_down_anew() -> None:
    first = _live(Memory(), WELL, Signs(10 * S, xids={48: 10 * S}))[-1]
    second = _watched(first.memory, 20 * S, 9 * MINUTE, xids={48: 10 * S})[-1]
    third = judge(second.memory, Signs(9 * MINUTE, xids={48: 9 * MINUTE - S}), TIMING)
    assert [sign.xid for sign in third.signs] == [48]
    assert _watched(third.memory, 9 * MINUTE + 10 * S, 18 * MINUTE)[-1].memory.health is GpuHealth.UNHEALTHY
    assert _watched(third.memory, 9 * MINUTE + 10 * S, 20 * MINUTE)[-1].memory.health is GpuHealth.HEALTHY


def test_an_event_older_than_the_hold_down_is_history() -> None:
    found = judge(Memory(), Signs(20 * MINUTE, xids={79: 9 * MINUTE}), TIMING)
    assert (found.memory.health, found.signs) == (GpuHealth.HEALTHY, ())


def test_time_that_nobody_watched_does_not_heal() -> None:
    struck = _live(Memory(), WELL, Signs(10 * S, xids={79: 10 * S}))[-1]
    after_a_break = judge(struck.memory, Signs(60 * MINUTE, xids={79: 10 * S}), TIMING)
    assert after_a_break.memory.health is GpuHealth.UNHEALTHY
    healed = _watched(after_a_break.memory, 60 * MINUTE + 10 * S, 70 * MINUTE + 20 * S)
    assert [each.memory.seen_ms for each in healed if each.changed] == [70 * MINUTE]


def test_time_of_a_gpu_that_could_not_be_read_does_not_heal() -> None:
    struck = _live(Memory(), WELL, Signs(10 * S, xids={79: 10 * S}))[-1]
    blind = _watched(struck.memory, 20 * S, 9 * MINUTE, readable=False)[-1]
    assert _watched(blind.memory, 9 * MINUTE, 18 * MINUTE)[-1].memory.health is GpuHealth.UNHEALTHY


def test_a_gpu_that_came_back_is_unhealthy_until_the_hold_down_is_over() -> None:
    lost = _watched(Memory(), 0, 60 * S, lost=True, readable=False)[-1]
    back = _watched(lost.memory, 60 * S, 11 * MINUTE)
    assert lost.memory.health is GpuHealth.LOST
    assert [each.memory.health for each in back if each.changed] == [GpuHealth.UNHEALTHY, GpuHealth.HEALTHY]


def test_from_unhealthy_a_gpu_may_become_degraded() -> None:
    struck = _live(Memory(), WELL, Signs(10 * S, xids={95: 10 * S}, row_remap_pending=True))[-1]
    later = _watched(struck.memory, 20 * S, 12 * MINUTE, row_remap_pending=True)
    assert [each.memory.health for each in later if each.changed] == [GpuHealth.DEGRADED]


def test_nobody_is_proven_before_he_was_watched_for_the_hold_down() -> None:
    watched = _watched(Memory(), 0, 21 * MINUTE)
    assert next(each.memory.seen_ms for each in watched if each.proven) == 10 * MINUTE
    restarted = Memory(health=watched[-1].memory.health)
    assert not judge(restarted, Signs(21 * MINUTE), TIMING).proven


def test_a_gpu_that_is_not_read_for_long_is_degraded_but_not_out_of_use() -> None:
    blind = _watched(Memory(), 0, 3 * MINUTE, readable=False)
    assert [(each.memory.seen_ms, each.memory.health) for each in blind if each.changed] == [
        (2 * MINUTE, GpuHealth.DEGRADED)
    ]


def test_a_gpu_that_does_not_answer_while_others_do_hangs_after_ten_minutes() -> None:
    blind = _watched(Memory(), 0, 12 * MINUTE, readable=False, others_readable=True)
    assert [(each.memory.seen_ms, each.memory.health) for each in blind if each.changed] == [
        (2 * MINUTE, GpuHealth.DEGRADED),
        (10 * MINUTE, GpuHealth.UNHEALTHY),
    ]
    told = [(sign.rule, sign.since_ms, sign.at_ms) for each in blind for sign in each.signs]
    assert told[-1] == ("hangs", 0, 10 * MINUTE), "what ran there may have died since it was read last"
    later = _watched(blind[-1].memory, 12 * MINUTE, 30 * MINUTE, readable=False)
    assert [sign for each in later for sign in each.signs] == [], "told once, whatever the others do then"
    assert {each.memory.health for each in later} == {GpuHealth.UNHEALTHY}
    back = _watched(later[-1].memory, 30 * MINUTE, 45 * MINUTE)
    assert [each.memory.seen_ms for each in back if each.changed] == [39 * MINUTE + 50 * S]


def test_a_driver_that_answers_for_nobody_makes_no_gpu_hang() -> None:
    blind = _watched(Memory(), 0, 60 * MINUTE, readable=False)
    assert {each.memory.health for each in blind[12:]} == {GpuHealth.DEGRADED}
    # nor does a restart of the agent: it has watched the GPU only since then
    hung = _watched(Memory(lasting=frozenset({"hangs"})), 0, 5 * MINUTE, readable=False, others_readable=True)
    assert [sign.rule for each in hung for sign in each.signs] == ["unreadable"]


def test_throttling_is_judged_by_whole_windows() -> None:
    def slowed(share: float) -> list[GpuHealth]:
        readings = [Signs(at * 10 * S, throttled_s=at * 10 * share) for at in range(200)]
        return [each.memory.health for each in _live(Memory(), *readings)]

    assert set(slowed(0.49)) == {GpuHealth.HEALTHY}
    half = slowed(0.51)
    assert half.index(GpuHealth.DEGRADED) == 60
    assert set(half[60:]) == {GpuHealth.DEGRADED}


def test_every_rule_has_a_source_and_every_xid_rule_is_in_the_table() -> None:
    assert all(rule.source and rule.title for rule in RULES.values())
    assert set(XID_RULES.values()) <= RULES.keys()
    assert set(XID_RULES) == {XidClass.HARDWARE, XidClass.CONTAINED}
