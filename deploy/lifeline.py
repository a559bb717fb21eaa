"""Ties a child process to the supervisor that started it: however the supervisor dies, the child dies too.

Linux ends the child itself (`PR_SET_PDEATHSIG`), also after a `kill -9` of the supervisor. The child asks
for it as its first act rather than in a `preexec_fn`, which is unsafe in a process with threads; that the
supervisor died in between is noticed by comparing the parent's pid.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping

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
