"""Folders like those of a Kubernetes node: cgroups, processes, logs of pods."""

from __future__ import annotations

import uuid
from pathlib import Path


class FakeNode:
    """Folders like /sys/fs/cgroup, /proc and /var/log/pods; pods have UIDs, processes have pods."""

    def __init__(self, folder: Path, form: str = "systemd2") -> None:
        """`form` is `systemd` or `cgroupfs` and the version of cgroups: 1 or 2."""
        self.cgroups, self.proc, self.logs = folder / "cgroup", folder / "proc", folder / "pods"
        for made in (self.cgroups, self.proc, self.logs):
            made.mkdir(parents=True)
        self._systemd, self._version = form.startswith("systemd"), int(form[-1])
        self._base().mkdir(parents=True)
        self._uids: dict[tuple[str, str], str] = {}

    def pod(self, namespace: str, name: str) -> str:
        """A pod starts: its cgroup, then its folder of logs; the UID."""
        uid = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{namespace}/{name}"))
        self._uids[namespace, name] = uid
        (self._base() / self._folder(uid)).mkdir(parents=True, exist_ok=True)
        (self.logs / f"{namespace}_{name}_{uid}").mkdir(exist_ok=True)
        return uid

    def end(self, namespace: str, name: str) -> None:
        """It ends: its cgroup goes, its logs stay."""
        (self._base() / self._folder(self._uids[namespace, name])).rmdir()

    def remove_logs(self, namespace: str, name: str) -> None:
        """The pod is deleted at last."""
        (self.logs / f"{namespace}_{name}_{self._uids[namespace, name]}").rmdir()

    def process(self, pid: int, namespace: str = "", name: str = "", started: int = 100) -> None:
        """A process of a pod, or of the node itself."""
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        inside = "/system.slice/containerd.service"
        if name:
            pod = self._folder(self._uids[namespace, name])
            top = "kubepods.slice/kubepods-burstable.slice" if self._systemd else "kubepods/burstable"
            container = "cri-containerd-0123456789abcdef.scope" if self._systemd else "0123456789abcdef"
            inside = f"/{top}/{pod}/{container}"
        lines = (
            [f"0::{inside}"] if self._version == 2 else [f"11:memory:{inside}", f"1:name=systemd:{inside}"]
        )
        (folder / "cgroup").write_text("\n".join(lines) + "\n")
        fields = " ".join(["S", *["0"] * 18, str(started), "0", "0"])
        (folder / "stat").write_text(f"{pid} (py) thon (3) {fields}\n")

    def process_ends(self, pid: int) -> None:
        """Nothing has the number any more."""
        folder = self.proc / str(pid)
        for part in folder.iterdir():
            part.unlink()
        folder.rmdir()

    def _base(self) -> Path:
        root = self.cgroups if self._version == 2 else self.cgroups / "memory"
        return root / ("kubepods.slice/kubepods-burstable.slice" if self._systemd else "kubepods/burstable")

    def _folder(self, uid: str) -> str:
        return f"kubepods-burstable-pod{uid.replace('-', '_')}.slice" if self._systemd else f"pod{uid}"
