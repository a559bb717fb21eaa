"""What a job would cost and when it could start: the answer to `POST /v1/jobs?dry_run=true`."""

from __future__ import annotations

from enum import StrEnum

from quota.schemas.forecasts import EtaBasis
from quota.schemas.scheduling import Waiting
from quota.schemas.values import GpuHoursOut, GpuUs, Instant, Reply


class GrantVerdict(StrEnum):
    """Whether a grant could pay for the job if it started now; of several obstacles the first that binds."""

    CHOSEN = "chosen"
    """It ends first of those that could pay, and of those that end then it has the smallest remainder that suffices."""
    COULD_PAY = "could_pay"
    """It could pay, another one goes before it."""
    NOT_STARTED = "not_started"
    ENDS_FIRST = "ends_first"
    """It ends before the job's time limit; `fitting_walltime_s` is the limit that would fit."""
    NO_OPEN_PATH = "no_open_path"
    """None of its tranches is released."""
    SHORT = "short"
    """It has less left than the job may cost."""
    CAPPED = "capped"
    """With the job it would have more GPUs in use than it may."""


class StartOutlook(StrEnum):
    """When the job could start, as the hub stands now."""

    NOW = "now"
    """There is room, a grant can pay, and no job of its class waits for room: the next cycle starts it."""
    LATER = "later"
    NEVER = "never"
    """No grant lasts, has or allows enough: not even in an empty hub."""


class GrantQuote(Reply):
    """One grant that the job may draw on."""

    grant_id: str
    verdict: GrantVerdict
    starts_at: Instant
    ends_at: Instant
    left_gpu_us: GpuUs
    """Neither used nor held: of its own grant on the best path, of another's grant in the organization's share."""
    left_gpu_hours: GpuHoursOut
    fitting_walltime_s: int | None
    """The longest time limit that would end before the grant, started now; null before the grant starts."""
    gpus_left: int | None
    """How many GPUs more it may have in use; null: no cap, or another's grant, of which a party is not told."""
    could_ever: bool
    """Whether it could pay some day, when what is held now comes back."""


class QuotedCost(Reply):
    """The job at its time limit: the most it may cost, and what is held when it starts."""

    gpu_us: GpuUs
    gpu_hours: GpuHoursOut
    krw: int
    """GPU hours of the class x its price, rounded half up."""
    rate_id: str
    rate_thousandths: int
    price_krw: int


class WaitHistory(Reply):
    """How long jobs like this one waited before their first start; null where there were fewer than five."""

    gpus_from: int
    gpus_to: int
    """Jobs of the same class with this many GPUs in all."""
    days: int
    jobs: int
    """The newest that started in these days, at most 500."""
    median_wait_s: int


class WaitEstimate(Reply):
    """When the job could start. A bound and a look back, not a promise."""

    starts: StartOutlook
    waiting: Waiting | None
    """Why it would wait; null when it would not."""
    waiting_text: str | None = None
    """The same as a sentence, in the language of the request."""
    position: int | None
    """Its place behind the last ranked job of its organization; null when that has none waiting."""
    position_at_worst: int
    """Its place behind everybody who waits."""
    room_at_the_latest: Instant | None
    """By then running attempts must have ended that free enough room, if nothing goes before it; null: unknown."""
    start_by: Instant | None
    """The last moment at which a grant could still pay for the whole time limit."""
    ranked_at: Instant | None
    """When the scheduler ranked the queue that this is read from; null: never yet."""
    ranking_age_s: int | None
    history: WaitHistory | None


class QuotedEta(Reply):
    """When the job is likely to start if it is submitted now: in four of five cases between `low` and `high`. It waits
    as long as jobs like it do that its organization submits soon in the futures that the scheduler last played."""

    low: Instant
    median: Instant
    high: Instant
    basis: EtaBasis
    jobs: int
    """So many jobs of these futures were like it."""
    gpus_from: int
    gpus_to: int | None
    walltime_over_s: int
    walltime_to_s: int | None
    """What like it means: so many GPUs in all (null: and more), time limits over the one and up to the other (null: any
    longer)."""
    as_of: Instant
    """The moment that the futures were played from: what happened since then is not in them."""
    age_s: int


class NoEta(StrEnum):
    """Why a quote tells no ETA."""

    STARTS_NOW = "starts_now"
    """The next cycle starts it, as far as can be seen."""
    NOT_BY_TIME = "not_by_time"
    """It waits for something that time alone does not bring, or could never start: see `waiting`."""
    NO_FORECAST = "no_forecast"
    """The scheduler never published one."""
    FORECAST_TOO_OLD = "forecast_too_old"
    """The last one is older than the day that it foretold."""
    NONE_ALIKE = "none_alike"
    """Its organization submitted too few jobs like it of late, or nobody waited when the last forecast was made."""


class ClassQuote(Reply):
    """What the job would cost on one of the classes that it accepts, and when it could start there."""

    gpu_class: str
    cost: QuotedCost
    grant_id: str | None
    """The grant that would pay if it started there now."""
    could_ever_start: bool
    starts: StartOutlook
    waiting: Waiting | None
    room_at_the_latest: Instant | None


class Quote(Reply):
    """What `POST /v1/jobs` would do with this job. Nothing was stored."""

    dry_run: bool = True
    as_of: Instant
    organization_id: str
    gpu_class: str
    """The class that the rest is about: the first on which it could start now, else where room comes first."""
    gpus: int
    walltime_s: int
    cost: QuotedCost
    grant_id: str | None
    """The grant that would pay if the job started now."""
    program_id: str | None = None
    """Of an opportunistic job the programme that pays instead of the organization's grants: `grants` then is its
    account alone."""
    leaves_within_s: int | None = None
    """An opportunistic job may be stopped at any time: it has to be gone so long after it is told (notice + grace)."""
    payer_text: str | None = None
    """Both as a sentence, in the language of the request."""
    grants: tuple[GrantQuote, ...]
    """In the order in which they are asked."""
    could_ever_start: bool
    estimate: WaitEstimate
    eta: QuotedEta | None = None
    """When it is likely to start if it is submitted now."""
    no_eta: NoEta | None = None
    """Why there is no `eta`."""
    classes: tuple[ClassQuote, ...]
    """Every class that the job accepts, in order of preference."""
