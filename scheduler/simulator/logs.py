"""What a simulated pod writes: a line when it starts, one per step, one when it ends.

Made from its life whenever somebody reads it, and never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quota.clock import instant_text
from scheduler.simulator.model import Model
from scheduler.simulator.rules import Refusal, find_object
from scheduler.simulator.state import Pod

STEP_MS = 10_000
"""Business time from one step's line to the next."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a log: the last so many lines, those since a moment, with or without their times."""

    tail_lines: int
    since_ms: int | None
    timestamps: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A log as it stands at one moment."""

    name: str
    pod: Pod
    started_ms: int
    until_ms: int

    @property
    def steps(self) -> int:
        """How many steps are done: one that would end with the pod is not."""
        return max(0, self.until_ms - self.started_ms - self.is_over) // STEP_MS

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be written."""
        return self.pod.ended_ms is not None

    @property
    def count(self) -> int:
        """How many lines there are."""
        return 1 + self.steps + self.is_over

    def first(self, part: Part) -> int:
        """The number of the line that this part begins with."""
        tail = max(0, self.count - part.tail_lines)
        if part.since_ms is None or part.since_ms <= self.started_ms:
            return tail
        since = -(-(part.since_ms - self.started_ms) // STEP_MS)
        if since > self.steps:
            since = self.steps + 1 if self.is_over and part.since_ms <= self.until_ms else self.count
        return max(tail, since)

    def lines(self, first: int, timestamps: bool) -> Iterator[str]:
        """The lines from this number on."""
        for number in range(first, self.count):
            at_ms, text = self._line(number)
            yield f"{instant_text(at_ms)} {text}\n" if timestamps else f"{text}\n"

    def _line(self, number: int) -> tuple[int, str]:
        spec = self.pod.spec
        if number == 0:
            return (
                self.started_ms,
                f"{self.name} pod {spec.index} started on {spec.node}: {spec.count} {spec.gpu_class}",
            )
        if number <= self.steps:
            return self.started_ms + number * STEP_MS, f"step {number} loss {10 / (10 + number):.4f}"
        code = "no exit code" if self.pod.exit_code is None else f"exit code {self.pod.exit_code}"
        return self.until_ms, f"ended with {code} ({self.pod.reason})"


def read_log(model: Model, name: str, index: int) -> Written:
    """The log of a pod as it stands now, or Refusal."""
    pod = find_object(model, name).pods.get(index)
    if pod is None:
        raise Refusal(404, "gone", f"{name!r} has no pod {index}", field="pod")
    if pod.pending:
        raise Refusal(409, "not_started", f"pod {index} of {name!r} has not started")
    if pod.started_ms is None:
        raise Refusal(404, "gone", f"pod {index} of {name!r} ended before it started")
    node = model.nodes.get(pod.spec.node)
    if node is None or node.lost_ms is not None:
        raise Refusal(503, "node_lost", f"node {pod.spec.node!r} does not answer")
    ended_ms = pod.ended_ms
    return Written(name, pod, pod.started_ms, model.now_ms if ended_ms is None else ended_ms)
