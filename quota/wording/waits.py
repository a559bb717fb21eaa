"""Why a job waits, as a sentence: for every `WaitReason` what is said of which of its numbers.

A new reason, or a new number of one, gets its line here and its Korean one in `quota/texts/ko/…/sentences.po`; the
tests fail until both are there. What a reader may not know is not among the numbers handed in: see `quota.jobs.views`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quota.i18n import Language
from quota.schemas.scheduling import Waiting, WaitReason
from quota.wording.problems import problem_text
from quota.wording.sentences import Clause, Say, Word, said
from quota.wording.values import duration_text, hours_text, moment_text, ordinal_text, thousandths_text


@dataclass(frozen=True, slots=True)
class Names:
    """What the ids among the numbers are called. An id that is not in it is shown itself."""

    organizations: Mapping[str, str] = field(default_factory=dict)
    grants: Mapping[str, str] = field(default_factory=dict)
    """The names of their programmes: a grant has none of its own."""
    gpu_classes: Mapping[str, str] = field(default_factory=dict)
    accounts: Mapping[str, str] = field(default_factory=dict)
    """Their kinds: `grant`, `share` or `tranche`."""
    programs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wording:
    """What is said of one reason."""

    numbers: frozenset[str]
    """Every number and name that may stand beside its code."""
    clauses: tuple[Clause, ...]


def _of(numbers: str, *clauses: Clause) -> Wording:
    return Wording(frozenset(numbers.split()), clauses)


_ROOM_BACK = (
    Say("{ending_job} should have ended by {room_due_ms} and leaves room for it when it does"),
    Say("room for it was due by {room_due_ms}"),
    Say("{ending_job} ends by {room_at_ms} and then leaves room for it, unless a job ahead takes that"),
    Say("there is room for it by {room_at_ms}, unless a job ahead takes that"),
)

_NEVER = (Say("so large a job never starts unless this limit is raised by {over_cap}"),)
_OTHER_CLASSES = (
    Say("neither does the other class that it accepts let it start", {"other_classes": "1"}),
    Say("neither does any of the {other_classes} other classes that it accepts let it start"),
)


def _of_class(numbers: str, *clauses: Clause) -> Wording:
    """What keeps a job from a GPU class: one that accepts several has it of the class that it prefers."""
    return _of(f"{numbers} other_classes", *clauses, _OTHER_CLASSES)


WAITS: Mapping[WaitReason, Wording] = {
    WaitReason.NEW: _of("", (Say("it has just arrived; the next scheduling cycle looks at it"),)),
    WaitReason.NO_FREE_GPU: _of_class(
        "gpu_class needed free room_at_ms ending_job",
        (
            Say("needs {needed} {gpu_class}, {free} free now"),
            Say("needs {needed} {gpu_class}, which are not free now"),
            Say("too few GPUs of its class are free now"),
        ),
        _ROOM_BACK,
    ),
    WaitReason.NO_NODE_FITS: _of_class(
        "gpu_class gpus_per_pod pods pods_fit within room_at_ms ending_job",
        (
            Say(
                "needs {one_pod_gpus} {gpu_class} on one node, for all its pods; no node has them free",
                {"within": "node"},
            ),
            Say(
                "needs {pods} pods of {gpus_per_pod} {gpu_class} in one rack; no rack holds more than {pods_fit} of"
                " them now",
                {"within": "rack"},
            ),
            Say("needs {one_pod_gpus} {gpu_class} on one node; what is free is scattered over several"),
            Say(
                "needs {pods} pods of {gpus_per_pod} {gpu_class}, each on one node; what is free is scattered and holds"
                " {pods_fit} of them"
            ),
            Say("enough GPUs are free, but not together on the nodes that it needs"),
        ),
        _ROOM_BACK,
    ),
    WaitReason.GRANT_EXHAUSTED: _of_class(
        "grant account needed_gpu_us left_gpu_us",
        (
            Say(
                "needs {needed_gpu_us} GPU hours; no tranche of the grant of {grant} is released",
                {"account": ""},
            ),
            Say(
                "needs {needed_gpu_us} GPU hours; the grant of {grant} has {left_gpu_us} left on the whole grant",
                {"account": "grant"},
            ),
            Say(
                "needs {needed_gpu_us} GPU hours; the grant of {grant} has {left_gpu_us} left in the organization's"
                " share",
                {"account": "share"},
            ),
            Say(
                "needs {needed_gpu_us} GPU hours; the grant of {grant} has {left_gpu_us} left in its released tranches",
                {"account": "tranche"},
            ),
            Say("needs {needed_gpu_us} GPU hours; the grant of {grant} has {left_gpu_us} left"),
            Say("needs {needed_gpu_us} GPU hours, more than the grant of {grant} has left"),
            Say("the grant has less GPU time left than the job could use"),
        ),
    ),
    WaitReason.GRANT_ENDS_FIRST: _of_class(
        "grant ends_at_ms walltime_ms",
        (
            Say("the grant of {grant} ends at {ends_at_ms}; a time limit of {walltime_ms} or less would fit"),
            Say("the grant of {grant} ends at {ends_at_ms}, before the job's time limit"),
            Say("the grant ends before the job's time limit"),
        ),
    ),
    WaitReason.GRANT_NOT_STARTED: _of_class(
        "grant starts_at_ms",
        (Say("the grant of {grant} starts at {starts_at_ms}"), Say("the grant has not started")),
    ),
    WaitReason.NO_GRANT: _of_class(
        "grant",
        (
            Say("the grant of {grant}, which it names, does not run or is not open to it"),
            Say("its organization has no running grant that could pay for it"),
        ),
    ),
    WaitReason.COOLDOWN: _of(
        "until_ms",
        (
            Say("pauses until {until_ms} because its last attempt did not work out"),
            Say("pauses because its last attempt did not work out"),
        ),
    ),
    WaitReason.CLUSTER_UNSEEN: _of_class(
        "cluster",
        (
            Say("cluster {cluster} could hold it and does not answer; nothing starts there until it does"),
            Say("the cluster that could hold it does not answer; nothing starts there until it does"),
        ),
    ),
    WaitReason.NODES_UNAVAILABLE: _of_class(
        "gpu_class gpus",
        (
            Say("no node offers {gpu_class}", {"gpus": "0"}),
            Say("needs {gpus} {gpu_class}; the nodes that could hold it take no jobs now"),
            Say("the nodes that could hold it take no jobs now"),
        ),
    ),
    WaitReason.ORGANIZATION_FROZEN: _of(
        "organization",
        (
            Say("{organization} is frozen: the operators let it start nothing"),
            Say("its organization is frozen: the operators let it start nothing"),
        ),
    ),
    WaitReason.ROOM_RESERVED: _of_class(
        "job",
        (
            Say("the room that is free is kept for {job}"),
            Say("the room that is free is kept for another job ahead of it"),
        ),
    ),
    WaitReason.RESERVED: _of(
        "starts_at_ms gpu_class needed free within",
        (
            Say("needs {needed} {gpu_class}, {free} free now"),
            Say("needs {needed} {gpu_class}, which are not free now"),
        ),
        (
            Say(
                "room on one node is kept for it from {starts_at_ms}, or sooner if others end sooner",
                {"within": "node"},
            ),
            Say(
                "room in one rack is kept for it from {starts_at_ms}, or sooner if others end sooner",
                {"within": "rack"},
            ),
            Say("room is kept for it from {starts_at_ms}, or sooner if others end sooner"),
            Say("room is kept for it"),
        ),
    ),
    WaitReason.BOOKED: _of_class(
        "gpu_class from_ms gpus",
        (
            Say("the room that would do is booked since {since_ms} ({gpus} {gpu_class})"),
            Say(
                "the room that would do is booked from {from_ms} on ({gpus} {gpu_class}); with a shorter time limit it"
                " may fit before"
            ),
            Say("the room that would do is booked in advance"),
        ),
    ),
    WaitReason.BEHIND_IN_ORDER: _of_class(
        "position organization job lag_thousandths gpu_class waiting",
        (
            Say("{waiting} waiting jobs for {gpu_class} may go first"),
            Say(
                "{job} of {organization} went first and took the room, as the {position} start of that cycle"
            ),
            Say("another job went first and took the room, as the {position} start of that cycle"),
            Say("another job goes first in the fair order and takes the room"),
        ),
        (
            Say("{organization} is {behind} of its grant's term behind pace"),
            Say("{organization} is {ahead} of its grant's term ahead of pace"),
            Say("{organization} is on pace", {"lag_thousandths": "0"}),
        ),
    ),
    WaitReason.START_REFUSED: _of(
        "code until_ms times",
        (
            Say("its start was refused for the {times} time ({code}); it is tried again at {until_ms}"),
            Say("its start was refused; it is tried again at {until_ms}"),
            Say("its start was refused"),
        ),
    ),
    WaitReason.PLACEMENT_PAUSED: _of_class(
        "what name",
        (
            Say("the operators let nothing start anywhere now", {"what": "hub"}),
            Say("the operators let nothing start on cluster {name} now", {"what": "cluster"}),
            Say("the operators let no job on {name} start now", {"what": "gpu_class"}),
            Say("the operators let nothing start now where it could run"),
        ),
    ),
    WaitReason.GRANT_CAP: _of_class(
        "grant cap in_use needed",
        (
            Say(
                "needs {needed} GPUs; the grant of {grant} has {in_use} of the {cap} in use that it may have at once"
            ),
            Say("needs {needed} GPUs, more than the {cap} at once of the grant of {grant} leave free"),
            Say("the grant already has as many GPUs in use as it may have at once"),
        ),
        _NEVER,
    ),
    WaitReason.ORGANIZATION_CAP: _of_class(
        "organization cap in_use needed",
        (
            Say(
                "needs {needed} GPUs; {organization} has {in_use} of the {cap} in use that it may have at once"
            ),
            Say("needs {needed} GPUs, more than its organization's limit of {cap} at once leaves free"),
            Say("its organization already has as many GPUs in use as it may have at once"),
        ),
        _NEVER,
    ),
    WaitReason.MAKING_ROOM: _of(
        "gpu_class needed",
        (
            Say("its {needed} {gpu_class} are being freed: opportunistic jobs are told to leave them"),
            Say("its GPUs are being freed: opportunistic jobs are told to leave them"),
        ),
    ),
    WaitReason.NO_IDLE_GPU: _of_class(
        "gpu_class needed idle",
        (
            Say(
                "needs {needed} {gpu_class} that nobody else could use; of such {idle} are idle now, scattered"
                " over nodes",
                {"enough": "yes"},
            ),
            Say("needs {needed} {gpu_class} that nobody else could use; of such {idle} are idle now"),
            Say("too few GPUs are idle now that nobody else could use"),
        ),
    ),
    WaitReason.OPPORTUNISTIC_OFF: _of(
        "program",
        (
            Say("{program} pays for no opportunistic jobs now"),
            Say("its programme pays for no opportunistic jobs now"),
        ),
    ),
    WaitReason.OPPORTUNISTIC_SPENT: _of_class(
        "program needed_gpu_us left_gpu_us",
        (
            Say("needs {needed_gpu_us} GPU hours; {program} has {left_gpu_us} left for opportunistic jobs"),
            Say("its programme has too few GPU hours left for opportunistic jobs"),
        ),
    ),
    WaitReason.OPPORTUNISTIC_CAP: _of_class(
        "program cap in_use needed",
        (
            Say(
                "needs {needed} GPUs; the opportunistic jobs of {program} have {in_use} of the {cap} in use that"
                " they may have at once"
            ),
            Say("the opportunistic jobs of its programme have as many GPUs in use as they may have at once"),
        ),
        _NEVER,
    ),
}

PARTS: Mapping[str, frozenset[str]] = {
    "room_at_ms": frozenset({"room_due_ms"}),
    "from_ms": frozenset({"since_ms"}),
    "gpus_per_pod": frozenset({"one_pod_gpus"}),
    "lag_thousandths": frozenset({"behind", "ahead"}),
    "cap": frozenset({"over_cap"}),
    "idle": frozenset({"enough"}),
}
"""Fields that are made of a number, besides the field of its own name."""


def waiting_text(language: Language, waiting: Waiting, names: Names, now_ms: int) -> str:
    """Why a job waits, in one or two clauses without a full stop; times in Seoul, relative to `now_ms`."""
    return said(language, WAITS[waiting.code].clauses, _fields(language, waiting.numbers, names, now_ms))


def _fields(
    language: Language, numbers: Mapping[str, int | str], names: Names, now_ms: int
) -> dict[str, Word]:
    known = {name: value for name, value in numbers.items() if _tells(name, value)}
    room_ms, cap, needed = known.get("room_at_ms"), known.get("cap"), known.get("needed")
    if isinstance(room_ms, int) and room_ms <= now_ms:
        known["room_due_ms"] = known.pop("room_at_ms")
    from_ms = known.get("from_ms")
    if isinstance(from_ms, int) and from_ms <= now_ms:
        known["since_ms"] = known.pop("from_ms")
    if known.get("pods") == 1 and "gpus_per_pod" in known:
        known["one_pod_gpus"] = known["gpus_per_pod"]
    if isinstance(cap, int) and isinstance(needed, int) and needed > cap:
        known["over_cap"] = needed - cap
    idle = known.get("idle")
    if isinstance(idle, int) and isinstance(needed, int) and idle >= needed:
        known["enough"] = "yes"
    lag = known.get("lag_thousandths")
    if isinstance(lag, int) and lag:
        known["behind" if lag > 0 else "ahead"] = abs(lag)
    return {
        name: Word(_value(language, name, value, numbers, names, now_ms)) for name, value in known.items()
    }


def _tells(name: str, value: int | str) -> bool:
    """Whether a value is one: no grant, or a walltime of nothing, is none."""
    return not (name == "grant" and value == "") and not (name == "walltime_ms" and value == 0)


def _value(
    language: Language,
    name: str,
    value: int | str,
    numbers: Mapping[str, int | str],
    names: Names,
    now_ms: int,
) -> str:
    if isinstance(value, str):
        return _name(language, name, value, numbers, names)
    if name.endswith("_gpu_us"):
        return hours_text(value, up=name.startswith("needed"))
    if name == "walltime_ms":
        return duration_text(language, value)
    if name.endswith("_ms"):
        return moment_text(language, value, now_ms)
    if name in ("behind", "ahead"):
        return thousandths_text(language, value)
    if name in ("position", "times"):
        return ordinal_text(language, value)
    return f"{value:,}"


def _name(language: Language, name: str, value: str, numbers: Mapping[str, int | str], names: Names) -> str:
    is_class = name == "gpu_class" or (name == "name" and numbers.get("what") == "gpu_class")
    if is_class:
        return names.gpu_classes.get(value, value)
    if name == "organization":
        return names.organizations.get(value, value)
    if name == "grant":
        return names.grants.get(value, value)
    if name == "account":
        return names.accounts.get(value, value)
    if name == "program":
        return names.programs.get(value, value)
    return problem_text(language, value) if name == "code" else value
