"""A real control plane for tests: started in a folder with given nodes, and spoken to by raw JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from deploy.controlplane.api import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Api
from deploy.controlplane.binaries import built_binaries
from deploy.controlplane.plane import ControlPlane, running_plane
from deploy.controlplane.programs import AUDIT_RULES, PlaneWish

__all__ = [
    "APPLY_PATCH",
    "JSON_PATCH",
    "MERGE_PATCH",
    "STRATEGIC_PATCH",
    "Api",
    "ControlPlane",
    "a_plane",
    "until",
]


@contextmanager
def a_plane(
    folder: Path,
    *nodes: str,
    audit: bool = False,
    audit_rules: Sequence[Mapping[str, object]] = AUDIT_RULES,
    stages: tuple[Path, ...] = (),
    arguments: Mapping[str, Sequence[str]] | None = None,
    node_lease_s: int = 40,
) -> Iterator[ControlPlane]:
    """A control plane that lives as long as the block; how long its start took is printed."""
    binaries = built_binaries()
    # Building takes longer than a test may.
    assert binaries is not None, "the control plane is not built yet: run `make controlplane`"
    wish = PlaneWish(
        nodes=nodes,
        stages=stages,
        audit_rules=audit_rules if audit else (),
        fsync=False,
        node_lease_s=node_lease_s,
        arguments=arguments or {},
    )
    began = time.monotonic()
    with running_plane(folder, binaries, wish, print) as plane:
        print(f"the control plane was ready after {time.monotonic() - began:.1f} s")
        yield plane


T = TypeVar("T")


def until(read: Callable[[], T], holds: Callable[[T], bool], patience_s: float = 60.0) -> T:
    """What `read` gave when it held at last; the pytest timeout is the other limit."""
    deadline = time.monotonic() + patience_s
    while not holds(found := read()):
        assert time.monotonic() < deadline, f"did not come true in time; last seen: {found}"
        time.sleep(0.05)
    return found
