"""The shape of Kueue's own baseline test, for the hub and for Kueue beside it in the same run.

The shape is read from Kueue's module: 15,000 jobs of 1, 5 and 20 units, from 30 queues in 5 groups of 120 units. Here
a group is a GPU class with one node of 120 GPUs, and a queue is an organization with a grant of its own that submits
to its group's class only. Kueue's shape gives large jobs the highest priority and small ones the lowest; the hub is
given the policy that comes nearest, as its operators would set it (`LIKE_KUEUE`).
There are an API server and etcd only. `tests/bench/kubernetes_runner.py` plays the rest for the hub, Kueue's own
`runner` for Kueue, with its `minimalkueue`, which is told to send 50 calls a second; each has a control plane of its
own. `GPUHUB_BENCH_KUEUE=SHARE` (0 to 1) makes all sets smaller; `GPUHUB_BENCH_KUEUE_RUNS` picks runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from deploy.child import child_environment, held
from deploy.controlplane import binaries
from deploy.controlplane.binaries import Building, Source, built_binaries, find_programs
from deploy.controlplane.programs import API_SERVER, CONTROLLER_MANAGER, KWOK, SCHEDULER
from deploy.controlplane.toolchain import find_go, needed_version
from quota.schemas.fair_share import FairShare, FairSharePut
from quota.schemas.identity import Role
from tests.bench import kubernetes_runner
from tests.bench.kubernetes_client import Server
from tests.bench.kubernetes_runner import JobSet
from tests.bench.kubernetes_world import a_hub, bare, load_text, say, spent, uses
from tests.kubernetes_plane import a_plane

SHARE = float(os.environ.get("GPUHUB_BENCH_KUEUE", "1"))
RUNS = os.environ.get("GPUHUB_BENCH_KUEUE_RUNS", "qps50,kueue,qps300").split(",")
CLASSES = ("h100", "h200", "a100", "a100-40gb", "l40s")
"""One for each group."""
LIMITS = {"qps50": {"qps": 50, "burst": 100}, "qps300": {"qps": 300, "burst": 600}}
LIKE_KUEUE = FairShare(
    gang_first_gpus=5,
    reservations=len(CLASSES),
    reservations_per_organization=1,
    reservation_gpus=20,
    lane=None,
    preemption=None,
)
"""Inside a grant medium and large jobs go first, a large one that does not fit is waited for, and no small one passes.
"""
LONGEST_S = 1500
MODULE = binaries.HERE / "kueue"
PACKAGE = "sigs.k8s.io/kueue/test/performance/scheduler"
SOURCES = tuple(Source(f"kueue-{name}", "kueue", f"{PACKAGE}/{name}") for name in ("minimalkueue", "runner"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run went."""

    rate: float
    wait_s: Mapping[str, float]
    """Mean time from creation to admission by size."""
    cpu_s: float
    memory_mib: float
    load: str
    more: Mapping[str, object]


def run() -> list[dict[str, Any]]:
    """Rows of `kubernetes-kueue`: the hub's figures, with Kueue's as their limits."""
    programs = [_program(source) for source in SOURCES]
    config = _config()
    found: dict[str, Outcome] = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory(prefix="gpuhub-bench-") as place:
            folder = Path(place)
            if name == "kueue":
                found[name] = _kueue(folder, config, *programs)
            else:
                found[name] = _ours(folder, config, LIMITS[name])
        say(f"{name}: {found[name]}")
    theirs = found.get("kueue")
    return [
        row
        for name, ours in found.items()
        if ours is not theirs or len(found) == 1
        for row in _rows(name, ours, theirs)
    ]


def _rows(name: str, ours: Outcome, theirs: Outcome | None) -> list[dict[str, Any]]:
    figures: list[tuple[str, str, Callable[[Outcome], float]]] = [("rate", "jobs/s", lambda one: one.rate)]
    figures += [
        (f"wait_{size}", "s", lambda one, size=size: one.wait_s[size])  # type: ignore[misc]
        for size in sorted(ours.wait_s)
    ]
    figures.append(("cpu", "s", lambda one: one.cpu_s))
    figures.append(("memory", "MiB", lambda one: one.memory_mib))
    rows = []
    for metric, unit, read in figures:
        row: dict[str, Any] = {"bench": "kubernetes-kueue", "metric": f"{name}_{metric}", "unit": unit}
        row["value"] = round(read(ours), 2)
        if theirs is not None:
            row |= {"limit": round(read(theirs), 2), "ratio": round(read(ours) / read(theirs), 3)}
        rows.append(row | {"load": ours.load, **ours.more})
    return rows


# --- the hub ---


def _ours(folder: Path, config: dict[str, Any], limits: Mapping[str, int]) -> Outcome:
    sets = _sets(config)
    count = sum(jobs.count for jobs in sets)
    organizations = tuple(dict.fromkeys(jobs.organization for jobs in sets))
    nodes = [f"pool-{number}:{name}=120" for number, name in enumerate(CLASSES)]
    # as Kueue's runner starts its own
    flags = (
        "--max-requests-inflight=5000",
        "--max-mutating-requests-inflight=2500",
        "--disable-admission-plugins=ServiceAccount",
    )
    spawn = multiprocessing.get_context("spawn")
    with a_plane(folder / "plane", *nodes, arguments={API_SERVER: flags}) as plane:
        for name in (KWOK, SCHEDULER, CONTROLLER_MANAGER):
            plane.stop_program(name)
        ground = bare(plane, folder, CLASSES, organizations, limits)
        with a_hub(folder / "hub", ground, organizations, CLASSES) as hub:
            with hub.client() as client:
                client.put_fair_share(FairSharePut(fair_share=LIKE_KUEUE, reason="large jobs go first"))
            hub.start_scheduler()
            server = Server(plane.url, plane.ca_file, plane.token)
            port, token = hub.ports["quota"], hub.tokens[Role.OPERATOR]
            files = folder / "submitted", folder / "played"
            player = spawn.Process(target=kubernetes_runner.play, args=(server, count, files[1]))
            people = spawn.Process(target=kubernetes_runner.submit, args=(port, token, sets, files[0]))
            used = uses(plane.supervisor)
            player.start()
            time.sleep(2.0)
            people.start()
            player.join(LONGEST_S)
            people.join(10.0)
            assert (player.exitcode, people.exitcode) == (0, 0), (player.exitcode, people.exitcode)
            hub_used = hub.uses()
            plane_s = spent(used, uses(plane.supervisor))
    submitted = [line.split() for line in files[0].read_text().splitlines()]
    played = {line.split()[0]: line.split()[1:] for line in files[1].read_text().splitlines()}
    waits: dict[str, list[float]] = defaultdict(list)
    for job_id, size, at_s in submitted:
        waits[size].append(max(0.0, float(played[job_id][0]) - float(at_s)))
    began_s = min(float(at_s) for _, _, at_s in submitted)
    seconds = max(float(ended_s) for _, ended_s in played.values()) - began_s
    generated_s = max(float(at_s) for _, _, at_s in submitted) - began_s
    return Outcome(
        rate=count / seconds,
        wait_s={size: statistics.mean(found) for size, found in waits.items()},
        cpu_s=sum(use.cpu_s for use in hub_used.values()),
        memory_mib=sum(use.peak_mib for use in hub_used.values()),
        load=load_text(),
        more={
            "seconds": round(seconds, 1),
            "submitted_s": round(generated_s, 1),
            "cpu_s": {name: round(use.cpu_s, 1) for name, use in hub_used.items()} | plane_s,
        },
    )


def _sets(config: dict[str, Any]) -> list[JobSet]:
    """A group's queues belong to its class."""
    sets: list[JobSet] = []
    for cohorts in config["cohorts"]:
        assert cohorts["count"] == len(CLASSES)
        for group in range(cohorts["count"]):
            for queues in cohorts["queuesSets"]:
                for queue in range(queues["count"]):
                    sets += [
                        JobSet(
                            organization=f"firm-{group}-{queue}",
                            gpu_class=CLASSES[group],
                            size=job["className"],
                            gpus=int(job["request"]),
                            run_s=job["runtimeMs"] / 1000,
                            count=jobs["count"],
                            interval_s=jobs["creationIntervalMs"] / 1000,
                        )
                        for jobs in queues["workloadsSets"]
                        for job in jobs["workloads"]
                    ]
    return sets


# --- Kueue ---


def _kueue(folder: Path, config: dict[str, Any], minimalkueue: Path, runner: Path) -> Outcome:
    plane = built_binaries()
    assert plane is not None, "the control plane is not built yet: run `make controlplane`"
    assets = folder / "assets"
    assets.mkdir()
    for program in (plane.etcd, plane.kube_apiserver, plane.kubectl):
        (assets / program.name).symlink_to(program)
    shape = folder / "shape.json"
    shape.write_text(json.dumps(config))
    module = _module_folder()
    command = held(
        str(runner),
        *("--o", str(folder), "--crds", str(module / "config/components/crd/bases")),
        *("--generatorConfig", str(shape), "--minimalKueue", str(minimalkueue)),
        *("--timeout", f"{LONGEST_S}s"),
    )
    with (folder / "runner.log").open("wb") as log:
        status = subprocess.run(
            command,
            cwd=module,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environment({"KUBEBUILDER_ASSETS": str(assets)}) | {"PYTHONPATH": str(Path.cwd())},
            timeout=LONGEST_S + 60,
            check=False,
        ).returncode
    assert status == 0, (folder / "runner.log").read_text()[-3000:]
    summary = yaml.safe_load((folder / "summary.yaml").read_text())["workloadClasses"]
    used = yaml.safe_load((folder / f"{minimalkueue.name}.stats.yaml").read_text())
    used = {name.lower(): value for name, value in used.items()}
    count = sum(found["count"] for found in summary.values())
    return Outcome(
        rate=count / (used["wallms"] / 1000),
        wait_s={size: found["averageTimeToAdmissionMs"] / 1000 for size, found in summary.items()},
        cpu_s=(used["userms"] + used["sysms"]) / 1000,
        memory_mib=used["maxrss"] / 1024,
        load=load_text(),
        more={
            "seconds": used["wallms"] / 1000,
            "jobs": count,
            "submitted": _generated_text((folder / "runner.log").read_text()),
        },
    )


def _generated_text(log: str) -> str:
    """How long Kueue's runner took to create its workloads, in its own words."""
    return next((line[-60:] for line in log.splitlines() if "Generator done" in line), "")


def _config() -> dict[str, Any]:
    """Kueue's own, read from its module."""
    text = (_module_folder() / "test/performance/scheduler/configs/baseline/generator.yaml").read_text()
    config: dict[str, Any] = yaml.safe_load(text)
    for cohorts in config["cohorts"]:
        for queues in cohorts["queuesSets"]:
            for jobs in queues["workloadsSets"]:
                jobs["count"] = round(jobs["count"] * SHARE)
                for job in jobs["workloads"]:
                    job["request"] = str(job["request"])
            queues["nominalQuota"] = str(queues["nominalQuota"])
            queues["borrowingLimit"] = str(queues["borrowingLimit"])
    return config


def _module_folder() -> Path:
    go = find_go(needed_version((MODULE / "go.mod").read_text()))
    own = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    for command in (
        ("mod", "download", "sigs.k8s.io/kueue"),
        ("list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kueue"),
    ):
        said = subprocess.run(
            (str(go), *command),
            cwd=MODULE,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=True,
        )
    return Path(said.stdout.strip())


def _program(source: Source) -> Path:
    """Built as the control plane's programs are, and kept beside them."""
    return find_programs((source,), _tell)[source.name]


def _tell(building: Building) -> None:
    if building.is_first or building.is_done:
        say(f"building {building.name}: {building.elapsed_s:.0f} s")
