"""Read a trace of GPU jobs: who submitted what, when, how wide and how long it ran.

Understood are `.csv` files, directories of them and `.tar.gz` archives of them, with either of two headers:

- `organisation,submit_s,gpus,run_s[,limit_s]`: our own; times in seconds from the trace's beginning;
- `submission_time,duration,num_gpu` and any other columns: Microsoft ITP / ElasticFlow; each file is one
  organisation, named like the file.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HOUR_S = 3600
DAY_S = 24 * HOUR_S

LIMITS_H = (1, 4, 12, 24, 72, 168, 720)
"""A run time is rounded up to the next of these for its limit; 720 h is the longest limit the hub takes."""

_OWN = ("organisation", "submit_s", "gpus", "run_s")
_ITP = ("submission_time", "duration", "num_gpu")
_NUMBER = re.compile(r"\d{1,12}(\.\d{1,6})?")
_SLUG = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")


class TraceTrouble(Exception):
    """The trace is malformed: `FILE:LINE: reason`, or `FILE: reason` for the file as a whole."""

    def __init__(self, name: str, line: int | None, reason: str) -> None:
        super().__init__(f"{name}:{line}: {reason}" if line else f"{name}: {reason}")


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a trace; times in seconds from the trace's beginning."""

    organization: str
    key: str
    """Unique in its trace, and the same whenever it is read."""
    submit_s: int
    gpus: int
    run_s: int
    limit_s: int

    @property
    def gpu_s(self) -> int:
        """GPU-seconds of its run."""
        return self.gpus * self.run_s


def read_trace(path: Path) -> list[TraceJob]:
    """All jobs in order of submission. Raises TraceTrouble."""
    jobs = [job for name, text in _files(path) for job in _read_csv(name, text)]
    if not jobs:
        raise TraceTrouble(str(path), None, "holds no jobs")
    return sorted(jobs, key=lambda job: (job.submit_s, job.key))


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


def limit_s(run_s: int) -> int:
    """The limit a person would ask for: the run time rounded up to 1, 4, 12, 24, 72, 168 or 720 hours."""
    return next((hours * HOUR_S for hours in LIMITS_H if run_s <= hours * HOUR_S), LIMITS_H[-1] * HOUR_S)


def gang(gpus: int, gpus_per_node: int) -> tuple[int, int]:
    """Pods and GPUs per pod, exactly `gpus` in all, no pod wider than a node, as few pods as possible.

    An uneven width is not rounded: it is cut into more, narrower pods. 20 GPUs on nodes of 8 are 4 x 5,
    13 are 13 x 1.
    """
    pods = next(n for n in range(-(-gpus // gpus_per_node), gpus + 1) if gpus % n == 0)
    return pods, gpus // pods


def _files(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every CSV below a path."""
    try:
        if path.is_dir():
            found = sorted(path.glob("*.csv"))
            if not found:
                raise TraceTrouble(str(path), None, "holds no .csv file")
            for file in found:
                yield str(file), _text(str(file), file.read_bytes())
        elif tarfile.is_tarfile(path):
            yield from _members(path)
        else:
            yield str(path), _text(str(path), path.read_bytes())
    except (OSError, EOFError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TraceTrouble(str(path), None, reason) from error


def _members(path: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if m.isfile() and m.name.endswith(".csv")), key=lambda m: m.name)
        if not members:
            raise TraceTrouble(str(path), None, "holds no .csv file")
        for member in members:
            content = archive.extractfile(member)
            assert content is not None, "a regular file has content"
            name = f"{path}/{member.name}"
            yield name, _text(name, content.read())


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TraceTrouble(name, line, f"byte {content[error.start]:#04x} is not UTF-8 text") from error


def _read_csv(name: str, text: str) -> Iterator[TraceJob]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        own = all(column in header for column in _OWN)
        if not own and not all(column in header for column in _ITP):
            raise TraceTrouble(name, 1, f"the header needs {','.join(_OWN)} or {','.join(_ITP)}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise TraceTrouble(
                    name, reader.line_num, f"{len(cells)} cells where the header has {len(header)}"
                )
            row = _Row(name, reader.line_num, dict(zip(header, cells, strict=True)))
            yield row.own_job() if own else row.itp_job()
    except csv.Error as error:
        raise TraceTrouble(name, reader.line_num, str(error)) from error


@dataclass(frozen=True, slots=True)
class _Row:
    file: str
    line: int
    cells: dict[str, str]

    def own_job(self) -> TraceJob:
        """The job of a row with our own columns."""
        run_s = self._number("run_s", 0)
        asked_s = self._number("limit_s", 1) if self.cells.get("limit_s", "").strip() else limit_s(run_s)
        organization = self.cells["organisation"].strip()
        if not _SLUG.fullmatch(organization):
            raise self._trouble(
                f"organisation {organization!r} must be lower-case letters, digits and hyphens"
            )
        return self._job(organization, self._number("submit_s", 0), self._number("gpus", 1), run_s, asked_s)

    def itp_job(self) -> TraceJob:
        """The job of a row of Microsoft's traces."""
        run_s = self._number("duration", 0)
        submit_s, gpus = self._number("submission_time", 0), self._number("num_gpu", 1)
        return self._job(_organization_of(self.file), submit_s, gpus, run_s, limit_s(run_s))

    def _job(self, organization: str, submit_s: int, gpus: int, run_s: int, asked_s: int) -> TraceJob:
        if asked_s > LIMITS_H[-1] * HOUR_S:
            raise self._trouble(f"limit_s {asked_s} is over {LIMITS_H[-1]} h, the longest the hub takes")
        key = f"{Path(self.file).stem}:{self.line}"
        return TraceJob(organization, key, submit_s, gpus, run_s, asked_s)

    def _number(self, column: str, least: int) -> int:
        text = self.cells[column].strip()
        if not _NUMBER.fullmatch(text):
            raise self._trouble(f"{column} {text!r} is not a number of zero or more")
        if column in ("gpus", "num_gpu") and "." in text:
            raise self._trouble(f"{column} {text!r} is not a whole number")
        value = round(float(text))
        if value < least:
            raise self._trouble(f"{column} {text!r} must be at least {least}")
        if column in ("gpus", "num_gpu") and value > 100_000:
            raise self._trouble(f"{column} {text!r} is more than 100000")
        return value

    def _trouble(self, reason: str) -> TraceTrouble:
        return TraceTrouble(self.file, self.line, reason)


def _organization_of(file: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", Path(file).stem.lower()).strip("-")[:36]
    return slug if _SLUG.fullmatch(slug) else f"org-{slug or 'x'}"
