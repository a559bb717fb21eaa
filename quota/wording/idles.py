"""What the idle rules found of a job, as sentences: what will happen when, and what helps."""

from __future__ import annotations

from collections.abc import Mapping

from quota.i18n import Language
from quota.schemas.idle import IdleState, JobIdle
from quota.wording.sentences import Clause, Say, Word, said
from quota.wording.values import moment_text, thousandths_text

_IDLE = Say("its GPUs have done no work since {since}")
_STOPS = Say("if that stays so it is stopped at {stop_at}")
_HELPS = Say(
    "work on any of its GPUs, or an exemption by the operators, withdraws this; cancel it if it is done"
)
_EXEMPT = Say("an exemption keeps it running until {exempt_until}")

IDLES: Mapping[IdleState, tuple[Clause, ...]] = {
    IdleState.ACTIVE: (),
    IdleState.LOW_UTILIZATION: (
        (Say("its GPUs are used to {utilization}"),),
        (Say("fewer GPUs, or a part of one, might do"),),
    ),
    IdleState.PARTLY_IDLE: (
        (Say("{idle_gpus} of its {gpus} GPUs have done no work for long"),),
        (Say("see whether all of its processes run"),),
    ),
    IdleState.IDLE: ((_IDLE,), (_EXEMPT,)),
    IdleState.WARNED: ((Say("first warning"),), (_IDLE,), (_STOPS,), (_HELPS,)),
    IdleState.WARNED_TWICE: ((Say("last warning"),), (_IDLE,), (_STOPS,), (_HELPS,)),
    IdleState.STOPPING: ((_IDLE,), (Say("it is being stopped"),)),
    IdleState.UNOBSERVED: ((Say("what its GPUs do is not known at present"),),),
}


def idle_text(language: Language, idle: JobIdle, now_ms: int) -> str:
    """What was found and what follows; "" where there is nothing to say."""
    fields = {"idle_gpus": Word(f"{idle.idle_gpus:,}"), "gpus": Word(f"{idle.gpus:,}")}
    for name, at_ms in (
        ("since", idle.since),
        ("stop_at", idle.stop_at),
        ("exempt_until", idle.exempt_until),
    ):
        if at_ms is not None:
            fields[name] = Word(moment_text(language, at_ms, now_ms))
    if idle.utilization_thousandths is not None:
        fields["utilization"] = Word(thousandths_text(language, idle.utilization_thousandths))
    return said(language, IDLES[idle.state], fields)
