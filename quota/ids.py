"""Identifiers that sort by the time they were made."""

from __future__ import annotations

import secrets

from quota.clock import wall_ms

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """`prefix` and 22 letters: 48 bits of wall milliseconds, 62 random bits. Fit for a Kubernetes name."""
    return _id(prefix, (wall_ms() << 62) | secrets.randbits(62))


def earliest_id(prefix: str, moment_wall_ms: int) -> str:
    """No id that `new_id` made at this wall time or later sorts before this one."""
    return _id(prefix, moment_wall_ms << 62)


def _id(prefix: str, number: int) -> str:
    letters = []
    for _ in range(22):
        number, rest = divmod(number, 32)
        letters.append(_ALPHABET[rest])
    return f"{prefix}-{''.join(reversed(letters))}"
