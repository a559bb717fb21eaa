"""Who held which GPU when: turns a reading's holders into spans. Pure.

Spans of one GPU do not overlap, but for those that are `shared`: of a GPU cut into replicas, while several attempts,
or one and a pod that is not the hub's, hold it. One attempt's spans never overlap each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from agents.model import Holding, NodeReading, Span

FOREVER_MS = 1 << 62
"""The end of a span that has not ended."""


def spans_by_gpu(reading: NodeReading) -> dict[str, tuple[Span, ...]]:
    """For each GPU that is or was held: its spans in order of time."""
    found: dict[str, list[Span]] = {}
    for past in reading.past:
        span = Span(past.since_ms, past.until_ms, past.job_id, past.attempt)
        found.setdefault(past.gpu_uuid, []).append(span)
    for gpu in reading.gpus:
        if gpu.workload is not None and not reading.holdings:
            held = gpu.workload
            span = Span(held.since_ms, FOREVER_MS, held.job_id, held.attempt)
            found.setdefault(gpu.gpu_uuid, []).append(span)
    spans = {gpu_uuid: _one_holder_at_a_time(spans) for gpu_uuid, spans in found.items()}
    for gpu_uuid, holdings in by_gpu(reading.holdings).items():
        spans[gpu_uuid] = spans_of(holdings)
    return spans


def by_gpu(holdings: Iterable[Holding]) -> dict[str, list[Holding]]:
    """Holdings by GPU, each in the order given."""
    found: dict[str, list[Holding]] = {}
    for holding in holdings:
        found.setdefault(holding.gpu_uuid, []).append(holding)
    return found


def spans_of(holdings: Sequence[Holding]) -> tuple[Span, ...]:
    """The spans of one GPU's holdings; time under pods that are not the hub's is nobody's."""
    claims = [_claim(holding) for holding in holdings]
    if any(holding.replica for holding in holdings):
        return _side_by_side(claims)
    return tuple(span for span in _one_holder_at_a_time(claims) if span.job_id)


def present_of(holdings: Sequence[Holding]) -> tuple[Span, ...]:
    """Who of one GPU's holders holds it on: several if it is shared."""
    return tuple(span for span in spans_of(holdings) if span.until_ms == FOREVER_MS)


def _claim(holding: Holding) -> Span:
    until_ms = FOREVER_MS if holding.until_ms is None else holding.until_ms
    return Span(holding.since_ms, until_ms, holding.job_id, holding.attempt)


def _side_by_side(claims: list[Span]) -> tuple[Span, ...]:
    cuts = sorted({moment for claim in claims for moment in (claim.since_ms, claim.until_ms)})
    made: list[Span] = []
    growing: dict[tuple[str, int, bool], int] = {}
    for since_ms, until_ms in pairwise(cuts):
        here = {
            (claim.job_id, claim.attempt)
            for claim in claims
            if claim.since_ms <= since_ms and until_ms <= claim.until_ms
        }
        shared = len(here) > 1
        grown: dict[tuple[str, int, bool], int] = {}
        for job_id, attempt in sorted(here):
            if not job_id:
                continue
            key = (job_id, attempt, shared)
            if key in growing:
                made[growing[key]] = made[growing[key]]._replace(until_ms=until_ms)
                grown[key] = growing[key]
            else:
                made.append(Span(since_ms, until_ms, job_id, attempt, shared))
                grown[key] = len(made) - 1
        growing = grown
    return tuple(sorted(made))


def _one_holder_at_a_time(spans: list[Span]) -> tuple[Span, ...]:
    if len(spans) == 1:
        return tuple(span for span in spans if span.since_ms < span.until_ms)
    # A node hands a GPU on only when it is free, so of two that claim one moment the later start is right.
    kept: list[Span] = []
    next_since_ms = FOREVER_MS
    for span in sorted(spans, reverse=True):
        until_ms = min(span.until_ms, next_since_ms)
        if span.since_ms < until_ms:
            kept.append(span._replace(until_ms=until_ms))
            next_since_ms = span.since_ms
    return tuple(reversed(kept))
