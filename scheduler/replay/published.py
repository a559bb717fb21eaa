"""What Muri's authors published for their Philly traces, to stand beside a replay of the same traces.

Source: Zhao, Liu, Peng, Zhang, Liu, Jin, "Multi-resource interleaving for deep learning training", SIGCOMM '22, figures
9 and 10; the seconds behind the figures stand in `simulator/draw_fig9-10.py` of github.com/Rivendile/Muri at commit
6662647. They are for 8 nodes of 8 GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler.replay.figures import Figures
from scheduler.replay.settings import Settings
from scheduler.replay.traces import HOUR_S, TraceJob

GPUS = 64
JOBS: Mapping[str, int] = {"trace1": 1494, "trace2": 5755, "trace3": 992, "trace4": 2638}
"""How many jobs each trace has. `trace1_pr` has the same ones, all submitted at once, and so on."""
TRACES = ("trace1", "trace1_pr", "trace2", "trace2_pr", "trace3", "trace3_pr", "trace4", "trace4_pr")

_JCT_S: Mapping[str, tuple[int, ...]] = {
    "SRTF": (1370603, 2303544, 2665607, 4079154, 193082, 844395, 581983, 1430856),
    "SRSF": (980141, 1801860, 2213950, 3384600, 185022, 798058, 487167, 1218502),
    "Tiresias-L": (3330371, 6921683, 7396369, 10555502, 347213, 2213110, 1319383, 2674023),
    "Themis": (1823179, 3314303, 4628172, 12529491, 397059, 1502768, 994971, 2271053),
    "AntMan": (5476391, 9808251, 15647815, 18163389, 305454, 2674393, 2212463, 4676093),
    "Muri-S": (867706, 1467192, 1342400, 2325962, 85503, 537777, 365468, 954225),
    "Muri-L": (1072010, 2141937, 2544642, 4152486, 88687, 921095, 429175, 1488034),
}
_MAKESPAN_S: Mapping[str, tuple[int, ...]] = {
    "SRTF": (26045466, 24513544, 48847005, 48697595, 8174135, 7261796, 14787991, 14272665),
    "SRSF": (26065759, 24272530, 49026465, 47972348, 8174135, 6907790, 14887909, 14426755),
    "Tiresias-L": (23556410, 21990478, 48117093, 47686998, 8174226, 6761641, 13073839, 12584604),
    "Themis": (24658269, 23369493, 47292466, 49310175, 8172105, 6760042, 13793094, 13471484),
    "AntMan": (21788669, 20285086, 48176959, 48327650, 8174140, 5799635, 12292271, 11793469),
    "Muri-S": (18446535, 16596421, 34163947, 32250093, 8174135, 4400675, 11029124, 9990193),
    "Muri-L": (18593246, 16639500, 32826803, 31782579, 8174135, 4403652, 10918239, 10104722),
}
SHARING = frozenset({"Muri-S", "Muri-L"})
"""These interleave jobs on one GPU."""

_CAVEATS = (
    "Theirs: SRTF, SRSF and Tiresias-L stop and resume any job whenever one comes or ends, for 4 to 46 s each;",
    "SRTF, SRSF and Muri-S know every run time; * interleaves jobs on one GPU. Ours: a job keeps its GPUs to its",
    "end unless another organization's gang preempts it; the core knows limits (run times rounded up to 1, 4, 12,",
    "24, 72, 168 h, longer ones as they are) and is to be fair to organizations, of which this trace names one.",
)


@dataclass(frozen=True, slots=True)
class Published:
    """One policy of the paper on one trace, in seconds."""

    policy: str
    jct_s: int
    """Average job completion time."""
    makespan_s: int


def published(trace: str) -> tuple[Published, ...]:
    """What was published for one of TRACES."""
    at = TRACES.index(trace)
    return tuple(Published(policy, jct_s[at], _MAKESPAN_S[policy][at]) for policy, jct_s in _JCT_S.items())


def name_of(path: Path, jobs: Sequence[TraceJob]) -> str | None:
    """Which of TRACES this is, by its name and its number of jobs; None if it is none of them."""
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    return name if JOBS.get(name.removesuffix("_pr")) == len(jobs) else None


def beside(trace: str, found: Sequence[Figures], settings: Settings) -> str:
    """The published figures below ours; where the replay was another one, that they cannot be compared."""
    return "\n".join(_lines(trace, found, settings)) + "\n"


def _lines(trace: str, found: Sequence[Figures], settings: Settings) -> Iterator[str]:
    yield ""
    yield f"{trace} beside what Muri's authors published (SIGCOMM '22, figures 9 and 10)"
    same = (settings.load, settings.seed, settings.until_days) == (1.0, None, None)
    if settings.gpus != GPUS or not same:
        yield f"  is for {GPUS} GPUs, every job at its own time: play it with --nodes 8 to compare"
        return
    yield f"  {'seconds':<24}{'mean completion':>16}{'makespan':>14}"
    for each in found:
        yield _row(each.policy, each.mean_jct_h * HOUR_S, each.makespan_h * HOUR_S)
    for row in published(trace):
        star = "*" if row.policy in SHARING else ""
        yield _row(f"{row.policy}{star}, published", row.jct_s, row.makespan_s)
    for line in _CAVEATS:
        yield f"  {line}"


def _row(policy: str, jct_s: float, makespan_s: float) -> str:
    return f"  {policy:<24}{jct_s:>16,.0f}{makespan_s:>14,.0f}"
