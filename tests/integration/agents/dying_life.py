"""A node's life in virtual time that kills itself right before the n-th SQL statement of a kind.

`FOLDER MINUTES`, and on standard input `[[KIND, N], …]`; run by `test_nvml_crashes.py`. Each case has two processes,
forks of this one: the first dies, the second goes on from what lies in the folder of the case: the outbox, what the
service was told, and how far true time has come. Prints `[status of the first, status of the second]` for each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from agents.outbox import open_outbox
from quota.schemas.usage import EvidenceBatch, EvidenceReply
from tests.unit.agents.nvml_life import Life, Stay

STAYS = [
    Stay("job-long", "GPU-0", 0, 600),
    *(Stay(f"job-{n}", "GPU-1", 10 * n, 10 * n + 10) for n in range(40)),
]
RATIOS = {"GPU-0": 0.5, "GPU-1": 0.25}


class Told:
    """A service that writes down what it is told before it answers."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def deliver_evidence(self, body: EvidenceBatch, /) -> EvidenceReply:
        self._file.write(body.model_dump_json() + "\n")
        self._file.flush()
        return EvidenceReply(accepted=len(body.rows), unchanged=0, unknown=0)


def live(folder: Path, minutes: int, kind: str, number: int) -> None:
    """From where it stands to the end, or to death."""
    reached = folder / "true_ms"
    outbox = open_outbox(folder / "outbox.sqlite3")

    def die_in_time(statement: str) -> None:
        nonlocal number
        if statement.startswith(kind):
            number -= 1
            if number == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if kind:
        outbox._connection.set_trace_callback(die_in_time)
    true_ms = int(reached.read_text()) if reached.exists() else 0
    life = Life(outbox, Told(folder / "told"), STAYS, RATIOS, true_ms)
    while life.true_ms < minutes * 60_000:
        life.go_on(1)
        reached.write_text(str(life.true_ms))
    life.deliverer.deliver_once()
    outbox.close()


def forked(folder: Path, minutes: int, kind: str = "", number: int = 0) -> int:
    """The status of a process that lives; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            live(folder, minutes, kind, number)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(base: str, minutes: str) -> None:
    for case, (kind, number) in enumerate(json.load(sys.stdin)):
        folder = Path(base) / str(case)
        folder.mkdir()
        print(
            json.dumps([forked(folder, int(minutes), kind, number), forked(folder, int(minutes))]), flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
