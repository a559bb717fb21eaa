"""Who held which GPU when: turns a reading's workloads into spans that never overlap. Pure."""

from __future__ import annotations

from agents.model import NodeReading, Span

FOREVER_MS = 1 << 62
"""The end of a span that has not ended."""


def spans_by_gpu(reading: NodeReading) -> dict[str, tuple[Span, ...]]:
    """For each GPU that is or was held: its spans in order of time, without overlap."""
    found: dict[str, list[Span]] = {}
    for past in reading.past:
        span = Span(past.since_ms, past.until_ms, past.job_id, past.attempt)
        found.setdefault(past.gpu_uuid, []).append(span)
    for gpu in reading.gpus:
        if gpu.workload is not None:
            held = gpu.workload
            span = Span(held.since_ms, FOREVER_MS, held.job_id, held.attempt)
            found.setdefault(gpu.gpu_uuid, []).append(span)
    return {gpu_uuid: _one_holder_at_a_time(spans) for gpu_uuid, spans in found.items()}


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
