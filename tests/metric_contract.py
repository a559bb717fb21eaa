"""Judges what a program serves at `/metrics` by the contract; it reads text and shares nothing with the collectors."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from quota.exposition import Family

SERVED_AS = {"counter": "counter", "gauge": "gauge", "histogram": "histogram", "info": "gauge"}
"""The text format knows no info: it is a gauge there."""


def served_families(text: str) -> set[str]:
    """The names of the families in a text, as PromQL knows them."""
    return {_name(family.name, family.type) for family in text_string_to_metric_families(text)}


def breaches(text: str, contract: Iterable[Family]) -> list[str]:
    """What is served otherwise than the contract says: unknown families, other types, other labels, twice the same."""
    declared = {family.name: family for family in contract}
    wrong, seen = [], set()
    for served in text_string_to_metric_families(text):
        name = _name(served.name, served.type)
        family = declared.get(name)
        if family is None:
            wrong.append(f"{name} is not declared")
            continue
        if served.type != SERVED_AS[family.kind.value]:
            wrong.append(f"{name} is a {served.type}, declared as {family.kind.value}")
        if served.documentation != family.meaning:
            wrong.append(f"{name} tells another meaning")
        for sample in served.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            if key in seen:
                wrong.append(f"{sample.name} has {sample.labels} twice")
            seen.add(key)
            labels = set(sample.labels) - ({"le"} if sample.name.endswith("_bucket") else set())
            if not set(family.labels) <= labels <= {*family.labels, *family.optional}:
                wrong.append(f"{sample.name} has labels {sorted(labels)}")
    return wrong


def _name(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name
