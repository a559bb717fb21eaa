"""Compiles the fake driver library and writes the file that drives it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("fakenvml.c")
VERSION = "570.86.15"


def build(
    folder: Path, version: str = VERSION, wide_processes: bool = False, omit: Iterable[str] = ()
) -> Path:
    """`libnvidia-ml.so.1` in `folder`, for LD_LIBRARY_PATH; functions in `omit` are not to be found in it.

    It appears at once, as a package manager's would: what runs with the old one keeps it.
    """
    assert shutil.which("gcc"), (
        "the fake driver library is compiled: install gcc (apt-get install gcc libc6-dev)"
    )
    folder.mkdir(parents=True, exist_ok=True)
    hidden = "".join(f"{name};" for name in omit)
    script = folder / "exports"
    script.write_text(f"{{ global: nvml*; local: {hidden} *; }};")
    made = folder / "libnvidia-ml.so.1.new"
    subprocess.run(
        [
            *(
                "gcc",
                "-O1",
                "-shared",
                "-fPIC",
                "-Wl,-soname,libnvidia-ml.so.1",
                f"-Wl,--version-script={script}",
            ),
            *(f'-DFAKE_VERSION="{version}"', *(["-DWIDE_PROCESSES"] if wide_processes else [])),
            *("-o", str(made), str(SOURCE), "-lpthread"),
        ],
        check=True,
    )
    return made.rename(folder / "libnvidia-ml.so.1")


def an_h100(number: int, **others: object) -> dict[str, object]:
    """What the library says of a healthy GPU, half busy; None takes a key away."""
    facts: dict[str, object] = {
        "uuid": f"GPU-{number:08d}-1111-2222-3333-444444444444",
        "name": "NVIDIA H100 80GB HBM3",
        "serial": f"16500000{number}",
        "memory_total": 80 << 30,
        "memory_used": 10 << 30,
        "memory_reserved": 600 << 20,
        "util": 50,
        "period_us": 20_000,
        "power_mw": 350_500,
        "energy_mj": 1_000_000,
        "temperature": 41,
        "clocks_reasons": 0,
        "ecc_corrected": 0,
        "ecc_uncorrected": 0,
        "ecc_corrected_ever": 3,
        "ecc_uncorrected_ever": 0,
        "remapped": "0 0 0 0",
        "pcie_replays": 0,
        "field_230": 0,
        **{f"field_{field_id}": 0 for field_id in (74, 269, 270, 271)},
    }
    return {key: value for key, value in (facts | others).items() if value is not None}


@dataclass
class FakeDriver:
    """One state file; `write()` after every change."""

    path: Path
    gpus: list[dict[str, object]] = field(default_factory=list)
    migs: dict[tuple[int, int], dict[str, object]] = field(default_factory=dict)
    fails: list[tuple[str, int | str, int]] = field(default_factory=list)
    """(function or *, GPU's index or *, error code); the first that fits counts."""
    delays: list[tuple[str, int | str, int]] = field(default_factory=list)
    """(function or *, GPU's index or *, milliseconds; -1: for ever)."""
    events: list[tuple[int, int, int]] = field(default_factory=list)
    """(GPU's index, type, data), in order."""
    driver: str = VERSION
    loaded: bool = True

    def write(self) -> None:
        """Replace the file at once."""
        lines = [f"driver {self.driver}", f"loaded {int(self.loaded)}"]
        lines += [
            f"gpu {n} {key} {value}" for n, facts in enumerate(self.gpus) for key, value in facts.items()
        ]
        lines += [
            f"mig {i} {j} {key} {value}"
            for (i, j), facts in self.migs.items()
            for key, value in facts.items()
        ]
        lines += [f"fail {function} {gpu} {code}" for function, gpu, code in self.fails]
        lines += [f"delay {function} {gpu} {delay_ms}" for function, gpu, delay_ms in self.delays]
        lines += [f"xid {n} {gpu} {kind:#x} {data}" for n, (gpu, kind, data) in enumerate(self.events, 1)]
        beside = self.path.with_suffix(".new")
        beside.write_text("\n".join(lines) + "\n")
        beside.rename(self.path)

    def environment(self, library: Path) -> dict[str, str]:
        """For a process that is to find this driver behind `library`."""
        return {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(self.path)}
