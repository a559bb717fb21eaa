"""The numbers that a cycle follows, chosen by people and changed without a release."""

from dataclasses import dataclass

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Policy:
    """How the core weighs history, lag and silence. Business milliseconds throughout."""

    half_life_ms: int = 7 * DAY_MS
    """Usage counts half after this time. It only breaks ties between equal lags."""
    lag_bound_share: float = 0.10
    """A grant is ranked as at most this share of its term behind or ahead of its pace."""
    cluster_unseen_ms: int = 60_000
    """A cluster not seen for longer receives nothing. 60 s of wall time, so scale it by the clock's speed."""
    placement_paused: bool = False
    """Whether people let nothing start anywhere."""
    walltime_step_ms: int = 60_000
    """The walltime that would fit a grant is told in whole steps, so that it does not change every cycle."""
