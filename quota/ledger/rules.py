"""Values and arithmetic of the ledger: pure, integers only."""

from __future__ import annotations

from dataclasses import dataclass

from quota.clock import HOUR_MS
from quota.fleet.rules import Rate


@dataclass(frozen=True, slots=True)
class Leg:
    """What one transfer changes on one account."""

    account_id: str
    d_granted: int = 0
    d_held: int = 0
    d_used: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold as stored: `amount = settled + released + what is still held`."""

    id: str
    job_id: str
    attempt: int
    grant_id: str
    path: tuple[str, ...]
    amount_gpu_us: int
    settled_gpu_us: int
    resolved: bool
    gpus: int
    rate: Rate
    extensions: int = 0
    """How often it was extended; `amount` includes them."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of one attempt's occupied time and who pays for it."""

    starts_at_ms: int
    ends_at_ms: int
    payer: str

    def id_of(self, hold: Hold) -> str:
        """The slice's id, unique by (job, attempt, start)."""
        return f"{hold.job_id}:{hold.attempt}:slice:{self.starts_at_ms}"

    def amount_gpu_us(self, hold: Hold) -> int:
        """What the slice comes to at its hold's GPUs and rate."""
        return amount_gpu_us(self.ends_at_ms - self.starts_at_ms, hold.gpus, hold.rate.rate_thousandths)


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
