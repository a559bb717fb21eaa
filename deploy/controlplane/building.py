"""How a build is told: a running clock on a terminal, a line at each start and end in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deploy.controlplane.binaries import Building, Told
from deploy.progress import Progress


@contextmanager
def told_to(progress: Progress, doing: str) -> Iterator[Told]:
    """Whom a build tells how far it is, as long as the block; `doing` is shown before anything is built."""
    with progress.out.status(doing) as shown:

        def told(building: Building) -> None:
            where = f"{building.name} ({building.number} of {building.of})"
            if building.is_done:
                progress.say(f"✓ {where} is built ({building.elapsed_s:.1f} s)")
            elif progress.out.is_terminal:
                shown.update(f"building {where}, {building.elapsed_s:.0f} s")
            elif building.is_first:
                progress.say(f"building {where}; the first time it takes minutes")

        yield told
