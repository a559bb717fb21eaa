"""A trace as the hub can live through it: what `gpuhub replay` reads, with the hub's own names and limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from scheduler.replay.settings import DAY_S
from scheduler.replay.traces import HOUR_S, BadTrace, TraceJob
from scheduler.replay.traces import read_trace as read

LONGEST_H = 720
"""The longest limit that the hub takes."""
_SLUG = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")


def read_trace(path: Path) -> list[TraceJob]:
    """All jobs in order of submission, of organizations whose names the hub takes. Raises BadTrace."""
    jobs = read(path, longest_h=LONGEST_H)
    slugs = _slugs(path, {job.organization for job in jobs})
    return [_renamed(job, slugs[job.organization]) for job in jobs]


def window(jobs: Sequence[TraceJob], start_day: int, hours: float) -> list[TraceJob]:
    """The jobs submitted in `hours` hours from a day's beginning. Raises ValueError if there are none."""
    first_s = start_day * DAY_S
    found = [job for job in jobs if first_s <= job.submit_s < first_s + hours * HOUR_S]
    if not found:
        days = f"{jobs[0].submit_s // DAY_S} to {jobs[-1].submit_s // DAY_S}"
        raise ValueError(
            f"no job is submitted in {hours:g} h from day {start_day}; the trace has days {days}"
        )
    return found


def _slugs(path: Path, names: Iterable[str]) -> dict[str, str]:
    """What each organization is called on the hub; no two may become one."""
    taken: dict[str, str] = {}
    for name in sorted(names):
        slug = _slug(name)
        if slug in taken:
            raise BadTrace(
                str(path),
                None,
                f"organizations {taken[slug]!r} and {name!r} are both {slug!r} on the hub; rename one",
            )
        taken[slug] = name
    return {name: slug for slug, name in taken.items()}


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:36].rstrip("-")
    return slug if _SLUG.fullmatch(slug) else f"org-{slug or 'x'}"


def _renamed(job: TraceJob, slug: str) -> TraceJob:
    _, _, row = job.id.rpartition(":")
    return replace(job, organization=slug, id=f"{slug}:{row}")
