"""How busy a simulated workload keeps its GPUs: exact, deterministic means over any interval.

Every profile knows its own integral in closed form, so a sample is the true mean of its interval
and two readers of the same interval always read the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, slots=True)
class Steady:
    """The same utilisation all the time."""

    ratio: float

    def busy_ms(self, elapsed_ms: int) -> float:
        """Milliseconds of full use within the first `elapsed_ms` of the workload."""
        return self.ratio * elapsed_ms


@dataclass(frozen=True, slots=True)
class Ramp:
    """A straight line from `first` to `last` over `span_ms`, then `last`."""

    first: float
    last: float
    span_ms: int

    def busy_ms(self, elapsed_ms: int) -> float:
        """Milliseconds of full use within the first `elapsed_ms` of the workload."""
        rising_ms = min(elapsed_ms, self.span_ms)
        rise = (self.last - self.first) * rising_ms * rising_ms / (2 * self.span_ms) if self.span_ms else 0.0
        return self.first * rising_ms + rise + self.last * (elapsed_ms - rising_ms)


@dataclass(frozen=True, slots=True)
class Burst:
    """Fully busy for the first part of every period, idle for the rest."""

    period_ms: int
    busy_part_ms: int

    def busy_ms(self, elapsed_ms: int) -> float:
        """Milliseconds of full use within the first `elapsed_ms` of the workload."""
        periods, rest_ms = divmod(elapsed_ms, self.period_ms)
        return float(periods * self.busy_part_ms + min(rest_ms, self.busy_part_ms))


@dataclass(frozen=True, slots=True)
class ActiveThenIdle:
    """Fully busy at first, idle for ever after: the forgotten notebook."""

    active_ms: int

    def busy_ms(self, elapsed_ms: int) -> float:
        """Milliseconds of full use within the first `elapsed_ms` of the workload."""
        return float(min(elapsed_ms, self.active_ms))


Load = Steady | Ramp | Burst | ActiveThenIdle

DEFAULT_LOAD = "steady:0.8"


def mean_ratio(load: Load, from_ms: int, until_ms: int) -> float:
    """The mean utilisation between two moments, counted from the start of the workload."""
    assert 0 <= from_ms < until_ms, "a mean needs an interval inside the workload's life"
    return (load.busy_ms(until_ms) - load.busy_ms(from_ms)) / (until_ms - from_ms)


def read_load(text: str, duration_ms: int) -> Load:
    """Read `steady:0.8`, `idle`, `ramp:0.1:0.9`, `burst:PERIOD_S:DUTY` or `active_then_idle:SECONDS`.

    A ramp rises over the workload's own duration. Raises ValueError.
    """
    kind, *words = text.split(":")
    match kind, words:
        case "idle", []:
            return Steady(0.0)
        case "steady", [ratio]:
            return Steady(_ratio(ratio))
        case "ramp", [first, last]:
            return Ramp(_ratio(first), _ratio(last), duration_ms)
        case "burst", [period_s, duty]:
            period_ms = milliseconds(period_s)
            if period_ms == 0:
                raise ValueError("the period of a burst is longer than 0")
            return Burst(period_ms, round(period_ms * _ratio(duty)))
        case "active_then_idle", [active_s]:
            return ActiveThenIdle(milliseconds(active_s))
        case _:
            raise ValueError(
                f"{text!r} is none of steady:R, idle, ramp:R:R, burst:PERIOD_S:R, active_then_idle:SECONDS"
            )


def milliseconds(seconds: str) -> int:
    """Read seconds written as a decimal number, for example `30` or `0.25`. Raises ValueError."""
    value = float(seconds)
    if not isfinite(value) or not 0 <= value <= 1e10:
        raise ValueError(f"{seconds!r} is not a number of seconds from 0 to 1e10")
    return round(value * 1000)


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a ratio from 0 to 1")
    return value
