"""The programs of the control plane, and others, built once per user from the Go modules beside this file.

A finished program appears under its name in one step, so what is there is whole; two builders wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.child import child_environment, held, last_lines
from deploy.controlplane.toolchain import find_go, needed_version

HERE = Path(__file__).parent
KEY_LENGTH = 16
TICK_S = 1.0

_KUBERNETES = re.compile(r"^\s*k8s\.io/kubernetes v((\d+)\.(\d+)\.\S+)", re.MULTILINE)
_PROMETHEUS = re.compile(
    r"^\s*(?:require )?github\.com/prometheus/prometheus v0\.(\d)(\d+)\.(\d+)", re.MULTILINE
)

PROMETHEUS_TAGS = "netgo,remove_all_sd,enable_kubernetes_sd"
"""Of the ways in which Prometheus can find its targets only files, HTTP and Kubernetes: the clouds' would be most of
the program, and of the time that it takes to build."""


class BuildFailed(Exception):
    """A program could not be built; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a program comes from."""

    name: str
    module: str
    """The folder with its go.mod."""
    package: str


SOURCES = (
    Source("etcd", "kubernetes", "go.etcd.io/etcd/server/v3"),
    Source("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    Source("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    Source("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    Source("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    Source("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the programs are."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path
    kubectl: Path
    kwok: Path


@dataclass(frozen=True, slots=True)
class Building:
    """How far the build is: told about once a second."""

    name: str
    number: int
    of: int
    elapsed_s: float
    is_first: bool = False
    is_done: bool = False


Told = Callable[[Building], None]


def find_binaries(
    told: Told = lambda building: None, environment: Mapping[str, str] = os.environ
) -> Binaries:
    """All programs of the control plane; what is missing is built. Raises BuildFailed or ToolchainTrouble."""
    return _named(find_programs(SOURCES, told, environment))


def built_binaries(environment: Mapping[str, str] = os.environ) -> Binaries | None:
    """All programs of the control plane if they are there; nothing is built."""
    found = built_programs(SOURCES, environment)
    return None if found is None else _named(found)


def find_programs(
    sources: Sequence[Source],
    told: Told = lambda building: None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Path]:
    """These programs by name; what is missing is built. Raises BuildFailed or ToolchainTrouble."""
    paths = _paths(sources, environment)
    if not all(path.exists() for path in paths.values()):
        with _locked(cache_folder(environment)):
            # Whoever held the lock before may have built them.
            wanted = [source for source in sources if not paths[source.name].exists()]
            for number, source in enumerate(wanted, 1):
                _build(source, paths[source.name], told, number, len(wanted))
    return paths


def built_programs(
    sources: Sequence[Source], environment: Mapping[str, str] = os.environ
) -> dict[str, Path] | None:
    """These programs by name if all are there; nothing is built."""
    paths = _paths(sources, environment)
    return paths if all(path.exists() for path in paths.values()) else None


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where built programs are kept."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "gpuhub" / "controlplane"


def cache_key(go_mod: bytes, go_sum: bytes, platform: str, flags: tuple[str, ...]) -> str:
    """Changes with everything that goes into a program."""
    seen = hashlib.sha256()
    for part in (go_mod, go_sum, platform.encode(), *(flag.encode() for flag in flags)):
        seen.update(len(part).to_bytes(8, "big") + part)
    return seen.hexdigest()[:KEY_LENGTH]


def build_flags(go_mod: str) -> tuple[str, ...]:
    """How to build; kubectl and others compare the version that the linker writes in, Prometheus shows it."""
    version = _KUBERNETES.search(go_mod)
    linker = "-s -w"
    more: tuple[str, ...] = ()
    if version is not None:
        known = {"gitVersion": f"v{version[1]}", "gitMajor": version[2], "gitMinor": version[3]}
        linker += "".join(f" -X k8s.io/component-base/version.{name}={text}" for name, text in known.items())
    elif (numbered := _PROMETHEUS.search(go_mod)) is not None:
        # the module of Prometheus 3.13.5 is called v0.313.5
        text = f"{numbered[1]}.{int(numbered[2])}.{numbered[3]}"
        linker += f" -X github.com/prometheus/common/version.Version={text}"
        more = ("-tags", PROMETHEUS_TAGS)
    return ("-trimpath", "-buildvcs=false", "-mod=readonly", *more, "-ldflags", linker)


def _paths(sources: Sequence[Source], environment: Mapping[str, str]) -> dict[str, Path]:
    given = _given(environment)
    return {source.name: given.get(source.name, _built_path(source, environment)) for source in sources}


def _named(paths: Mapping[str, Path]) -> Binaries:
    return Binaries(**{name.replace("-", "_"): path for name, path in paths.items()})


def _given(environment: Mapping[str, str]) -> dict[str, Path]:
    """What KUBEBUILDER_ASSETS offers: a folder of the same programs, as others test with."""
    named = environment.get("KUBEBUILDER_ASSETS", "")
    if not named:
        return {}
    folder = Path(named)
    if not folder.is_dir():
        raise BuildFailed(f"KUBEBUILDER_ASSETS names {folder}, which is not a folder; correct or unset it")
    return {
        source.name: folder / source.name for source in SOURCES if os.access(folder / source.name, os.X_OK)
    }


def _built_path(source: Source, environment: Mapping[str, str]) -> Path:
    module = HERE / source.module
    go_mod = (module / "go.mod").read_bytes()
    key = cache_key(
        go_mod, (module / "go.sum").read_bytes(), sysconfig.get_platform(), build_flags(go_mod.decode())
    )
    return cache_folder(environment) / key / source.name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise BuildFailed(
            f"{folder}: {error.strerror}; set XDG_CACHE_HOME to a folder you can write"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(source: Source, target: Path, told: Told, number: int, of: int) -> None:
    module = HERE / source.module
    go_mod = (module / "go.mod").read_text()
    go = find_go(needed_version(go_mod))
    fresh = target.with_name(f"{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
    except OSError as error:
        raise BuildFailed(
            f"{target.parent}: {error.strerror}; set XDG_CACHE_HOME to a folder you can write"
        ) from error
    command = (str(go), "build", *build_flags(go_mod), "-o", str(fresh), source.package)
    began = time.monotonic()
    told(Building(source.name, number, of, 0.0, is_first=True))
    with tempfile.NamedTemporaryFile(prefix="gpuhub-build-", suffix=".log") as log:
        status = _run(
            command,
            module,
            Path(log.name),
            lambda: told(Building(source.name, number, of, time.monotonic() - began)),
        )
        if status != 0:
            raise BuildFailed(
                f"{source.name} could not be built (exit status {status}); go said:\n"
                + "\n".join(f"  | {line}" for line in last_lines(Path(log.name), 12))
            )
    fresh.replace(target)
    told(Building(source.name, number, of, time.monotonic() - began, is_done=True))


def _run(command: tuple[str, ...], module: Path, log: Path, tick: Callable[[], None]) -> int:
    own = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            held(*command),
            cwd=module,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=child_environment(own),
            process_group=0,
        )
    try:
        while True:
            try:
                return process.wait(TICK_S)
            except subprocess.TimeoutExpired:
                tick()
    finally:
        # Its compilers too, when the build was interrupted.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
