"""What the agent's code logs, as a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

from agents import log


@contextmanager
def captured() -> Iterator[list[Mapping[str, object]]]:
    """The lines that are logged in the block, none of which is written."""
    lines: list[Mapping[str, object]] = []
    with patch.object(log, "write", lines.append):
        yield lines
