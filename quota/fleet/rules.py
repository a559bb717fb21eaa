"""What a GPU class costs: pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """One version of a class's rate and price; a hold pins it."""

    id: str
    gpu_class: str
    rate_thousandths: int
    price_krw: int
