"""`gpuhub scheduler provision` and `manifests`: a Kubernetes cluster is made ready for the hub."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from quota.client import QuotaClient, ServiceProblem, ServiceUnavailable
from quota.client.paging import every
from scheduler.clusters.kubernetes.api import KubernetesApi
from scheduler.clusters.kubernetes.isolation_settings import is_organization_id
from scheduler.clusters.kubernetes.provisioning import (
    Outcome,
    Provisioner,
    Refused,
    Step,
    setup_objects,
    strays,
    totals_of,
)
from scheduler.clusters.kubernetes.settings import BadClusterFile, KubernetesSettings, read_cluster_file
from scheduler.clusters.port import ClusterUnavailable


class Exit(IntEnum):
    """What a script may rely on; the same for all commands of the hub."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    UNAVAILABLE = 3


ClusterFile = Annotated[Path, typer.Option(help="TOML file that describes the cluster.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(provision)
    app.command()(manifests)


def provision(
    cluster_file: ClusterFile,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="The provisioner's own; the cluster file names the scheduler's.")
    ] = None,
    organization: Annotated[
        list[str] | None, typer.Option(help="Id of an organization. May be given several times.")
    ] = None,
    quota_url: Annotated[
        str | None, typer.Option(help="Quota service whose organizations all get a namespace.")
    ] = None,
    token_env: Annotated[
        str, typer.Option(help="Name of the environment variable that holds a token for it.")
    ] = "GPUHUB_TOKEN",
    every_s: Annotated[
        float | None, typer.Option(min=1, help="Do it again after so many seconds, until SIGTERM.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Let the API server check everything and keep nothing.")
    ] = False,
) -> None:
    """Give a cluster the admission policy, its GPU nodes the taint, every organization its namespace."""
    if dry_run and every_s is not None:
        _end(Exit.USAGE, "--dry-run is done once: leave out --every-s")
    settings = _settings(cluster_file, kubeconfig)
    wanted = _wanted(organization or [], quota_url, token_env)
    with closing(_api(cluster_file.stem, settings)) as api:
        work = _Work(Provisioner(api, settings, dry_run=dry_run), settings, wanted, dry_run)
        if every_s is None:
            raise typer.Exit(_round(work))
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        while not stopping.is_set():
            _round(work)
            stopping.wait(every_s)


def manifests(cluster_file: ClusterFile) -> None:
    """Print what a cluster admin applies once: accounts, their rights, the admission policy."""
    typer.echo(json.dumps(setup_objects(_settings(cluster_file, None)), indent=1))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Whose namespaces there shall be."""

    given: tuple[str, ...]
    quota_url: str | None
    token: str

    def organizations(self) -> list[str]:
        """Their ids, each once. Raises ServiceUnavailable or ServiceProblem."""
        if self.quota_url is None:
            return list(self.given)
        with QuotaClient(self.quota_url, self.token) as client:
            known = [organization.id for organization in every(client.list_organizations)]
        return list(dict.fromkeys([*self.given, *known]))


def _wanted(organizations: list[str], quota_url: str | None, token_env: str) -> _Wanted:
    for one in organizations:
        if not is_organization_id(one):
            _end(Exit.USAGE, f"--organization: {one!r} is not the id of an organization")
    token = os.environ.get(token_env, "")
    if quota_url is not None and not token:
        _end(Exit.USAGE, f"--token-env: the environment has no {token_env}")
    return _Wanted(tuple(dict.fromkeys(organizations)), quota_url, token)


@dataclass(frozen=True, slots=True)
class _Work:
    """What one round does."""

    provisioner: Provisioner
    settings: KubernetesSettings
    wanted: _Wanted
    is_trial: bool


def _round(work: _Work) -> Exit:
    """Everything once. A refusal for one organization does not keep the others waiting."""
    done: Counter[Outcome] = Counter()
    refused = 0
    try:
        organizations = work.wanted.organizations()
        nodes = work.provisioner.nodes()
        for stray in strays(nodes, work.settings):
            _complain(
                f"node {stray} has GPUs, but no class of the cluster file has its labels: it gets no taint"
            )
        _tell(work.provisioner.cluster(nodes), done, is_trial=work.is_trial)
        totals = totals_of(nodes, work.settings)
        for one in organizations:
            try:
                _tell(work.provisioner.organization(one, totals), done, is_trial=work.is_trial)
            except Refused as refusal:
                refused += 1
                _complain(str(refusal))
    except (ServiceUnavailable, ClusterUnavailable) as trouble:
        _complain(str(trouble))
        return Exit.UNAVAILABLE
    except (ServiceProblem, Refused) as refusal:
        _complain(str(refusal))
        return Exit.REFUSED
    kept = " (nothing was kept: dry run)" if work.is_trial else ""
    typer.echo(", ".join(f"{done[outcome]} {outcome}" for outcome in Outcome) + kept)
    return Exit.REFUSED if refused else Exit.DONE


def _tell(steps: Iterable[Step], done: Counter[Outcome], *, is_trial: bool) -> None:
    for step in steps:
        done[step.outcome] += 1
        if step.outcome is not Outcome.UNCHANGED:
            typer.echo(f"{'would be ' if is_trial else ''}{step.outcome}: {step.what}")


def _settings(cluster_file: Path, kubeconfig: Path | None) -> KubernetesSettings:
    try:
        settings = read_cluster_file(cluster_file)
    except BadClusterFile as error:
        _end(Exit.USAGE, str(error))
    return settings if kubeconfig is None else settings.model_copy(update={"kubeconfig": kubeconfig})


def _api(name: str, settings: KubernetesSettings) -> KubernetesApi:
    try:
        return KubernetesApi(name, settings)
    except BadClusterFile as error:
        _end(Exit.USAGE, str(error))


def _complain(why: str) -> None:
    typer.echo(f"gpuhub scheduler: {why}", err=True)


def _end(code: Exit, why: str) -> NoReturn:
    _complain(why)
    raise typer.Exit(code)
