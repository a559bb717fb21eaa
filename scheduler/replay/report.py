"""Show figures: a text table with one column per policy, and the same as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from scheduler.replay.figures import CLASSES, SLOWDOWN_FLOOR_S, Figures
from scheduler.replay.settings import Settings

NAMED_NEVER = 10
"""Of the jobs that never started so many are named in the table, all of them in the JSON."""

Row = tuple[str, str, Callable[[Figures], float | int], str]
"""Section, label, the figure and its format."""


def text(found: Sequence[Figures], settings: Settings, trace: str) -> str:
    """The report for people."""
    lines = [*_head(found, settings, trace)]
    width = max(max(len(title), len(label) + 2) for title, label, _, _ in rows(found))
    columns = [max(12, len(each.policy) + 2) for each in found]
    names = "".join(f"{each.policy:>{column}}" for each, column in zip(found, columns, strict=True))
    section = ""
    for title, label, value, form in rows(found):
        if title != section:
            section = title
            lines += ["", f"{title:<{width}}{names}"]
        cells = "".join(
            f"{format(value(each), form):>{column}}" for each, column in zip(found, columns, strict=True)
        )
        lines.append(f"  {label:<{width - 2}}{cells}")
    for each in found:
        lines += _never(each)
    return "\n".join(lines) + "\n"


def as_json(found: Sequence[Figures], settings: Settings, trace: str) -> str:
    """Everything, and all names."""
    document = {
        "trace": trace,
        "settings": {**asdict(settings), "term_s": settings.term_s, "gpus": settings.gpus},
        "policies": [asdict(each) for each in found],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def as_csv(found: Sequence[Figures]) -> str:
    """One line per figure and policy: section,figure,policy,value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("section", "figure", "policy", "value"))
    for section, label, value, _ in rows(found):
        for each in found:
            writer.writerow((section, label, each.policy, repr(value(each))))
    return out.getvalue()


def rows(found: Sequence[Figures]) -> list[Row]:
    """The table's rows. The organizations are those of the first policy: all play the same jobs."""
    listed: list[Row] = [("Jobs", f"{name} GPUs", _jobs(name), "d") for name in CLASSES]
    for title, field in (
        ("Wait, mean h", "mean_h"),
        ("Wait, p95 h", "p95_h"),
        ("Wait, p99 h", "p99_h"),
        (f"Slowdown, mean (floor {SLOWDOWN_FLOOR_S // 60} min)", "slowdown_mean"),
        (f"Slowdown, p95 (floor {SLOWDOWN_FLOOR_S // 60} min)", "slowdown_p95"),
    ):
        listed += [(title, f"{name} GPUs", _wait(name, field), ".2f") for name in CLASSES]
    listed += [
        ("Delivered / min(grant, demand)", "worst", lambda f: f.worst_ratio, ".3f"),
        ("Delivered / min(grant, demand)", "best", lambda f: f.best_ratio, ".3f"),
        ("Delivered / min(grant, demand)", "Jain index", lambda f: f.jain, ".4f"),
    ]
    for id in found[0].deliveries if found else ():
        listed.append(("Delivered / min(grant, demand)", id, _ratio(id), ".3f"))
    listed.append(("Mean wait by organization, h", "worst", lambda f: f.worst_wait_h, ".2f"))
    for id in found[0].deliveries if found else ():
        listed.append(("Mean wait by organization, h", id, _organization_wait(id), ".2f"))
    return listed + _whole()


def _whole() -> list[Row]:
    title = "The whole"
    return [
        (title, "utilization of the term", lambda f: f.utilization, ".4f"),
        (title, "occupied, with losses", lambda f: f.occupied, ".4f"),
        (title, "preemptions", lambda f: f.preemptions, "d"),
        (title, "lost GPU hours", lambda f: f.lost, ".1f"),
        (title, "used GPU hours", lambda f: f.used, ".1f"),
        (title, "makespan h", lambda f: f.makespan_h, ".2f"),
        (title, "mean completion time h", lambda f: f.mean_jct_h, ".2f"),
        (title, "jobs ended", lambda f: f.ended, "d"),
        (title, "jobs started, not ended", lambda f: len(f.unended), "d"),
        (title, "jobs never started", lambda f: len(f.never_started), "d"),
        (title, "decisions", lambda f: f.cycles, "d"),
        (title, "wall s", lambda f: f.wall_s, ".1f"),
    ]


def _jobs(name: str) -> Callable[[Figures], int]:
    return lambda figures: figures.waits[name].jobs


def _wait(name: str, field: str) -> Callable[[Figures], float]:
    return lambda figures: float(getattr(figures.waits[name], field))


def _ratio(id: str) -> Callable[[Figures], float]:
    def value(figures: Figures) -> float:
        ratio = figures.deliveries[id].ratio
        return float("nan") if ratio is None else ratio

    return value


def _organization_wait(id: str) -> Callable[[Figures], float]:
    return lambda figures: figures.deliveries[id].mean_wait_h


def _head(found: Sequence[Figures], settings: Settings, trace: str) -> Iterable[str]:
    pool = (
        f"{settings.gpus} GPUs, counted only"
        if settings.nodes == 1
        else f"{settings.nodes} nodes x {settings.gpus_per_node} GPUs"
    )
    yield f"{trace}: {found[0].jobs if found else 0} jobs on {pool}"
    demand = sum(each.demand for each in found[0].deliveries.values()) if found else 0.0
    capacity = settings.gpus * settings.term_s / 3600
    yield (
        f"term {settings.term_s / 86_400:g} days, demand {demand:.0f} GPU hours = {demand / capacity:.1%} of its "
        f"capacity; {settings.ledger} ledger, load {settings.load:g}, "
        f"seed {'none' if settings.seed is None else settings.seed}"
    )
    if found and found[0].cut_jobs:
        yield f"{found[0].cut_jobs} jobs run into their limit; what they would run beyond it is not played"
    if found and found[0].not_submitted:
        yield f"{found[0].not_submitted} jobs of the trace would come after the end and are not played"


def _never(figures: Figures) -> Iterable[str]:
    never = figures.never_started
    if never:
        more = (
            f" and {len(never) - NAMED_NEVER} more (--json has them all)" if len(never) > NAMED_NEVER else ""
        )
        yield ""
        yield f"{figures.policy}: {len(never)} jobs never started and count as waiting to the end:"
        yield f"  {', '.join(never[:NAMED_NEVER])}{more}"
