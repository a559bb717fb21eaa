"""The kubeconfig files: how a caller finds the API server and proves who it is. JSON, which is YAML too."""

from __future__ import annotations

import base64


def kubeconfig(url: str, ca: bytes, user: str, token: str) -> dict[str, object]:
    """A kubeconfig that needs no other file."""
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gpuhub", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "gpuhub", "context": {"cluster": "gpuhub", "user": user}}],
        "current-context": "gpuhub",
    }
