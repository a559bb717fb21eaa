"""Read a trace of GPU jobs: who submitted what, when, how wide, how long it ran and how long it was allowed to.

Understood are, by their content:

- `itp`: Microsoft ITP (ElasticFlow). `raw-traces.tar.gz`, a directory that holds it, or a directory of its CSV
  files; columns `submission_time`, `duration` in seconds and `num_gpu`. Each file is one organization.
- `muri`: a Philly trace of Muri, `trace*.csv[.gz]`; columns `submit_time`, `duration` in milliseconds and
  `num_gpu`. It names nobody, so all jobs are one organization's.
- `csv`: columns `organization` (or `organisation`), `submit_s`, `gpus`, `run_s` and, if there is one, `limit_s`.
- `openb`: Alibaba's nodes and pods, a directory; it is packed, not replayed, so `read_trace` refuses it.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

HOUR_S = 3600

LIMITS_H = (1, 4, 12, 24, 72, 168)
"""Where a trace names no limits, a run time is rounded up to the next of these; a longer one is its own limit."""

RAW = "raw-traces.tar.gz"
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?")
_MOST_GPUS = 1_000_000
_MOST_S = 10**10


class Kind(StrEnum):
    """How a trace is written."""

    ITP = "itp"
    MURI = "muri"
    CSV = "csv"
    OPENB = "openb"


_COLUMNS = {
    Kind.ITP: ("submission_time", "duration", "num_gpu"),
    Kind.MURI: ("submit_time", "duration", "num_gpu"),
    Kind.CSV: ("organization", "submit_s", "gpus", "run_s"),
}


class BadTrace(Exception):
    """The trace is malformed: `FILE:LINE: FIELD: what is wrong; what would be right`, as far as there are such."""

    def __init__(self, file: str, line: int | None, wrong: str) -> None:
        super().__init__(f"{file}:{line}: {wrong}" if line else f"{file}: {wrong}")


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a trace; whole seconds from the trace's beginning."""

    id: str
    """`ORGANIZATION:ROW`, unique in its trace. Sorted by (submit_s, id) the rows of a file keep their order."""
    organization: str
    submit_s: int
    gpus: int
    run_s: int
    limit_s: int

    @property
    def gpu_s(self) -> int:
        """GPU-seconds of its run."""
        return self.gpus * self.run_s


def recognize(path: Path) -> Kind:
    """The kind of the trace at `path`. Raises BadTrace when it is none of them."""
    if _is_openb(path):
        return Kind.OPENB
    name, header = _first_header(path)
    for kind, columns in _COLUMNS.items():
        if all(column in header for column in columns):
            return kind
    ways = "; or ".join(f"{kind}: {','.join(columns)}" for kind, columns in _COLUMNS.items())
    raise BadTrace(
        name, 1, f"header: {','.join(header)!r} is of no known kind; it needs the columns of {ways}"
    )


def read_trace(path: Path, kind: Kind | None = None, *, longest_h: int | None = None) -> list[TraceJob]:
    """All jobs in order of submission. `kind` overrides what the content looks like. Raises BadTrace.

    `longest_h` is the longest limit that a job may have: a longer run gets this one, a trace that names a longer one is
    refused.
    """
    kind = kind or recognize(path)
    if kind is Kind.OPENB:
        raise BadTrace(
            str(path), None, "an openb trace is packed, not replayed; this reader takes the others"
        )
    files = list(_files(path))
    if kind is Kind.MURI and len(files) > 1:
        raise BadTrace(str(path), None, f"holds {len(files)} traces; name one of them, as in {files[0][0]}")
    jobs: list[TraceJob] = []
    rows = 0
    for name, content in files:
        text = _text(name, content)
        jobs += _read_csv(_File(name, longest_h, rows), text, kind)
        if kind is Kind.CSV:  # of the others each file is an organization of its own
            rows += text.count("\n") + 1
    if not jobs:
        raise BadTrace(str(path), None, "holds no jobs; at least one row has to follow the header")
    return sorted(jobs, key=lambda job: (job.submit_s, job.id))


def limit_of(run_s: int, longest_h: int | None = None) -> int:
    """The limit a person would have asked for (source: facts/scheduling.md 2.7)."""
    hours = next((hours for hours in LIMITS_H if run_s <= hours * HOUR_S), longest_h)
    return run_s if hours is None else hours * HOUR_S


def _is_openb(path: Path) -> bool:
    return path.is_dir() and any(
        next(path.glob(f"{folder}openb_{what}_list*.csv*"), None)
        for folder in ("", "csv/")
        for what in ("pod", "node")
    )


def _first_header(path: Path) -> tuple[str, list[str]]:
    for name, content in _files(path):
        return name, _header(next(csv.reader(io.StringIO(_text(name, content), newline="")), []))
    raise AssertionError("there is a file, or _files raises")


def _header(cells: Sequence[str]) -> list[str]:
    spelled = {"organisation": "organization"}  # as `gpuhub up --trace` writes it
    return [spelled.get(cell.strip(), cell.strip()) for cell in cells]


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every CSV below a path. Raises BadTrace."""
    try:
        if path.is_dir() and (path / RAW).is_file():
            path = path / RAW
        if path.is_dir():
            found = sorted((*path.glob("*.csv"), *path.glob("*.csv.gz")))
            if not found:
                raise BadTrace(str(path), None, f"holds no trace; there should be {RAW}, *.csv or *.csv.gz")
            for file in found:
                yield str(file), _unzipped(file.read_bytes())
        elif tarfile.is_tarfile(path):
            yield from _members(path)
        else:
            yield str(path), _unzipped(path.read_bytes())
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadTrace(str(path), None, f"cannot be read: {reason}") from error


def _unzipped(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if m.isfile() and m.name.endswith(".csv")), key=lambda m: m.name)
        if not members:
            raise BadTrace(
                str(path), None, "the archive holds no .csv file; each should be one organization's"
            )
        for member in members:
            content = archive.extractfile(member)
            assert content is not None, "a regular file has content"
            yield f"{path}/{member.name}", content.read()


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadTrace(
            name, line, f"byte {content[error.start]:#04x} is not text; a trace is UTF-8"
        ) from error


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    longest_h: int | None
    rows_before: int
    """Of the files read before it."""


def _read_csv(file: _File, text: str, kind: Kind) -> Iterator[TraceJob]:
    name = file.name
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = _header(next(reader, []))
        missing = [column for column in _COLUMNS[kind] if column not in header]
        if missing:
            raise BadTrace(
                name, 1, f"header: has no {missing[0]!r}; a {kind} trace needs {','.join(_COLUMNS[kind])}"
            )
        twice = [column for column in header if header.count(column) > 1]
        if twice:
            raise BadTrace(name, 1, f"header: {twice[0]!r} stands there twice; name each column once")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise BadTrace(
                    name,
                    reader.line_num,
                    f"{len(cells)} cells; the header has {len(header)}, so give as many",
                )
            yield _Row(file, reader.line_num, dict(zip(header, cells, strict=True))).job(kind)
    except csv.Error as error:
        raise BadTrace(name, reader.line_num, f"{error}; quotes have to be closed") from error


@dataclass(frozen=True, slots=True)
class _Row:
    file: _File
    line: int
    cells: dict[str, str]

    def job(self, kind: Kind) -> TraceJob:
        """The job of this row."""
        match kind:
            case Kind.ITP:
                return self._job(self._stem(), "submission_time", "num_gpu", "duration", 1)
            case Kind.MURI:
                return self._job(self._stem(), "submit_time", "num_gpu", "duration", 1000)
            case _:
                return self._job(self._organization(), "submit_s", "gpus", "run_s", 1)

    def _job(self, organization: str, submit: str, gpus: str, run: str, per_s: int) -> TraceJob:
        run_s = self._seconds(run, per_s)
        limit_s, longest_h = limit_of(run_s, self.file.longest_h), self.file.longest_h
        if self.cells.get("limit_s", "").strip():
            limit_s = self._seconds("limit_s", 1)
            if limit_s < 1:
                raise self._bad("limit_s", "is no time to run in", "a limit of at least 1 s, or none")
            if longest_h is not None and limit_s > longest_h * HOUR_S:
                raise self._bad("limit_s", f"is over {longest_h} h", f"at most {longest_h * HOUR_S} s")
        return TraceJob(
            f"{organization}:{self.file.rows_before + self.line:07d}",
            organization,
            self._seconds(submit, per_s),
            self._gpus(gpus),
            run_s,
            limit_s,
        )

    def _stem(self) -> str:
        return Path(self.file.name).name.removesuffix(".gz").removesuffix(".csv")

    def _organization(self) -> str:
        name = self.cells["organization"].strip()
        if not name or len(name) > 60 or not name.isprintable():
            raise self._bad("organization", "is no name", "1 to 60 printable characters")
        return name

    def _seconds(self, field: str, per_s: int) -> int:
        text = self.cells[field].strip()
        unit = "milliseconds" if per_s == 1000 else "seconds"
        if not _NUMBER.fullmatch(text):
            raise self._bad(field, "is not a number of zero or more", f"{unit}, as in {3600 * per_s}")
        seconds = round(float(text) / per_s)
        if seconds > _MOST_S:
            raise self._bad(field, "is longer than 300 years", f"{unit}")
        return seconds

    def _gpus(self, field: str) -> int:
        text = self.cells[field].strip()
        if not text.isdecimal() or not text.isascii() or not 1 <= int(text[:15]) <= _MOST_GPUS:
            raise self._bad(field, "is no number of GPUs", f"a whole number from 1 to {_MOST_GPUS}")
        return int(text)

    def _bad(self, field: str, wrong: str, right: str) -> BadTrace:
        return BadTrace(
            self.file.name, self.line, f"{field}: {self.cells[field].strip()!r} {wrong}; give {right}"
        )
