"""Prometheus and promtool, built from their Go module by the builder of the control plane."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.controlplane.binaries import Source, Told, built_programs, find_programs
from deploy.controlplane.building import told_to
from deploy.progress import Progress

_PACKAGE = "github.com/prometheus/prometheus/cmd"
SOURCES = (
    Source("prometheus", "prometheus", f"{_PACKAGE}/prometheus"),
    Source("promtool", "prometheus", f"{_PACKAGE}/promtool"),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the two programs are."""

    prometheus: Path
    promtool: Path


def find_prometheus(
    told: Told = lambda building: None, environment: Mapping[str, str] = os.environ
) -> Programs:
    """Both programs; what is missing is built. Raises BuildFailed or ToolchainTrouble."""
    return Programs(**find_programs(SOURCES, told, environment))


def built_prometheus(environment: Mapping[str, str] = os.environ) -> Programs | None:
    """Both programs if they are there; nothing is built."""
    found = built_programs(SOURCES, environment)
    return None if found is None else Programs(**found)


def ready_prometheus(progress: Progress) -> Programs:
    """Find or build both programs, and tell how far it is. Raises BuildFailed or ToolchainTrouble."""
    with told_to(progress, "looking for prometheus and promtool") as told:
        return find_prometheus(told)
