"""`python -m tests.bench.kubernetes_profile FOLDER scheduler run …`: a program of the hub under a profiler.

Every thread has a profile of its own. At the end FOLDER holds one file for each kind of thread, to be read with
`python -m pstats`, and `threads.txt` with the CPU seconds of each.
"""

from __future__ import annotations

import atexit
import cProfile
import os
import pstats
import re
import sys
import threading
from pathlib import Path

from deploy.cli import main as gpuhub

TICKS = os.sysconf("SC_CLK_TCK")
_NUMBER = re.compile(r"[-_]?\d+$")


class _Running(cProfile.Profile):
    """One that can be read while its thread still runs."""

    def create_stats(self) -> None:
        self.snapshot_stats()


def main() -> None:
    """Profile every thread that begins from now on, then run the program."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    profiles: list[tuple[str, _Running]] = []
    cpu: dict[str, float] = {}
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        profile = _Running()
        profiles.append((_NUMBER.sub("", thread.name), profile))
        profile.enable()
        try:
            run(thread)
        finally:
            profile.disable()
            cpu[thread.name] = _cpu_s(threading.get_native_id())

    threading.Thread.run = profiled  # type: ignore[method-assign, assignment]
    atexit.register(_leave, folder, profiles, cpu)
    sys.argv = ["gpuhub", *sys.argv[2:]]
    gpuhub()


def _leave(folder: Path, profiles: list[tuple[str, _Running]], cpu: dict[str, float]) -> None:
    for thread in threading.enumerate():
        if thread.native_id is not None:
            cpu[thread.name] = _cpu_s(thread.native_id)
    for kind in {kind for kind, _ in profiles}:
        together = [profile for known, profile in profiles if known == kind]
        stats = pstats.Stats(together[0])
        for profile in together[1:]:
            stats.add(profile)
        stats.dump_stats(folder / f"{kind}.pstats")
    lines = [f"{seconds:8.2f} {name}" for name, seconds in sorted(cpu.items(), key=lambda pair: -pair[1])]
    (folder / "threads.txt").write_text("\n".join(lines) + "\n")


def _cpu_s(native_id: int) -> float:
    fields = Path(f"/proc/self/task/{native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
