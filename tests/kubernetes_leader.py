"""A scheduler beside the supervisor's: with its own environment, further clusters, or a point at which it dies."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.child import child_environment
from tests.kubernetes_hub import KubernetesHub
from tests.kubernetes_plane import until


@dataclass(frozen=True, slots=True)
class Leader:
    """A running scheduler."""

    process: subprocess.Popen[bytes]
    log: Path

    def await_death(self, patience_s: float = 90) -> None:
        """Wait until it has killed itself."""
        assert self.process.wait(patience_s) == -signal.SIGKILL

    def await_stop(self, patience_s: float = 90) -> None:
        """Wait until the kernel says that it stands still."""
        state = Path(f"/proc/{self.process.pid}/stat")
        until(lambda: state.read_text().rpartition(") ")[2][0], lambda letter: letter == "T", patience_s)

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def leading(
    hub: KubernetesHub,
    name: str,
    *options: str,
    holder: str = "up",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Leader]:
    """Instead of the supervisor's scheduler, which comes back at the end. `name` is its log's."""
    hub.stop_program("scheduler")
    program = hub.hub.programs("")["scheduler"]
    words = [*program.command, *options]
    words[words.index("--holder") + 1] = holder
    words[words.index("--port") + 1] = "0"
    log = hub.folder / "logs" / f"leader-{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=child_environment({**program.environment, **(environment or {})}),
        )
    try:
        yield Leader(process, log)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait(20)
        hub.start_program("scheduler")
