"""The contract of metrics: its page, its names, its runbooks, and a judge that finds what breaks it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from deploy.prometheus.contract import CONTRACTS, page
from deploy.prometheus.server import HERE
from quota.exposition import Family, Kind, counter, gauge, histogram, info
from tests.metric_contract import breaches, served_families

ROOT = Path(__file__).parents[3]
PREFIXES = {"quota": ("hub_quota_",), "scheduler": ("hub_sched_",), "agent": ("hub_gpu_", "hub_agent_")}


def test_page_is_what_make_docs_writes() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == page(), "run: make docs"


def test_names_are_unique_and_say_whose_they_are() -> None:
    names = [family.name for one in CONTRACTS for family in one.families]
    assert len(names) == len(set(names))
    for one in CONTRACTS:
        assert all(family.name.startswith(PREFIXES[one.job]) for family in one.families), one.job


def test_labels_are_those_that_are_bounded() -> None:
    """A job is a label only of what an agent sees running, and of the series that says whose it is; no histogram has
    an organization.
    """
    for one in CONTRACTS:
        for family in one.families:
            labels = {*family.labels, *family.optional}
            assert not labels & {"job", "instance", "pod", "namespace", "team", "user", "image"}, family.name
            if "job_id" in labels:
                is_join = family.name in ("hub_quota_attempt_gpus", "hub_gpu_allocation_info")
                assert is_join or family.name.startswith("hub_gpu_workload_"), family.name
            if family.kind is Kind.HISTOGRAM:
                assert "organization" not in labels, family.name


def test_a_name_that_does_not_say_its_type_is_refused() -> None:
    with pytest.raises(AssertionError, match="hub_x_total"):
        gauge("hub_x_total", "A gauge.")
    with pytest.raises(AssertionError, match="hub_x"):
        counter("hub_x", "A counter.")


def test_units_come_from_names() -> None:
    units = {
        name: Family(name, Kind.COUNTER if name.endswith("_total") else Kind.GAUGE, "").unit
        for name in ("hub_a_gpu_seconds_total", "hub_a_timestamp_seconds", "hub_a_seconds", "hub_a_jobs")
    }
    assert list(units.values()) == ["seconds of the reference GPU", "seconds since 1970", "seconds", ""]


SERVED = (
    gauge("hub_a", "A.", "state"),
    counter("hub_b_total", "B."),
    histogram("hub_c_seconds", "C."),
    info("hub_d_info", "D.", "node", optional=("serial",)),
)
TEXT = """\
# HELP hub_a A.
# TYPE hub_a gauge
hub_a{state="x"} 1
# HELP hub_b_total B.
# TYPE hub_b_total counter
hub_b_total 2
# HELP hub_c_seconds C.
# TYPE hub_c_seconds histogram
hub_c_seconds_bucket{le="1"} 1
hub_c_seconds_bucket{le="+Inf"} 1
hub_c_seconds_count 1
hub_c_seconds_sum 0.5
# HELP hub_d_info D.
# TYPE hub_d_info gauge
hub_d_info{node="n",serial="1"} 1
"""


def test_what_is_served_as_declared_is_no_breach() -> None:
    assert breaches(TEXT, SERVED) == []
    assert served_families(TEXT) == {family.name for family in SERVED}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("# HELP hub_a A.", "# HELP hub_z Z.\n# TYPE hub_z gauge\nhub_z 1\n# HELP hub_a A.", "hub_z is not declared"),
        ("hub_a gauge", "hub_a counter", "hub_a_total is not declared"),
        ("hub_c_seconds histogram", "hub_c_seconds summary", "hub_c_seconds is a summary, declared as histogram"),
        ('hub_a{state="x"}', "hub_a", "hub_a has labels []"),
        ("hub_b_total 2", 'hub_b_total{organization="o"} 2', "hub_b_total has labels ['organization']"),
        ('hub_d_info{node="n",serial="1"}', 'hub_d_info{serial="1"}', "hub_d_info has labels ['serial']"),
        ('node="n",serial', 'node="n",driver', "hub_d_info has labels ['driver', 'node']"),
        ("A.\n", "Another.\n", "hub_a tells another meaning"),
        ('hub_a{state="x"} 1', 'hub_a{state="x"} 1\nhub_a{state="x"} 2', "hub_a has {'state': 'x'} twice"),
    ],
)  # fmt: skip
def test_what_is_served_otherwise_is_a_breach(old: str, new: str, complaint: str) -> None:
    changed = TEXT.replace(old, new, 1)
    assert changed != TEXT
    assert complaint in breaches(changed, SERVED)


def alerts() -> list[dict[str, dict[str, str]]]:
    found = yaml.safe_load((HERE / "rules/alerts.yml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def test_each_alert_has_its_runbook_and_no_runbook_is_left_over() -> None:
    runbooks = (ROOT / "docs/runbooks.md").read_text()
    paragraphs = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=\n\n|\Z)", runbooks, re.MULTILINE | re.DOTALL))
    assert set(paragraphs) == {rule["alert"] for rule in alerts()}
    for rule in alerts():
        name = str(rule["alert"])
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
        assert len(paragraphs[name]) > 150, f"{name} says what to do"


def test_each_alert_is_as_urgent_as_runbooks_know() -> None:
    assert {rule["labels"]["severity"] for rule in alerts()} == {"critical", "warning", "info"}


def test_series_that_runbooks_name_exist() -> None:
    declared = {
        name for one in CONTRACTS for family in one.families for name in (family.name, *family.series)
    }
    recorded = re.findall(r"record: (\S+)", (HERE / "rules/recording.yml").read_text())
    text = (ROOT / "docs/runbooks.md").read_text()
    named = set(re.findall(r"`(hub_\w+|\w+:\w+:\w+)`", text))
    assert named <= declared | set(recorded)
