"""The client judges certificates wherever calls travel by TLS, and reads no authorities where they do not."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.controlplane.credentials import prepare_credentials
from quota.addresses import is_encrypted
from quota.client import QuotaClient, ServiceUnavailable


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[int]:
    """The port of a TLS server whose certificate no authority of this machine has signed."""
    made = prepare_credentials(tmp_path, datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server_certificate, made.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    with line, suppress(OSError), context.wrap_socket(line, server_side=True) as secured:
                        secured.recv(65536)
                        secured.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "Https"])
def test_a_certificate_that_nobody_vouches_for_is_refused(stranger: int, scheme: str) -> None:
    with (
        QuotaClient(f"{scheme}://127.0.0.1:{stranger}", "token", timeout_s=10) as client,
        pytest.raises(ServiceUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.read_clock()


@pytest.mark.parametrize(
    ("url", "encrypted"),
    [
        ("http://hub.example", False),
        ("HTTP://hub.example:8080", False),
        ("https://hub.example", True),
        ("HTTPS://hub.example", True),
        ("httpx://hub.example", True),
        ("hub.example", True),
        ("", True),
    ],
)
def test_only_plain_http_goes_without_certificates(url: str, encrypted: bool) -> None:
    assert is_encrypted(url) is encrypted
