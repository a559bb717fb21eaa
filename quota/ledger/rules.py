"""Arithmetic of the ledger: pure, integers only."""

from __future__ import annotations

from quota.clock import HOUR_MS


def amount_gpu_us(milliseconds: int, gpus: int, rate_thousandths: int) -> int:
    """GPU-microseconds of the reference GPU: milliseconds x GPUs x rate in thousandths, never divided."""
    assert milliseconds >= 0
    assert gpus > 0
    return milliseconds * gpus * rate_thousandths


def won(milliseconds: int, gpus: int, price_krw: int) -> int:
    """Won for a statement line: GPU hours of the class x price, rounded half up once."""
    return (2 * milliseconds * gpus * price_krw + HOUR_MS) // (2 * HOUR_MS)


def hour_marks(starts_at_ms: int, ends_at_ms: int) -> list[int]:
    """Hour marks strictly inside (starts, ends). Asia/Seoul's whole hours are UTC's."""
    first = (starts_at_ms // HOUR_MS + 1) * HOUR_MS
    return list(range(first, ends_at_ms, HOUR_MS))
