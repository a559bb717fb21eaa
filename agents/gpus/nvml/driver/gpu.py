"""One GPU with its MIG devices, read as a whole: what one call refuses takes nothing from the others."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pynvml

from agents.gpus.nvml import wire
from agents.gpus.nvml.codes import GARBAGE
from agents.gpus.nvml.driver.figures import figures, memory_of, processes_of
from agents.gpus.nvml.driver.gpm import Gpm
from agents.gpus.nvml.driver.library import Asking, Handle, identity, number, text
from agents.gpus.nvml.driver.process_use import ProcessUse

AHEAD_US = 1_000_000
"""A sample this far in the future is garbage; a nearer one is left for the next cycle."""


class GpuCalls:
    """One GPU by its index, and its MIG devices; keeps what has to be remembered between two reads."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._uuid = ""
        self._named: dict[str, str] = {}
        self._after_us = 0
        self._gpm: dict[str, Gpm] = {}
        self._process_use = ProcessUse()

    def read(self) -> list[wire.Gpu]:
        """The GPU, then its MIG devices. Raises nothing."""
        asking = Asking()
        handle = asking.ask("handle", lambda: pynvml.nvmlDeviceGetHandleByIndex(self._index))
        found = asking.ask("uuid", lambda: identity(handle)) if handle is not None else None
        if found is None:
            self._forget_gpm(set())
            return [wire.Gpu(self._index, self._uuid, errors=asking.errors, lost=asking.lost)]
        if found != self._uuid:
            self._uuid, self._named, self._after_us = found, {}, 0
            self._process_use = ProcessUse()
            self._forget_gpm(set())
        mode = asking.ask("mig_mode", lambda: pynvml.nvmlDeviceGetMigMode(handle))
        mig = mode is not None and mode[0] == 1
        values = figures(asking, handle) | self._names(asking, handle) | {"mig": mig}
        used = {found}
        devices = self._mig_devices(asking, handle, used) if mig else []
        if not mig:
            values |= self._utilization(asking, handle, found)
            # after the samples, so that what it tells of reaches as far as they do
            values["process_use"] = self._process_use.read(asking, handle)
        self._forget_gpm(used)
        gpu = wire.Gpu(
            self._index,
            found,
            **values,
            unsupported=sorted(asking.unsupported),
            errors=asking.errors,
            lost=asking.lost,
        )
        return [gpu, *devices]

    def close(self) -> None:
        """Give GPM's samples back."""
        self._forget_gpm(set())

    def _names(self, asking: Asking, handle: Handle) -> dict[str, str]:
        for field, operation, call in (
            ("name", "name", lambda: pynvml.nvmlDeviceGetName.__wrapped__(handle)),
            ("serial", "serial", lambda: pynvml.nvmlDeviceGetSerial.__wrapped__(handle)),
            ("pci_bus_id", "pci", lambda: pynvml.nvmlDeviceGetPciInfo_v3(handle).busId),
        ):
            if field not in self._named:
                raw = asking.ask(operation, call)
                if raw is not None:
                    self._named[field] = text(raw)
        return dict(self._named)

    def _utilization(self, asking: Asking, handle: Handle, uuid: str) -> dict[str, Any]:
        samples = asking.ask("samples", lambda: self._samples(asking, handle), no_news=True)
        if "samples" not in asking.unsupported:
            return {"samples_us": samples or []}
        return self._gpm_of(asking, handle, None, uuid)

    def _samples(self, asking: Asking, handle: Handle) -> list[tuple[int, float]]:
        # a clock that was set back takes the question with it
        self._after_us = min(self._after_us, time.time_ns() // 1000)
        kind, raw = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, self._after_us)
        now_us = time.time_ns() // 1000
        samples = []
        for sample in sorted(raw, key=lambda sample: int(sample.timeStamp)):
            at_us, percent = int(sample.timeStamp), number(kind, sample.sampleValue)
            if at_us > now_us + AHEAD_US or not 0 <= percent <= 100:
                asking.errors["samples"] = GARBAGE
            elif self._after_us < at_us <= now_us:
                samples.append((at_us, percent / 100))
        if samples:
            self._after_us = samples[-1][0]
        return samples

    def _gpm_of(self, asking: Asking, handle: Handle, instance: int | None, uuid: str) -> dict[str, Any]:
        support = asking.ask("gpm_support", lambda: pynvml.nvmlGpmQueryDeviceSupport(handle))
        if support is None or not support.isSupportedDevice:
            asking.unsupported.add("gpm")
            return {}
        gpm = self._gpm.setdefault(uuid, Gpm())
        told = asking.ask("gpm", lambda: gpm.read(handle, instance))
        if told is None:
            return {"gpm": "gpm" not in asking.unsupported}
        return {"gpm": True, "samples_us": [(told.at_us, told.busy)], "sm_activity": told.sm_activity}

    def _forget_gpm(self, used: set[str]) -> None:
        for uuid in self._gpm.keys() - used:
            self._gpm.pop(uuid).close()

    def _mig_devices(self, parent_asking: Asking, parent: Handle, used: set[str]) -> list[wire.Gpu]:
        """Asked anew every time: handles die with their instances and may come back as other ones."""
        most = parent_asking.ask("mig_count", lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)) or 0
        found = []
        for slot in range(most):
            handle = parent_asking.ask(
                "mig_handle",
                partial(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, slot),
                no_news=True,
            )
            if handle is None:
                continue
            asking = Asking()
            uuid = asking.ask("uuid", partial(identity, handle))
            instance = asking.ask("gpu_instance", partial(pynvml.nvmlDeviceGetGpuInstanceId, handle))
            if uuid is None:
                parent_asking.errors |= {f"mig_{name}": code for name, code in asking.errors.items()}
                continue
            found.append((handle, uuid, instance, asking))
        instances = [instance for _, _, instance, _ in found]
        devices = []
        for handle, uuid, instance, asking in found:
            # GPM tells of whole GPU instances, so it says nothing of one of several compute instances in it.
            alone = instance is not None and instances.count(instance) == 1
            device = self._mig_device(asking, parent, handle, uuid, instance if alone else None)
            if device is not None:
                devices.append(device)
                used.add(uuid)
        return devices

    def _mig_device(
        self, asking: Asking, parent: Handle, handle: Handle, uuid: str, instance: int | None
    ) -> wire.Gpu | None:
        values: dict[str, Any] = memory_of(asking, handle)
        values["processes"] = processes_of(asking, handle, values.get("memory_total_bytes"))
        name = asking.ask("name", lambda: pynvml.nvmlDeviceGetName.__wrapped__(handle))
        asking.unsupported.add("samples")
        if instance is None:
            asking.unsupported.add("gpm")
        else:
            values |= self._gpm_of(asking, parent, instance, uuid)
        if asking.ask("uuid", lambda: identity(handle)) not in (uuid, None):
            return None  # Another device took the slot while it was read.
        return wire.Gpu(
            self._index,
            uuid,
            parent_uuid=self._uuid,
            name=text(name or b""),
            **values,
            unsupported=sorted(asking.unsupported),
            errors=asking.errors,
            lost=asking.lost,
        )
