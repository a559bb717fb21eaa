"""A kubelet's PodResources socket: grpcio's server, a list that tests change, and folders as a node has them."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import grpc

from tests.fakekubelet.messages import FakePod, response

METHOD = "/v1.PodResourcesLister/List"


class FakeKubelet:
    """Serves `pods` on `socket` while it is started; `refuse` and `delay_s` are its moods."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.pods: list[FakePod] = []
        self.refuse: grpc.StatusCode | None = None
        self.delay_s = 0.0
        self.raw: bytes | None = None
        """Answered instead of the list."""
        self.asked = 0
        self.changed = threading.Condition()
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on a new socket."""
        self.socket.unlink(missing_ok=True)
        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self._list)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler}),)
        )
        assert self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        """Go away; the socket's file goes, too."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None
        self.socket.unlink(missing_ok=True)

    def wait_asked(self, times: int = 2, timeout_s: float = 30) -> None:
        """Until it was asked so many times more: the last but one of the answers has been taken by then."""
        with self.changed:
            until = self.asked + times
            assert self.changed.wait_for(lambda: self.asked >= until, timeout_s), "the agent does not ask"

    def _list(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        with self.changed:
            self.asked += 1
            self.changed.notify_all()
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.refuse is not None:
            context.abort(self.refuse, "not now: not a good moment")
        assert request == b""
        return response(self.pods) if self.raw is None else self.raw


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
