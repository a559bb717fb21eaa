"""Every error code on every call that the collector makes of GPU 0: prints what a cycle of GPUs 0 and 1 then brings.

Run with the fake library: `STATE`. One line per combination: `[function, code, [wire.Gpu …]]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pynvml

from agents.gpus.nvml import wire
from agents.gpus.nvml.codes import ERRORS
from agents.gpus.nvml.driver import gpm, library
from agents.gpus.nvml.driver.gpu import GpuCalls
from tests.fakenvml.build import FakeDriver, an_h100

MIG = "MIG-00000000-0000-0000-0000-000000000001"


def a_driver(path: Path) -> FakeDriver:
    """GPU 0 with a MIG device, so that every call is made of it; GPU 1 without samples, so that GPM is asked."""
    driver = FakeDriver(path, [an_h100(0, mig_mode=1, gpm_support=1), an_h100(1), an_h100(2, util=None)])
    driver.gpus[2] |= {"gpm_support": 1, "gpm": 40, "gpm_sm": 20, "power_limit_mw": 700_000}
    driver.migs[0, 2] = {
        "uuid": MIG,
        "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "gi": 9,
        "memory_total": 10 << 30,
        "gpm": 25,
        "gpm_sm": 10,
    }
    return driver


def functions_called(driver: FakeDriver) -> list[str]:
    """What two rounds of reads call."""
    driver.write()
    library.start()
    read_twice()
    names = {
        name for name in pynvml._nvmlGetFunctionPointer_cache if name.startswith(("nvmlDevice", "nvmlGpm"))
    }
    # Looked up to tell the width of process entries, never called.
    return sorted(names - {"nvmlDeviceGetConfComputeMemSizeInfo", "nvmlDeviceGetRunningProcessDetailList"})


def read_twice() -> list[wire.Gpu]:
    """The second read, which has GPM's first pair."""
    calls = [GpuCalls(index) for index in range(3)]
    for gpu in calls:
        gpu.read()
    found = [device for gpu in calls for device in gpu.read()]
    for gpu in calls:
        gpu.close()
    return found


def main(state: str) -> None:
    gpm.LEAST_US = 0
    driver = a_driver(Path(state))
    for function in functions_called(driver):
        for code in sorted(code for code in ERRORS if code > 0):
            # GPU 1 asks nothing of those that name no GPU.
            of_gpus = (0, 2) if function not in ("nvmlGpmSampleAlloc", "nvmlGpmSampleFree") else ("*",)
            driver.fails = [(function, gpu, code) for gpu in of_gpus]
            driver.write()
            print(json.dumps([function, code, read_twice()], default=dict))


if __name__ == "__main__":
    main(*sys.argv[1:])
