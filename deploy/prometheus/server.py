"""A running Prometheus on this machine, with the hub's own configuration, rules and alerts.

Its folder has copies of these, so that it stays as it is when the hub is upgraded beneath it, and may be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.child import Program, held
from deploy.datadir import HOST, DataDir, DataDirTrouble, choose_ports, write_private, write_private_bytes
from deploy.prometheus.programs import Programs
from deploy.supervisor import Supervisor

HERE = Path(__file__).parent
CONFIGURATION = HERE / "prometheus.yml"
RULES = tuple(sorted((HERE / "rules").glob("*.yml")))
JOBS = ("quota", "scheduler", "agent")
"""The scrape jobs of the configuration, one for each program of the hub."""

NAME = "prometheus"
INTERVAL = "15s"
"""How often the configuration scrapes and evaluates."""
START_S = 60.0


@dataclass(frozen=True, slots=True)
class ServerWish:
    """What to scrape, and how."""

    targets: Mapping[str, Sequence[str]]
    """Addresses (HOST:PORT) by JOBS."""
    port: int | None = None
    token: str = ""
    """What the quota service wants of who reads its metrics from another machine."""
    interval_s: float | None = None
    """How often it scrapes and evaluates, if not as the configuration says."""
    rules: tuple[Path, ...] = RULES


@dataclass(frozen=True, slots=True)
class Server:
    """A running Prometheus."""

    url: str
    folder: Path
    supervisor: Supervisor

    @property
    def pid(self) -> int | None:
        """Its process; None while it is down."""
        return self.supervisor.pids()[NAME]


@contextmanager
def running_prometheus(
    folder: Path, programs: Programs, wish: ServerWish, say: Callable[[str], None] = lambda line: None
) -> Iterator[Server]:
    """Start Prometheus and stop it at the end of the block; the same folder goes on with what it has stored.

    However this process ends, Prometheus ends with it. Raises DataDirTrouble or StartFailed.
    """
    data = DataDir(folder.absolute())
    try:
        data.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataDirTrouble(f"{folder}: {error.strerror}; choose another --folder") from error
    with data.locked("gpuhub prometheus run", "--folder"):
        data.rotate_logs()
        asked = {} if wish.port is None else {NAME: wish.port}
        ports = choose_ports((NAME,), data.read("ports.json"), asked)
        data.write("ports.json", {name: str(port) for name, port in ports.items()})
        configure(data.path, wish)
        address = f"{HOST}:{ports[NAME]}"
        supervisor = Supervisor(data.logs, say)
        try:
            supervisor.start(_program(data.path, programs, address), START_S)
            yield Server(f"http://{address}", data.path, supervisor)
        finally:
            supervisor.stop((NAME,))


def configure(folder: Path, wish: ServerWish) -> Path:
    """Write the configuration with its rules and targets into a folder, and answer where it is."""
    unknown = set(wish.targets) - set(JOBS)
    assert not unknown, f"no such scrape job: {sorted(unknown)}"
    text = CONFIGURATION.read_text()
    if wish.interval_s is not None:
        assert text.count(f"_interval: {INTERVAL}") == 2, "the configuration names both intervals once"
        text = text.replace(f"_interval: {INTERVAL}", f"_interval: {round(wish.interval_s * 1000)}ms")
    _replace_folder(folder / "rules", {path.name: path.read_bytes() for path in wish.rules})
    (folder / "targets").mkdir(exist_ok=True, mode=0o700)
    for job in JOBS:
        write_private(folder / "targets" / f"{job}.json", [{"targets": list(wish.targets.get(job, ()))}])
    write_private_bytes(folder / "quota-token", wish.token.encode())
    configuration = folder / CONFIGURATION.name
    write_private_bytes(configuration, text.encode())
    return configuration


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True, mode=0o700)
    for old in folder.glob("*.yml"):
        if old.name not in files:
            old.unlink()
    for name, content in files.items():
        write_private_bytes(folder / name, content)


def _program(folder: Path, programs: Programs, address: str) -> Program:
    command = held(
        str(programs.prometheus),
        f"--config.file={folder / CONFIGURATION.name}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=90d",
        f"--web.listen-address={address}",
        "--log.level=warn",
    )
    return Program(NAME, command, f"http://{address}/-/ready")
