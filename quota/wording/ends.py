"""Why a job or an attempt ended, and why one is being stopped, as sentences; and where a job stands in the queue."""

from __future__ import annotations

from collections.abc import Mapping

from quota.i18n import Language
from quota.schemas.scheduling import EndReason, StopReason
from quota.wording.sentences import Say, Word, said
from quota.wording.values import duration_text, moment_text, ordinal_text

ENDS: Mapping[EndReason, Say] = {
    EndReason.SUCCEEDED: Say("all its pods ended without an error"),
    EndReason.FAILED: Say("one of its pods ended with an error"),
    EndReason.CANCELLED: Say("it was cancelled"),
    EndReason.TIME_LIMIT: Say("it reached its time limit"),
    EndReason.PREEMPTED: Say("it was stopped to make room for a job that goes first"),
    EndReason.NODE_FAILED: Say("a node or a GPU that it ran on failed"),
    EndReason.ABANDONED: Say("it did not start in time"),
    EndReason.GRANT_ENDED: Say("its grant ended"),
    EndReason.REQUEUED: Say("the operators sent it back into the queue"),
    EndReason.IDLE_RECLAIMED: Say("its GPUs did no work for too long"),
}

STOPS: Mapping[StopReason, Say] = {
    StopReason.CANCELLED: Say("is stopped at {stop_at_ms} because it was cancelled"),
    StopReason.TIME_LIMIT: Say("is stopped at {stop_at_ms} because its time limit is reached"),
    StopReason.PREEMPTED: Say(
        "is stopped at {stop_at_ms} to make room for a job that goes first, and then waits again"
    ),
    StopReason.ABANDONED: Say("is stopped at {stop_at_ms} because it did not start in time"),
    StopReason.GRANT_ENDED: Say("is stopped at {stop_at_ms} because its grant ended"),
    StopReason.REQUEUED: Say("is stopped at {stop_at_ms} because the operators sent it back into the queue"),
    StopReason.IDLE_RECLAIMED: Say("is stopped at {stop_at_ms} because its GPUs did no work for too long"),
    StopReason.GPU_FAILED: Say("is stopped at {stop_at_ms} because a GPU that it holds failed"),
}

PLACE = (
    Say("{position} of {queue} in the hub, {own_position} of {own_queue} of its organization"),
    Say("{position} in the hub"),
)


PAYER = Say(
    "{program} pays, and no grant of its organization; it may be stopped at any time, so that it has to be gone"
    " {leaves_ms} after it is told"
)


def payer_text(language: Language, program: str, leaves_ms: int) -> str:
    """Who pays for an opportunistic job, and how soon it has to be gone."""
    fields = {"program": Word(program), "leaves_ms": Word(duration_text(language, leaves_ms))}
    return said(language, ((PAYER,),), fields)


def end_text(language: Language, reason: EndReason) -> str:
    """Why it ended."""
    return said(language, ((ENDS[reason],),), {})


def stop_text(language: Language, reason: StopReason, stop_at_ms: int, now_ms: int) -> str:
    """Why and when an attempt is stopped; the notice that its people have."""
    fields = {"stop_at_ms": Word(moment_text(language, stop_at_ms, now_ms))}
    return said(language, ((STOPS[reason],),), fields)


def place_text(
    language: Language, position: int, queue: int | None, own_position: int | None, own_queue: int | None
) -> str:
    """`3rd of 41 in the hub, 2nd of 5 of its organization`."""
    fields = {"position": Word(ordinal_text(language, position))}
    if queue is not None:
        fields["queue"] = Word(f"{queue:,}")
    if own_position is not None and own_queue is not None:
        fields["own_position"] = Word(ordinal_text(language, own_position))
        fields["own_queue"] = Word(f"{own_queue:,}")
    return said(language, (PLACE,), fields)
