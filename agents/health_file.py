"""What the agent remembers of its GPUs' health: one JSON file beside the outbox, written when something changed.

What happens if the process dies, or the disk takes nothing:

- after a reading, before the file is renamed into place: the old file is there. A sign that lasts is seen again; an
  event that only this process heard of is lost with it, as one between two processes is. Nobody is called well for it:
  every start watches a GPU for the whole hold-down first.
- the file was not written (disk full) and the verdicts were sent: they stay in memory and are written with a later
  change. After a death their ids do not come again: each life of the process numbers its own.
- after sending, before the file says so: the same verdicts with the same ids are sent again; the service knows them.
- the file is lost or unreadable: signs that last are told once more, events are forgotten.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agents import log
from agents.health import Memory
from quota.schemas.gpus import GpuHealth, GpuVerdict

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Remembered:
    """Memories by UUID, and the verdicts that the service has not taken yet, oldest first."""

    memories: Mapping[str, Memory] = field(default_factory=dict)
    unsent: Sequence[GpuVerdict] = ()


class HealthFile:
    """One file, one agent: the outbox's lock is held while it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.life = secrets.token_hex(8)
        """The name of this process's life: the beginning of its verdicts' ids."""

    def read(self) -> Remembered:
        """What is remembered; nothing if the file is missing or cannot be understood."""
        try:
            document = json.loads(self.path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}")
            memories = {uuid: _memory(fields) for uuid, fields in document["gpus"].items()}
            unsent = tuple(GpuVerdict.model_validate(each) for each in document["unsent"])
        except FileNotFoundError:
            return Remembered()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            log.error("health_file_unreadable", file=str(self.path), reason=str(error)[:300])
            return Remembered()
        return Remembered(memories, unsent)

    def write(self, remembered: Remembered) -> None:
        """Put it in place of the old one, whole. Raises OSError, and the old one stays."""
        document = {
            "format": FORMAT,
            "gpus": {uuid: _fields(memory) for uuid, memory in sorted(remembered.memories.items())},
            "unsent": [verdict.model_dump(mode="json") for verdict in remembered.unsent],
        }
        fresh = self.path.with_name(f"{self.path.name}.new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(document, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _fields(memory: Memory) -> dict[str, object]:
    return {
        "health": memory.health.value,
        "unhealthy_ms": memory.unhealthy_ms,
        "degraded_ms": memory.degraded_ms,
        "xids": {str(xid): at_ms for xid, at_ms in memory.xids.items()},
        "ecc": memory.ecc,
        "lasting": sorted(memory.lasting),
    }


def _memory(fields: Mapping[str, Any]) -> Memory:
    return Memory(
        health=GpuHealth(fields["health"]),
        unhealthy_ms=_number(fields["unhealthy_ms"]),
        degraded_ms=_number(fields["degraded_ms"]),
        xids={int(xid): int(at_ms) for xid, at_ms in fields["xids"].items()},
        ecc=_number(fields["ecc"]),
        lasting=frozenset(map(str, fields["lasting"])),
    )


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
