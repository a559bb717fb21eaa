"""One line of JSON per event on standard error, as the other programs' logs have it.

They write theirs with structlog, which loads an event loop and, where it is installed, a library for colours: 7 MiB
that an agent has no other use for.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime


def info(event: str, **told: object) -> None:
    """Something that an operator may want to know."""
    _say("info", event, told)


def warning(event: str, **told: object) -> None:
    """Something that may pass by itself."""
    _say("warning", event, told)


def error(event: str, **told: object) -> None:
    """Something that does not pass by itself."""
    _say("error", event, told)


def exception(event: str, **told: object) -> None:
    """An error with the exception that is being handled."""
    _say("error", event, told | {"exception": traceback.format_exc().rstrip("\n")})


def write(line: Mapping[str, object]) -> None:
    """Where every line goes; whoever wants to see them puts another function in its place."""
    # one write a line: several threads have something to say
    sys.stderr.write(json.dumps(line, default=repr) + "\n")
    sys.stderr.flush()


def _say(level: str, event: str, told: Mapping[str, object]) -> None:
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    write({**told, "event": event, "level": level, "timestamp": at})
