"""Which GPU is at an index that does not say it: one that is lost does not tell its name. Pure; standard library only.

NVML numbers the GPUs that it finds, and the numbers may change places. A GPU that cannot be asked for its UUID is
taken for the one that was last at its index, unless that one answers at another index, or is taken already. Then the
ones that nobody has seen are as many as the places without a name, and each of them is at one of these: which is all
the same, because all that is told of them is that they do not answer. Where the numbers differ, or not every GPU has
answered in this cycle, nobody is named.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.gpus.nvml.wire import Gpu


class Places:
    """Remembers who was there in the last cycle."""

    def __init__(self) -> None:
        self._known: frozenset[str] = frozenset()

    def named(self, reads: Sequence[Sequence[Gpu]]) -> list[Gpu]:
        """All devices of one cycle. `reads` are, for each index, what was read: a GPU with its MIG devices, maybe
        several times, nothing where it has not answered. Only the last read of an index is looked at for its place.
        """
        last = [_last(read) for read in reads]
        seen = {gpu.gpu_uuid for gpu in last if gpu is not None and not _is_silent(gpu)}
        taken = set(seen)
        nameless = []
        for gpu in last:
            if gpu is None or not _is_silent(gpu):
                continue
            if gpu.gpu_uuid and gpu.gpu_uuid not in taken:
                taken.add(gpu.gpu_uuid)
            else:
                nameless.append(gpu)
        missing = sorted(self._known - taken)
        certain = None not in last and len(missing) == len(nameless)
        names = {id(gpu): name for gpu, name in zip(nameless, missing, strict=False)} if certain else {}
        if None not in last:
            self._known = frozenset(taken) | frozenset(names.values())
        else:
            self._known |= taken
        renamed = {id(gpu): gpu._replace(gpu_uuid=names.get(id(gpu), "")) for gpu in nameless}
        return [renamed.get(id(gpu), gpu) for read in reads for gpu in read]


def _last(read: Sequence[Gpu]) -> Gpu | None:
    return next((gpu for gpu in reversed(read) if not gpu.parent_uuid), None)


def _is_silent(gpu: Gpu) -> bool:
    """Whether its UUID is a memory."""
    return "handle" in gpu.errors or "uuid" in gpu.errors
