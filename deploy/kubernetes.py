"""The Kubernetes cluster of `gpuhub up`: one that is started here and played by kwok, or one that is there.

Its administrator's rights are used once, to set up the hub's accounts; scheduler and provisioner then work under
their own. What the scheduler reads of the cluster is a file that people may edit: it is written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from deploy.controlplane.cli import ready_binaries
from deploy.controlplane.gpus import GpuClass, gpu_classes
from deploy.controlplane.plane import running_plane
from deploy.controlplane.programs import AUDIT_RULES, PlaneWish
from deploy.datadir import DataDir, write_private
from deploy.programs import DEMO_NODES, Kubernetes
from deploy.progress import Progress
from deploy.session import UsageTrouble
from scheduler.clusters.kubernetes.accounts import PROVISIONER, SCHEDULER
from scheduler.clusters.kubernetes.api import Json, KubernetesApi
from scheduler.clusters.kubernetes.provisioning import Refused, set_up
from scheduler.clusters.kubernetes.settings import BadClusterFile, KubernetesSettings, read_cluster_file
from scheduler.clusters.port import ClusterUnavailable

FOLDER = "kubernetes"
CLUSTER_FILE = "cluster.toml"
TOKEN_S = 365 * 24 * 3600
"""How long the accounts' tokens last; every start makes new ones."""


@contextmanager
def played_cluster(data: DataDir, progress: Progress) -> Iterator[Kubernetes]:
    """A control plane on this machine whose nodes kwok plays, as long as the block.

    Raises what building and starting it raise, and UsageTrouble for a cluster file that cannot be used.
    """
    folder = _folder(data)
    binaries = ready_binaries(progress)
    wish = PlaneWish(nodes=DEMO_NODES, audit_rules=AUDIT_RULES)
    with ExitStack() as stack:
        with progress.step("starting Kubernetes", "Kubernetes is up"):
            plane = stack.enter_context(
                running_plane(folder, binaries, wish, lambda line: progress.say(line, "yellow"))
            )
        yield _prepared(folder, plane.kubeconfig, progress, is_played=True)


def given_cluster(data: DataDir, kubeconfig: Path, progress: Progress) -> Kubernetes:
    """A cluster that is there, with its administrator's kubeconfig. Raises UsageTrouble."""
    return _prepared(_folder(data), kubeconfig.absolute(), progress, is_played=False)


def cluster_text(classes: Mapping[str, GpuClass], *, is_played: bool) -> str:
    """The cluster's file as it is written first: every GPU class that the hub knows by heart."""
    lines = [
        "# How the hub's scheduler reaches this cluster, and what its GPU classes are here. Written once; edit it.",
        f'kubeconfig = "{SCHEDULER}.kubeconfig"',
    ]
    if is_played:
        lines += [
            "# Nobody runs the images here: pods do what these annotations say.",
            'annotation_prefixes = ["simulate.gpuhub/"]',
            'default_image = "none.invalid/simulated:1"',
            "report_lag_s = 0",
        ]
    for name, known in classes.items():
        labels = ", ".join(f'"{key}" = "{text}"' for key, text in known.node_labels.items())
        lines += [
            "",
            f'[classes."{name}"]',
            f"labels = {{ {labels} }}",
            f'resource = "{known.resource}"',
            f"cpu_milli = {known.cpu_milli}",
            f"memory_mib = {known.memory_mib}",
        ]
    return "\n".join(lines) + "\n"


def _folder(data: DataDir) -> Path:
    data.prepare()
    folder = (data.path / FOLDER).absolute()
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _prepared(folder: Path, admin: Path, progress: Progress, *, is_played: bool) -> Kubernetes:
    file = folder / CLUSTER_FILE
    if not file.exists():
        file.write_text(cluster_text(gpu_classes(), is_played=is_played))
    try:
        settings = read_cluster_file(file)
        with closing(KubernetesApi("up", settings.model_copy(update={"kubeconfig": admin}))) as api:
            with progress.step("setting up the hub's accounts", "the hub's accounts and policies are set up"):
                for _ in set_up(api, settings):
                    pass
            for account in (SCHEDULER, PROVISIONER):
                write_private(folder / f"{account}.kubeconfig", _kubeconfig_of(api, settings, account))
    except (BadClusterFile, Refused, ClusterUnavailable) as trouble:
        raise UsageTrouble(str(trouble)) from trouble
    return Kubernetes(file, folder / f"{PROVISIONER}.kubeconfig", admin if is_played else None)


def _kubeconfig_of(api: KubernetesApi, settings: KubernetesSettings, account: str) -> Json:
    space = settings.isolation.system_namespace
    path = f"/api/v1/namespaces/{space}/serviceaccounts/{account}/token"
    answer = api.post(path, {"spec": {"expirationSeconds": TOKEN_S}})
    return api.kubeconfig_of(account, answer.body["status"]["token"])
