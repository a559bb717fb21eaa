"""The one gRPC call, against grpcio's own server, and against what is no gRPC server at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from agents.pods.podresources import ALLOCATABLE, LIST, Device, offered_in, pods_in
from agents.pods.unary import CallFailed, call
from tests.fakekubelet.kubelet import FakeKubelet
from tests.fakekubelet.messages import FakePod


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    with FakeKubelet(tmp_path / "kubelet.sock") as running:
        yield running


def refusal(path: Path, method: str = LIST, timeout_s: float = 5.0) -> str:
    with pytest.raises(CallFailed) as caught:
        call(path, method, b"", timeout_s)
    return caught.value.reason


@contextmanager
def a_server(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that listens and is no gRPC server."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def accept() -> None:
        connection, _ = listener.accept()
        with connection:
            serve(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        listener.close()


def test_a_list_longer_than_every_window_arrives_whole(kubelet: FakeKubelet) -> None:
    """HTTP/2 stops after 64 KiB until the reader says that it took them."""
    kubelet.pods = [
        FakePod("hub-acme", f"job-{n}-1-0-abcde", {"nvidia.com/gpu": [f"GPU-{n}"]}) for n in range(3_000)
    ]
    answer = call(kubelet.socket, LIST, b"", 20)
    assert len(answer) > 300_000
    assert [pod.name for pod in pods_in(answer)] == [pod.name for pod in kubelet.pods]


def test_an_empty_list_is_an_answer(kubelet: FakeKubelet) -> None:
    assert call(kubelet.socket, LIST, b"", 5) == b""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "unavailable"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted"),
        (grpc.StatusCode.DATA_LOSS, "refused"),
    ],
)
def test_what_the_kubelet_refuses_is_told_by_its_code(
    kubelet: FakeKubelet, code: grpc.StatusCode, reason: str
) -> None:
    kubelet.refuse = code
    assert refusal(kubelet.socket) == reason


def test_what_it_offers_is_another_question_on_the_same_socket(kubelet: FakeKubelet) -> None:
    assert refusal(kubelet.socket, ALLOCATABLE) == "unimplemented"
    kubelet.offered = {"nvidia.com/gpu": [f"GPU-{n}::{m}" for n in range(16) for m in range(100)]}
    offered = offered_in(call(kubelet.socket, ALLOCATABLE, b"", 20))
    assert offered == tuple(Device("nvidia.com/gpu", each) for each in kubelet.offered["nvidia.com/gpu"])
    kubelet.refuse_offered = grpc.StatusCode.UNKNOWN
    assert refusal(kubelet.socket, ALLOCATABLE) == "refused"
    assert call(kubelet.socket, LIST, b"", 5) == b""


def test_a_method_that_it_does_not_have(kubelet: FakeKubelet) -> None:
    assert refusal(kubelet.socket, "/v1.PodResourcesLister/Get") == "unimplemented"


def test_a_kubelet_that_does_not_answer_in_time_is_not_waited_for(kubelet: FakeKubelet) -> None:
    until = threading.Event()
    kubelet.before_answer = lambda: until.wait(30) and None
    assert refusal(kubelet.socket, timeout_s=0.3) == "deadline_exceeded"
    until.set()
    kubelet.before_answer = lambda: None
    assert call(kubelet.socket, LIST, b"", 5) == b""


def test_a_new_socket_is_found_by_the_next_call(kubelet: FakeKubelet) -> None:
    assert call(kubelet.socket, LIST, b"", 5) == b""
    kubelet.stop()
    assert refusal(kubelet.socket) == "absent"
    kubelet.start()
    assert call(kubelet.socket, LIST, b"", 5) == b""


def test_a_socket_that_nobody_serves(tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert refusal(path) == "absent"


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 64, b"\xff" * 64])
def test_what_is_no_grpc_server_is_broken(tmp_path: Path, says: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(says)

    with a_server(tmp_path / "odd.sock", serve):
        assert refusal(tmp_path / "odd.sock") == "broken"


def test_one_that_trickles_is_cut_off_at_the_deadline(tmp_path: Path) -> None:
    """Each byte comes in time; all of them together do not."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        # the beginning of a frame of settings, which never ends
        for byte in b"\x00\x40\x00\x04\x00\x00\x00\x00\x00" + b"\x00" * 10_000:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            if over.wait(0.01):
                break

    with a_server(tmp_path / "slow.sock", serve):
        assert refusal(tmp_path / "slow.sock", timeout_s=0.4) == "deadline_exceeded"
        over.set()
