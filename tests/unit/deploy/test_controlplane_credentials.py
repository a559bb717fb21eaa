"""Certificates that a client trusts, tokens that stay, and files that only their owner reads."""

from __future__ import annotations

import base64
import http.server
import ipaddress
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from deploy.child import Program
from deploy.controlplane.credentials import CALLERS, Credentials, prepare_credentials
from deploy.controlplane.kubeconfig import kubeconfig
from deploy.supervisor import is_healthy

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def made(tmp_path: Path) -> Credentials:
    return prepare_credentials(tmp_path / "credentials", datetime.now(UTC))


def test_only_the_owner_can_read_them(made: Credentials) -> None:
    files = list(made.ca.parent.iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert made.ca.parent.stat().st_mode & 0o777 == 0o700


def test_second_start_finds_the_same(made: Credentials) -> None:
    before = {path.name: path.read_bytes() for path in made.ca.parent.iterdir()}
    again = prepare_credentials(made.ca.parent, NOW)
    assert again == made
    assert {path.name: path.read_bytes() for path in made.ca.parent.iterdir()} == before


def test_certificates_are_made_anew_when_their_making_was_interrupted(made: Credentials) -> None:
    before = made.ca.read_bytes()
    made.client_certificate.unlink()
    prepare_credentials(made.ca.parent, NOW)
    assert made.client_certificate.exists()
    assert made.ca.read_bytes() != before


def test_every_caller_has_a_token_of_its_own_and_its_group(made: Credentials) -> None:
    assert set(made.tokens) == set(CALLERS)
    assert len(set(made.tokens.values())) == len(CALLERS)
    rows = [line.split(",") for line in made.token_file.read_text().splitlines()]
    assert [made.tokens["admin"], "admin", "admin", "system:masters"] in rows
    assert {row[1] for row in rows if len(row) == 3} == {
        "system:kube-controller-manager",
        "system:kube-scheduler",
    }


def test_server_certificate_names_the_loopback_address_and_the_service(made: Credentials) -> None:
    certificate = x509.load_pem_x509_certificate(made.server_certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)


def test_health_is_asked_over_https_with_the_ca(made: Credentials, tmp_path: Path) -> None:
    class Well(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *parts: object) -> None:
            return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server_certificate, made.server_key)
    other = prepare_credentials(tmp_path / "other", datetime.now(UTC))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Well) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *parts: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}/readyz"
        assert is_healthy(Program("trusted", (), url, health_ca=made.ca))
        assert not is_healthy(Program("foreign", (), url, health_ca=other.ca))
        server.shutdown()


def test_kubeconfig_needs_no_other_file(made: Credentials) -> None:
    found = kubeconfig("https://127.0.0.1:6443", made.ca.read_bytes(), "admin", made.tokens["admin"])
    assert found["users"] == [{"name": "admin", "user": {"token": made.tokens["admin"]}}]
    assert found["clusters"] == [
        {
            "name": "gpuhub",
            "cluster": {
                "server": "https://127.0.0.1:6443",
                "certificate-authority-data": base64.b64encode(made.ca.read_bytes()).decode(),
            },
        }
    ]
    assert found["current-context"] == "gpuhub"
