"""What the agent is built around: a reader of GPUs with its own series, and how to tell that it is beyond help."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.metrics_core import Metric

from agents.gpus.port import GpuReader


class OpenReader(GpuReader, Protocol):
    """A reader that holds something open."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True)
class Source:
    """A reader at work."""

    reader: OpenReader
    nodes: tuple[str, ...]
    """The nodes to read; none means all."""
    metrics: Callable[[], Iterable[Metric]] = tuple
    """The reader's own families."""
    hopeless: Callable[[], bool] = lambda: False
    """Whether only a new container can help."""
