"""Who is who in the control plane: a CA, the certificates that it signed, and a token for each caller.

Made once per folder and kept, so that a kubeconfig stays valid over restarts. Only the owner can read them.
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.datadir import HOST, write_private_bytes

VALID = timedelta(days=3650)
SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
"""What the `kubernetes` service gets: the first address of the network."""

CALLERS = {
    "admin": "system:masters",
    "kwok": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}
"""Every user with its group; RBAC knows the last two by their names."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files, and the tokens by user."""

    ca: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    """The API server's, towards etcd."""
    client_key: Path
    service_account_key: Path
    token_file: Path
    tokens: dict[str, str]


def prepare_credentials(folder: Path, now: datetime) -> Credentials:
    """The credentials kept in `folder`; what is missing is made."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = Credentials(
        ca=folder / "ca.crt",
        server_certificate=folder / "server.crt",
        server_key=folder / "server.key",
        client_certificate=folder / "client.crt",
        client_key=folder / "client.key",
        service_account_key=folder / "service-account.key",
        token_file=folder / "tokens.csv",
        tokens=_known_tokens(folder / "tokens.csv"),
    )
    # Written last, so its presence says that all are there.
    if not made.client_certificate.exists():
        _make_certificates(made, now)
    if not made.service_account_key.exists():
        write_private_bytes(made.service_account_key, _pem(_new_key()))
    for user in CALLERS:
        made.tokens.setdefault(user, secrets.token_hex(32))
    write_private_bytes(made.token_file, "".join(_token_line(made, user) for user in CALLERS).encode())
    return made


def _known_tokens(token_file: Path) -> dict[str, str]:
    try:
        lines = token_file.read_text().splitlines()
    except FileNotFoundError:
        return {}
    rows = [line.split(",") for line in lines]
    return {row[1]: row[0] for row in rows if len(row) >= 3}


def _token_line(made: Credentials, user: str) -> str:
    group = CALLERS[user]
    return f"{made.tokens[user]},{user},{user}" + (f",{group}\n" if group else "\n")


def _make_certificates(made: Credentials, now: datetime) -> None:
    ca_key = _new_key()
    ca = (
        _builder("gpuhub control plane CA", "gpuhub control plane CA", ca_key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private_bytes(made.ca, ca.public_bytes(serialization.Encoding.PEM))
    for common_name, use, certificate, key_file in (
        ("server", ExtendedKeyUsageOID.SERVER_AUTH, made.server_certificate, made.server_key),
        ("kube-apiserver", ExtendedKeyUsageOID.CLIENT_AUTH, made.client_certificate, made.client_key),
    ):
        key = _new_key()
        # etcd's own gateway calls etcd with the server's certificate, so each may be used for both.
        uses = list(dict.fromkeys((use, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)))
        signed = (
            _builder(common_name, "gpuhub control plane CA", key, now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(_names(), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
            )
            .sign(ca_key, hashes.SHA256())
        )
        write_private_bytes(key_file, _pem(key))
        write_private_bytes(certificate, signed.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks that were just set back must not refuse a fresh certificate.
        .not_valid_before(now.astimezone(UTC) - timedelta(hours=1))
        .not_valid_after(now.astimezone(UTC) + VALID)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _names() -> x509.SubjectAlternativeName:
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    return x509.SubjectAlternativeName(
        [
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in (HOST, SERVICE_ADDRESS)),
        ]
    )


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
