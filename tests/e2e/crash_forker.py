"""Imports all programs once and forks them on demand: a restart then costs a tenth of a second, not two.

A child is a process of its own, with its own environment, arguments and log, that runs the `gpuhub` command.
One JSON order a line on standard input (`arguments`, `environment`, `log`), answered by the child's pid.
At the end of the input this process ends, and its children with it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from importlib import import_module

PROGRAMS = ("deploy.cli", "quota.cli", "scheduler.cli", "scheduler.simulator.cli", "agents.cli")
LATE = (
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "sqlalchemy.dialects.sqlite.pysqlite",
)
"""What the programs import only when they run."""

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Fork until the input ends; a child leaves this function as `gpuhub`."""
    for name in (*PROGRAMS, *LATE):
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for exit codes: let none become a zombie
    gc.freeze()
    print("ready", flush=True)
    while line := sys.stdin.readline():
        order = json.loads(line)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            become(order, parent)
            import_module("deploy.cli").main()
            return
        print(pid, flush=True)


def become(order: dict, parent: int) -> None:
    """Leave nothing of the forker in this child but its modules."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the forker is gone")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for name, number, flags in (
        (os.devnull, 0, os.O_RDONLY),
        (order["log"], 1, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        file = os.open(name, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["gpuhub", *order["arguments"]]


if __name__ == "__main__":
    main()
