"""Which pods live on the node, and whose a process is: from cgroups, /proc and the kubelet's folders of logs.

The kubelet removes a pod's cgroup when the pod has ended, and lists its devices for a while longer. Its list tells
names and cgroups tell UIDs; the folders `/var/log/pods/<namespace>_<name>_<uid>` tell which belong together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UID = r"[0-9a-fA-F]{8}(?:[-_]?[0-9a-fA-F]{4}){3}[-_]?[0-9a-fA-F]{12}"
# systemd: kubepods-burstable-pod0a1b2c3d_….slice; cgroupfs: pod0a1b2c3d-…
_FOLDER = re.compile(rf"(?:kubepods(?:-\w+)?-)?pod({_UID})(?:\.slice)?", re.ASCII)
_PATH = re.compile(rf"kubepods.*?[-/]pod({_UID})(?:\.slice)?(?:/|$)")
_LOGS = re.compile(rf"([a-z0-9-]+)_([a-z0-9.-]+)_({_UID})")

_HIERARCHIES = ("", "unified", "memory", "cpu,cpuacct", "cpu", "pids", "systemd")
"""Where a node's cgroups begin, below the root: version 2, then the controllers of version 1."""
_ABOVE = ("kubelet.slice", "kubelet", "kubelet.service")
"""What may stand between that and the pods."""
_DEPTH = 3
"""Pods lie at most so far below `kubepods`: its class of service, and the pod."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it cannot be mistaken for a later one of the same number."""

    pid: int
    started: int
    """Clock ticks since the node's start."""


class Node:
    """Reads the node's folders; every answer is of this moment."""

    def __init__(
        self,
        cgroups: Path = Path("/sys/fs/cgroup"),
        proc: Path = Path("/proc"),
        logs: Path = Path("/var/log/pods"),
    ) -> None:
        self._cgroups, self._proc, self._logs = cgroups, proc, logs

    def living(self) -> frozenset[str] | None:
        """UIDs of the pods that have a cgroup; None if that cannot be seen here."""
        for hierarchy in _HIERARCHIES:
            tops = list(_tops(self._cgroups / hierarchy))
            if tops:
                return frozenset(uid for top in tops for uid in _pods_below(top, _DEPTH))
        return None

    def uids(self) -> dict[tuple[str, str], frozenset[str]]:
        """UIDs by (namespace, name) of the pods that have a folder of logs; none where the folders cannot be seen."""
        found: dict[tuple[str, str], set[str]] = {}
        for name in _folders(self._logs):
            parts = _LOGS.fullmatch(name)
            if parts is not None:
                found.setdefault((parts[1], parts[2]), set()).add(_plain(parts[3]))
        return {pod: frozenset(uids) for pod, uids in found.items()}

    def process(self, pid: int) -> Process | None:
        """The process of this number now; None if there is none."""
        try:
            stat = (self._proc / str(pid) / "stat").read_bytes()
            # the name stands in parentheses and may hold anything, parentheses too
            return Process(pid, int(stat[stat.rindex(b")") + 2 :].split()[19]))
        except (OSError, ValueError, IndexError):
            return None

    def pod_of(self, pid: int) -> str | None:
        """The UID of the pod whose cgroup a process is in; None if it is in none or has ended."""
        try:
            lines = (self._proc / str(pid) / "cgroup").read_text(errors="replace").splitlines()
        except OSError:
            return None
        for line in lines:
            found = _PATH.search(line)
            if found is not None:
                return _plain(found[1])
        return None


def _tops(base: Path) -> Iterator[Path]:
    for above in (base, *(base / name for name in _ABOVE)):
        for name in _folders(above):
            if name in ("kubepods", "kubepods.slice", "kubelet-kubepods.slice"):
                yield above / name


def _pods_below(folder: Path, depth: int) -> Iterator[str]:
    for name in _folders(folder):
        found = _FOLDER.fullmatch(name.removeprefix("kubelet-"))
        if found is not None:
            yield _plain(found[1])
        elif depth > 1 and not name.startswith("cri-"):
            yield from _pods_below(folder / name, depth - 1)


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _plain(uid: str) -> str:
    return uid.replace("_", "-").lower()
