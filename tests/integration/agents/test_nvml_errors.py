"""Every NVML error code on every call of one GPU: what the others show stays whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from agents.gpus.nvml import wire
from agents.gpus.nvml.codes import ERRORS, Meaning, meaning_of
from agents.gpus.nvml.reader import NvmlReader
from agents.metrics import AgentCollector, Counts, View
from agents.outbox import Spool
from tests.fakenvml.build import FakeDriver, an_h100, build
from tests.integration.agents.agent_stubs import ROOT
from tests.unit.agents.nvml_world import a_cycle, a_reader

WELL = "GPU-00000001-1111-2222-3333-444444444444"
_GPUS = TypeAdapter(list[wire.Gpu])

CALLS = 27
"""So many functions that concern a GPU are called by two rounds of reads."""

UNTOLD = {"nvmlGpmSampleFree"}
"""There is nothing to say of a sample that is not taken back."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def series_of(reader: NvmlReader) -> dict[str, set[tuple[str, tuple[tuple[str, str], ...]]]]:
    """The series' names and labels by GPU."""
    counts = Counts(view=View(reader.read_all(0)))
    found: dict[str, set[tuple[str, tuple[tuple[str, str], ...]]]] = {}
    for family in AgentCollector(counts, lambda: Spool(0, None), reader.metrics).collect():
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            found.setdefault(sample.labels.get("gpu_uuid", ""), set()).add((sample.name, labels))
    return found


def test_every_error_on_every_call_leaves_the_other_gpus_whole(library: Path, tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path / "state")
    said = subprocess.run(
        [sys.executable, "-m", "tests.integration.agents.nvml_matrix", str(driver.path)],
        cwd=ROOT,
        env=driver.environment(library) | {"FAKE_NVML_GPM_LEAST_US": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    ).stdout.splitlines()
    combinations = [json.loads(line) for line in said]
    assert len({function for function, _, _ in combinations}) >= CALLS
    assert len(combinations) == len({(function, code) for function, code, _ in combinations})
    assert {code for _, code, _ in combinations} == {code for code in ERRORS if code > 0}
    reader = a_reader()
    whole = None
    for function, code, raw in combinations:
        gpus = _GPUS.validate_python(raw)
        well = next(gpu for gpu in gpus if gpu.gpu_uuid == WELL)
        assert not well.errors, (function, code)
        reader._take(a_cycle(*gpus))
        series = series_of(reader)[WELL]
        whole = whole or series
        assert series == whole, (function, code)
        assert ("hub_gpu_up", (("gpu_uuid", WELL), ("node", "gpu-07"))) in series
        hurt = [gpu for gpu in gpus if gpu.gpu_index != 1]
        if meaning_of(code) is Meaning.LOST and function not in UNTOLD:
            assert any(gpu.lost for gpu in hurt), (function, code)
        elif meaning_of(code) not in (Meaning.UNSUPPORTED, Meaning.NO_NEWS) and function not in UNTOLD:
            assert any(code in gpu.errors.values() for gpu in hurt), (function, code)


ANYTHING = """
import sys
from agents.gpus.nvml.codes import ERRORS
from agents.gpus.nvml.driver import library
from agents.gpus.nvml.driver.events import EventSet
from pathlib import Path
from tests.fakenvml.build import FakeDriver, an_h100

driver = FakeDriver(Path(sys.argv[1]), [an_h100(0), an_h100(1)])
driver.write()
library.start()
for code in sorted(code for code in ERRORS if code > 0):
    for call in ("nvmlInitWithFlags", "nvmlInit_v2"):
        driver.fails = [("nvmlInitWithFlags", "*", code), ("nvmlInit_v2", "*", code)]
        driver.write()
        try:
            library.start()
        except library.Refused as refused:
            assert (refused.operation, refused.code) == ("init", code)
        else:
            raise AssertionError(code)
    for call in ("nvmlSystemGetDriverVersion", "nvmlDeviceGetCount_v2"):
        driver.fails = [(call, "*", code)]
        driver.write()
        errors = {}
        version, count = library.system(errors)
        assert list(errors.values()) == [code], (call, code, errors)
        assert (version, count) in {("", 2), ("570.86.15", None)}
    for call in ("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", "nvmlDeviceRegisterEvents",
                 "nvmlDeviceGetSupportedEventTypes"):
        driver.fails = [(call, 0, code)]
        driver.events = []
        driver.write()
        events = EventSet(range(2))
        assert events.refused == {0: code}, (call, code, events.refused)
        driver.events = [(0, 8, 31), (1, 8, 79)]
        driver.write()
        found = events.wait(2_000)
        assert found is not None and (found.gpu_uuid, found.data) == (driver.gpus[1]["uuid"], 79)
        events.close()
    driver.fails = [("nvmlEventSetCreate", "*", code)]
    driver.write()
    try:
        EventSet(range(2))
    except library.Refused as refused:
        assert (refused.operation, refused.code) == ("event_set", code)
    driver.fails = []
    driver.write()
    events = EventSet(range(2))
    driver.fails = [("nvmlEventSetWait_v2", "*", code), ("nvmlEventSetFree", "*", code)]
    driver.write()
    try:
        assert events.wait(10) is None and code == 10
    except library.Refused as refused:
        assert (refused.operation, refused.code) == ("event_wait", code)
    events.close()
print("all")
"""


def test_every_error_of_init_system_and_events_is_told_as_such(library: Path, tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path / "state")
    said = subprocess.run(
        [sys.executable, "-c", ANYTHING, str(driver.path)],
        cwd=ROOT,
        env=driver.environment(library),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (said.stdout, said.returncode) == ("all\n", 0), said.stderr


VARIANTS = """
import json, sys
from agents.gpus.nvml.driver import library
from agents.gpus.nvml.driver.gpu import GpuCalls
library.start()
print(json.dumps(GpuCalls(0).read(), default=dict))
"""


def read_once(library: Path, driver: FakeDriver) -> wire.Gpu:
    """One read of GPU 0 in a process of its own."""
    driver.write()
    said = subprocess.run(
        [sys.executable, "-c", VARIANTS],
        cwd=ROOT,
        env=driver.environment(library),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    return _GPUS.validate_json(said.stdout)[0]


def test_an_old_driver_without_many_functions_tells_what_it_has(tmp_path: Path) -> None:
    newer = (
        *("nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV"),
        *("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses_v3"),
        *("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetMigMode"),
        *("nvmlDeviceGetRemappedRows", "nvmlGpmQueryDeviceSupport", "nvmlDeviceGetConfComputeMemSizeInfo"),
    )
    library = build(tmp_path / "old", version="450.80.02", omit=newer)
    driver = FakeDriver(
        tmp_path / "state", [an_h100(0, processes=f"{1}:1000", clocks_reasons=4)], driver="450.80.02"
    )
    gpu = read_once(library, driver)
    assert gpu.errors == {}
    # The old memory call counts what the driver keeps for itself as used.
    assert (gpu.memory_used_bytes, gpu.temperature_celsius, gpu.clocks_event_reasons) == (
        (10 << 30) + (600 << 20),
        41,
        4,
    )
    assert gpu.processes == [(1, 1000)]
    assert gpu.samples_us
    assert (gpu.energy_mj, gpu.recovery_action, gpu.remapped_rows) == (None, None, None)
    assert {"energy", "fields", "mig_mode", "remapped_rows"} <= set(gpu.unsupported)


@pytest.mark.parametrize("wide", [False, True])
def test_process_entries_of_both_widths_are_read_right(tmp_path: Path, wide: bool) -> None:
    library = build(tmp_path / "lib", wide_processes=wide)
    listed = {100: 1 << 30, 200: 2 << 30, 300: -1}
    processes = " ".join(f"{pid}:{used}" for pid, used in listed.items())
    gpu = read_once(library, FakeDriver(tmp_path / "state", [an_h100(0, processes=processes)]))
    assert gpu.processes == [(100, 1 << 30), (200, 2 << 30), (300, None)]
    assert gpu.errors == {}


def test_garbage_is_dropped_and_said_to_be_garbage(library: Path, tmp_path: Path) -> None:
    """Pids and figures as other exporters met them."""
    facts = {
        "processes": f"{4 << 20 | 1}:5 7:{81 << 30} 8:16 0:5",
        "memory_used": 90 << 30,
        "name": "NVIDIA \\xff\\xfe",
        "samples": "5:2147483632 9999999999999999:50 1796000000000000:30 1796000000100000:101",
        "field_230": (1 << 63) + 1,
    }
    gpu = read_once(library, FakeDriver(tmp_path / "state", [an_h100(0, **facts)]))
    assert gpu.name == "NVIDIA \ufffd\ufffd"
    assert gpu.memory_used_bytes is None
    assert gpu.samples_us == [(1796000000000000, 0.3)]
    assert gpu.recovery_action is None
    assert gpu.errors == {"memory": -1, "samples": -1, "recovery_action": -1, "processes": -1}


def test_without_a_memory_total_a_process_list_is_still_judged(library: Path, tmp_path: Path) -> None:
    facts = {"processes": f"{4 << 20 | 1}:5 7:{81 << 30} 8:16"}
    gpu = read_once(library, FakeDriver(tmp_path / "state", [an_h100(0, **facts)]))
    assert gpu.processes == [(8, 16)]
    assert gpu.errors == {"processes": -1}


@pytest.mark.parametrize(("value_type", "util"), [(0, 62.5), (1, 62), (3, 62), (5, 62)])
def test_samples_of_every_number_type(library: Path, tmp_path: Path, value_type: int, util: float) -> None:
    gpu = read_once(library, FakeDriver(tmp_path / "state", [an_h100(0, value_type=value_type, util=util)]))
    assert {ratio for _, ratio in gpu.samples_us} == {util / 100}


def test_a_negative_use_is_garbage(library: Path, tmp_path: Path) -> None:
    facts = {"value_type": 5, "samples": "1796000000000000:-3 1796000000100000:4"}
    gpu = read_once(library, FakeDriver(tmp_path / "state", [an_h100(0, **facts)]))
    assert (gpu.samples_us, gpu.errors) == ([(1796000000100000, 0.04)], {"samples": -1})


def test_the_fake_answers_what_nvidia_ml_py_asks_for_processes_shares(library: Path, tmp_path: Path) -> None:
    script = (
        "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0)\n"
        "print([(s.pid, s.timeStamp, s.smUtil) for s in n.nvmlDeviceGetProcessUtilization(h, 5)])\n"
        "print(n.nvmlDeviceGetUtilizationRates(h).gpu, n.nvmlDeviceGetIndex(h), n.nvmlSystemGetCudaDriverVersion_v2())"
    )
    driver = FakeDriver(tmp_path / "state", [an_h100(0, process_util="10:5:40 11:6:60")])
    driver.write()
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=driver.environment(library),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.stdout == "[(11, 6, 60)]\n50 0 13000\n", said.stderr
