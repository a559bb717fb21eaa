"""How one simulated cluster is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quota.clock import Clock
from scheduler.simulator.fleet import DEFAULT_NODES


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `serve` needs to know."""

    data_dir: Path
    """Where the journal lies. One process per directory."""

    host: str = "127.0.0.1"
    port: int = 8090
    """0 picks a free one; the line printed at the start says which."""

    nodes: tuple[str, ...] = DEFAULT_NODES
    """The fleet of a new cluster, as `NODES:CLASS=COUNT`. A journal that has nodes keeps its own."""

    clock: Clock = field(default_factory=Clock)

    token: str = ""
    """The bearer token that every request must carry; empty asks for none."""

    sample_period_ms: int = 10_000
    """Business time between two utilisation samples."""

    speedy: bool = False
    """Pods that do not say otherwise start and stop without delay. For tests and demonstrations."""
