"""What an address tells before anybody is called there; for the clients, and for the service where it calls others."""

from __future__ import annotations


def is_encrypted(url: str) -> bool:
    """Whether calls to `url` speak TLS. Where they do not, no certificate is judged, and reading the roots that it
    would be judged by, some 40 ms of every command's start, is spared.
    """
    return not url.lower().startswith("http:")
