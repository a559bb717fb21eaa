"""Every alert has a case that promtool plays, and a case fails when its alert is changed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from deploy.prometheus.server import HERE
from tests.prometheus_server import promtool

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(300)]

Alert = dict[str, Any]
_COMPARED = re.compile(r"(>|<|==) (\d+(?:\.\d+)?)")


def alerts() -> list[Alert]:
    found = yaml.safe_load((HERE / "rules/alerts.yml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def failing(cases: Path, alerts: set[str]) -> set[str]:
    """Of these alerts, those whose cases fail."""
    said = promtool("test", "rules", *(cases / f"{alert}.yml" for alert in sorted(alerts)))
    outcomes = re.findall(r"^  (SUCCESS|FAILED)", said.stdout, re.MULTILINE)
    found = dict(zip(sorted(alerts), outcomes, strict=True))
    failed = {alert for alert, outcome in found.items() if outcome == "FAILED"}
    assert (said.returncode != 0) == bool(failed)
    return failed


def failing_after(folder: Path, change: Callable[[Alert], bool]) -> tuple[set[str], set[str]]:
    """(the alerts that were changed, the alerts whose cases fail then)."""
    shutil.copytree(HERE / "cases", folder / "cases")
    shutil.copytree(HERE / "rules", folder / "rules")
    document = yaml.safe_load((folder / "rules/alerts.yml").read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    changed = {rule["alert"] for rule in rules if change(rule)}
    (folder / "rules/alerts.yml").write_text(yaml.safe_dump(document))
    return changed, failing(folder / "cases", changed)


def test_each_alert_has_a_case_that_holds() -> None:
    names = {rule["alert"] for rule in alerts()}
    assert names == {path.stem for path in (HERE / "cases").glob("*.yml")}
    assert failing(HERE / "cases", names) == set()


def test_each_case_evaluates_the_groups_in_the_order_of_their_files() -> None:
    """Groups that are not named are evaluated at random: one that needs another would sometimes miss it."""
    files = (HERE / "rules/recording.yml", HERE / "rules/alerts.yml")
    names = [group["name"] for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    for rule in alerts():
        case = yaml.safe_load((HERE / f"cases/{rule['alert']}.yml").read_text())
        assert case["group_eval_order"] == names


def test_each_case_fires_stays_silent_and_recovers() -> None:
    for rule in alerts():
        tests = yaml.safe_load((HERE / f"cases/{rule['alert']}.yml").read_text())["tests"]
        checks = [[bool(one["exp_alerts"]) for one in test["alert_rule_test"]] for test in tests]
        assert any(True in one and False in one[one.index(True) :] for one in checks), (
            f"{rule['alert']} recovers"
        )
        assert any(one[0] is False for one in checks), f"{rule['alert']} is silent first"
        assert any(not any(one) for one in checks) or rule["alert"] in NEVER_BELOW, rule["alert"]


NEVER_BELOW = {"LedgerFinding"}
"""One finding is enough, so there is nothing just below; findings of other kinds are in its one test."""


def severity(rule: Alert) -> bool:
    rule["labels"]["severity"] = "planted"
    return True


def longer(rule: Alert) -> bool:
    rule["for"] = "9h"
    return True


def at_once(rule: Alert) -> bool:
    return rule.pop("for", None) is not None


@pytest.mark.parametrize("change", [severity, longer, at_once], ids=lambda one: one.__name__)
def test_an_alert_that_tells_otherwise_fails_its_case(
    tmp_path: Path, change: Callable[[Alert], bool]
) -> None:
    changed, failed = failing_after(tmp_path, change)
    assert len(changed) > 15
    assert failed == changed


def moved(position: int, how: Callable[[str, float], str]) -> Callable[[Alert], bool]:
    """Change the comparison with a number at this position, where there is one."""

    def change(rule: Alert) -> bool:
        found = list(_COMPARED.finditer(rule["expr"]))
        if position >= len(found):
            return False
        one = found[position]
        rule["expr"] = rule["expr"][: one.start()] + how(one[1], float(one[2])) + rule["expr"][one.end() :]
        return True

    return change


def tighter(sign: str, number: float) -> str:
    """It fires a little sooner; what was compared for equality with nothing, always."""
    if sign == "==":
        return f">= {number}"
    if number == 0:
        return f"{sign} -0.5"
    return f"{sign} {number * (0.95 if sign == '>' else 1.05):.6g}"


def looser(sign: str, number: float) -> str:
    """It fires later by a factor of three; what was compared with nothing, never."""
    if number == 0:
        return f"{sign} 1000000000"
    return f"{sign} {number * (3 if sign == '>' else 1 / 3):.6g}"


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("how", [tighter, looser], ids=lambda one: one.__name__)
def test_an_alert_with_another_threshold_fails_its_case(
    tmp_path: Path, position: int, how: Callable[[str, float], str]
) -> None:
    changed, failed = failing_after(tmp_path, moved(position, how))
    assert changed
    assert failed == changed


def test_no_alert_compares_more_often_than_is_tried() -> None:
    counts = {rule["alert"]: len(_COMPARED.findall(rule["expr"])) for rule in alerts()}
    assert max(counts.values()) <= 3
    assert min(counts.values()) >= 1, "each has a threshold that the test above moves"
