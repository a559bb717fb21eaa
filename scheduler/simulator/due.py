"""What lies ahead in the simulated cluster, in the order in which it happens."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class DueKind(IntEnum):
    """In the same millisecond the first kind goes first: pods die before their node's silence is noticed."""

    END = 0
    """A running pod ends."""
    NOTICE = 1
    """A silent node is noticed."""
    READY = 2
    """A pending pod has been set up and takes GPUs as soon as they are free."""


class Due(NamedTuple):
    """One entry; it compares by time, kind, the object's order of creation and the pod's index."""

    due_ms: int
    kind: DueKind
    order: int
    pod_index: int
    key: str
    """The node of a notice, else the object's name."""
