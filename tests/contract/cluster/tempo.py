"""How long a test's seconds last on an implementation of the port, and how exactly it keeps to them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tempo:
    """The simulated cluster: every second as asked, to the millisecond."""

    scale: float = 1.0
    slack_ms: int = 0
    """How much later than due something may show; a cluster of whole seconds is this much early, too, at most 1 s."""
    tells_gpus: bool = True
    """Whether a pod's status names its GPUs. On Kubernetes only the node knows."""

    def ms(self, seconds: float) -> int:
        """A test's seconds in the cluster's milliseconds."""
        return round(seconds * 1000 * self.scale)

    def text(self, seconds: float) -> str:
        """A test's seconds as an annotation says them."""
        return f"{seconds * self.scale:.3f}".rstrip("0").rstrip(".")

    def is_about(self, milliseconds: int, seconds: float) -> bool:
        """Whether something lasted as long as asked."""
        early_ms = min(self.slack_ms, 1000)
        return self.ms(seconds) - early_ms <= milliseconds <= self.ms(seconds) + self.slack_ms
