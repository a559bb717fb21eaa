"""Ties a child process to the supervisor that started it: however the supervisor dies, the child dies too.

Linux ends the child itself (`PR_SET_PDEATHSIG`), also after a `kill -9` of the supervisor. The child asks
for it as its first act rather than in a `preexec_fn`, which is unsafe in a process with threads; that the
supervisor died in between is noticed by comparing the parent's pid.

A program that is not ours cannot ask: `python -m deploy.lifeline -- PROGRAM …` asks and then becomes that program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping, Sequence
from typing import NoReturn

PARENT = "GPUHUB_PARENT_PID"
"""Environment variable through which the supervisor tells a child who started it."""

_PR_SET_PDEATHSIG = 1


def hold(environment: MutableMapping[str, str] = os.environ) -> None:
    """Die with the parent that the environment names, if it does; grandchildren do not see the name."""
    expected = environment.pop(PARENT, "")
    if not expected.isdecimal():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(expected):
        raise SystemExit(f"the supervisor (pid {expected}) is gone")


def become(command: Sequence[str]) -> NoReturn:
    """Turn this process into another program, which inherits what `hold` asked for."""
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise SystemExit(f"{command[0]} cannot be run: {error.strerror}") from error


def main() -> None:
    """Hold on to the parent and become the program named after `--`."""
    if len(sys.argv) < 3 or sys.argv[1] != "--":
        raise SystemExit("usage: python -m deploy.lifeline -- PROGRAM [ARGUMENT …]")
    hold()
    become(sys.argv[2:])


if __name__ == "__main__":
    main()
