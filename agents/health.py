"""How healthy each GPU is, from what is read of it, by the rules of `health_rules`. Pure: no clock, no file.

- A sign makes the GPU as bad as its rule says, at once, and for a hold-down longer than it lasts.
- Time counts towards the hold-down only while the GPU is readable and was read all along: after a break, of the agent
  or of the driver, it begins anew. So an agent that starts without a memory never calls a GPU well too early.
- An event counts once, by its time; one older than the hold-down does not count any more.
- A state that lasts (a pending remap, a lost GPU) is told when it begins; it holds as long as it is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from agents import health_rules as rules
from agents.gpus.nvml.codes import RECOVERY_ACTIONS, XIDS, xid_class
from agents.health_rules import RULES, XID_RULES
from quota.schemas.gpus import GpuHealth


@dataclass(frozen=True, slots=True)
class Signs:
    """What one reading shows of a GPU; times in business ms, None where it is not known."""

    at_ms: int
    readable: bool = True
    others_readable: bool = False
    """Whether another GPU of the node is: if not, it is the driver that does not answer."""
    lost: bool = False
    xids: Mapping[int, int] = field(default_factory=dict)
    """When each XID came last."""
    recovery_action: int | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    ecc_uncorrected: int | None = None
    """Errors since the driver was loaded."""
    throttled_s: float | None = None
    """Seconds of being slowed down by the hardware so far."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a GPU must be well, and how far readings may lie apart without a break."""

    hold_down_ms: int = rules.HOLD_DOWN_MS
    gap_ms: int = 120_000


@dataclass(frozen=True, slots=True)
class Memory:
    """What has to be known of a GPU to judge the next reading.

    All down to `lasting` survive a restart of the agent; the others begin anew with it.
    """

    health: GpuHealth = GpuHealth.HEALTHY
    unhealthy_ms: int | None = None
    """Since when nothing unhealthy was seen, without a break; None: it is not unhealthy."""
    degraded_ms: int | None = None
    xids: Mapping[int, int] = field(default_factory=dict)
    """The time of each XID that was counted last."""
    ecc: int | None = None
    lasting: frozenset[str] = frozenset()
    """Rules whose state lasts, and was told."""
    seen_ms: int | None = None
    """When it was last read."""
    sound_ms: int | None = None
    """Since when it has been watched without a break and without anything unhealthy."""
    readable_ms: int | None = None
    throttle_mark: tuple[int, float] | None = None
    throttled: bool = False


@dataclass(frozen=True, slots=True)
class Sign:
    """A rule that applied: when at the earliest and latest, and whether it was told before."""

    rule: str
    since_ms: int
    at_ms: int
    xid: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one reading makes of a GPU."""

    memory: Memory
    signs: tuple[Sign, ...]
    """Those that are new: events, and states that begin."""
    changed: bool
    """Whether the health changed."""
    proven: bool
    """Whether it was watched for the whole hold-down without anything unhealthy."""


def judge(memory: Memory, signs: Signs, timing: Timing) -> Judgement:
    """Take one reading; readings come in order of time."""
    now_ms = signs.at_ms
    before_ms = now_ms if memory.seen_ms is None else memory.seen_ms
    broken = memory.seen_ms is None or now_ms - memory.seen_ms > timing.gap_ms
    memory = _with_throttling(memory, signs)
    events = tuple(_events(memory, signs, before_ms, timing))
    lasting = dict(_lasting(memory, signs, before_ms))
    seen = {sign.rule for sign in events} | lasting.keys()
    worst = {RULES[name].health for name in seen}
    blind = broken or not signs.readable
    bad = bool(worst & {GpuHealth.UNHEALTHY, GpuHealth.LOST})
    unhealthy_ms = _since(memory.unhealthy_ms, now_ms, timing, again=bad, blind=blind)
    degraded_ms = _since(memory.degraded_ms, now_ms, timing, again=GpuHealth.DEGRADED in worst, blind=blind)
    sound_ms = now_ms if bad or blind or memory.sound_ms is None else memory.sound_ms
    health = _health(signs.lost, unhealthy_ms, degraded_ms)
    after = replace(
        memory,
        health=health,
        unhealthy_ms=unhealthy_ms,
        degraded_ms=degraded_ms,
        xids={**memory.xids, **signs.xids},
        ecc=memory.ecc if signs.ecc_uncorrected is None else signs.ecc_uncorrected,
        seen_ms=now_ms,
        sound_ms=sound_ms,
        readable_ms=now_ms if signs.readable or memory.readable_ms is None else memory.readable_ms,
        lasting=frozenset(lasting),
    )
    begun = tuple(sign for name, sign in lasting.items() if name not in memory.lasting)
    return Judgement(
        after, events + begun, health is not memory.health, now_ms - sound_ms >= timing.hold_down_ms
    )


def _since(since_ms: int | None, now_ms: int, timing: Timing, *, again: bool, blind: bool) -> int | None:
    """Since when a state's signs are away; None once that is long enough."""
    if again or (blind and since_ms is not None):
        return now_ms
    if since_ms is None or now_ms - since_ms >= timing.hold_down_ms:
        return None
    return since_ms


def _health(lost: bool, unhealthy_ms: int | None, degraded_ms: int | None) -> GpuHealth:
    if lost:
        return GpuHealth.LOST
    if unhealthy_ms is not None:
        return GpuHealth.UNHEALTHY
    return GpuHealth.HEALTHY if degraded_ms is None else GpuHealth.DEGRADED


def _events(memory: Memory, signs: Signs, before_ms: int, timing: Timing) -> Iterator[Sign]:
    for xid, at_ms in sorted(signs.xids.items()):
        rule = XID_RULES.get(xid_class(xid))
        at_ms = min(at_ms, signs.at_ms)
        fresh = at_ms > memory.xids.get(xid, -1) and at_ms > signs.at_ms - timing.hold_down_ms
        if rule is not None and fresh:
            yield Sign(rule, at_ms, at_ms, xid, f"XID {xid}: {XIDS[xid].title}")
    grown = (signs.ecc_uncorrected or 0) - (memory.ecc or 0)
    if signs.ecc_uncorrected is not None and memory.ecc is not None and grown > 0:
        yield Sign(
            rules.ECC_UNCORRECTED, before_ms, signs.at_ms, detail=f"{grown} uncorrectable memory errors"
        )


def _lasting(memory: Memory, signs: Signs, before_ms: int) -> Iterator[tuple[str, Sign]]:
    """The states that are on, by rule."""
    action = signs.recovery_action or 0
    name = RECOVERY_ACTIONS[action] if action < len(RECOVERY_ACTIONS) else str(action)
    unread_ms = 0 if signs.readable or memory.readable_ms is None else signs.at_ms - memory.readable_ms
    for rule, on, detail in (
        (rules.LOST, signs.lost, "fell off the bus"),
        (rules.RECOVERY_ACTION, action != 0, f"recovery action {action}: {name}"),
        (rules.ROW_REMAP_FAILED, signs.row_remap_failed is True, "a row of memory could not be replaced"),
        (rules.ROW_REMAP_PENDING, signs.row_remap_pending is True, "a row of memory waits for a reset"),
        (rules.THROTTLED, memory.throttled, "slowed down for half of ten minutes"),
        (
            rules.UNREADABLE,
            not signs.lost and unread_ms >= rules.UNREADABLE_MS,
            f"not readable for {unread_ms} ms",
        ),
    ):
        if on:
            yield rule, Sign(rule, before_ms, signs.at_ms, detail=detail)
    # once it hangs it does, until it answers: others that fall silent, too, do not mend it
    known = signs.others_readable or rules.HANGS in memory.lasting
    if not signs.lost and known and unread_ms >= rules.HANGS_MS:
        since_ms = signs.at_ms - unread_ms
        yield (
            rules.HANGS,
            Sign(rules.HANGS, since_ms, signs.at_ms, detail=f"hangs: no answer for {unread_ms} ms"),
        )


def _with_throttling(memory: Memory, signs: Signs) -> Memory:
    """Judge each whole window of ten minutes by itself; a counter that went back begins a new one."""
    if signs.throttled_s is None:
        return memory
    mark = memory.throttle_mark
    if mark is None or signs.throttled_s < mark[1]:
        return replace(memory, throttle_mark=(signs.at_ms, signs.throttled_s))
    window_ms = signs.at_ms - mark[0]
    if window_ms < rules.THROTTLE_WINDOW_MS:
        return memory
    throttled = (signs.throttled_s - mark[1]) * 1000 >= rules.THROTTLE_SHARE * window_ms
    return replace(memory, throttle_mark=(signs.at_ms, signs.throttled_s), throttled=throttled)
