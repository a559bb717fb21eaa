"""The configuration and the rules are what promtool and Prometheus take, and name only what the contract has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from deploy.prometheus.contract import by_series
from deploy.prometheus.server import HERE, RULES, ServerWish, configure
from tests.prometheus_server import BadQuery, Prometheus, a_prometheus, promtool

pytestmark = pytest.mark.prometheus

SELECTORS = ("vectorSelector", "matrixSelector")
OWN_LABELS = {"job", "instance", "le", "__name__"}
"""What Prometheus itself adds, and a histogram's bucket."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with a_prometheus(tmp_path_factory.mktemp("prometheus"), {}) as started:
        yield started


def rules() -> list[dict[str, Any]]:
    documents = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for one in documents for group in one["groups"] for rule in group["rules"]]


def wrong_in(tree: dict[str, Any], known: dict[str, set[str]]) -> list[str]:
    """What an expression names that nobody serves: series, and labels that a series does not have."""
    wrong = []
    for node in nodes_of(tree):
        if node.get("type") in SELECTORS:
            name = node["name"]
            if name not in known:
                wrong.append(f"no series {name}")
                continue
            labels = {one["name"] for one in node["matchers"]} - OWN_LABELS
            wrong.extend(f"{name} has no label {label}" for label in sorted(labels - known[name]))
        wanted = set(node.get("grouping") or ()) | set((node.get("matching") or {}).get("labels") or ())
        below = {one["name"] for one in nodes_of(node) if one.get("type") in SELECTORS}
        there = OWN_LABELS.union(*(known.get(name, set()) for name in below))
        wrong.extend(f"no label {label} in {sorted(below)}" for label in sorted(wanted - there))
    return wrong


def nodes_of(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from nodes_of(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes_of(value)


def known_series() -> dict[str, set[str]]:
    """Labels by series: those of the contract, Prometheus' own, and what the recording rules make."""
    known = {name: {*family.labels, *family.optional} for name, family in by_series().items()}
    every = set().union(*known.values())
    recorded = {rule["record"]: every for rule in rules() if "record" in rule}
    return {"up": set(), **known, **recorded}


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    configuration = configure(tmp_path, ServerWish({"quota": ["127.0.0.1:1"]}, token="t"))
    said = promtool("check", "config", configuration)
    assert said.returncode == 0, said.stdout
    assert "FAILED" not in said.stdout
    said = promtool("check", "config", "--syntax-only", HERE / "prometheus-kubernetes.yml")
    assert said.returncode == 0, said.stdout


def test_promtool_takes_the_rules_without_a_complaint() -> None:
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert said.returncode == 0, said.stdout


def test_promtool_refuses_a_rule_that_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    text = RULES[0].read_text()
    broken.write_text(text.replace("max(up", "maximum(up", 1))
    assert broken.read_text() != text
    assert promtool("check", "rules", broken).returncode != 0


def test_rules_name_only_what_the_contract_has(prometheus: Prometheus) -> None:
    known = known_series()
    wrong = {
        rule.get("alert") or rule["record"]: found
        for rule in rules()
        if (found := wrong_in(prometheus.parse(rule["expr"]), known))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("hub_quota_grant_limits", "no series hub_quota_grant_limits"),
        ("rate(hub_gpu_busy_second_total[5m])", "no series hub_gpu_busy_second_total"),
        ('hub_sched_gpus{status="free"}', "hub_sched_gpus has no label status"),
        ("sum by (team) (hub_sched_queue_jobs)", "no label team in ['hub_sched_queue_jobs']"),
        (
            "hub_gpu_up * on (gpu) group_left () hub_gpu_allocated",
            "no label gpu in ['hub_gpu_allocated', 'hub_gpu_up']",
        ),
    ],
)
def test_a_name_that_nobody_serves_is_found(prometheus: Prometheus, expression: str, complaint: str) -> None:
    assert complaint in wrong_in(prometheus.parse(expression), known_series())


def test_every_rule_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    prometheus.await_rules()
    loaded = {rule["name"] for rule in prometheus.rules()}
    assert loaded == {rule.get("alert") or rule["record"] for rule in rules()}


def test_a_question_that_is_wrong_is_told(prometheus: Prometheus) -> None:
    with pytest.raises(BadQuery, match="parse error"):
        prometheus.query("sum by")


def test_templates_name_only_labels_that_the_alert_has(prometheus: Prometheus) -> None:
    """A label that the expression takes away would be an empty word in the text."""
    for rule in rules():
        if "alert" not in rule:
            continue
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        case = (HERE / f"cases/{rule['alert']}.yml").read_text()
        shown = set(re.findall(r"(\w+): ", " ".join(re.findall(r"exp_labels: \{(.*)\}", case))))
        assert named <= shown, rule["alert"]
