"""Pods and processes in every form that nodes give their cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.pods.cgroups import Node, Process
from tests.fakekubelet.node import FakeNode

FORMS = ("systemd2", "cgroupfs2", "systemd1", "cgroupfs1")


@pytest.fixture(params=FORMS)
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path, request.param)


def node_of(fake: FakeNode) -> Node:
    return Node(fake.cgroups, fake.proc, fake.logs)


def test_a_pod_lives_as_long_as_its_cgroup_and_has_its_name_as_long_as_its_logs(fake: FakeNode) -> None:
    node = node_of(fake)
    first, second = fake.pod("hub-acme", "job-a-1-0-abcde"), fake.pod("kube-system", "dcgm-x.y")
    assert node.living() == {first, second}
    fake.end("hub-acme", "job-a-1-0-abcde")
    assert node.living() == {second}
    assert node.uids() == {
        ("hub-acme", "job-a-1-0-abcde"): {first},
        ("kube-system", "dcgm-x.y"): {second},
    }
    fake.remove_logs("hub-acme", "job-a-1-0-abcde")
    assert node.uids() == {("kube-system", "dcgm-x.y"): {second}}


def test_a_process_is_of_the_pod_whose_cgroup_it_is_in(fake: FakeNode) -> None:
    node = node_of(fake)
    uid = fake.pod("hub-acme", "job-a-1-0-abcde")
    fake.process(7, "hub-acme", "job-a-1-0-abcde", started=123)
    fake.process(8, started=5)
    assert (node.pod_of(7), node.process(7)) == (uid, Process(7, 123))
    assert (node.pod_of(8), node.process(8)) == (None, Process(8, 5))
    fake.process_ends(7)
    assert (node.pod_of(7), node.process(7)) == (None, None)


def test_no_pods_at_all_are_none_living_and_no_cgroups_at_all_are_not_known(
    fake: FakeNode, tmp_path: Path
) -> None:
    assert node_of(fake).living() == frozenset()
    nowhere = Node(tmp_path / "none", tmp_path / "none", tmp_path / "none")
    assert (nowhere.living(), nowhere.uids(), nowhere.process(1), nowhere.pod_of(1)) == (None, {}, None, None)


@pytest.mark.parametrize(
    "folder",
    [
        "kubepods.slice/kubepods-pod0a1b2c3d_1111_2222_3333_444455556666.slice",
        "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b2c3d_1111_2222_3333_444455556666.slice",
        "kubepods/pod0a1b2c3d-1111-2222-3333-444455556666",
        "kubelet/kubepods/besteffort/pod0a1b2c3d-1111-2222-3333-444455556666",
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
        "kubelet-kubepods-burstable-pod0a1b2c3d_1111_2222_3333_444455556666.slice",
    ],
)
def test_folders(folder: str, tmp_path: Path) -> None:
    (tmp_path / "cgroup" / folder / "cri-containerd-01.scope").mkdir(parents=True)
    proc = tmp_path / "proc" / "9"
    proc.mkdir(parents=True)
    # a container of its own namespace sees its place from below
    (proc / "cgroup").write_text(f"0::/../../{folder}/cri-containerd-01.scope\n")
    node = Node(tmp_path / "cgroup", tmp_path / "proc", tmp_path)
    assert node.living() == {"0a1b2c3d-1111-2222-3333-444455556666"}
    assert node.pod_of(9) == "0a1b2c3d-1111-2222-3333-444455556666"


def test_a_static_pod_has_a_uid_without_dashes(tmp_path: Path) -> None:
    uid = "0123456789abcdef0123456789abcdef"
    (tmp_path / "kubepods" / f"pod{uid}").mkdir(parents=True)
    (tmp_path / f"kube-system_etcd-n1_{uid}").mkdir()
    node = Node(tmp_path, tmp_path, tmp_path)
    assert node.living() == {uid}
    assert node.uids() == {("kube-system", "etcd-n1"): {uid}}


def test_this_machines_own_processes_can_be_told() -> None:
    own = Node().process(1)
    assert own is not None
    assert own.started >= 0
