"""What the loop asks of a reader of GPUs: the simulated cluster's, or NVML's of one machine.

A GPU that is there but cannot be read is in the reading with `up` False; the others are not touched by its trouble.
"""

from __future__ import annotations

from typing import Protocol

from agents.model import NodeReading


class ReaderUnavailable(Exception):
    """The GPUs could not be read; nothing is known about them, which is not the same as idle."""


class GpuReader(Protocol):
    """Reads GPUs. Reading changes nothing, so the same question may be asked any number of times."""

    @property
    def sample_period_ms(self) -> int:
        """How often the driver is expected to sample; judges only the first gaps of a new GPU."""

    def read(self, node: str, after_ms: int) -> NodeReading:
        """One node: samples newer than `after_ms`, workloads of now and those that ended after it.

        Older samples may be among them; who counts leaves out what he has counted.

        Raises ReaderUnavailable.
        """

    def read_all(self, after_ms: int) -> tuple[NodeReading, ...]:
        """The same of every node that answers; a node that does not is left out.

        Raises ReaderUnavailable if nothing could be read.
        """
