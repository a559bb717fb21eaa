"""A saved state as a file: read and checked before anything is decided on it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quota.schemas.snapshots import FORMAT, VERSION, SchedulerState, fingerprint

MOST_BYTES = 2 * 1024**3
"""Unpacked. A state of 50,000 jobs has about 30 MB."""
GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 4096
HOW = "save one with: gpuhub scheduler snapshot --out FILE"


class BadSnapshot(Exception):
    """This is no saved state that can be read; the text says which file, what is wrong, and what would be right."""


def read_state(path: Path) -> SchedulerState:
    """The state in a file, packed or not. Raises BadSnapshot."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadSnapshot(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_state(data, str(path))


def parse_state(data: bytes, source: str) -> SchedulerState:
    """The state in these bytes, packed or not; `source` is what errors call it. Raises BadSnapshot."""
    return checked(_document(_unpacked(data, source), source), source)


def checked(document: Mapping[str, Any], source: str) -> SchedulerState:
    """The state that a JSON object is: of this format and a known version, and as it was saved. Raises BadSnapshot."""
    if document.get("format") != FORMAT:
        raise BadSnapshot(f'{source} is not a saved state: it does not say "format": "{FORMAT}"; {HOW}')
    version = document.get("version")
    if not isinstance(version, int) or version < 1:
        raise BadSnapshot(f"{source} has no version; {HOW}")
    if version > VERSION:
        raise BadSnapshot(
            f"{source} has version {version}, this program reads up to {VERSION}; take the gpuhub that wrote it"
        )
    found = fingerprint(document)
    if document.get("sha256") != found:
        raise BadSnapshot(
            f"{source} was changed after it was saved: its content has SHA-256 {found}, "
            f"it says {document.get('sha256')}; to ask what would be otherwise, use gpuhub whatif"
        )
    try:
        return SchedulerState.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSnapshot(f"{source}: {where}: {first['msg']}; {HOW}") from error


def looks_like_state(path: Path) -> bool:
    """Whether a file begins as a saved state does; for telling it from a trace, without reading all of it."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    if head.startswith(GZIP_MAGIC):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES)
        except zlib.error:
            return False
    return head.lstrip().startswith(b"{") and f'"{FORMAT}"'.encode() in head


def _unpacked(data: bytes, source: str) -> bytes:
    if not data.startswith(GZIP_MAGIC):
        return data
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, MOST_BYTES)
    except zlib.error as error:
        raise BadSnapshot(f"{source} is damaged: it cannot be unpacked ({error}); {HOW}") from error
    if unpacker.unconsumed_tail:
        raise BadSnapshot(f"{source} unpacks to more than {MOST_BYTES} bytes: no saved state does")
    if not unpacker.eof:
        raise BadSnapshot(f"{source} is cut short; {HOW}")
    return unpacked


def _document(data: bytes, source: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        what = "is empty" if not data.strip() else f"is not JSON, or is cut short ({error})"
        raise BadSnapshot(f"{source} {what}; {HOW}") from error
    if not isinstance(document, dict):
        raise BadSnapshot(f"{source} is JSON, but no saved state; {HOW}")
    return document


def packed(data: bytes, path: Path) -> bytes:
    """The bytes to write under this name: packed if it ends with .gz, the same each time."""
    return gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
