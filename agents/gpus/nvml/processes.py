"""Memory that dead processes hold on a GPU: seen by comparing the driver's list with the node's processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

_FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""The kernel's own (PROC_PID_INIT_INO): only in it every process of the node has its number."""


def sees_all_processes(link: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether process ids here are the node's own, as with Kubernetes' hostPID."""
    try:
        return os.readlink(link) == _FIRST_PID_NAMESPACE
    except OSError:
        return False


class Orphans:
    """Remembers which of a GPU's processes were dead already when last looked at."""

    def __init__(self, exists: Callable[[int], bool] | None = None) -> None:
        """`exists` says whether a process lives; none is asked where not all processes can be seen."""
        self._exists = exists or (_exists if sees_all_processes() else None)
        self._dead: set[int] = set()

    def bytes_of(self, processes: Iterable[tuple[int, int | None]]) -> int | None:
        """Memory of processes that are dead for the second time in a row: one that ends now is still being tidied up.

        None if it cannot be known here.
        """
        if self._exists is None:
            return None
        dead = {pid: used or 0 for pid, used in processes if not self._exists(pid)}
        found = sum(used for pid, used in dead.items() if pid in self._dead)
        self._dead = set(dead)
        return found


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
