"""What a job accepts: GPU classes to fall back on, and how its pods lie to each other. Stored beside the job."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, or_

from quota.jobs.tables import jobs
from quota.schemas.scheduling import Topology


class Unit(NamedTuple):
    """What has to fit: `pods` times so many GPUs, somewhere in a cluster or in one rack of it."""

    gpus_per_pod: int
    pods: int
    in_rack: bool
    is_bound: bool
    """Whether its pods have to be on one node (and count as one pod) or in one rack."""


def unit_of(topology: Topology, gpus_per_pod: int, pods: int) -> Unit:
    """What a topology asks of the room for a gang; what it only prefers asks for nothing."""
    if pods > 1 and topology is Topology.SAME_NODE:
        return Unit(gpus_per_pod * pods, 1, in_rack=False, is_bound=True)
    in_rack = pods > 1 and topology is Topology.SAME_RACK
    return Unit(gpus_per_pod, pods, in_rack=in_rack, is_bound=in_rack)


def classes_of(row: Row[Any]) -> tuple[str, ...]:
    """Every class that a stored job accepts, the preferred one first."""
    return row.gpu_class, *json.loads(row.fallback_classes)


def stored_fallbacks(classes: tuple[str, ...]) -> str:
    """What is stored of the classes after the first."""
    return json.dumps(classes[1:], separators=(",", ":"))


def accepts(gpu_class: str) -> ColumnElement[bool]:
    """Jobs that could run on this class."""
    further = jobs.c.fallback_classes.contains(json.dumps(gpu_class), autoescape=True)
    return or_(jobs.c.gpu_class == gpu_class, further)
