"""What the API server was asked, as its audit log tells: who wrote what, and when."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

WRITES = ("create", "update", "patch", "delete", "deletecollection")


def audit_rules(user: str) -> tuple[dict[str, object], ...]:
    """Only what the benchmarks count, so that keeping it costs little: bindings, and what one user writes."""
    return (
        {
            "level": "Metadata",
            "verbs": ["create"],
            "resources": [{"group": "", "resources": ["pods/binding"]}],
        },
        {"level": "Metadata", "users": [user], "verbs": list(WRITES)},
        {"level": "None"},
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was answered."""

    user: str
    verb: str
    resource: str
    """With its subresource: `pods/binding`."""
    name: str
    status: int
    came_s: float
    """When it reached the API server, in seconds since 1970."""
    done_s: float

    @property
    def is_done(self) -> bool:
        return 200 <= self.status < 300


class AuditLog:
    """Reads on from where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def news(self) -> Iterator[Asked]:
        """What was added since the last time."""
        with self._path.open("rb") as log:
            log.seek(self._at)
            added = log.read()
        self._at += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            yield _asked(json.loads(line))

    def skip(self) -> None:
        """Forget what was added."""
        self._at, self._rest = self._path.stat().st_size, b""


def count_writes(asked: list[Asked], user: str) -> Counter[str]:
    """What a user wrote, by verb and resource; refusals count as well."""
    return Counter(f"{one.verb} {one.resource}" for one in asked if one.user == user)


def _asked(event: dict[str, Any]) -> Asked:
    what = event.get("objectRef") or {}
    sub = what.get("subresource")
    return Asked(
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource=str(what.get("resource", "")) + (f"/{sub}" if sub else ""),
        name=str(what.get("name", "")),
        status=int((event.get("responseStatus") or {}).get("code", 0)),
        came_s=_instant_s(event["requestReceivedTimestamp"]),
        done_s=_instant_s(event["stageTimestamp"]),
    )


def _instant_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
