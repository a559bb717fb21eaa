"""Labelled load profiles of jobs, minute by minute, from fixed seeds. They know nothing of the rules.

`idle_from` says from which minute on none of the GPUs does any work any more; None: it works until the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

MINUTE_MS = 60_000
Busy = list[float]
"""Busy milliseconds of one GPU in each minute."""


@dataclass(frozen=True)
class Profile:
    """What a job's GPUs did, and what of it an agent saw."""

    name: str
    gpus: list[Busy]
    idle_from: int | None
    interactive: bool = False
    unseen: list[set[int]] = field(default_factory=list)
    """Per GPU, the minutes that nobody measured."""

    @property
    def minutes(self) -> int:
        """How long it runs."""
        return len(self.gpus[0])

    def seen(self, gpu: int, minute: int) -> bool:
        """Whether that minute of that GPU was measured."""
        return not self.unseen or minute not in self.unseen[gpu]


def profile(name: str, seed: int) -> Profile:
    """The profile of this name and seed."""
    return MAKERS[name](name, random.Random(f"{name} {seed}"))


# --- noise: what an idle GPU shows ---------------------------------------------------------------------


def _noise(rng: random.Random, minutes: int) -> Busy:
    """Nothing, a small steady part, or ticks of monitoring; at most 0.5 % in the mean."""
    match rng.choice(("none", "steady", "random", "ticks")):
        case "none":
            return [0.0] * minutes
        case "steady":
            part = rng.uniform(0.0001, 0.005)
            return [part * MINUTE_MS] * minutes
        case "random":
            most = rng.uniform(0.0005, 0.01)
            return [rng.uniform(0, most) * MINUTE_MS for _ in range(minutes)]
        case _:
            every, tick = rng.randint(1, 15), rng.uniform(50, 200)
            tick = min(tick * every, 2000.0)
            return [tick if minute % every == 0 else 0.0 for minute in range(minutes)]


def _work(busy: Busy, rng: random.Random, begin: int, end: int, low: float, high: float) -> None:
    """Steady work between two minutes."""
    for minute in range(max(0, begin), min(end, len(busy))):
        busy[minute] = rng.uniform(low, high) * MINUTE_MS


def _burst(busy: Busy, rng: random.Random, minute: int, seconds: float, share: float) -> None:
    """Some seconds of work that may lie across minutes."""
    left, offset = seconds * 1000, rng.uniform(0, MINUTE_MS)
    while left > 0 and minute < len(busy):
        here = min(left, MINUTE_MS - offset)
        busy[minute] = min(MINUTE_MS, busy[minute] + here * share)
        left, offset, minute = left - here, 0.0, minute + 1


# --- who works -----------------------------------------------------------------------------------------


def _training_steady(name: str, rng: random.Random) -> Profile:
    busy = _noise(rng, rng.randint(120, 900))
    low = rng.uniform(0.1, 0.8)
    _work(busy, rng, rng.randint(0, 30), len(busy), low, min(1.0, low + 0.3))
    return Profile(name, [busy], None)


def _training_with_gaps(name: str, rng: random.Random) -> Profile:
    """Data loading that stalls, between epochs or within them."""
    busy = _noise(rng, rng.randint(400, 1200))
    minute, longest = rng.randint(0, 60), rng.choice((5, 30, 120, 240))
    while minute < len(busy):
        works = rng.randint(1, 120)
        _work(busy, rng, minute, minute + works, 0.2, 1.0)
        minute += works + rng.randint(1, longest)
    return Profile(name, [busy], None)


def _periodic_evaluation(name: str, rng: random.Random) -> Profile:
    busy = _noise(rng, rng.randint(500, 1200))
    every, seconds, share = rng.randint(5, 240), rng.uniform(25, 180), rng.uniform(0.6, 1)
    for minute in range(rng.randint(1, 100), len(busy), every):
        _burst(busy, rng, minute + rng.randint(0, min(every // 4, 20)), seconds, share)
    return Profile(name, [busy], None)


def _checkpoint_bursts(name: str, rng: random.Random) -> Profile:
    """Long work on the CPU with short bursts of the GPU."""
    busy = _noise(rng, rng.randint(500, 1200))
    minute = rng.randint(1, 100)
    while minute < len(busy):
        _burst(busy, rng, minute, rng.uniform(16, 45), rng.uniform(0.9, 1))
        minute += rng.randint(10, 270)
    return Profile(name, [busy], None)


def _long_preprocessing(name: str, rng: random.Random) -> Profile:
    busy = _noise(rng, rng.randint(300, 900))
    begin = rng.randint(20, 110)
    _work(busy, rng, begin, len(busy), 0.2, 1.0)
    if rng.random() < 0.3:  # the model is tried out first
        _burst(busy, rng, rng.randint(0, 5), rng.uniform(5, 40), rng.uniform(0.1, 1))
    return Profile(name, [busy], None)


def _inference_low(name: str, rng: random.Random) -> Profile:
    """A loaded model that is asked now and then: memory full, utilization low."""
    busy = _noise(rng, rng.randint(400, 1200))
    part, service_s = rng.uniform(0.01, 0.09), rng.uniform(0.2, 8)
    per_minute = part * 60 / service_s
    for minute in range(len(busy)):
        requests = sum(rng.random() < per_minute / 20 for _ in range(20))
        if per_minute > 20:
            requests = round(per_minute * rng.uniform(0.7, 1.3))
        busy[minute] = min(MINUTE_MS, busy[minute] + requests * service_s * 1000 * rng.uniform(0.5, 1.5))
    return Profile(name, [busy], None)


def _inference_with_nights(name: str, rng: random.Random) -> Profile:
    busy = _noise(rng, rng.randint(800, 1400))
    day, night = rng.randint(120, 500), rng.randint(60, 250)
    part = rng.uniform(0.01, 0.2)
    for minute in range(len(busy)):
        if minute % (day + night) < day:
            busy[minute] = part * rng.uniform(0.3, 1.7) * MINUTE_MS
    return Profile(name, [busy], None)


def _one_busy_rank(name: str, rng: random.Random) -> Profile:
    minutes, gpus = rng.randint(400, 700), rng.randint(2, 4)
    ranks = [_noise(rng, minutes) for _ in range(gpus)]
    _work(rng.choice(ranks), rng, rng.randint(0, 60), minutes, 0.05, 1.0)
    return Profile(name, ranks, None)


def _ranks_in_turn(name: str, rng: random.Random) -> Profile:
    """Pipeline stages that work one after the other: each is idle for long, all together never."""
    minutes, gpus = rng.randint(400, 900), rng.randint(2, 4)
    ranks = [_noise(rng, minutes) for _ in range(gpus)]
    minute, turn = rng.randint(0, 30), 0
    while minute < minutes:
        works = rng.randint(30, 200)
        _work(ranks[turn % gpus], rng, minute, minute + works, 0.2, 1.0)
        minute, turn = minute + works + rng.randint(0, 30), turn + 1
    return Profile(name, ranks, None)


def _notebook_with_pauses(name: str, rng: random.Random) -> Profile:
    busy = _noise(rng, rng.randint(120, 480))
    minute = rng.randint(0, 20)
    while minute < len(busy):
        seconds = rng.choice((rng.uniform(15, 60), rng.uniform(60, 1200)))
        _burst(busy, rng, minute, seconds, rng.uniform(0.9, 1) if seconds < 30 else rng.uniform(0.5, 1))
        minute += int(seconds / 60) + rng.randint(1, 50)
    return Profile(name, [busy], None, interactive=True)


def _working_through_outages(name: str, rng: random.Random) -> Profile:
    """Nobody sees some of the work; what is seen between may be idle for hours."""
    made = rng.choice((_training_with_gaps, _periodic_evaluation, _long_preprocessing, _one_busy_rank))(
        name, rng
    )
    return Profile(name, made.gpus, None, unseen=_outages(rng, len(made.gpus), made.minutes))


def _work_only_unseen(name: str, rng: random.Random) -> Profile:
    """Idle for long whenever somebody looks: it works while the agent is away for an hour or more."""
    busy = _noise(rng, rng.randint(600, 1200))
    minute, gaps = rng.randint(5, 100), set[int]()
    while minute < len(busy):
        away = rng.randint(60, 120)
        _work(busy, rng, minute + 5, minute + away - 5, 0.3, 1.0)
        gaps |= set(range(minute, minute + away))
        minute += away + rng.randint(60, 240)
    return Profile(name, [busy], None, unseen=[gaps])


# --- who does not ----------------------------------------------------------------------------------------


def _never_active(name: str, rng: random.Random) -> Profile:
    return Profile(name, [_noise(rng, rng.randint(240, 700))], 0)


def _active_once(name: str, rng: random.Random) -> Profile:
    works = rng.randint(1, 300)
    busy = _noise(rng, works + rng.randint(420, 900))
    _work(busy, rng, 0, works, 0.3, 1.0)
    return Profile(name, [busy], works)


def _crashed_but_alive(name: str, rng: random.Random) -> Profile:
    """It trained with gaps, then its process hung; the container runs on."""
    trained = _training_with_gaps(name, rng).gpus[0][: rng.randint(60, 400)]
    while trained and trained[-1] < 0.05 * MINUTE_MS:
        trained.pop()
    busy = trained + _noise(rng, rng.randint(420, 700))
    return Profile(name, [busy], len(trained))


def _stray_sample(name: str, rng: random.Random) -> Profile:
    """Idle from the start, but for samples of the driver that are wrong: one each few hours, of at most 9 seconds."""
    busy = [0.0] * rng.randint(400, 700)
    for minute in range(rng.randint(0, 100), len(busy), rng.randint(90, 240)):
        busy[minute] = rng.uniform(1000, 9000)
    return Profile(name, [busy], 0)


def _forgotten_notebook(name: str, rng: random.Random) -> Profile:
    works = rng.randint(1, 180)
    busy = _notebook_with_pauses(name, rng).gpus[0][:works]
    while busy and busy[-1] < 0.05 * MINUTE_MS:
        busy.pop()
    idle_from = len(busy)
    return Profile(name, [busy + _noise(rng, rng.randint(120, 500))], idle_from, interactive=True)


def _idle_gang(name: str, rng: random.Random) -> Profile:
    gpus, works, after = rng.randint(2, 4), rng.randint(0, 200), rng.randint(420, 600)
    ranks = []
    for _ in range(gpus):
        busy = _noise(rng, works + after)
        _work(busy, rng, 0, rng.randint(works // 2, works), 0.3, 1.0)
        ranks.append(busy)
    _work(ranks[0], rng, 0, works, 0.3, 1.0)
    return Profile(name, ranks, works)


def _idle_through_outages(name: str, rng: random.Random) -> Profile:
    """Idle, with outages of minutes: what is missing is too little to leave doubt for long."""
    made = rng.choice((_never_active, _active_once, _idle_gang))(name, rng)
    unseen = [
        {minute for _ in range(rng.randint(0, 3)) for minute in _span(rng, made.minutes, 6)}
        for _ in made.gpus
    ]
    return Profile(name, made.gpus, made.idle_from, unseen=unseen)


def _span(rng: random.Random, minutes: int, longest: int) -> range:
    begin = rng.randrange(minutes)
    return range(begin, begin + rng.randint(1, longest))


def _outages(rng: random.Random, gpus: int, minutes: int) -> list[set[int]]:
    """Of one node's agent, or of several nodes' at different times; from a minute to four hours."""
    shared = {minute for _ in range(rng.randint(1, 4)) for minute in _span(rng, minutes, 240)}
    own = [
        {minute for _ in range(rng.randint(0, 2)) for minute in _span(rng, minutes, 60)} for _ in range(gpus)
    ]
    return [shared | each for each in own]


MAKERS: dict[str, Callable[[str, random.Random], Profile]] = {
    "training steady": _training_steady,
    "training with gaps": _training_with_gaps,
    "periodic evaluation": _periodic_evaluation,
    "checkpoint bursts": _checkpoint_bursts,
    "long preprocessing": _long_preprocessing,
    "memory full, utilization low": _inference_low,
    "inference with nights": _inference_with_nights,
    "gang with one busy rank": _one_busy_rank,
    "ranks in turn": _ranks_in_turn,
    "notebook with pauses": _notebook_with_pauses,
    "working through outages": _working_through_outages,
    "work only while unseen": _work_only_unseen,
    "never active": _never_active,
    "active once, idle after": _active_once,
    "crashed but alive": _crashed_but_alive,
    "stray samples": _stray_sample,
    "forgotten notebook": _forgotten_notebook,
    "idle gang": _idle_gang,
    "idle through outages": _idle_through_outages,
}
WORKING = frozenset(list(MAKERS)[:12])
